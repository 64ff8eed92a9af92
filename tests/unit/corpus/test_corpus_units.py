"""Ranges of lines share a file out exactly; over-long documents are cut and lose nothing."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roberta_dist.config.corpus import CorpusConfig, DocumentUnit, Source
from roberta_dist.corpus import document as document_module
from roberta_dist.corpus import files, sources, text
from roberta_dist.corpus.document import Document, cut_bytes, cut_document
from roberta_dist.corpus.sources import open_source
from roberta_dist.corpus.text import read_jsonl, read_text
from roberta_dist.errors import DataFault

pytestmark = pytest.mark.unit

BYTES = st.lists(
    st.sampled_from(
        [b"a", b"bc", b" ", b"\n", b"\r\n", b"\r", b"\0", b"\xff", "é".encode(), b"</s>"]
    ),
    max_size=60,
).map(b"".join)
CUTS = st.lists(st.integers(0, 120), max_size=6)
SHARED = [HealthCheck.function_scoped_fixture]


def ranges(size: int, cuts: list[int]) -> list[tuple[int, int]]:
    ends = sorted({0, size, *(cut for cut in cuts if cut < size)})
    return list(pairwise(ends))


@settings(max_examples=200, deadline=None, suppress_health_check=SHARED)
@given(raw=BYTES, cuts=CUTS, mark=st.booleans(), chunk=st.sampled_from([3, 2**20]))
def test_any_ranges_of_lines_give_the_documents_of_the_file(
    tmp_path: Path,
    raw: bytes,
    cuts: list[int],
    mark: bool,
    chunk: int,
) -> None:
    path = tmp_path / "a"
    raw = b"\xef\xbb\xbf" * mark + raw
    path.write_bytes(raw)
    lines = [
        line.rstrip(b"\r\n").decode(errors="replace")
        for line in raw.removeprefix(b"\xef\xbb\xbf" * mark).split(b"\n")
        if line.strip()
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CHUNK_BYTES", chunk)
        patch.setattr(text, "CHUNK_BYTES", chunk)
        found = [
            d.text
            for start, end in ranges(len(raw), cuts)
            for d in read_text(path, DocumentUnit.line, 10**6, start, end)
        ]
        assert [one for one in found if one.strip()] == [one for one in lines if one.strip()]
        whole = list(read_text(path, DocumentUnit.line, 10**6))
    assert [d.text for d in whole] == found


@settings(max_examples=100, deadline=None, suppress_health_check=SHARED)
@given(
    texts=st.lists(st.text(max_size=8), max_size=8),
    cuts=CUTS,
    end=st.sampled_from(["", "\n", "\r\n"]),
)
def test_any_ranges_of_jsonl_give_the_documents_of_the_file(
    tmp_path: Path, texts: list[str], cuts: list[int], end: str
) -> None:
    path = tmp_path / "a.jsonl"
    raw = (end or "\n").join(json.dumps({"text": text}) for text in texts) + end
    path.write_bytes(raw.encode())
    expected = [d.text for d in read_jsonl(path, "text", None, 10**6)]
    assert len(expected) == len(texts)
    found = [
        d.text
        for start, stop in ranges(len(raw), cuts)
        for d in read_jsonl(path, "text", None, 10**6, start, stop)
    ]
    assert found == expected


def test_large_files_of_lines_are_cut_into_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "UNIT_BYTES", 1000)
    path = tmp_path / "a.txt"
    path.write_text("".join(f"line {i}\n" for i in range(500)))
    lines = CorpusConfig(source=Source.text, paths=[str(path)], document=DocumentUnit.line)
    opened = open_source(lines)
    assert [unit.start for unit in opened.units] == list(range(0, path.stat().st_size, 1000))
    found = [d for unit in opened.units for d in opened.documents(unit)]
    assert [d.text for d in found] == [f"line {i}" for i in range(500)]
    assert len({d.id for d in found}) == 500
    assert sum(unit.size for unit in opened.units) == path.stat().st_size
    blocks = CorpusConfig(source=Source.text, paths=[str(path)])
    assert len(open_source(blocks).units) == 1
    compressed = tmp_path / "b.txt.gz"
    compressed.write_bytes(bytes(5000))
    packed = CorpusConfig(source=Source.text, paths=[str(compressed)], document=DocumentUnit.line)
    assert len(open_source(packed).units) == 1


@settings(max_examples=300, deadline=None)
@given(
    raw=BYTES, limit=st.integers(4, 20), look=st.integers(1, 30), sizes=st.lists(st.integers(1, 9))
)
def test_parts_are_short_and_joined_give_the_whole(
    raw: bytes, limit: int, look: int, sizes: list[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(document_module, "_LOOK_BACK", look)
        parts = list(cut_bytes([raw], limit))
        assert b"".join(parts) == raw
        assert all(0 < len(part) <= limit for part in parts) or raw == b""
        for left, right in pairwise(parts):
            between_words = right[:1].isspace() and not left[-1:].isspace()
            window = (left + right)[max(0, limit - look) : limit + 1]
            assert between_words or document_module._WORD_END.search(window) is None
            more = document_module._WORD_END.search(window, len(left) - max(0, limit - look))
            assert more is None  # the last one was taken
        chunks, at = [], 0
        for size in [*sizes, len(raw)]:
            chunks.append(raw[at : at + size])
            at += size
        assert list(cut_bytes(chunks, limit)) == parts


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=100), limit=st.integers(4, 30))
def test_cut_documents_stay_valid_text(text: str, limit: int) -> None:
    parts = list(cut_document(Document("a", text, language="en"), limit))
    assert "".join(part.text for part in parts) == text
    assert not any(part.repaired for part in parts)
    assert [part.id for part in parts] == ["a", *(f"a#{i}" for i in range(1, len(parts)))]
    assert all(part.language == "en" for part in parts)
    assert (len(parts) == 1) == (len(text.encode()) <= limit)


@pytest.mark.parametrize("unit", DocumentUnit)
def test_a_long_line_comes_in_parts(tmp_path: Path, unit: DocumentUnit) -> None:
    path = tmp_path / "a.txt"
    text = "word " * 500_000 + "x" * 300_000 + "é" * 100_000
    path.write_text(text)
    found = list(read_text(path, unit, 100_000))
    assert "".join(d.text for d in found) == text
    assert max(len(d.text.encode()) for d in found) <= 100_000
    assert [d.part for d in found] == list(range(len(found))) and not any(d.repaired for d in found)


def test_a_json_line_beyond_the_most_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "short"}\n{"text": "%s"}\n' % ("x" * 100))
    with pytest.raises(DataFault, match=r"the line at byte 18 is longer than 64 B"):
        list(files.read_lines(path, most=64))
