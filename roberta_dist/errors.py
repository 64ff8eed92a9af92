"""Errors a user can act on. Each says the value found, the rule it breaks and the remedy.

The exit code of a verb is the `exit_code` of the error that ended it (DESIGN: 0 success,
2 configuration, 3 data fault, 4 non-finite, 5 hang, 6 launch failure, 130 interrupted).
"""

from __future__ import annotations

INTERRUPTED = 130
"""Exit code of what a signal ended before it could save."""


class RobertaDistError(Exception):
    """Base of every error raised for a user.

    Args:
        problem: what was found and which rule it breaks, with the value.
        remedy: what to do about it; empty where nothing can be done.
    """

    exit_code = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(problem, remedy)

    def __str__(self) -> str:
        return f"{self.problem}\n  remedy: {self.remedy}" if self.remedy else self.problem


class ConfigError(RobertaDistError):
    """A configuration value, key, path or combination that cannot work."""

    exit_code = 2


class DataFault(RobertaDistError):
    """A shard, pack, checkpoint or other file that is missing, damaged or not to be trusted."""

    exit_code = 3


class PackFault(DataFault):
    """A pack that cannot be read, or is not the one that the manifest names.

    Args:
        problem: see `RobertaDistError`.
        remedy: see `RobertaDistError`.
        corpus: name of the corpus or split.
        shard: file name of the shard.
        pack: index into the manifest's packs.
        offset: of the payload, in bytes from the start of the shard.
        damaged: what was read is wrong; False where nothing could be read, which another try may.
    """

    def __init__(
        self,
        problem: str,
        remedy: str = "",
        corpus: str = "",
        shard: str = "",
        pack: int = -1,
        offset: int = -1,
        damaged: bool = True,
    ) -> None:
        super().__init__(problem, remedy)
        self.corpus = corpus
        self.shard = shard
        self.pack = pack
        self.offset = offset
        self.damaged = damaged
        # As pickle calls it again.
        self.args = (problem, remedy, corpus, shard, pack, offset, damaged)


class StorageError(DataFault):
    """The disk is full or a folder cannot be written."""


class NonFiniteError(RobertaDistError):
    """NaN or infinity in the loss or the gradient, beyond the skip budget."""

    exit_code = 4


class DesyncError(RobertaDistError):
    """Ranks that should hold equal weights do not."""

    exit_code = 4


class HangError(RobertaDistError):
    """No progress within the stated time."""

    exit_code = 5


class LaunchError(RobertaDistError):
    """Workers could not be started, or ended without finishing the run."""

    exit_code = 6
