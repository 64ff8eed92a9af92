"""Rows from packs: what a block becomes, and what a damaged shard says."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from roberta_dist.config.data import InputFormat, MaskingConfig
from roberta_dist.corpus.manifest import PACK_DTYPE, Manifest, Shard, SpecialTokens
from roberta_dist.corpus.pack import Pack, encode_pack
from roberta_dist.errors import DataFault
from roberta_dist.stream.batch import make_batch, weightless_row
from roberta_dist.stream.formats import plain_rows
from roberta_dist.stream.masking import mask_rule
from roberta_dist.stream.packs import PackReader, check_shards

pytestmark = pytest.mark.unit
SPECIAL = SpecialTokens(bos=0, pad=1, eos=2, unk=3, mask=99)


def some_pack(sentences=(4, 3, 6, 2, 30, 5), documents=(2, 4, 6)) -> Pack:
    lengths = np.array(sentences, dtype=np.uint16)
    tokens = (10 + np.arange(lengths.sum()) % 80).astype(np.uint16)
    return Pack(tokens, lengths, np.array(documents, dtype=np.uint32))


def rows_of(pack: Pack, input_format: InputFormat, length: int) -> list[list[int]]:
    rows = plain_rows(pack, input_format, length, SPECIAL)
    return [rows.row(block).tolist() for block in range(len(rows))]


@pytest.mark.parametrize("length", [8, 12, 16, 64])
@pytest.mark.parametrize("name", ["full_sentences", "doc_sentences"])
def test_sentence_formats_hold_every_token_once(name, length):
    rows = rows_of(some_pack(), InputFormat(name), length)
    for row in rows:
        assert row[0] == SPECIAL.bos and row[-1] == SPECIAL.eos and 3 <= len(row) <= length
    inner = [token for row in rows for token in row if token >= 4]
    assert inner == some_pack().tokens.tolist()


def test_rows_break_at_sentences_and_mark_documents():
    rows = rows_of(some_pack(), InputFormat.full_sentences, 64)
    assert len(rows) == 1
    assert [i for i, token in enumerate(rows[0]) if token == SPECIAL.eos] == [8, 17, 53]
    first = rows_of(some_pack(), InputFormat.full_sentences, 12)[0]
    assert len(first) == 9  # both sentences of the first document; the next would not fit


def test_a_document_that_goes_on_is_not_closed():
    pack = some_pack()
    open_end = Pack(pack.tokens, pack.sentence_lengths, pack.document_ends, continues_next=True)
    assert rows_of(open_end, InputFormat.full_sentences, 64)[0].count(SPECIAL.eos) == 3
    assert rows_of(open_end, InputFormat.blocks, 8)[-1].count(SPECIAL.eos) == 0


def test_blocks_are_always_full():
    rows = rows_of(some_pack(), InputFormat.blocks, 16)
    assert {len(row) for row in rows} == {16}
    assert len(rows) == (50 + 3) // 15


def test_weightless_rows_are_never_predicted():
    rule = mask_rule(MaskingConfig(probability=0.99), 1, "train", 100, SPECIAL)
    row = np.arange(10, 30, dtype=np.uint16)
    batch = make_batch([row, weightless_row(SPECIAL), row], np.array([5, -1, 6]), rule)
    assert batch.cu_seqlens.tolist() == [0, 20, 22, 42]
    assert batch.positions_T.tolist() == [*range(20), 0, 1, *range(20)]
    assert batch.max_seqlen == 20
    assert not np.isin(batch.masked_index_M, [20, 21]).any()
    assert len(batch.labels_M) == len(batch.masked_index_M) > 30


def write_shard(folder, packs):
    """A shard with the given packs at odd offsets, and its manifest."""
    entries, data = [], b""
    for pack in packs:
        payload = encode_pack(pack)
        data += b"\0" * 513
        crc = zlib.crc32(payload)
        entries.append((0, len(data), len(payload), crc, 1, 1, len(pack.tokens), 1, 1, 0))
        data += payload
    (folder / "shard-000000.tar").write_bytes(data)
    return Manifest(
        folder, "", "train", "", 100, SPECIAL, (Shard("shard-000000.tar", len(data), ""),), 1, 1,
        1.0, "", 0.0, np.array(entries, dtype=PACK_DTYPE),
    )  # fmt: skip


def test_packs_are_read_by_range(tmp_path):
    reader = PackReader(write_shard(tmp_path, [some_pack(), some_pack((9, 1), (2,))]))
    assert reader.read(1).sentence_lengths.tolist() == [9, 1]
    assert reader.read(0).tokens.tolist() == some_pack().tokens.tolist()


@pytest.mark.parametrize("place", [0, 20, -1])
def test_one_flipped_bit_is_named(tmp_path, place):
    manifest = write_shard(tmp_path, [some_pack(), some_pack((9, 1), (2,))])
    offset, length = int(manifest.packs[1]["offset"]), int(manifest.packs[1]["length"])
    path = tmp_path / "shard-000000.tar"
    data = bytearray(path.read_bytes())
    data[offset + place % length] ^= 16
    path.write_bytes(data)
    PackReader(manifest).read(0)
    with pytest.raises(DataFault, match=rf"shard-000000.tar: pack 1 at offset {offset}: crc32"):
        PackReader(manifest).read(1)


def test_cut_and_missing_shards_are_named(tmp_path):
    manifest = write_shard(tmp_path, [some_pack()])
    path = tmp_path / "shard-000000.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with pytest.raises(DataFault, match="the shard is cut"):
        PackReader(manifest).read(0)
    with pytest.raises(DataFault, match=f"{len(whole) - 3} bytes, the manifest says {len(whole)}"):
        check_shards(manifest)
    path.unlink()
    with pytest.raises(DataFault, match="missing"):
        check_shards(manifest)
    with pytest.raises(DataFault, match="cannot be read"):
        PackReader(manifest).read(0)
