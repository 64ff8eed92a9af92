"""Starting in an existing run folder: what may differ, what may not (DESIGN §3)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from roberta_dist.checkpoint.reader import Checkpoint
from roberta_dist.config.fields import Resume
from roberta_dist.config.load import flatten, load_yaml, resume_classes
from roberta_dist.config.optim import Decay
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.errors import ConfigError
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


def config_changes(old: PretrainConfig, new: PretrainConfig) -> list[Change]:
    """Keys that differ and may; identity keys that differ stop here.

    Raises:
        ConfigError: names every identity key that differs, with both values.
    """
    classes = resume_classes(new)
    before, after = flatten(old), flatten(new)
    changes = [Change(key, before[key], after[key]) for key in after if before[key] != after[key]]
    forbidden = [c for c in changes if classes[c.key] is Resume.identity]
    forbidden += [
        c for c in changes if classes[c.key] is Resume.extendable and not _may_extend(c, new)
    ]
    if forbidden:
        raise ConfigError(
            "the run folder was started with other values: " + "; ".join(map(str, forbidden)),
            "keep the old values, or start a new run with another run_dir= "
            "(schedule.max_steps, data.phases and data.weights may be extended with train.extend=true)",
        )
    return changes


def _may_extend(change: Change, new: PretrainConfig) -> bool:
    if change.key.startswith("data."):  # what was done already is compared row for row below
        return new.train.extend
    return change.new > change.old and (new.schedule.decay is Decay.constant or new.train.extend)


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
    changes = config_changes(load_yaml(PretrainConfig, checkpoint.config_yaml), config)
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
    return ResumePoint(state_from_json(checkpoint.train_state), changes)
