"""Rank script: rank 0 ends while its gloo thread, done late, waits to free a tensor of Python's.

The first argument is a file for the ranks to talk through, the second how rank 0 ends.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from pathlib import Path

import torch
from torch import distributed

from roberta_dist.engine.setup import close_world
from roberta_dist.runtime.leave import end_process


def main(flag, ending):
    distributed.init_process_group("gloo")
    sys.kept = distributed.group.WORLD  # as DeepSpeed does: closing the world ends no thread
    values = torch.ones(8)
    values.of_python = True
    if os.environ["RANK"] == "0":

        def keep_the_lock():
            """Let rank 1 finish the collective while no other thread here gets the interpreter."""
            flag.touch()
            sum(range(100_000_000))

        atexit.register(keep_the_lock)
        distributed.all_reduce(values, async_op=True)
        del values
        close_world()
        print("rank 0 is done", flush=True)
        sys.setswitchinterval(60)
        ending(0)
    deadline = time.monotonic() + 30
    while not flag.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    distributed.all_reduce(values)


if __name__ == "__main__":
    main(Path(sys.argv[1]), {"end_process": end_process, "sys.exit": sys.exit}[sys.argv[2]])
