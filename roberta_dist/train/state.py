"""What a resume needs beside weights and moments: a few numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from roberta_dist.errors import DataFault
from roberta_dist.optim.loss_scale import LossScale
from roberta_dist.stream.quarantine import NOTHING_OUT, Quarantine


@dataclass(frozen=True)
class TrainState:
    """Position of a run. Equal on every rank."""

    step: int = 0
    """Batches consumed, skipped ones included."""
    next_row: int = 0
    """First global row of the next batch: the whole state of the data."""
    optimizer_step: int = 0
    """Updates applied."""
    skipped: int = 0
    """Batches whose update was not applied though something was masked, whatever the reason."""
    charged: int = 0
    """Of these, the ones that `train.skip_budget` counts: a number was not finite."""
    losses: tuple[float, ...] = ()
    """Of the last `guard.spike_window` applied steps."""
    empty: int = 0
    """Batches in which nothing was masked."""
    best_eval_loss: float | None = None
    """Lowest held-out loss so far, nats."""
    best_step: int | None = None
    """Step of `best_eval_loss`."""
    evals_without_improvement: int = 0
    """Evaluations since `best_step`."""
    evaluated_step: int | None = None
    """Step of the last evaluation: one that a stop request cut off is made up for at the start."""
    loss_scale: LossScale = LossScale()
    """Of fp16; untouched otherwise."""
    quarantine: Quarantine = NOTHING_OUT
    """Damaged packs that others stand in for, each from a row on."""

    def evaluated(self, loss: float) -> TrainState:
        """The state after an evaluation gave `loss`."""
        if self.best_eval_loss is None or loss < self.best_eval_loss:
            best = replace(self, best_eval_loss=loss, best_step=self.step)
            return replace(best, evals_without_improvement=0, evaluated_step=self.step)
        count = self.evals_without_improvement + 1
        return replace(self, evals_without_improvement=count, evaluated_step=self.step)

    def to_json(self, fingerprint: dict[str, Any]) -> dict[str, Any]:
        """Contents of train_state.json."""
        return {**asdict(self), "quarantine": self.quarantine.to_json(), "data": fingerprint}


def state_from_json(values: dict[str, Any]) -> TrainState:
    """The state in a train_state.json.

    Raises:
        DataFault: a field is missing.
    """
    try:
        apart = ("loss_scale", "quarantine", "evaluated_step", "charged", "losses")
        names = [item.name for item in fields(TrainState) if item.name not in apart]
        plain = {name: values[name] for name in names}
        return TrainState(
            **plain,
            evaluated_step=values.get("evaluated_step", values["step"]),
            charged=values.get("charged", values["skipped"]),
            losses=tuple(values.get("losses", ())),
            loss_scale=LossScale(**values.get("loss_scale", {})),
            quarantine=Quarantine.from_json(values.get("quarantine")),
        )
    except KeyError as error:
        raise DataFault(
            f"train_state.json has no field {error}", "use an earlier checkpoint"
        ) from error
