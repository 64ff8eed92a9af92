"""Prepare as real processes: in phases and tasks, and killed at random instants."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

SMALL = [
    "corpus.pack_mib=0.00390625", "corpus.shard_mib=0.03125", "corpus.held_out_fraction=0.1",
    "tokenizer.vocab_size=400", "progress=false", "corpus.workers=1",
]  # fmt: skip
DEADLINE_S = 300


def command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "roberta_dist.cli", "prepare", *arguments]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(processes: list[subprocess.Popen[str]]) -> list[str]:
    """What each said, once all are through with 0."""
    said = [process.communicate(timeout=DEADLINE_S)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(said)
    return said


def run_in_tasks(arguments: list[str], tasks: int) -> list[str]:
    """All phases, the tasks of one at the same time; what the last one said."""
    said: list[str] = []
    for phase, shared in (
        ("read", True), ("tokenizer", False), ("join", False), ("encode", True), ("merge", False)
    ):  # fmt: skip
        share = tasks if shared else 1
        said = finish(
            [
                start(
                    [
                        *arguments, f"prepare.phase={phase}", f"prepare.task={task}",
                        f"prepare.tasks={share}",
                    ]
                )
                for task in range(share)
            ]
        )  # fmt: skip
    return said


def contents(folder: Path) -> dict[str, str]:
    """Relative path → hash of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write_source(folder: Path, files: int = 24, documents: int = 200) -> list[str]:
    """Files of distinct texts, one longer than a pack; the texts."""
    folder.mkdir(parents=True)
    texts: list[str] = []
    for number in range(files):
        here = [
            f"Document {i} of file {number}.\n"
            + f"It speaks of {(i * 37 + number) % 101} things. " * (i % 29)
            for i in range(documents)
        ]
        if number == 3:
            here.append("\n".join(f"A long document, sentence {i} of many." for i in range(800)))
        here = [text.strip() for text in here]
        (folder / f"{number:02d}.jsonl").write_text(
            "\n".join(json.dumps({"text": text}) for text in here)
        )
        texts += here
    return texts


def kill_and_rerun(n: int, seed: int) -> list[float]:
    """Kill a prepare with SIGKILL at `n` random instants and run it again, each time to the same
    bytes as one that was never killed.

    Returns:
        Seconds of work after which each was killed, of those that were killed before their end.

    Raises:
        AssertionError: another output.
    """
    instants = random.Random(seed)
    killed_after: list[float] = []
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_source(folder / "source")
        arguments = ["corpus=jsonl", f"corpus.paths=[{folder / 'source'}]", *SMALL]
        process = start([*arguments, f"output={folder / 'reference'}"])
        duration = -_begun(folder / "reference", process)
        finish([process])
        duration += time.monotonic()
        reference = contents(folder / "reference")
        for number in range(n):
            output = folder / f"killed-{number}"
            after = instants.uniform(0.0, duration)
            # No pipe: the run that follows must not wait for workers that outlive their parent.
            process = subprocess.Popen(
                command([*arguments, f"output={output}", f"corpus.workers={1 + number % 2}"]),
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
            _begun(output, process)
            time.sleep(after)
            process.send_signal(signal.SIGKILL)
            if process.wait() == -signal.SIGKILL:
                killed_after.append(after)
            finish([start([*arguments, f"output={output}"])])
            assert contents(output) == reference, f"killed after {after:.3f} s (seed {seed})"
    return killed_after


def _begun(output: Path, process: subprocess.Popen[Any]) -> float:
    """Wait until a prepare works in `output`; the time then."""
    deadline = time.monotonic() + DEADLINE_S
    while not (output / ".prepare").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return time.monotonic()
