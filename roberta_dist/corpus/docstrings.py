"""The embedded source: English documentation found in the running Python.

Language reference topics, docstrings of the standard library and of installed distributions, their
long descriptions and the documentation files they ship. All of it is read as text or parsed by
`ast`; nothing is imported or executed. Order: topics, standard library, installed packages, each
by path, so the same environment gives the same documents in the same order.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import sysconfig
import warnings
from pathlib import Path, PurePosixPath

from roberta_dist.corpus.document import Document, decode, replace_surrogates

DOC_SUFFIXES = (".rst", ".md", ".txt")
MIN_DOCSTRING_CHARACTERS = 80
_SKIPPED_FOLDERS = {"test", "tests", "testing", "idle_test", "lib2to3", "__pycache__", "licenses"}
_SKIPPED_PACKAGES = {"roberta_dist"}
_SKIPPED_FILES = re.compile(
    r"(licen[cs]e|copying|notice|authors|contributors|requirements|top_level|entry_points"
    r"|sources|record|cmakelists|third.?party|vocab|words)",
    re.IGNORECASE,
)
_WORD = re.compile(r"[A-Za-z']+")
_COMMON_WORDS = frozenset(
    re.findall(
        r"\w+",
        "the of to a and in is that for it as be this with are on by or not if an from at can will"
        " which when you has have was all may use used one no any there its into than these only"
        " should must other given each such",
    )
)


def looks_english(text: str) -> bool:
    """Whether enough of the words are the commonest English ones (running prose has 35-50 %)."""
    words = _WORD.findall(text[:20_000])
    common = sum(word.lower() in _COMMON_WORDS for word in words)
    return len(words) >= 8 and common >= 0.15 * len(words)


def find_documentation() -> list[tuple[str, Path]]:
    """(name, path) of each file to read, in the order of the corpus; the name has no machine path."""
    standard = Path(sysconfig.get_path("stdlib"))
    installed = dict.fromkeys(
        Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")
    )
    topics = standard / "pydoc_data" / "topics.py"
    files = [("pydoc_data/topics.py", topics)] if topics.is_file() else []
    files += [(f"stdlib/{name}", standard / name) for name in _walk(standard)]
    for root in installed:
        files += [(f"site-packages/{name}", root / name) for name in _walk(root)]
    return files


def _walk(root: Path) -> list[str]:
    """Relative POSIX paths of the files below `root` that may hold documentation, sorted."""
    found: list[str] = []
    for folder, folders, names in os.walk(root):
        relative = PurePosixPath(Path(folder).relative_to(root).as_posix())
        at_top = relative == PurePosixPath(".")
        folders[:] = [
            name
            for name in folders
            if name.lower() not in _SKIPPED_FOLDERS
            and name not in ("site-packages", "dist-packages", "pydoc_data")
            and not (at_top and name.split("-")[0] in _SKIPPED_PACKAGES)
        ]
        found += [str(relative / name) for name in names if _wanted(relative, name)]
    return sorted(found)


def _wanted(folder: PurePosixPath, name: str) -> bool:
    if name.endswith(".py"):
        return not (name.startswith("test_") or name.endswith("_test.py") or name == "conftest.py")
    if folder.name.endswith(".dist-info"):
        return name == "METADATA"
    return name.lower().endswith(DOC_SUFFIXES) and not _SKIPPED_FILES.search(name)


def read_documentation(file: tuple[str, Path]) -> list[Document]:
    """English documents of one file: none if it cannot be read or parsed."""
    name, path = file
    try:
        raw = path.read_bytes()
    except OSError:
        return []
    repaired = False
    if name == "pydoc_data/topics.py":
        texts = _topics(raw)
    elif name.endswith(".py"):
        texts = [_module_docstrings(raw)]
    else:
        text, repaired = decode(raw)
        texts = [text.partition("\n\n")[2] if path.name == "METADATA" else text]
    documents = []
    for number, text in enumerate(texts):
        if looks_english(text):
            clean, surrogates = replace_surrogates(text.strip())
            documents.append(Document(f"{name}#{number}", clean, repaired or surrogates))
    return documents


def _parse(raw: bytes) -> ast.Module | None:
    with warnings.catch_warnings():
        # Invalid escapes in other people's code are no news to the user of prepare.
        warnings.simplefilter("ignore")
        try:
            return ast.parse(raw)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def _topics(raw: bytes) -> list[str]:
    """The values of `topics = {...}`, read as a literal."""
    tree = _parse(raw)
    for node in tree.body if tree else []:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            return [str(text) for _, text in sorted(ast.literal_eval(node.value).items())]
    return []


def _module_docstrings(raw: bytes) -> str:
    """Docstrings of a module and of all its classes and functions, blank lines between them."""
    if b'"""' not in raw and b"'''" not in raw:
        return ""
    tree = _parse(raw)
    if tree is None:
        return ""
    found: list[str] = []
    _collect(tree, found)
    return "\n\n".join(found)


def _collect(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, found: list[str]
) -> None:
    first = node.body[0] if node.body else None
    if (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ):
        text = inspect.cleandoc(first.value.value)
        if len(text) >= MIN_DOCSTRING_CHARACTERS and looks_english(text):
            found.append(text)
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            _collect(child, found)
