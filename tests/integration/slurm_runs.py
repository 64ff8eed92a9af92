"""Runs on a laboratory SLURM: launch, hurt, look."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from run_support import TINY, metrics
from slurm_support import SlurmLab, wait_until

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@dataclass
class SlurmRun:
    """A run folder and the job that trains it."""

    lab: SlurmLab
    run_dir: Path
    corpus: Path
    job: str = ""

    def launch(self, *overrides: str) -> subprocess.CompletedProcess[str]:
        """`roberta-dist launch cluster=slurm …` on the login node."""
        quoted = str(self.run_dir).replace("\\", "\\\\").replace("'", "\\'")
        settings = [
            f"run_dir='{quoted}'", f"data.path='{self.corpus}'", *TINY, "cluster=slurm",
            "cluster.nodes=2", "cluster.threads_per_worker=1",
            "cluster.slurm.fit.all_reduce_mib_s=0",  # 6 s a job, which tests about it take
            *overrides,
        ]  # fmt: skip
        command = [sys.executable, "-m", "roberta_dist.cli", "launch", *settings]
        done = subprocess.run(
            self.lab.inside("ctl", *command), env=self.lab.environ, capture_output=True, text=True
        )
        if done.returncode == 0 and not {"dry_run=true", "--multirun"} & {*overrides}:
            jobs = (self.run_dir / "jobs.jsonl").read_text().splitlines()
            self.job = json.loads(jobs[-1])["job_id"]
        return done

    def verb(self, verb: str, *overrides: str) -> subprocess.CompletedProcess[str]:
        """`roberta-dist VERB run_dir=…` on the login node."""
        named = any(word.startswith("run_dirs=") for word in overrides)
        which = [] if named else [f"run_dir='{self.run_dir}'"]
        command = [sys.executable, "-m", "roberta_dist.cli", verb, *which]
        return subprocess.run(
            self.lab.inside("ctl", *command, *overrides),
            env=self.lab.environ, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    def wait_for_step(self, step: int, timeout: float = 240) -> None:
        """Return as soon as metrics.jsonl shows `step`."""
        deadline = time.monotonic() + timeout
        while not any(line["step"] >= step for line in metrics(self.run_dir)):
            assert self.lab.state(self.job) not in ENDED, self.told()
            assert time.monotonic() < deadline, f"step {step}: not in {timeout} s\n{self.told()}"
            time.sleep(0.01)

    def end(self, timeout: float = 240) -> str:
        """The state in which the job ended, or REQUEUED if it went back into the queue instead."""
        seen = {}

        def ended() -> bool:
            seen.update(self.lab.show(self.job))
            return seen["JobState"] in ENDED or seen["Reason"] == "BeginTime"

        try:
            wait_until(ended, timeout, f"end of job {self.job}")
        except AssertionError as error:
            raise AssertionError(self.told()) from error
        return seen["JobState"] if seen["JobState"] in ENDED else "REQUEUED"

    def start_now(self) -> None:
        """Spare the job the wait after its requeue."""
        try:
            self.lab.start_now(self.job)
        except AssertionError as error:
            raise AssertionError(self.told()) from error

    def worker(self, rank: int, timeout: float = 120) -> psutil.Process:
        """The process of one rank."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for process in psutil.process_iter():
                with suppress(psutil.Error):
                    if not process.name().startswith("python"):
                        continue
                    environ = process.environ()
                    if (
                        "-m roberta_dist.train" in " ".join(process.cmdline()[:4])
                        and environ.get("SLURM_CONF") == self.lab.environ["SLURM_CONF"]
                        and environ.get("SLURM_JOB_ID") == self.job
                        and environ.get("SLURM_PROCID") == str(rank)
                    ):
                        return process
            time.sleep(0.05)
        raise AssertionError(f"no rank {rank} of job {self.job}: {self.told()}")

    def log(self) -> str:
        """What the job script said."""
        path = self.run_dir / "slurm" / f"{self.job}.out"
        return path.read_text() if path.is_file() else ""

    def told(self) -> str:
        """The job's log and the ends of the ranks' outputs, for a failed test."""
        outputs = sorted(self.run_dir.glob("logs/*/*.out"))
        ends = [f"--- {path}\n{path.read_text()[-1500:]}" for path in outputs]
        return "\n".join([self.log(), *ends])
