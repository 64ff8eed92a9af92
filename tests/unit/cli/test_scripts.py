"""The shell scripts refuse what cannot work, with a remedy, before they change anything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
CHECKOUT = Path(__file__).resolve().parents[3]
TOOLS = ("bash", "dirname", "cat", "grep", "rm", "find", "sort", "sed", "basename")


@pytest.fixture
def copy(tmp_path):
    """The scripts in a folder of their own, with a blank in its path."""
    folder = tmp_path / "a checkout"
    shutil.copytree(CHECKOUT / "launch", folder / "launch")
    shutil.copy(CHECKOUT / "setup.py", folder)
    return folder


def bash(script: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(script), *arguments], env=os.environ | environ, cwd="/",
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_setup_without_python(copy):
    done = bash(copy / "launch" / "setup.sh", PYTHON="no-such-python")
    assert done.returncode == 2
    assert "no-such-python" in done.stderr and "remedy: install Python 3.10" in done.stderr


def test_setup_with_an_old_python(copy):
    old = executable(copy / "old", '#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.1\nexit 1\n')
    done = bash(copy / "launch" / "setup.sh", PYTHON=str(old))
    assert done.returncode == 2 and "Python 3.8.1 is too old" in done.stderr


def test_setup_without_a_compiler(copy):
    path = copy / "bin"
    path.mkdir()
    for tool in TOOLS:
        (path / tool).symlink_to(shutil.which(tool))
    done = bash(copy / "launch" / "setup.sh", PATH=str(path), PYTHON=sys.executable)
    assert done.returncode == 2, done.stderr
    assert "no C++ compiler" in done.stderr and "build-essential" in done.stderr
    assert not (copy / ".venv").exists()


def test_test_sh_says_what_it_can_run(copy):
    (copy / "tests" / "acceptance").mkdir(parents=True)
    (copy / "tests" / "acceptance" / "some_job.py").touch()
    assert bash(copy / "launch" / "test.sh", "everything").returncode == 2
    for arguments in (["--acceptance"], ["--acceptance", "nothing"]):
        done = bash(copy / "launch" / "test.sh", *arguments)
        assert done.returncode == 2 and "some_job" in done.stderr


def test_ci_calls_the_test_script():
    assert "exec bash launch/test.sh\n" in (CHECKOUT / ".ci" / "run").read_text()


def test_pins_name_no_host_and_no_local_build():
    pins = (CHECKOUT / "launch" / "constraints.txt").read_text()
    assert "\ntorch==2.13.0\n" in pins
    assert not [mark for mark in ("file:", "://", " @ ") if mark in pins]
