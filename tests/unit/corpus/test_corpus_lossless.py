"""Tokenizers and processes that would lose text in silence."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest

from roberta_dist.corpus.bpe import load_bpe, save_bpe, train_bpe
from roberta_dist.corpus.encode import Encoder
from roberta_dist.corpus.pool import ordered_map
from roberta_dist.errors import ConfigError, DataFault

pytestmark = pytest.mark.unit
TEXTS = ["the quick brown fox jumps over the lazy dog\n"] * 20


def test_a_tokenizer_without_some_bytes_is_refused(tmp_path):
    save_bpe(train_bpe(iter(TEXTS), 300), tmp_path)
    file = tmp_path / "tokenizer.json"
    values = json.loads(file.read_text())
    del values["model"]["vocab"]["q"]
    values["model"]["merges"] = [m for m in values["model"]["merges"] if "q" not in "".join(m)]
    file.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="no entry for 1 of the 256 bytes"):
        load_bpe(file)


def test_cuts_under_another_pattern_are_counted(tmp_path):
    save_bpe(train_bpe(iter(TEXTS), 300), tmp_path)
    text = "word. " * 40_000
    assert Encoder(load_bpe(tmp_path)).encode(text).forced_cuts == 0
    file = tmp_path / "tokenizer.json"
    values = json.loads(file.read_text())
    split = {
        "type": "Split",
        "pattern": {"Regex": r"\S+\s*"},
        "behavior": "Isolated",
        "invert": False,
    }
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    values["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}
    file.write_text(json.dumps(values))
    assert Encoder(load_bpe(file)).encode(text).forced_cuts == 3


def die(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_killed_process_is_an_error_not_a_hang():
    with pytest.raises(DataFault, match="ended without a result"):
        list(ordered_map(die, list(range(8)), workers=2))
    assert list(ordered_map(abs, [-1, -2, -3], workers=2)) == [1, 2, 3]
    assert np.array_equal(list(ordered_map(abs, [-1], workers=2)), [1])
