"""What may differ between a run folder and the command that resumes it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from roberta_dist.config.load import to_yaml
from roberta_dist.config.optim import Decay, ScheduleConfig, SchedulePhase
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.config.train import CheckpointConfig
from roberta_dist.errors import ConfigError, DataFault
from roberta_dist.optim.schedule import learning_rate
from roberta_dist.train.resume import check_resume, config_changes
from roberta_dist.train.retention import steps_to_delete
from roberta_dist.train.state import TrainState, state_from_json

pytestmark = pytest.mark.unit
OLD = PretrainConfig()
STEP = 50_000
"""Steps done, beyond the warmup of `OLD`."""


def changed(group: str, **values):
    return replace(OLD, **{group: replace(getattr(OLD, group), **values)})


def test_free_keys_are_taken_and_reported():
    new = changed("engine", stage=3)
    assert [str(c) for c in config_changes(OLD, new, STEP)] == ["engine.stage: 1 → 3"]
    assert config_changes(OLD, OLD, STEP) == []


@pytest.mark.parametrize(
    ("group", "values", "message"),
    [
        ("optim", {"lr": 1e-3}, r"optim.lr: 0.0006 → 0.001"),
        ("masking", {"probability": 0.2}, r"masking.probability: 0.15 → 0.2"),
        ("train", {"seed": 9}, r"train.seed: 1 → 9"),
        ("model", {"dropout": 0.0}, r"model.dropout: 0.1 → 0.0"),
        ("data", {"sequence_length": 128}, r"data.sequence_length: 512 → 128"),
    ],
)
def test_identity_keys_stop_the_run(group, values, message):
    with pytest.raises(ConfigError, match=message):
        config_changes(OLD, changed(group, **values), STEP)


def test_of_a_ramp_only_the_first_other_segment_is_told(tmp_path):
    segments = [{"first_row": 8 * step, "rows": step} for step in range(1000)]
    saved = tmp_path / "config.yaml"
    saved.write_text(to_yaml(OLD))
    state = TrainState().to_json({"seed": 1, "segments": segments})
    checkpoint = SimpleNamespace(folder=tmp_path, config_yaml=saved, train_state=state)
    other = [*segments[:700], {"first_row": 5600, "rows": 9}, *segments[701:]]
    with pytest.raises(ConfigError) as refused:
        check_resume(checkpoint, OLD, {"seed": 1, "segments": other})
    told = refused.value.problem
    assert told.endswith(
        "segments[700]: {'first_row': 5600, 'rows': 700} → {'first_row': 5600, 'rows': 9}"
    )
    assert "phases" in refused.value.remedy
    with pytest.raises(ConfigError, match=r"segments\[999\]: .* → None"):
        check_resume(checkpoint, OLD, {"seed": 1, "segments": segments[:999]})


def test_max_steps_grows_only_where_the_schedule_allows():
    longer = changed("schedule", max_steps=600_000)
    with pytest.raises(ConfigError, match=r"train\.extend=true"):
        config_changes(OLD, longer, STEP)
    allowed = replace(longer, train=replace(longer.train, extend=True))
    assert {c.key for c in config_changes(OLD, allowed, STEP)} == {
        "schedule.max_steps",
        "train.extend",
    }
    constant = changed("schedule", decay=Decay.constant)
    grown = replace(constant, schedule=replace(constant.schedule, max_steps=600_000))
    assert len(config_changes(constant, grown, STEP)) == 1
    with pytest.raises(ConfigError, match="max_steps"):
        config_changes(longer, replace(OLD, train=replace(OLD.train, extend=True)), STEP)


@pytest.mark.parametrize(
    ("schedule", "free_until"),
    [
        (ScheduleConfig(max_steps=1000, warmup_steps=60), 61),
        (ScheduleConfig(decay=Decay.cosine, max_steps=1000, warmup_steps=60), 61),
        (ScheduleConfig(decay=Decay.constant, max_steps=1000, warmup_steps=60), 1000),
        (ScheduleConfig(decay=Decay.inverse_sqrt, max_steps=1000, warmup_steps=60), 1000),
        (ScheduleConfig(decay=Decay.wsd, max_steps=1000, warmup_steps=60, decay_steps=200), 801),
        # a fraction is of max_steps: warmup is another from the first step on
        (ScheduleConfig(decay=Decay.constant, warmup_steps=0, warmup_fraction=0.1), 0),
        # of the last phase only, so until a step of it is done
        (
            ScheduleConfig(
                decay=Decay.constant,
                max_steps=1000,
                warmup_steps=60,
                phases=[SchedulePhase(500, 1e-3, warmup_fraction=0.1)],
            ),
            500,
        ),
    ],
)
def test_max_steps_grows_while_no_step_done_depended_on_it(schedule, free_until):
    """`free_until` steps may be done; beyond them `train.extend=true` has to be said."""
    old = replace(OLD, schedule=schedule)
    new = replace(old, schedule=replace(schedule, max_steps=schedule.max_steps * 3 // 2))
    (change,) = config_changes(old, new, free_until)
    assert change.key == "schedule.max_steps"
    if free_until == schedule.max_steps:
        return
    with pytest.raises(ConfigError, match=r"schedule.max_steps: .*"):
        config_changes(old, new, free_until + 1)
    said = replace(new, train=replace(new.train, extend=True))
    assert len(config_changes(old, said, free_until + 1)) == 2


def test_phases_to_come_may_be_added_but_not_those_begun_be_changed():
    first, second = SchedulePhase(30_000, 1e-3), SchedulePhase(STEP, 5e-4)
    old = changed("schedule", phases=[first])
    added = replace(old, schedule=replace(old.schedule, phases=[first, second]))
    with pytest.raises(ConfigError, match=r"schedule.phases: .*"):
        config_changes(old, added, STEP)
    said = replace(added, train=replace(added.train, extend=True))
    assert {c.key for c in config_changes(old, said, STEP)} == {"schedule.phases", "train.extend"}
    for phases in ([], [second], [replace(first, lr=2e-3), second], [SchedulePhase(9, 1), first]):
        other = replace(said, schedule=replace(said.schedule, warmup_steps=9, phases=phases))
        before = replace(old, schedule=replace(old.schedule, warmup_steps=9))
        with pytest.raises(ConfigError, match=r"schedule.phases: .*"):
            config_changes(before, other, STEP)


def test_a_second_phase_after_the_end_leaves_the_first_as_it_was():
    """NVIDIA's way: phase 1 runs to its end, phase 2 is a longer run with a phase."""
    old = changed("schedule", max_steps=60_000)
    phase = [SchedulePhase(60_000, 1e-3, 100)]
    longer = replace(old, schedule=replace(old.schedule, max_steps=90_000, phases=phase))
    said = replace(longer, train=replace(longer.train, extend=True))
    assert len(config_changes(old, said, 60_000)) == 3
    rates = [
        [learning_rate(step, 6e-4, config.schedule) for step in range(60_000)]
        for config in (old, said)
    ]
    assert rates[0] == rates[1]


def test_retention():
    config = CheckpointConfig(keep_last=2, keep_every=100, keep_best=True)
    steps = [50, 100, 150, 200, 250, 300]
    assert steps_to_delete(steps, config, best_step=150) == [50]
    assert steps_to_delete(steps, config, best_step=None) == [50, 150]
    assert steps_to_delete([1], CheckpointConfig(keep_last=1), None) == []


def test_state_round_trip():
    state = TrainState(step=3, next_row=24, optimizer_step=2, skipped=1).evaluated(2.0)
    assert state_from_json(state.to_json({"x": 1})) == state
    assert state.best_step == 3
    worse = state.evaluated(2.5)
    assert (worse.best_eval_loss, worse.evals_without_improvement) == (2.0, 1)
    with pytest.raises(DataFault, match="next_row"):
        state_from_json({"step": 1})
