"""The card tells the schedule that was run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from roberta_dist.config.optim import ScheduleConfig, SchedulePhase
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.export.card import run_facts

pytestmark = pytest.mark.unit


def test_warmup_is_told_in_steps_and_each_phase_has_its_line():
    schedule = ScheduleConfig(
        max_steps=8000,
        warmup_steps=0,
        warmup_fraction=0.1,
        phases=[SchedulePhase(from_step=7000, lr=4e-3, warmup_fraction=0.25)],
    )
    config = replace(PretrainConfig(), schedule=schedule)
    facts = run_facts(config, {"step": 8000, "next_row": 1}, None, None)
    assert facts["warmup steps"] == 700 and facts["peak learning rate"] == config.optim.lr
    assert facts["schedule begins anew at step 7,000"] == (
        "peak learning rate 0.004, 250 warmup steps"
    )
