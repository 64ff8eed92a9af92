"""A pack: about 1 MiB of tokens of consecutive documents, the unit of reading and shuffling.

Bytes, little-endian:

    magic "RDPK", u16 version, u16 flags          flags: 1 = the first document began in an earlier
    u32 documents, u32 sentences, u32 tokens             pack, 2 = the last one goes on in the next
    u32 document_ends[documents]                  cumulative count of sentences
    u16 sentence_lengths[sentences]               tokens; a longer sentence is stored in pieces
    u16 tokens[tokens]

A document longer than a pack continues in the next one. No special token is stored.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from roberta_dist.errors import DataFault

MAGIC = b"RDPK"
VERSION = 1
CONTINUES_PREVIOUS = 1
CONTINUES_NEXT = 2
MAX_SENTENCE_TOKENS = 65_535
_HEADER = struct.Struct("<4sHHIII")


@dataclass(frozen=True)
class Pack:
    """Decoded pack.

    Attributes:
        tokens: uint16 [tokens].
        sentence_lengths: uint16 [sentences]; sums to `tokens`.
        document_ends: uint32 [documents], cumulative count of sentences.
        continues_previous: the first document began in an earlier pack.
        continues_next: the last document goes on in the next pack.
    """

    tokens: NDArray[np.uint16]
    sentence_lengths: NDArray[np.uint16]
    document_ends: NDArray[np.uint32]
    continues_previous: bool = False
    continues_next: bool = False


def encode_pack(pack: Pack) -> bytes:
    """The bytes of `pack`, as described at the top of this file."""
    flags = CONTINUES_PREVIOUS * pack.continues_previous + CONTINUES_NEXT * pack.continues_next
    header = _HEADER.pack(
        MAGIC, VERSION, flags, len(pack.document_ends), len(pack.sentence_lengths), len(pack.tokens)
    )
    return b"".join(
        (
            header,
            pack.document_ends.astype("<u4").tobytes(),
            pack.sentence_lengths.astype("<u2").tobytes(),
            pack.tokens.astype("<u2").tobytes(),
        )
    )


def decode_pack(data: bytes, where: str) -> Pack:
    """Read a pack; arrays are views of `data`.

    Args:
        data: the member's payload.
        where: shard and pack, for the message.

    Raises:
        DataFault: the bytes are not a pack of this version, or their counts disagree.
    """
    if len(data) < _HEADER.size:
        raise DataFault(f"{where}: {len(data)} bytes, shorter than a pack header")
    magic, version, flags, documents, sentences, tokens = _HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        raise DataFault(f"{where}: not a pack of version {VERSION} (found {magic!r} {version})")
    expected = _HEADER.size + 4 * documents + 2 * sentences + 2 * tokens
    if len(data) != expected:
        raise DataFault(f"{where}: {len(data)} bytes, its header says {expected}")
    offset = _HEADER.size
    document_ends = np.frombuffer(data, "<u4", documents, offset)
    offset += 4 * documents
    sentence_lengths = np.frombuffer(data, "<u2", sentences, offset)
    offset += 2 * sentences
    ends_in_order = documents == 0 or bool(np.all(document_ends[1:] > document_ends[:-1]))
    last_end = int(document_ends[-1]) if documents else 0
    if (
        not ends_in_order
        or last_end != sentences
        or int(sentence_lengths.sum(dtype=np.int64)) != tokens
    ):
        raise DataFault(f"{where}: its documents, sentences and tokens do not add up")
    return Pack(
        tokens=np.frombuffer(data, "<u2", tokens, offset),
        sentence_lengths=sentence_lengths,
        document_ends=document_ends,
        continues_previous=bool(flags & CONTINUES_PREVIOUS),
        continues_next=bool(flags & CONTINUES_NEXT),
    )
