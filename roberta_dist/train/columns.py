"""Columns of metrics.jsonl that not every run has."""

from __future__ import annotations

from roberta_dist.config.train import Precision
from roberta_dist.train.build import Run
from roberta_dist.train.state import TrainState


def batch_columns(run: Run, state: TrainState) -> dict[str, float]:
    """What only runs write whose batches change, that train in fp16, or that lost a pack.

    Args:
        run: the parts.
        state: before the step.
    """
    columns: dict[str, float] = {}
    plan, row = run.stream.plan, state.next_row
    if len(plan.segments) > 1:
        columns["global_batch_size"] = plan.batch_rows(row)
        columns["sequence_length"] = plan.at(row).sequence_length
    if run.config.engine.precision is Precision.fp16:
        columns["loss_scale"] = state.loss_scale.scale
        columns["overflows"] = state.loss_scale.overflows
    if state.quarantine.entries:
        columns["quarantined_packs"] = len(state.quarantine.entries)
    return columns
