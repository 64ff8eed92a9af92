from __future__ import annotations

from pathlib import Path

import pytest

from roberta_dist.config.roots import DoctorConfig
from roberta_dist.doctor import doctor, free_disk, needed_version, wandb_key

pytestmark = pytest.mark.unit


def test_doctor_tells_what_there_is(capsys):
    assert doctor(DoctorConfig()) == 0
    printed = capsys.readouterr().out
    for name in ("torch", "accelerator", "kernels", "apex", "compiler", "free disk", "W&B"):
        assert f"\n{name} " in printed, name


def test_the_key_is_found_but_never_told(monkeypatch, tmp_path):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert wandb_key() == "no key found"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example:8080")
    for host, found in (
        ("api.wandb.ai", True),
        ("api.forge.coreweave.com", True),
        ("wandb.example", True),
        ("elsewhere.example", False),
    ):
        (tmp_path / "netrc").write_text(f"machine {host} login user password sesame\n")
        (tmp_path / "netrc").chmod(0o600)
        assert wandb_key().startswith("a key is in") == found
        assert "sesame" not in wandb_key()
    monkeypatch.setenv("WANDB_API_KEY", "sesame")
    assert "WANDB_API_KEY" in wandb_key() and "sesame" not in wandb_key()


def test_disk_of_a_folder_that_does_not_exist_yet(tmp_path):
    assert str(tmp_path) in free_disk(tmp_path / "new" / "folder")
    assert free_disk(Path("relative")).count("/") > 1


def test_a_missing_package_is_a_problem():
    assert needed_version("no-such-package-at-all").startswith("PROBLEM")
