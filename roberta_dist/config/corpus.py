"""`corpus` and `tokenizer`: what `roberta-dist prepare` reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from roberta_dist.config.fields import free, identity, require


class Source(str, Enum):
    """Where documents come from."""

    docstrings = "docstrings"
    text = "text"
    jsonl = "jsonl"


class DocumentUnit(str, Enum):
    """What one document of a text file is."""

    blank_line = "blank_line"
    file = "file"


@dataclass(frozen=True)
class CorpusConfig:
    """Documents in, held-out split, packs and shards out."""

    source: Source = identity(Source.docstrings)
    """`docstrings`: English documentation found in the running Python; `text`; `jsonl`."""
    paths: list[str] = identity([])
    """Files, folders (searched recursively) or glob patterns; empty only for `docstrings`."""
    document: DocumentUnit = identity(DocumentUnit.blank_line)
    """For `text`: documents end at a blank line, or each file is one document."""
    text_field: str = identity("text")
    """For `jsonl`: the field that holds the text."""
    max_mib: float = identity(0.0)
    """Stop after this many MiB of text, in source order; 0 reads everything."""
    deduplicate: bool = identity(True)
    """Drop documents whose text (NFC, whitespace folded) was seen before; counted."""
    held_out_fraction: float = identity(0.01)
    """Share of documents, chosen by content hash, kept for evaluation."""
    held_out_salt: str = identity("roberta_dist")
    """Salt of the content hash; another salt gives another split."""
    pack_mib: float = identity(1.0)
    """MiB of tokens in one pack, the unit of reading and shuffling."""
    shard_mib: float = identity(128.0)
    """MiB of packs in one webdataset tar shard."""
    workers: int = free(0)
    """Encoding processes; 0 means one a core. Does not change the output."""

    def __post_init__(self) -> None:
        require(
            0.0 <= self.held_out_fraction < 1.0,
            "corpus.held_out_fraction",
            self.held_out_fraction,
            "must be in [0, 1)",
        )
        require(self.pack_mib > 0, "corpus.pack_mib", self.pack_mib, "must be positive")
        require(
            self.shard_mib >= self.pack_mib,
            "corpus.shard_mib",
            self.shard_mib,
            f"must be at least corpus.pack_mib={self.pack_mib}",
        )
        require(self.max_mib >= 0, "corpus.max_mib", self.max_mib, "must be 0 or positive")
        require(self.workers >= 0, "corpus.workers", self.workers, "must be 0 or positive")
        require(
            self.source is Source.docstrings or bool(self.paths),
            "corpus.paths",
            self.paths,
            f"is empty, and corpus.source={self.source.value} reads from files",
            "give corpus.paths=[FILE_OR_FOLDER,...]",
        )


@dataclass(frozen=True)
class TokenizerConfig:
    """Byte-level BPE trained on the corpus, or an existing tokenizer."""

    path: str | None = identity(None)
    """A folder with `vocab.json` + `merges.txt`, or a `tokenizer.json`; null trains one."""
    vocab_size: int = identity(50_265)
    """Entries including the 5 specials (RoBERTa: 50,265); ignored when `path` is given."""
    train_mib: float = identity(64.0)
    """MiB of training-split text, sampled by content hash, that the BPE is trained on."""

    def __post_init__(self) -> None:
        require(
            261 <= self.vocab_size <= 65_536,
            "tokenizer.vocab_size",
            self.vocab_size,
            "must be in [261, 65536]: 256 bytes + 5 specials at least, and ids are uint16",
        )
        require(self.train_mib > 0, "tokenizer.train_mib", self.train_mib, "must be positive")
