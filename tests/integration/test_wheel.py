"""A wheel carries everything: outside the checkout, the verbs compose and the worker is found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.world
CHECKOUT = Path(__file__).resolve().parents[2]
SOURCES = ("roberta_dist", "conf", "launch", "setup.py", "pyproject.toml", "README.md", "LICENSE")


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=environ, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A clean environment with the wheel in it; its other packages are those of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (CHECKOUT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(CHECKOUT / name, source / name, ignore=ignored)
        elif (CHECKOUT / name).is_file():
            shutil.copy(CHECKOUT / name, source / name)
    built = run(
        sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index",
        "--wheel-dir", folder, source, cwd=folder,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    made = run(sys.executable, "-m", "venv", "--without-pip", folder / "env", cwd=folder)
    assert made.returncode == 0, made.stderr
    python = folder / "env" / "bin" / "python"
    installed = run(
        sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index",
        next(folder.glob("*.whl")), cwd=folder,
    )  # fmt: skip
    assert installed.returncode == 0, installed.stdout + installed.stderr
    packages = run(
        python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder
    )
    ours = sysconfig.get_path("purelib")
    # a .pth line adds the folder behind the environment's own; its .pth files are not followed,
    # so that the editable install of the checkout is not seen
    (Path(packages.stdout.strip()) / "dependencies.pth").write_text(f"{ours}\n")
    return folder


def test_verbs_compose_outside_the_checkout(outside):
    command = outside / "env" / "bin" / "roberta-dist"
    told = run(command, "--help", cwd=outside)
    assert told.returncode == 0 and "prepare" in told.stdout, told.stderr
    for verb in ("pretrain", "launch"):
        composed = run(command, verb, "--cfg", "job", "experiment=roberta_base", cwd=outside)
        assert composed.returncode == 0, composed.stderr
        assert "warmup_steps: 24000" in composed.stdout


def test_it_is_the_wheel_that_runs_and_it_brings_the_worker(outside):
    python = outside / "env" / "bin" / "python"
    script = (
        "import roberta_dist; from roberta_dist.config.load import conf_dir; "
        "from roberta_dist.launcher.machine import worker_script; "
        "print(roberta_dist.__file__, conf_dir(), worker_script(), sep='\\n')"
    )
    told = run(python, "-c", script, cwd=outside)
    assert told.returncode == 0, told.stderr
    paths = told.stdout.split("\n")[:3]
    assert all(path.startswith(str(outside / "env")) for path in paths), paths
    usage = run(python, paths[2], cwd=outside)
    assert usage.returncode == 2 and "RUN/config.yaml" in usage.stderr
