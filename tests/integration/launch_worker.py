"""Stands in for the trainer: no torch, the same promises (signals, sentinels, end with launcher)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from roberta_dist.config.load import load_yaml
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.runtime.parent import exit_with_parent
from roberta_dist.runtime.signals import StopRequest


def main(config_path: Path) -> int:
    stop = StopRequest()
    stop.install()
    exit_with_parent()
    run_dir = Path(load_yaml(PretrainConfig, config_path).run_dir)
    rank, mode = int(os.environ["RANK"]), os.environ["LAUNCH_TEST_MODE"]
    subprocess.Popen(["sleep", "100"])  # like a data loader: must not outlive us
    (run_dir / f"pid_{rank}").write_text(str(os.getpid()))
    if mode == "done":
        (run_dir / f"env_{rank}.json").write_text(json.dumps(dict(os.environ)))
        if rank == 0:
            (run_dir / "DONE").write_text(json.dumps({"step": 10, "reason": "max_steps"}))
        return 0
    if mode.isdigit() and rank == 1:
        (config_path.parent / "exit_code").write_text(mode)
        return int(mode)
    while not stop.requested:
        time.sleep(0.05)
    time.sleep(1)  # a save takes a while
    (run_dir / f"saved_{rank}").touch()
    if mode == "stop" and rank == 0:
        (run_dir / "REQUEUE").write_text(json.dumps({"step": 3, "reason": "signal"}))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
