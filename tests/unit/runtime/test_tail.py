"""The end of long files that are still written to, and metrics.jsonl read from there."""

from __future__ import annotations

import json
from itertools import islice

import pytest

from roberta_dist.runtime import tail
from roberta_dist.runtime.metrics import rows_backwards
from roberta_dist.runtime.tail import last_lines, lines_backwards, offset_of_last

pytestmark = pytest.mark.unit

TEXTS = [
    "",
    "a",
    "a\n",
    "a\nb",
    "a\nb\n",
    "\n",
    "\n\n",
    "one\n\nthree\n",
    "ab\ncd\nef\ngh",
    "x" * 40,
]


@pytest.mark.parametrize("block", [1, 2, 3, 64])
@pytest.mark.parametrize("text", TEXTS)
def test_lines_come_whole_wherever_a_block_ends(tmp_path, monkeypatch, text, block):
    monkeypatch.setattr(tail, "BLOCK", block)
    path = tmp_path / "log"
    path.write_text(text)
    whole = text.split("\n")[:-1]  # what stands behind the last newline is no line yet
    assert [line.decode() for line in lines_backwards(path)] == whole[::-1]
    for count in range(1, 5):
        assert last_lines(path, count) == whole[-count:]
        shown = "".join(text.splitlines(keepends=True)[-count:])
        assert text[offset_of_last(path, count) :] == shown


def test_metrics_are_read_from_the_end(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert list(rows_backwards(path)) == []
    rows = [{"step": step, "loss": 1.0} for step in (1, 2)] + [{"step": 2, "eval_loss": 3.0}]
    lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join([lines[0], "damaged", *lines[1:], '{"step": 3, "lo']))
    assert list(rows_backwards(path)) == rows[::-1]
    assert list(rows_backwards(path, '"eval_loss"')) == [rows[2]]
    assert next(rows_backwards(path, '"loss"'))["step"] == 2


def test_no_more_is_read_than_asked_for(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(100_000)))
    opened = []

    def counting(*arguments):
        handle = open(*arguments)  # noqa: SIM115
        opened.append(handle)
        return handle

    monkeypatch.setattr(tail, "open", counting, raising=False)
    rows = rows_backwards(path)
    assert [row["step"] for row in islice(rows, 3)] == [99_999, 99_998, 99_997]
    assert path.stat().st_size - opened[0].tell() <= tail.BLOCK
    rows.close()
