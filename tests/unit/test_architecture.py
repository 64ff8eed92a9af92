"""The house of the project, held by the syntax trees: who may import whom, and how long a file gets."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

PACKAGE = Path(__file__).resolve().parents[2] / "roberta_dist"
ROWS = (
    {"errors", "units"},
    {"config"},
    {"runtime"},
    {"checkpoint", "plan", "report", "launcher"},
    {"corpus", "model", "track"},
    {"stream", "optim", "interop"},
    {"engine"},
    {"evaluate", "export"},
    {"train", "finetune", "predict", "doctor"},
    {"cli"},
)
"""Lowest first. Imports only look down: never up, and never sideways to another package."""

ONLY_IN = {
    "hydra": ("config/load.py",),
    "omegaconf": ("config/load.py",),
    "deepspeed": ("engine/", "doctor.py", "optim/backends.py"),
    "apex": ("optim/backends.py",),
    "flash_attn": ("model/kernels.py",),
    "wandb": ("track/wandb_sink.py",),
    "tiktoken": ("corpus/",),
    "webdataset": ("corpus/",),
    "fsspec": ("corpus/remote.py",),
    "aiohttp": ("corpus/remote.py",),
    "transformers": ("interop/", "export/", "predict/", "finetune/"),
    "matplotlib": ("report/",),
}
"""Library → where in the package it may be imported. The doctor reports on DeepSpeed's operators, and
its optimizers are one backend of ours."""

WITHOUT_TORCH = ("cli", "config", "plan", "report", "launcher", "errors", "units")
MAX_FILE_LINES = 250
MAX_FUNCTION_LINES = 70

FILES = sorted(PACKAGE.rglob("*.py"))


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Dotted names of everything that `path` imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            module = node.module or ""
            yield module
            if module == "roberta_dist":  # `from roberta_dist import units` is one of its modules
                yield from (f"roberta_dist.{alias.name}" for alias in node.names)


def row_of(package: str) -> int:
    return next(row for row, packages in enumerate(ROWS) if package in packages)


def test_every_package_has_its_row():
    placed = set().union(*ROWS) | {"__init__"}
    assert {package_of(path) for path in FILES} <= placed
    assert sum(map(len, ROWS)) == len(set().union(*ROWS))


def test_imports_only_look_down():
    wrong = []
    for path in FILES:
        importer = package_of(path)
        for name in imports(path):
            if not name.startswith("roberta_dist.") or name == "roberta_dist.__version__":
                continue
            imported = name.split(".")[1]
            if imported != importer and row_of(imported) >= row_of(importer):
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not wrong


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_known_in_one_place(library):
    wrong = [
        str(path.relative_to(PACKAGE))
        for path in FILES
        if any(name.split(".")[0] == library for name in imports(path))
        and not str(path.relative_to(PACKAGE)).startswith(ONLY_IN[library])
    ]
    assert not wrong


def test_planner_reporter_and_launcher_start_no_torch():
    modules = [
        ".".join(("roberta_dist", *path.relative_to(PACKAGE).with_suffix("").parts))
        for path in FILES
        if package_of(path) in WITHOUT_TORCH and path.name != "__init__.py"
    ]
    script = (
        "import importlib, sys\n"
        "for module in sys.argv[1:]:\n"
        "    importlib.import_module(module)\n"
        "    heavy = sorted({'torch', 'deepspeed', 'transformers', 'wandb'} & set(sys.modules))\n"
        "    assert not heavy, f'{module} imports {heavy}'\n"
    )
    command = [sys.executable, "-c", script, *modules]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "roberta_dist.launcher.local" in modules


def test_files_and_functions_stay_readable():
    wrong = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        if (lines := text.count("\n")) > MAX_FILE_LINES:
            wrong.append(f"{path.relative_to(PACKAGE)}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                wrong.append(f"{path.relative_to(PACKAGE)}: {node.name} has {lines} lines")
    assert not wrong
