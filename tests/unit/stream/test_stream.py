"""Streams over small corpora on disk, written by the code that prepare writes shards with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from roberta_dist.config.data import DataConfig, InputFormat, MaskingConfig, Phase
from roberta_dist.corpus.manifest import (
    PACK_DTYPE,
    Manifest,
    Shard,
    SpecialTokens,
    read_manifest,
    write_manifest,
)
from roberta_dist.corpus.pack import Pack
from roberta_dist.corpus.shards import write_shard
from roberta_dist.corpus.storage import LocalStore
from roberta_dist.errors import ConfigError, DataFault
from roberta_dist.runtime.world import World
from roberta_dist.stream.loader import RankReader, micro_batch_rows, most_micro_steps
from roberta_dist.stream.open import Stream, check_lanes, open_stream
from roberta_dist.stream.packs import check_disjoint
from roberta_dist.stream.quarantine import NOTHING_OUT, Entry, Quarantine
from roberta_dist.train.feed import Feed

pytestmark = pytest.mark.unit
SPECIAL = SpecialTokens(bos=0, pad=1, eos=2, unk=3, mask=99)
LENGTH = 32


def write_corpus(
    folder: Path, packs: int = 12, documents: int = 5, book: bool = False, split: str = "train"
) -> Path:
    """Packs of `documents` documents of six sentences each; a book is one document over all packs."""
    rng = np.random.default_rng(packs)
    made = []
    for number in range(packs):
        lengths = rng.integers(3, 12, 6 * documents).astype(np.uint16)
        ends = [6 * documents] if book else [6 * (i + 1) for i in range(documents)]
        made.append(
            Pack(
                rng.integers(4, 99, int(lengths.sum())).astype(np.uint16),
                lengths,
                np.array(ends, dtype=np.uint32),
                continues_previous=book and number > 0,
                continues_next=book and number < packs - 1,
            )
        )
    path = folder / split / "shard-000000.tar"
    written = write_shard(path, made)
    rows = written.packs.astype(PACK_DTYPE)
    rows["first_document"] = 0 if book else np.arange(packs) * documents
    write_manifest(
        Manifest(
            folder=folder / split, sha256="", split=split, tokenizer_sha256="t", vocab_size=100,
            special_tokens=SPECIAL, shards=(Shard(path.name, written.bytes, written.sha256),),
            documents=1 if book else packs * documents, tokens=int(rows["tokens"].sum()),
            unigram_entropy=1.0, held_out_salt="", held_out_fraction=0.0, packs=rows,
        )
    )  # fmt: skip
    return folder


def opened(data: DataConfig, batch: int = 16, recorded: dict | None = None) -> Stream:
    return open_stream(data, MaskingConfig(), 1, batch, progress=False, recorded=recorded)


def rows_of(reader: RankReader, row: int) -> dict[int, bytes]:
    rows = {}
    for batch in reader.micro_batches(row):
        for i, number in enumerate(batch.row_ids_R.tolist()):
            a, b = batch.cu_seqlens[i : i + 2]
            rows[number] = batch.tokens_T[a:b].tobytes()
    return rows


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus")


@pytest.mark.parametrize("name", ["doc_sentences", "segment_pair", "sentence_pair"])
def test_short_formats_take_more_rows_by_a_constant_of_the_corpus(corpus, name):
    data = DataConfig(path=str(corpus), sequence_length=LENGTH, format=InputFormat(name))
    stream, whole = opened(data, 64), opened(replace(data, format=InputFormat.full_sentences), 64)
    short = stream.order.orders[0, LENGTH].rows_per_epoch
    full = whole.order.orders[0, LENGTH].rows_per_epoch
    assert stream.plan.batch_rows(0) == round(64 * short / full) > 64
    assert opened(replace(data, scale_batch=False), 64).plan.batch_rows(0) == 64


def test_what_was_read_is_in_the_fingerprint_and_what_comes_is_not(corpus):
    data = DataConfig(path=str(corpus), sequence_length=LENGTH)
    later = [Phase(from_step=10, global_batch_size=8), Phase(from_step=20, sequence_length=16)]
    plain, phased = opened(data), opened(replace(data, phases=later))
    at = phased.plan.row_of_step
    assert plain.fingerprint(at(10)) == phased.fingerprint(at(10))
    assert plain.fingerprint(at(10) + 8) != phased.fingerprint(at(10) + 8)
    assert len(phased.fingerprint(at(21))["segments"]) == 3
    assert plain.fingerprint(0)["segments"] != []


def test_lanes_are_those_of_the_checkpoint(corpus):
    data = DataConfig(path=str(corpus), sequence_length=LENGTH)
    first = opened(data, 4)
    larger = [Phase(from_step=10, global_batch_size=64)]
    assert opened(replace(data, phases=larger), 4).corpora[0].shuffle.lanes > 4
    again = opened(replace(data, phases=larger), 4, recorded=first.fingerprint(0))
    assert again.corpora[0].shuffle == first.corpora[0].shuffle


def test_rows_do_not_depend_on_what_is_held(corpus):
    data = DataConfig(path=str(corpus), sequence_length=LENGTH)
    for name in InputFormat:
        readers = [
            RankReader(opened(replace(data, format=name, cache_mib=mib), 64), World(), size)
            for mib, size in ((0.0, 16), (0.0001, 16), (0.0, 3))
        ]
        for row in (0, 64, 640):
            first, *others = [rows_of(reader, row) for reader in readers]
            assert all(other == first for other in others)
        held = [len(reader.maker._held) for reader in readers]
        assert held[1] == readers[1].maker.capacity == 2 < held[0]
        assert readers[1].maker.reads > readers[0].maker.reads


def test_a_micro_batch_keeps_its_tokens_when_the_length_changes(corpus):
    phases = [Phase(from_step=2, sequence_length=16), Phase(from_step=4, sequence_length=64)]
    stream = opened(DataConfig(path=str(corpus), sequence_length=LENGTH, phases=phases), 48)
    assert [micro_batch_rows(stream, 8, length) for length in (16, 32, 64)] == [16, 8, 4]
    assert most_micro_steps(stream, World(0, 2, 0), 8) == 6
    reader = RankReader(stream, World(), 8)
    for step, rows in ((0, 8), (2, 16), (4, 4)):
        batches = reader.micro_batches(stream.plan.row_of_step(step))
        assert {len(batch.row_ids_R) for batch in batches} == {rows}


def test_a_book_finds_negatives_in_another_book_and_not_in_a_damaged_pack(tmp_path):
    """Eight packs of one book, then packs of many documents; with their numbers in the index."""
    folder = write_corpus(tmp_path / "corpus", packs=10, documents=5, book=True)
    manifest = read_manifest(folder / "train")
    data = DataConfig(
        path=str(folder), sequence_length=LENGTH, format=InputFormat.segment_pair, shuffle_mib=0.001
    )
    reader = RankReader(opened(data), World(), 16)
    assert reader.maker._partner((0, 3, LENGTH), 0) is None  # one book and nothing else
    labels = np.concatenate([batch.nsp_labels_R for batch in reader.micro_batches(0)])
    assert set(labels.tolist()) == {1}
    rows = np.array(manifest.packs)
    rows["first_document"][5:] = 1  # a second book begins in pack 5
    write_manifest(replace(manifest, packs=rows))
    reader = RankReader(opened(data), World(), 16)
    partners = {reader.maker._partner((0, 3, LENGTH), epoch)[1] for epoch in range(40)}
    assert partners <= {5, 6, 7, 8, 9} and len(partners) > 2
    reader.maker.leave_out = frozenset(("corpus", pack) for pack in (5, 6, 7, 8))
    found = {reader.maker._partner((0, 3, LENGTH), epoch) for epoch in range(40)}
    assert found <= {(0, 9, LENGTH), None} and (0, 9, LENGTH) in found
    out = RankReader(opened(data), World(), 16, Quarantine((Entry("corpus", 6, 16),)))
    out.micro_batches(0)
    assert out.maker.leave_out == frozenset()
    out.micro_batches(16)
    assert out.maker.leave_out == {("corpus", 6)}


def test_every_token_is_read_once_an_epoch(corpus):
    data = DataConfig(path=str(corpus), sequence_length=LENGTH, shuffle_mib=0.001)
    for name in ("full_sentences", "doc_sentences"):
        stream = opened(replace(data, format=InputFormat(name), scale_batch=False), 1)
        reader = RankReader(stream, World(), 64)
        assert stream.corpora[0].shuffle.lanes == 1
        rows = stream.order.orders[0, LENGTH].rows_per_epoch
        places = stream.order.locate(np.arange(rows))
        made, _ = reader.maker.make(places, np.arange(rows), LENGTH)
        tokens = np.concatenate(made)
        assert int((tokens >= 4).sum()) == stream.manifest.tokens


def test_corpora_of_different_tokenizers_and_splits_that_overlap_are_refused(tmp_path):
    first, second = write_corpus(tmp_path / "a"), write_corpus(tmp_path / "b", packs=9)
    manifest = read_manifest(second / "train")
    write_manifest(replace(manifest, tokenizer_sha256="other"))
    with pytest.raises(ConfigError, match="different tokenizers: one t, two other"):
        opened(DataConfig(corpora={"one": str(first), "two": str(second)}, sequence_length=LENGTH))
    write_corpus(tmp_path / "a", split="held_out")
    with pytest.raises(DataFault, match=r"shard-000000.tar also in"):
        check_disjoint(read_manifest(first / "train"), read_manifest(first / "held_out"))


def test_more_ranks_than_lanes_are_refused(corpus):
    stream = opened(DataConfig(path=str(corpus), sequence_length=LENGTH))
    check_lanes(stream, World(0, 6, 0))
    with pytest.raises(ConfigError, match="6 lanes for 7 ranks"):
        check_lanes(stream, World(0, 7, 0))


@pytest.mark.parametrize("world", [1, 2, 5, 40])
@pytest.mark.parametrize("name", [*InputFormat])
def test_the_shortest_rows_and_the_largest_worlds_work(corpus, name, world):
    data = DataConfig(path=str(corpus), sequence_length=8, format=name)
    stream = opened(data, 24)
    seen: list[int] = []
    for rank in range(world):
        for batch in RankReader(stream, World(rank, world, rank), 4).micro_batches(24):
            assert batch.max_seqlen <= 8
            seen += batch.row_ids_R[batch.row_ids_R >= 0].tolist()
    first = 24
    assert sorted(seen) == list(range(first, first + stream.plan.batch_rows(first)))


def feed_of(corpus: Path, packs: int) -> Feed:
    data = DataConfig(path=str(corpus), sequence_length=LENGTH, quarantine_packs=packs)
    return Feed(opened(data), World(), torch.device("cpu"), 16, 0, 160, NOTHING_OUT)


def test_damage_is_left_out_within_the_budget_and_an_absence_is_not(corpus, monkeypatch):
    feed_of(corpus, 0).close()  # counts the blocks
    path = corpus / "train" / "shard-000000.tar"
    whole = path.read_bytes()
    entry = read_manifest(corpus / "train").packs[3]
    damaged = bytearray(whole)
    damaged[int(entry["offset"]) + 40] ^= 1
    path.write_bytes(damaged)
    feed = feed_of(corpus, 1)
    taken = [feed.take(row, False) for row in range(0, 160, 16)]
    assert all(taken) and [entry.pack for entry in feed.quarantine.entries] == [3]
    feed.close()
    path.write_bytes(whole)

    def away(store: LocalStore, name: str, offset: int, length: int) -> bytes:
        raise TimeoutError(110, "Connection timed out")

    monkeypatch.setattr(LocalStore, "read_range", away)
    feed = feed_of(corpus, 9)
    with pytest.raises(DataFault, match=r"Connection timed out\); needed for rows \[0, 16\)"):
        feed.take(0, False)
    assert feed.quarantine == NOTHING_OUT
    feed.close()
