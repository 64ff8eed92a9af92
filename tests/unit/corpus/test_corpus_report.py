"""corpus.html is whole HTML that loads nothing, and text from users stays text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from roberta_dist.corpus.bpe import Bpe, train_bpe
from roberta_dist.corpus.encode import Encoder
from roberta_dist.corpus.report import write_html
from roberta_dist.corpus.statistics import Statistics

pytestmark = pytest.mark.unit

HOSTILE = [
    "<script>alert(1)</script> <img src=x onerror=1>",
    "a & \"b\" 'c'",
    "NUL \0 \x1b[31m\u202e",
    "é自",
]
VOID = {"meta", "rect", "line"}


class Page(HTMLParser):
    """Checks nesting; keeps tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if not (tag == "meta" or self.get_starttag_text().endswith("/>")):  # type: ignore[union-attr]
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def bpe() -> Bpe:
    return train_bpe(iter(HOSTILE * 50), 400)


def page(path: Path, bpe: Bpe, texts: dict[str, list[str]]) -> Page:
    encoder, statistics = Encoder(bpe), {}
    for split, documents in texts.items():
        statistics[split] = Statistics.empty(bpe.size)
        for text in documents:
            statistics[split].add_document(encoder.encode(text), len(text.encode()))
    report = {
        "settings": {"corpus.paths": ["</code><script>"], "corpus.split": None},
        "read": {"documents": 1234567, "too_short": 3, "train": 2},
        "splits": {split: {"duplicates": 7, "unigram_entropy": 1.5} for split in texts},
    }
    write_html(path, report, statistics, bpe)
    parsed = Page()
    parsed.feed(path.read_text(encoding="utf-8"))
    parsed.close()
    assert parsed.open == []
    return parsed


def test_hostile_text_stays_text_and_nothing_is_loaded(tmp_path: Path, bpe: Bpe) -> None:
    found = page(tmp_path / "corpus.html", bpe, {"train": HOSTILE * 3, "held_out": HOSTILE})
    assert not found.tags & {"script", "img", "link", "iframe", "object", "foreignobject", "a"}
    assert not {
        name for name, _ in found.attributes if name.startswith("on") or name in ("src", "href")
    }
    content = (tmp_path / "corpus.html").read_text(encoding="utf-8")
    assert not re.search("https?:|url\\(|@import|<script", content)
    assert not re.search("[\0\x1b\u202e]", content)
    assert "</code><script>" in found.text and "1,234,567" in found.text
    assert "script" in found.text and "␣" in found.text


def test_the_numbers_are_those_of_the_statistics(tmp_path: Path, bpe: Bpe) -> None:
    texts = ["one two\nthree\n"] * 5 + ["x"] * 15
    found = page(tmp_path / "a.html", bpe, {"train": texts, "held_out": ["x"]})
    encoder = Encoder(bpe)
    tokens = [len(encoder.encode(text).tokens) for text in texts]
    counts = np.bincount(np.concatenate([encoder.encode(text).tokens for text in texts]))
    assert f"{sum(tokens):,}" in found.text
    assert f"{sum(tokens) / sum(map(len, texts)):.4f}" in found.text
    assert "train: 15 of 1 to 1 tokens (75.00 %)" in found.text
    assert str(int(counts.argmax())) in found.text and f"{counts.max():,}" in found.text
    again = page(tmp_path / "b.html", bpe, {"held_out": ["x"], "train": texts})
    assert again.text == found.text


def test_a_split_may_be_empty(tmp_path: Path, bpe: Bpe) -> None:
    assert "none" in page(tmp_path / "a.html", bpe, {"train": []}).text
