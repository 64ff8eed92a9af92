"""`prepare`: which part of the work of `roberta-dist prepare` this command does."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from roberta_dist.config.fields import free, require


class Phase(Enum):
    """Phases of prepare, in order; each needs all tasks of those before it."""

    all = "all"
    read = "read"
    tokenizer = "tokenizer"
    join = "join"
    encode = "encode"
    merge = "merge"

    @property
    def shared(self) -> bool:
        """Whether the phase may be dealt to several tasks."""
        return self in (Phase.read, Phase.encode)


@dataclass(frozen=True)
class PrepareTaskConfig:
    """One task of one phase; the output is the same for any number of tasks."""

    phase: Phase = free(Phase.all)
    """`all` does everything here; `read` and `encode` may be dealt to several tasks, `tokenizer`,
    `join` and `merge` are the work of one."""
    task: int = free(0)
    """Number of this task, from 0."""
    tasks: int = free(1)
    """Tasks that share the phase, on one machine or many that see the same `output`."""

    def __post_init__(self) -> None:
        require(self.tasks >= 1, "prepare.tasks", self.tasks, "must be at least 1")
        require(
            0 <= self.task < self.tasks,
            "prepare.task",
            self.task,
            f"must be in [0, prepare.tasks={self.tasks})",
        )
        require(
            self.phase is not Phase.all or self.tasks == 1,
            "prepare.tasks",
            self.tasks,
            "prepare.phase=all is the work of one task",
            f"run prepare.phase=read with each of prepare.task=0..{self.tasks - 1}, then "
            "prepare.phase=tokenizer, then prepare.phase=join, then prepare.phase=encode with each "
            "task, then prepare.phase=merge",
        )
        require(
            self.phase.shared or self.task == 0,
            "prepare.task",
            self.task,
            f"prepare.phase={self.phase.value} is the work of one task",
            "run it once, with prepare.task=0",
        )
