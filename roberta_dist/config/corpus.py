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
    csv = "csv"
    parquet = "parquet"
    hf_dataset = "hf_dataset"
    webdataset = "webdataset"


class DocumentUnit(str, Enum):
    """What one document of a text file is."""

    blank_line = "blank_line"
    file = "file"
    line = "line"


class SentenceRule(str, Enum):
    """Where sentences end."""

    line = "line"
    splitter = "splitter"


@dataclass(frozen=True)
class CorpusConfig:
    """Documents in, held-out split, packs and shards out."""

    source: Source = identity(Source.docstrings)
    """`docstrings`: English documentation found in the running Python; files: `text`, `jsonl`,
    `csv`, `parquet`, `webdataset` (tars); `hf_dataset`: folders of `datasets`' `save_to_disk`."""
    paths: list[str] = identity([])
    """Files, folders (searched recursively) or glob patterns; empty only for `docstrings`."""
    document: DocumentUnit = identity(DocumentUnit.blank_line)
    """For `text`: documents end at a blank line, or each file or each line is one document."""
    text_field: str = identity("text")
    """Field or column that holds the text (all sources but `text` and `docstrings`)."""
    delimiter: str = identity(",")
    """For `csv`: the character between columns; a tab for TSV."""
    quoted: bool = identity(True)
    """For `csv`: fields may stand in double quotes; false takes quotes as text."""
    split: str | None = identity(None)
    """For `hf_dataset`: the split of a saved DatasetDict; null where it has only one."""
    max_mib: float = identity(0.0)
    """Stop after this many MiB of text, in source order; 0 reads everything."""
    max_document_mib: float = identity(16.0)
    """MiB of UTF-8; a longer document becomes several, cut at whitespace where there is any."""
    min_characters: int = identity(0)
    """Characters; shorter documents are dropped and counted."""
    language_field: str | None = identity(None)
    """Field or column that names a document's language; null keeps all languages."""
    languages: list[str] = identity([])
    """Values of `language_field` to keep; others are dropped and counted."""
    sentences: SentenceRule = identity(SentenceRule.line)
    """`line`: a sentence ends at a line break; `splitter`: the library `sentencex` says where."""
    language: str = identity("en")
    """ISO 639-1 code of the language whose rules `splitter` follows."""
    deduplicate: bool = identity(True)
    """Drop documents whose text (NFC, whitespace folded) was seen before; counted."""
    near_duplicates: bool = identity(False)
    """Also drop all but the first of documents that are nearly the same; counted."""
    near_duplicate_threshold: float = identity(0.8)
    """Least Jaccard similarity of two documents' word 5-grams, estimated by MinHash."""
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
        require(
            0.5 <= self.near_duplicate_threshold <= 1.0,
            "corpus.near_duplicate_threshold",
            self.near_duplicate_threshold,
            "must be in [0.5, 1]",
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
        self._check_documents()

    def _check_documents(self) -> None:
        require(
            self.max_document_mib >= 1 / 1024,
            "corpus.max_document_mib",
            self.max_document_mib,
            "must be at least 1/1024",
        )
        require(
            self.min_characters >= 0, "corpus.min_characters", self.min_characters, "is negative"
        )
        require(
            len(self.delimiter) == 1 and self.delimiter not in '"\r\n',
            "corpus.delimiter",
            repr(self.delimiter),
            "must be one character, no quote and no line break",
        )
        require(bool(self.language), "corpus.language", repr(self.language), "is empty")
        require(
            bool(self.languages) == (self.language_field is not None),
            "corpus.languages",
            self.languages,
            f"does not go with corpus.language_field={self.language_field}",
            "give both, as in corpus.language_field=lang corpus.languages=[en], or none",
        )
        require(
            self.language_field is None or self.source not in (Source.docstrings, Source.text),
            "corpus.language_field",
            self.language_field,
            f"corpus.source={self.source.value} has no fields",
            "leave it out, or read a source with fields",
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
