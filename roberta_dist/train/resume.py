"""Starting in an existing run folder: what may differ, what may not (DESIGN §3)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from roberta_dist.checkpoint.reader import Checkpoint
from roberta_dist.config.fields import Resume
from roberta_dist.config.load import flatten, load_yaml, resume_classes
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.errors import ConfigError
from roberta_dist.optim.schedule import learning_rate
from roberta_dist.train.state import TrainState, state_from_json


@dataclass(frozen=True)
class Change:
    """A key that differs between the checkpoint and the new command."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {_plain(self.old)} → {_plain(self.new)}"


def _plain(value: Any) -> Any:
    return value.value if hasattr(value, "value") else value


def config_changes(old: PretrainConfig, new: PretrainConfig, step: int) -> list[Change]:
    """Keys that differ and may, once `step` steps are done; identity keys that differ stop here.

    Raises:
        ConfigError: names every identity key that differs, with both values.
    """
    classes = resume_classes(new)
    before, after = flatten(old), flatten(new)
    changes = [Change(key, before[key], after[key]) for key in after if before[key] != after[key]]
    forbidden = [c for c in changes if classes[c.key] is Resume.identity]
    forbidden += [
        change
        for change in changes
        if classes[change.key] is Resume.extendable and not _may_extend(change, old, new, step)
    ]
    if forbidden:
        raise ConfigError(
            "the run folder was started with other values: " + "; ".join(map(str, forbidden)),
            "keep the old values, or start a new run with another run_dir=, with the weights of this one "
            "by init=RUN "
            "(schedule.max_steps, data.phases, data.weights and phases to come of schedule.phases may "
            "be extended with train.extend=true)",
        )
    return changes


def _may_extend(change: Change, old: PretrainConfig, new: PretrainConfig, step: int) -> bool:
    if change.key.startswith("data."):  # what was done already is compared row for row below
        return new.train.extend
    if change.key == "schedule.phases":
        begun = [[p for p in phases if p.from_step < step] for phases in (change.old, change.new)]
        return new.train.extend and begun[0] == begun[1]
    return change.new > change.old and (new.train.extend or _same_rates(old, new, step))


def _same_rates(old: PretrainConfig, new: PretrainConfig, step: int) -> bool:
    """Every step done so far had the learning rate that the new command gives it.

    So a longer run is the one that would have been planned so long from the start: always under a
    schedule that does not depend on `max_steps`, under others until they begin to.
    """
    return all(
        learning_rate(done, old.optim.lr, old.schedule)
        == learning_rate(done, new.optim.lr, new.schedule)
        for done in range(step)
    )


def _first_change(key: str, old: Any, new: Any) -> Change:
    """What differs; of lists the first element that does: a ramp may have thousands."""
    if isinstance(old, list) and isinstance(new, list):
        for number, (before, after) in enumerate(zip_longest(old, new)):
            if before != after:
                return Change(f"{key}[{number}]", before, after)
    return Change(key, old, new)


@dataclass(frozen=True)
class ResumePoint:
    """Where a resumed run goes on, and what the new command changed."""

    state: TrainState
    changes: list[Change]


def check_resume(
    checkpoint: Checkpoint, config: PretrainConfig, fingerprint: dict[str, Any]
) -> ResumePoint:
    """Compare configuration and data with the checkpoint's.

    Raises:
        ConfigError: an identity key or the data differs; says which, old and new.
    """
    state = state_from_json(checkpoint.train_state)
    old = load_yaml(PretrainConfig, checkpoint.config_yaml)
    changes = config_changes(old, config, state.step)
    saved = checkpoint.train_state["data"]
    differing = [
        _first_change(key, saved.get(key), fingerprint.get(key))
        for key in sorted(saved.keys() | fingerprint.keys())
        if saved.get(key) != fingerprint.get(key)
    ]
    if differing:
        raise ConfigError(
            f"{checkpoint.folder}: the data is not that of the checkpoint: "
            + "; ".join(map(str, differing)),
            "give the corpora, weights and phases with which its rows were read, or start a new run "
            "with another run_dir=",
        )
    return ResumePoint(state, changes)
