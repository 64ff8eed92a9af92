"""What is installed is told apart without running it."""

import sys

import pytest

from roberta_dist.config.model import Attention, KernelsConfig
from roberta_dist.model.kernels import available_kernels, describe_apex, resolve_attention

pytestmark = pytest.mark.unit

EXPLOSIVE = "raise RuntimeError('executed')\n"


def package(folder, parts):
    for part in ("", *parts):
        (folder / "apex" / part).mkdir(parents=True, exist_ok=True)
        (folder / "apex" / part / "__init__.py").write_text(EXPLOSIVE)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("optimizers", "normalization"), "NVIDIA apex"),
        (("lib",), "not NVIDIA's"),
        (("optimizers",), "not NVIDIA's"),
    ],
)
def test_nvidia_s_apex_is_told_from_the_other(tmp_path, monkeypatch, parts, expected):
    package(tmp_path, parts)
    monkeypatch.syspath_prepend(tmp_path)
    assert describe_apex().startswith(expected)
    assert "apex" not in sys.modules


def test_absent_kernels_are_said_to_be_absent(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = available_kernels()
    assert found["apex"] == found["flash_attn"] == "absent"
    assert found["sdpa"].startswith("torch ")


def test_auto_resolves_to_what_can_run():
    assert resolve_attention(KernelsConfig()) is Attention.sdpa
    assert resolve_attention(KernelsConfig(attention=Attention.sdpa)) is Attention.sdpa
