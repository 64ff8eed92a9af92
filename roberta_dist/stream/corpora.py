"""What a configuration says of corpora: where they are read, and how their rows are masked."""

from __future__ import annotations

from roberta_dist.config.data import DataConfig, MaskingConfig, MaskUnit
from roberta_dist.corpus.bpe import load_bpe
from roberta_dist.corpus.manifest import Manifest
from roberta_dist.corpus.opening import open_store
from roberta_dist.corpus.storage import ReadOptions, Store
from roberta_dist.corpus.tokenizer_folder import local_tokenizer
from roberta_dist.corpus.words import word_tables
from roberta_dist.stream.masking import MaskRule, mask_rule


def first_corpus(data: DataConfig) -> Store:
    """The corpus that stands for all where they share something: tokenizer, vocabulary."""
    return open_corpus(next(iter(data.locations.values())), data)


def open_corpus(path: str, data: DataConfig) -> Store:
    """The store of a corpus, with the patience and the cache of the `data` group."""
    return open_store(path, ReadOptions(data.retry_s, data.cache_dir, data.cache_gib))


def open_rule(
    masking: MaskingConfig, seed: int, purpose: str, manifest: Manifest, data: DataConfig
) -> MaskRule:
    """How rows are masked; whole words and spans need the tokenizer's files.

    Raises:
        DataFault: they cannot be read.
    """
    words = None
    if masking.unit is not MaskUnit.token:
        folder = local_tokenizer(first_corpus(data), manifest.tokenizer_sha256)
        words = word_tables(load_bpe(folder))
    return mask_rule(masking, seed, purpose, manifest.vocab_size, manifest.special_tokens, words)
