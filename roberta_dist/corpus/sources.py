"""Which source a configuration names."""

from __future__ import annotations

from roberta_dist.config.corpus import CorpusConfig, Source
from roberta_dist.corpus.docstrings import DocstringSource
from roberta_dist.corpus.documents import DocumentSource
from roberta_dist.corpus.text import JsonlSource, TextSource


def open_source(config: CorpusConfig) -> DocumentSource:
    """The documents that `config` names.

    Raises:
        ConfigError: a path that matches nothing.
    """
    if config.source is Source.text:
        return TextSource(config)
    if config.source is Source.jsonl:
        return JsonlSource(config)
    return DocstringSource()
