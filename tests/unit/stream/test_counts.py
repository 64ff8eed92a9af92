"""Block counts that are kept: whole, or counted again."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from roberta_dist.config.data import InputFormat
from roberta_dist.stream import counts

pytestmark = pytest.mark.unit
COUNTED = np.array([3, 0, 7, 12], dtype=np.int64)


@pytest.fixture
def manifest(tmp_path, monkeypatch):
    """A split of four packs that can be counted; how often is in `.counted`."""
    split = SimpleNamespace(
        packs=np.zeros(4, dtype=[("shard", int)]),
        sha256="5" * 64,
        store=SimpleNamespace(derived_folder=tmp_path),
        counted=0,
    )

    def count(manifest, *_):
        manifest.counted += 1
        return COUNTED.copy()

    monkeypatch.setattr(counts, "_count_all", count)
    return split


def of(manifest):
    return counts.block_counts(manifest, InputFormat.doc_sentences, 24).tolist()


def test_counts_are_kept(manifest):
    assert of(manifest) == of(manifest) == COUNTED.tolist()
    assert manifest.counted == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:20],
        lambda data: data[:-3],
        lambda data: b"x" * 200,
        lambda data: data[:-20] + bytes([data[-20] ^ 4]) + data[-19:],
    ],
    ids=["empty", "cut header", "cut", "garbage", "flipped bit"],
)
def test_damaged_counts_are_counted_again(manifest, tmp_path, damage):
    of(manifest)
    (path,) = (tmp_path / "block_counts").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert of(manifest) == of(manifest) == COUNTED.tolist()
    assert manifest.counted == 2
