"""Blocks, parts and spools: the same for any chunking, any reader, any buffer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roberta_dist.corpus import blocks, spool
from roberta_dist.corpus.blocks import block_pieces
from roberta_dist.corpus.minhash import PERMUTATIONS, band_shape
from roberta_dist.corpus.parts import MAX_PARTS, PART_BYTES, plan_parts
from roberta_dist.corpus.sources import Unit
from roberta_dist.corpus.spool import part_spool, read_bucket
from roberta_dist.units import MIB

pytestmark = pytest.mark.unit

LINES = st.lists(
    st.sampled_from([b"", b" ", b"\t\r", b"a", b"  b c", b"d \r", b"\x0b", b"\xe2\x80\x83", b"\0"]),
    max_size=14,
)


def reference_blocks(text: bytes) -> list[tuple[int, bytes]]:
    """Line by line: what stands between lines of white space."""
    found: list[tuple[int, bytes]] = []
    block: list[bytes] = []
    lines = text.split(b"\n")
    for number, line in enumerate([*lines, b""], start=1):
        if line.strip():
            block.append(line)
        elif block:
            found.append((number - len(block), b"\n".join(block).rstrip(b"\r\n")))
            block = []
    return found


@pytest.mark.parametrize("chunk_bytes", [MIB, 6])
@given(lines=LINES, ends=st.booleans(), size=st.integers(1, 9))
def test_blocks_are_those_between_blank_lines(
    chunk_bytes: int, lines: list[bytes], ends: bool, size: int
) -> None:
    text = b"\n".join(lines) + b"\n" * ends
    chunks = [text[start : start + size] for start in range(0, len(text), size)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "CHUNK_BYTES", chunk_bytes)
        found: list[tuple[int, bytes]] = []
        inside = False
        for line, piece, last in block_pieces(chunks):
            found[len(found) - inside :] = [
                (found[-1][0] if inside else line, (found[-1][1] if inside else b"") + piece)
            ]
            inside = not last
    assert not inside
    assert found == reference_blocks(text)


def units(sizes: list[int]) -> list[Unit]:
    return [Unit(n, f"{n}", Path(f"{n}"), 0, None, size) for n, size in enumerate(sizes)]


@given(st.lists(st.integers(0, 3 * PART_BYTES), min_size=1, max_size=60))
def test_parts_are_consecutive_whole_and_balanced(sizes: list[int]) -> None:
    parts = plan_parts(units(sizes))
    assert [unit.number for part in parts for unit in part] == [*range(len(sizes))]
    assert all(parts)
    most = max(sum(unit.size for unit in part) for part in parts)
    assert most <= PART_BYTES + max(sizes)


def test_the_number_of_parts_is_bounded() -> None:
    assert len(plan_parts(units([64 * MIB] * 3 * MAX_PARTS))) <= MAX_PARTS
    assert 8 <= len(plan_parts(units([MIB] * 100))) <= 8
    assert len(plan_parts(units([0, 0]))) == 1


@given(
    documents=st.lists(st.tuples(st.integers(0, 4), st.binary(max_size=20)), max_size=40),
    buffer=st.sampled_from([1, 500, 64 * MIB]),
)
def test_a_bucket_gives_back_its_texts_whatever_the_buffer(
    tmp_path_factory: pytest.TempPathFactory, documents: list[tuple[int, bytes]], buffer: int
) -> None:
    path = tmp_path_factory.mktemp("spool") / "part-00000"
    with pytest.MonkeyPatch.context() as patch, part_spool(path, 5, sketches=False) as writer:
        patch.setattr(spool, "BUFFER_BYTES", buffer)
        for position, (bucket, text) in enumerate(documents):
            writer.add(bucket, bytes(range(16)), position, text)
    stored = path.with_suffix(".text").read_bytes()
    for bucket in range(5):
        rows = read_bucket(path, bucket, 5)
        found = {
            int(row["position"]): stored[row["offset"] : row["offset"] + row["length"]]
            for row in rows
        }
        assert found == {n: text for n, (b, text) in enumerate(documents) if b == bucket}
    assert sorted(p.suffix for p in path.parent.iterdir()) == [".index", ".runs", ".text"]


def test_a_failure_leaves_no_part(tmp_path: Path) -> None:
    with pytest.raises(KeyError), part_spool(tmp_path / "part-00000", 2, sketches=True) as writer:
        writer.add(0, bytes(16), 0, b"text")
        raise KeyError
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_find_what_is_at_the_threshold(threshold: float) -> None:
    bands, rows = band_shape(threshold)
    assert bands * rows <= PERMUTATIONS
    assert 1 - (1 - threshold**rows) ** bands >= 0.99


@pytest.mark.parametrize("changed", [0, 1, 40])
def test_a_sketch_estimates_the_similarity(changed: int) -> None:
    datasketch = pytest.importorskip("datasketch")
    from roberta_dist.corpus.minhash import Sketcher

    assert datasketch
    words = [f"w{n * n % 1009}" for n in range(400)]
    other = ["x" * (1 + n) if n % 10 == 0 and n < 10 * changed else w for n, w in enumerate(words)]
    shingles = [{tuple(t[n : n + 5]) for n in range(396)} for t in (words, other)]
    jaccard = len(shingles[0] & shingles[1]) / len(shingles[0] | shingles[1])
    minima = [
        np.frombuffer(Sketcher(0.8).sketch(" ".join(t)), "<u4")[-PERMUTATIONS:]
        for t in (words, other)
    ]
    assert abs((minima[0] == minima[1]).mean() - jaccard) < 0.15
