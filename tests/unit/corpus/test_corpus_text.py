"""Files become documents; what is broken is repaired and counted, or said."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import zstandard

from roberta_dist.config.corpus import DocumentUnit
from roberta_dist.corpus.files import find_files
from roberta_dist.corpus.text import read_jsonl, read_text
from roberta_dist.errors import ConfigError, DataFault

pytestmark = pytest.mark.unit

LIMIT = 2**20

TEXT = b"\xef\xbb\xbffirst line\nsecond\n\n \t\n\nother \x00 NUL\r\n\r\nlast </s>"
WRITERS = {"a.txt": bytes, "a.txt.gz": gzip.compress, "a.txt.zst": zstandard.compress}


@pytest.mark.parametrize("name", WRITERS)
def test_blank_lines_end_documents(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(WRITERS[name](TEXT))
    documents = list(read_text(path, DocumentUnit.blank_line, LIMIT))
    assert [d.text for d in documents] == ["first line\nsecond", "other \0 NUL", "last </s>"]
    assert [d.id.rsplit(":")[-1] for d in documents] == ["1", "6", "8"]


def test_whole_file_is_kept_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(TEXT)
    (document,) = read_text(tmp_path / "a", DocumentUnit.file, LIMIT)
    assert document.text.encode() == TEXT[3:] and not document.repaired


def test_invalid_utf8_is_replaced_and_marked(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"good\n\nbad \xff\xfe end\n")
    documents = list(read_text(tmp_path / "a", DocumentUnit.blank_line, LIMIT))
    assert [(d.text, d.repaired) for d in documents] == [
        ("good", False),
        ("bad \ufffd\ufffd end", True),
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_jsonl(tmp_path: Path, name: str) -> None:
    lines = [
        json.dumps({"body": "one\ntwo", "n": 1}),
        "",
        '{"body": "lone \\ud800 pair \\ud83d\\ude00"}',
        '{"body": ""}',
    ]
    path = tmp_path / name
    path.write_bytes(WRITERS[name.replace("jsonl", "txt")]("\n".join(lines).encode()))
    documents = list(read_jsonl(path, "body", None, LIMIT))
    assert [d.text for d in documents] == ["one\ntwo", "lone \ufffd pair 😀", ""]
    assert [d.repaired for d in documents] == [False, True, False]


@pytest.mark.parametrize("line", ["{", '"text"', '{"other": "x"}', '{"text": 3}', "[" * 100_000])
def test_bad_json_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line)
    with pytest.raises(DataFault, match=r"a\.jsonl:2"):
        list(read_jsonl(tmp_path / "a.jsonl", "text", None, LIMIT))


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst"])
def test_truncated_archive_is_an_error_not_a_short_file(tmp_path: Path, name: str) -> None:
    whole = WRITERS[name](b"".join(b"line %d\n" % i for i in range(50_000)))
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataFault, match=name):
        list(read_text(tmp_path / name, DocumentUnit.file, LIMIT))


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst"])
def test_all_parts_of_a_concatenated_archive_are_read(tmp_path: Path, name: str) -> None:
    parts = [b"%d " % i * 100_000 + b"\n" for i in range(3)]
    (tmp_path / name).write_bytes(b"".join(WRITERS[name](part) for part in parts))
    (document,) = read_text(tmp_path / name, DocumentUnit.file, LIMIT)
    assert document.text.encode() == b"".join(parts)


def test_folders_are_searched_and_patterns_expanded(tmp_path: Path) -> None:
    for name in ("b/x.jsonl", "b/c/y.jsonl.gz", "b/z.md", "b/.hidden.jsonl", "a.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = [p.name for p in find_files([str(tmp_path / "b")], (".jsonl",))]
    assert names == ["y.jsonl.gz", "x.jsonl"]
    twice = find_files([str(tmp_path), str(tmp_path / "*.txt")])
    assert [p.name for p in twice] == ["a.txt", "y.jsonl.gz", "x.jsonl", "z.md"]
    with pytest.raises(ConfigError, match=r"nothing\*"):
        find_files([str(tmp_path / "nothing*")])
