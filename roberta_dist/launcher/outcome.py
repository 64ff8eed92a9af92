"""How an attempt ended, from what its workers left.

Exit codes that pass through a launcher carry no intent. What counts is DONE, REQUEUE, or `exit_code`
in the attempt's folder.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from roberta_dist.config.roots import PretrainConfig
from roberta_dist.errors import INTERRUPTED, LaunchError, StorageError
from roberta_dist.launcher.attempts import Ended
from roberta_dist.launcher.start import say
from roberta_dist.runtime.files import atomic_write
from roberta_dist.runtime.rundir import RunPaths, is_done

MEANINGS = {2: "configuration", 3: "data fault or full disk", 4: "non-finite numbers", 5: "hang"}
"""What workers say by their exit code."""


def outcome(config: PretrainConfig, paths: RunPaths, attempt: Path, ended: Ended) -> int:
    """Exit code of an attempt; LaunchError if it left nothing.

    What the workers could not leave any more is left in their place, for `status`.
    """
    recorded = attempt / "exit_code"
    told = int(recorded.read_text()) if recorded.is_file() else None
    if is_done(paths, config.schedule.max_steps):
        say(f"{paths.root}: done")
        return 0
    if paths.requeue.is_file():
        say(f"{paths.root}: stopped on request; the same command goes on from there")
        return 0
    if told in MEANINGS:
        say(f"{paths.root}: the workers stopped ({MEANINGS[told]}); see {attempt}")
        return told
    if config.train.dry_run and ended.clean and not ended.interrupted and told is None:
        return 0
    ending = INTERRUPTED if ended.interrupted else LaunchError.exit_code
    if told is None:
        with suppress(StorageError):  # a full disk is often what ended the attempt
            atomic_write(recorded, f"{ending}\n")
    if ended.interrupted:
        say(f"{paths.root}: interrupted")
        return INTERRUPTED
    raise LaunchError(
        f"{paths.root}: the workers ended without finishing ({ended.said})",
        f"read {attempt}/rank_*.log; the same command goes on from the last checkpoint",
    )
