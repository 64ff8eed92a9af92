from __future__ import annotations

import random
import shlex

import pytest

from roberta_dist.config.load import compose
from roberta_dist.config.quoting import quote_override, quote_value
from roberta_dist.config.roots import LaunchConfig, StatusConfig

pytestmark = pytest.mark.unit
DRAW = random.Random(0)
VALUES = [
    "/runs/a", "/a\\b", "/a b", "it's", "${x}", "\\${x}", "a\\", "a\\'b", "\\\\", "$(x)`y`", "a,b[1]{c}", "é=ü",
    "null", "12", "%j #", *("".join(DRAW.choice("\\'${}ab ,=[]\"") for _ in range(6)) for _ in range(20)),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES)
def test_hydra_reads_what_was_written(value):
    assert compose("launch", LaunchConfig, [f"run_dir={quote_value(value)}"]).run_dir == value


def test_a_shell_hands_it_on():
    (word,) = shlex.split(quote_override("run_dirs", ["/a b/*", "it's"]))
    assert compose("status", StatusConfig, [word]).run_dirs == ["/a b/*", "it's"]
