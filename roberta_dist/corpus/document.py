"""A document: valid Unicode with a name, never longer than `corpus.max_document_mib`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from roberta_dist.units import KIB, MIB

CHUNK_BYTES = MIB
_LOOK_BACK = 64 * KIB
_SURROGATE = re.compile("[\ud800-\udfff]")
_WORD_END = re.compile(rb"\S(?=\s)")


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        id: where it came from, for messages; parts of an over-long text end in `#1`, `#2`, ...
        text: valid Unicode; NUL and literal special tokens are kept.
        repaired: invalid UTF-8 or lone surrogates were replaced by U+FFFD.
        part: 0, or the number of cuts before this part of an over-long text.
        language: value of `corpus.language_field`; None where it is null or not asked for.
        ignored: no document but a tar member with another suffix, passed over and counted.
    """

    id: str
    text: str
    repaired: bool = False
    part: int = 0
    language: str | None = None
    ignored: bool = False


def decode(raw: bytes) -> tuple[str, bool]:
    """UTF-8 text, with U+FFFD for what is not UTF-8, and whether there was any."""
    try:
        return raw.decode("utf-8"), False
    except UnicodeDecodeError:
        return raw.decode("utf-8", errors="replace"), True


def replace_surrogates(text: str) -> tuple[str, bool]:
    """Text that UTF-8 can hold: JSON and Python literals may spell lone surrogates."""
    try:
        text.encode("utf-8")
        return text, False
    except UnicodeEncodeError:
        return _SURROGATE.sub("\ufffd", text), True


def cut_bytes(chunks: Iterable[bytes], limit: int) -> Iterator[bytes]:
    """The joined `chunks` in parts of at most `limit` bytes, which joined give the same bytes.

    A cut is made before the last whitespace that follows a word in the 64 KiB before the limit;
    where there is none, at the limit, never inside a UTF-8 character. It does not depend on how the
    bytes are chunked, and no more than a part and a chunk is held.
    """
    held = bytearray()
    for chunk in chunks:
        held += chunk
        while len(held) > limit:
            end = _cut_place(held, limit)
            yield bytes(held[:end])
            del held[:end]
    yield bytes(held)


def _cut_place(held: bytearray, limit: int) -> int:
    first = max(0, limit - _LOOK_BACK)
    window = bytes(held[first : limit + 1])
    ends = [match.end() for match in _WORD_END.finditer(window)]
    if ends:
        return first + ends[-1]
    end = limit
    while end > max(1, limit - 3) and held[end] & 0xC0 == 0x80:
        end -= 1
    return end


def documents_of(name: str, chunks: Iterable[bytes], limit: int) -> Iterator[Document]:
    """The document whose bytes are `chunks`, in parts where it is longer than `limit` bytes."""
    for part, raw in enumerate(cut_bytes(chunks, limit)):
        text, repaired = decode(raw)
        yield Document(f"{name}#{part}" if part else name, text, repaired, part)


def cut_document(document: Document, limit: int) -> Iterator[Document]:
    """`document` in parts of at most `limit` bytes; itself where it is short enough."""
    if len(document.text) <= limit // 4 or len(raw := document.text.encode("utf-8")) <= limit:
        yield document
        return
    chunks = (raw[start : start + CHUNK_BYTES] for start in range(0, len(raw), CHUNK_BYTES))
    for part in documents_of(document.id, chunks, limit):
        yield Document(part.id, part.text, document.repaired, part.part, document.language)
