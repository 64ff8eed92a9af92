"""docs/schedules.png and docs/schedules.md tell what the code does."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from roberta_dist.config.optim import Cooldown, Decay

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location(
        "plot_schedules", ROOT / "tools" / "plot_schedules.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_picture_is_of_these_schedules(tool):
    with Image.open(ROOT / "docs" / "schedules.png") as picture:
        drawn = picture.text["Description"]
    assert drawn == tool.digest(tool.panels()), "run `python tools/plot_schedules.py`"


def test_every_decay_has_its_panel_and_its_row(tool):
    panels = tool.panels()
    curves = [curve for drawn in panels.values() for curve in drawn]
    assert {curve.schedule.decay for curve in curves} == set(Decay)
    assert {curve.schedule.cooldown for curve in curves} == set(Cooldown)
    assert any(curve.schedule.phases for curve in curves)
    page = (ROOT / "docs" / "schedules.md").read_text(encoding="utf-8")
    assert all(f"\n| `{decay.value}`" in page for decay in Decay)
    assert "](schedules.png)" in page
    assert "docs/schedules.md" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tool_draws(tool):
    with Image.open(io.BytesIO(tool.draw({"one": [tool.panels()["wsd"][0]]}))) as picture:
        assert picture.format == "PNG" and picture.width > 1000
