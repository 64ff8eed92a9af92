"""What one rank meets alone stops all of them."""

from __future__ import annotations

import pytest

from roberta_dist.errors import ConfigError
from roberta_dist.runtime import dist
from roberta_dist.train.build import _on_main_first

pytestmark = pytest.mark.unit


def test_a_part_that_another_rank_cannot_open_stops_this_one(monkeypatch):
    monkeypatch.setattr(dist, "gather_everywhere", lambda own: [own, ConfigError("no such folder")])
    with pytest.raises(ConfigError, match="no such folder"):
        _on_main_first(lambda progress: "opened")


def test_rank_0_opens_first_and_says_how_far_it_is():
    told: list[bool] = []
    assert _on_main_first(lambda progress: told.append(progress) or "opened") == "opened"
    assert told == [True, False]
