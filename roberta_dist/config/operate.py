"""Roots of the verbs that look after a run which goes on: `status`, `logs`, `stop`."""

from __future__ import annotations

from dataclasses import dataclass

from roberta_dist.config.fields import free, require


@dataclass(frozen=True)
class StatusConfig:
    """`roberta-dist status`: how a run stands, or a table over many."""

    run_dir: str | None = free(None)
    """Run folder."""
    run_dirs: list[str] = free([])
    """Run folders or patterns such as `runs/*`, for a table; what is no run is left out."""
    json: bool = free(False)
    """Print a JSON object a run, one a line."""
    watch_s: float = free(0.0)
    """Look again every so many seconds, until Ctrl-C; 0 looks once."""

    def __post_init__(self) -> None:
        require(
            (self.run_dir is None) != (not self.run_dirs),
            "run_dir, run_dirs",
            (self.run_dir, self.run_dirs),
            "exactly one must be given",
            "add run_dir=RUN, or 'run_dirs=[runs/*]'",
        )
        require(self.watch_s >= 0, "watch_s", self.watch_s, "must be ≥ 0")


@dataclass(frozen=True)
class LogsConfig:
    """`roberta-dist logs`: the log of a rank."""

    run_dir: str = free("???")
    """Run folder."""
    rank: str = free("0")
    """Rank whose log is shown; `job` shows what a SLURM job printed."""
    attempt: str = free("newest")
    """Number or folder of an attempt, or `newest`."""
    lines: int = free(50)
    """Lines shown from the end; 0 shows all."""
    follow: bool = free(False)
    """Go on with what is written, also by later attempts, until the run ends or Ctrl-C."""

    def __post_init__(self) -> None:
        require(
            self.rank == "job" or (self.rank.isascii() and self.rank.isdigit()),
            "rank",
            repr(self.rank),
            "must be a number or `job`",
        )
        require(self.lines >= 0, "lines", self.lines, "must be ≥ 0")


@dataclass(frozen=True)
class StopConfig:
    """`roberta-dist stop`: a run saves and ends, and nothing starts it again by itself."""

    run_dir: str = free("???")
    """Run folder."""
    now: bool = free(False)
    """Do not wait for a save: what was done since the last checkpoint is lost."""
    timeout_s: float = free(600.0)
    """Seconds to wait for the end; a run that takes longer is left stopping."""

    def __post_init__(self) -> None:
        require(self.timeout_s >= 0, "timeout_s", self.timeout_s, "must be ≥ 0")
