"""Which documents are left out, and why: every one is counted under its reason."""

from __future__ import annotations

from enum import Enum

from roberta_dist.config.corpus import CorpusConfig
from roberta_dist.corpus.document import Document


class Drop(str, Enum):
    """Why something that was read does not become part of the corpus."""

    ignored = "ignored"
    empty = "empty"
    other_language = "other_language"
    too_short = "too_short"


def drop_reason(document: Document, corpus: CorpusConfig) -> Drop | None:
    """The first reason to leave `document` out; None keeps it.

    Parts of an over-long document are never too short: they stand with the rest of it.
    """
    if document.ignored:
        return Drop.ignored
    if not document.text.strip():
        return Drop.empty
    if corpus.language_field is not None and document.language not in corpus.languages:
        return Drop.other_language
    if document.part == 0 and len(document.text) < corpus.min_characters:
        return Drop.too_short
    return None
