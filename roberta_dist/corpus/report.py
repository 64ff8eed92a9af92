"""corpus.html: what a prepared corpus holds, on one page without scripts or outside resources."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from roberta_dist.corpus.bpe import Bpe, byte_alphabet
from roberta_dist.corpus.statistics import Statistics
from roberta_dist.runtime.files import atomic_write
from roberta_dist.units import human_bytes, human_count

HTML_NAME = "corpus.html"
TOP_TOKENS = 50
_COLOURS = {"train": "#2563a8", "held_out": "#d97a1d"}
_WIDTH, _HEIGHT, _MARGIN = 720, 200, 24
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 760px; margin: 2em auto;
       padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.1em; margin-top: 2em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .15em .8em .15em 0; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 1px solid #999; }
code { background: #f1f1f1; padding: 0 .2em; white-space: pre; }
.settings td { text-align: left; overflow-wrap: anywhere; }
.key { display: inline-block; width: .8em; height: .8em; margin: 0 .3em 0 1em; }
svg { width: 100%; height: auto; font: 10px system-ui, sans-serif; }
"""
Row = Iterable[str]


def write_html(
    path: Path, report: dict[str, Any], statistics: dict[str, Statistics], bpe: Bpe
) -> None:
    """Write the page, whole or not at all; equal corpora give equal bytes.

    Args:
        path: the file.
        report: what prepare.json says.
        statistics: of each split.
        bpe: spells the tokens.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    # Read back from disk the keys are sorted; training comes first.
    ordered = dict(sorted(statistics.items(), reverse=True))
    legend = "".join(
        f'<span class="key" style="background:{_colour(split)}"></span>{escape(split)}'
        for split in ordered
    )
    documents = {split: facts.document_lengths for split, facts in ordered.items()}
    sentences = {split: facts.sentence_lengths for split, facts in ordered.items()}
    sections = [
        "<h1>Corpus</h1>",
        _split_table(ordered),
        "<h2>Counted on the way</h2>",
        _count_table(report),
        f"<h2>Tokens in a document</h2><p>Share of each split's documents.{legend}</p>",
        _histogram(documents, "documents by their tokens"),
        f"<h2>Tokens in a sentence</h2><p>Share of each split's sentences.{legend}</p>",
        _histogram(sentences, "sentences by their tokens"),
        f"<h2>The {TOP_TOKENS} most frequent tokens</h2>",
        _token_table(next(iter(ordered.values())), bpe),
        "<h2>Settings</h2>",
        _table((), ((escape(k), f"<code>{escape(repr(v))}</code>")
                    for k, v in sorted(report["settings"].items())), "settings"),
    ]  # fmt: skip
    atomic_write(
        path,
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Corpus</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(sections) + "\n</body></html>\n",
    )


def _colour(split: str) -> str:
    return _COLOURS.get(split, "#777")


def _table(head: Row, rows: Iterable[Row], kind: str = "") -> str:
    """A table of cells that are HTML already."""
    titles = "".join(f"<th>{cell}</th>" for cell in head)
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<table class="{kind}">'
        + (f"<thead><tr>{titles}</tr></thead>" if titles else "")
        + f"<tbody>\n{body}\n</tbody></table>"
    )


def _split_table(statistics: dict[str, Statistics]) -> str:
    def column(facts: Statistics) -> list[str]:
        documents, tokens = max(1, facts.documents), max(1, facts.tokens)
        return [
            f"{facts.documents:,}",
            f"{facts.sentences:,}",
            f"{facts.tokens:,}",
            human_bytes(facts.text_bytes),
            f"{facts.tokens / max(1, facts.text_bytes):.4f}",
            f"{facts.text_bytes / tokens:.2f}",
            f"{tokens / documents:,.1f}",
            f"{tokens / max(1, facts.sentences):,.1f}",
            f"{facts.unigram_entropy:.3f} nats",
        ]

    names = (
        "documents", "sentences", "tokens", "text", "tokens per byte", "bytes per token",
        "tokens per document", "tokens per sentence", "unigram entropy",
    )  # fmt: skip
    columns = [column(facts) for facts in statistics.values()]
    return _table(("", *map(escape, statistics)), zip(names, *columns, strict=True))


def _count_table(report: dict[str, Any]) -> str:
    """Every whole number of prepare.json that is not in the first table: reading, then splits."""
    splits = dict(sorted(report["splits"].items(), reverse=True))
    columns = [report["read"], *splits.values()]
    above = {"sentences", "tokens", "text_bytes"}
    keys = dict.fromkeys(
        key
        for column in columns
        for key, value in column.items()
        if isinstance(value, int) and key not in above
    )
    rows = (
        (_label(key), *(f"{column[key]:,}" if key in column else "" for column in columns))
        for key in keys
    )
    return _table(("", "reading", *map(escape, splits)), rows)


def _label(key: str) -> str:
    name = escape(key.replace("_", " "))
    return f"{name}, before duplicates are dropped" if key in _COLOURS else name


def _histogram(lengths: dict[str, Any], what: str) -> str:
    """Grouped bars, one group a power of two, as an SVG; titles give the exact counts."""
    used = np.flatnonzero(np.sum(list(lengths.values()), axis=0))
    if not len(used):
        return "<p>none</p>"
    bins = range(int(used[0]), int(used[-1]) + 1)
    shares = {split: counts / max(1, counts.sum()) for split, counts in lengths.items()}
    highest = max(float(share.max()) for share in shares.values())
    group = (_WIDTH - 2 * _MARGIN) / len(bins)
    bar = min(40.0, 0.8 * group / len(lengths))
    shapes = []
    for place, number in enumerate(bins):
        left = _MARGIN + place * group
        low, high = (0, 0) if number == 0 else (1 << (number - 1), (1 << number) - 1)
        label = f"{low:,}" if low < 1_000_000 else human_count(low)
        for series, (split, counts) in enumerate(lengths.items()):
            height = _HEIGHT * float(shares[split][number]) / highest
            shapes.append(
                f'<rect x="{left + series * bar:.1f}" y="{_MARGIN + _HEIGHT - height:.1f}" '
                f'width="{bar:.1f}" height="{height:.1f}" fill="{_colour(split)}">'
                f"<title>{escape(split)}: {int(counts[number]):,} of {low:,} to {high:,} tokens "
                f"({100 * float(shares[split][number]):.2f} %)</title></rect>"
            )
        shapes.append(
            f'<text x="{left + bar * len(lengths) / 2:.1f}" y="{_MARGIN + _HEIGHT + 14}" '
            f'text-anchor="middle">{label}</text>'
        )
    base = _MARGIN + _HEIGHT
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 2 * _MARGIN}" role="img" aria-label="{escape(what)}">'
        f'<text x="{_MARGIN}" y="14">{100 * highest:.1f} %</text>'
        + "".join(shapes)
        + f'<line x1="{_MARGIN}" y1="{base}" x2="{_WIDTH - _MARGIN}" y2="{base}" stroke="#999"/></svg>'
        "<p>Each bar holds the lengths from its label up to the next one.</p>"
    )


def _token_table(facts: Statistics, bpe: Bpe) -> str:
    facts.flush()
    spelled = {number: token for token, number in bpe.vocab.items()}
    order = np.argsort(-facts.token_counts, kind="stable")[:TOP_TOKENS]
    most = max(1, int(facts.token_counts.max()))
    rows = (
        (
            f"<code>{escape(_visible(spelled.get(number, '')))}</code>",
            str(number),
            f"{count:,}",
            f"{100 * count / max(1, facts.tokens):.2f} %",
            f'<svg viewBox="0 0 200 10" style="width:200px"><rect width="{200 * count / most:.1f}" '
            'height="10" fill="#2563a8"/></svg>',
        )
        for number, count in zip(order.tolist(), facts.token_counts[order].tolist(), strict=True)
        if count
    )
    return _table(("token", "id", "count", "share", ""), rows)


def _visible(token: str) -> str:
    """The token's text; spaces and what cannot be printed or is half a character made visible."""
    to_byte = {character: byte for byte, character in byte_alphabet().items()}
    raw = bytes(to_byte[character] for character in token)
    text = raw.decode("utf-8", errors="backslashreplace")
    shown = "".join(
        c if c == " " or c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )
    return shown.replace(" ", "␣")
