"""Held-out split and identity of a document: pure functions of its text, never of its position."""

from __future__ import annotations

import hashlib
import re
import unicodedata

DIGEST_BYTES = 16
_AS_SPACE = bytes.maketrans(b"\t\n\v\f\r\x1c\x1d\x1e\x1f", b" " * 9)
_RUN = re.compile(b"  +")


def normalise(text: str) -> str:
    """What counts as the same text: NFC, runs of whitespace as one space, ends stripped."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _normalised_bytes(text: str) -> bytes:
    """UTF-8 of `normalise(text)`; a third faster for ASCII."""
    if text.isascii():
        return _RUN.sub(b" ", text.encode("ascii").translate(_AS_SPACE)).strip(b" ")
    return normalise(text).encode("utf-8")


def content_digest(text: str, salt: str) -> bytes:
    """The first 16 bytes of sha256(salt, NUL, normalised text): dedup key, split and place."""
    hashed = hashlib.sha256(salt.encode("utf-8") + b"\0")
    hashed.update(_normalised_bytes(text))
    return hashed.digest()[:DIGEST_BYTES]


def is_held_out(digest: bytes, fraction: float) -> bool:
    """Whether the document is kept for evaluation.

    Decided by the last 8 bytes: the first ones order the documents of a split.
    """
    return int.from_bytes(digest[8:], "big") < round(fraction * 2**64)


def place_digest(digest: bytes, position: int | None) -> bytes:
    """Where a document stands in the shuffled order.

    `position` is None when duplicates are dropped; else the document's position in the source, so
    that copies of one text are not neighbours.
    """
    if position is None:
        return digest
    return hashlib.sha256(digest + position.to_bytes(8, "big")).digest()[:DIGEST_BYTES]
