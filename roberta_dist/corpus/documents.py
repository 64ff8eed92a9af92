"""Documents, and what was counted on the way to them."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

SURROGATES = re.compile("[\ud800-\udfff]")
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True)
class Document:
    """One text with a name to find it again; ids go to messages only, never to the corpus."""

    id: str
    text: str


@dataclass
class SourceCounts:
    """What happened to what was read: nothing is dropped without a count."""

    documents: int = 0
    empty: int = 0
    duplicate: int = 0
    held_out: int = 0
    invalid_utf8: int = 0
    lone_surrogates: int = 0
    bad_json_lines: int = 0
    other_language: int = 0
    bytes: int = 0

    def as_dict(self) -> dict[str, int]:
        """Name → count."""
        return dict(vars(self))


class DocumentSource(Protocol):
    """A source of documents in a fixed order."""

    counts: SourceCounts

    def files(self) -> list[Path]:
        """Every file that is read, in order."""

    def documents(self) -> Iterator[Document]:
        """The documents; counts what cannot be used."""


@dataclass
class Decoder:
    """Bytes to text: invalid UTF-8 and lone surrogates become U+FFFD and are counted."""

    counts: SourceCounts = field(default_factory=SourceCounts)

    def decode(self, data: bytes) -> str:
        """Text of `data`, without a byte-order mark."""
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            self.counts.invalid_utf8 += 1
            return data.decode("utf-8-sig", errors="replace")

    def clean(self, text: str) -> str:
        """`text` with lone surrogates (from JSON escapes) replaced."""
        cleaned, found = SURROGATES.subn("\ufffd", text)
        self.counts.lone_surrogates += int(found > 0)
        return cleaned


def normalise(text: str) -> str:
    """The form that decides whether two documents are the same: NFC, one space, stripped."""
    return _SPACES.sub(" ", unicodedata.normalize("NFC", text)).strip()


def digest(text: str, salt: str) -> bytes:
    """16 bytes of sha256 over (salt, normalised text): identity, split and shuffle key at once."""
    return hashlib.sha256(f"{salt}\0{normalise(text)}".encode()).digest()[:16]


def is_held_out(key: bytes, fraction: float) -> bool:
    """Whether a digest falls into the held-out share: the same wherever the text appears."""
    return int.from_bytes(key[:8], "big") < int(fraction * 2**64)
