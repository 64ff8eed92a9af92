"""Which batches a dry run tries."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from roberta_dist.config.data import DataConfig, Phase
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.runtime.rundir import RunPaths
from roberta_dist.stream.plan import make_plan
from roberta_dist.stream.quarantine import Entry, Quarantine
from roberta_dist.train import dry_run
from roberta_dist.train.state import TrainState

pytestmark = pytest.mark.unit
PHASES = [
    Phase(from_step=10, sequence_length=512),
    Phase(from_step=20, global_batch_size=32),
    Phase(from_step=30, sequence_length=64),
]
PLAN = make_plan(DataConfig(sequence_length=128, phases=PHASES), 16, (1.0,))


@pytest.mark.parametrize(
    ("step", "tried"), [(0, [10, 0]), (9, [10, 9]), (10, [10]), (25, [25]), (40, [40])]
)
def test_the_longest_rows_to_come_are_tried_too(step, tried):
    rows = [PLAN.row_of_step(number) for number in tried]
    assert dry_run._rows_to_try(PLAN, PLAN.row_of_step(step)) == rows


def test_packs_that_are_out_stay_out(monkeypatch, tmp_path):
    out = Quarantine((Entry("corpus", 3, 0),))
    given: list[Quarantine] = []

    class Reader:
        def __init__(self, stream, world, micro_batch_size, quarantine=None):
            given.append(quarantine)

        def micro_batches(self, row):
            raise KeyboardInterrupt

        def close(self):
            pass

    monkeypatch.setattr(dry_run, "RankReader", Reader)
    run = SimpleNamespace(
        config=PretrainConfig(),
        micro_batch_size=2,
        stream=SimpleNamespace(plan=PLAN),
        world=SimpleNamespace(is_main=True),
        resume=SimpleNamespace(state=TrainState(quarantine=out)),
    )
    with pytest.raises(KeyboardInterrupt):
        dry_run.dry_run(run, RunPaths(Path(tmp_path)))
    assert given == [out]
