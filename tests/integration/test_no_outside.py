"""Nothing leaves the machine: the whole walk, its launcher and its workers ask for no outside address.

Every Python process reports through an audit hook (a `sitecustomize` on PYTHONPATH), and system
calls of the whole tree (torch, wandb-core, DeepSpeed's launcher) are traced where strace may be used.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from run_support import TINY

pytestmark = pytest.mark.world

HOOK = """
import os, sys

def hook(event, arguments):
    asked = None
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        asked = arguments[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        asked = arguments[1][0]
    if isinstance(asked, bytes):
        asked = asked.decode()
    if asked and not asked.startswith(("127.", "::1", "localhost")):
        with open(os.environ["OUTSIDE_REPORT"], "a") as report:
            report.write(f"{sys.argv[:3]} {event} {asked}\\n")

sys.addaudithook(hook)
"""
LOOPBACK_NAME = r"\0011\0010\0010\003127\7in-addr\4arpa"
"""1.0.0.127.in-addr.arpa, as strace prints a question."""
SMALL = [*(o for o in TINY if not o.startswith(("track.", "schedule."))), "schedule.max_steps=4",
         "schedule.warmup_steps=1"]  # fmt: skip
WALK = [
    ["prepare", "output=corpus", "corpus.max_mib=2", "corpus.pack_mib=0.015625",
     "corpus.shard_mib=1", "corpus.held_out_fraction=0.05", "tokenizer.vocab_size=1000"],
    ["launch", "data.path=corpus", "run_dir=run", "cluster.workers_per_node=2", *SMALL],
    ["evaluate", "run_dir=run", "evaluate.max_rows=32"],
    ["export", "run_dir=run"],
    ["report", "run_dir=run", "upload=wandb"],
    ["predict", "model_path=run/export", 'text=["Return the <mask>."]'],
    ["doctor"],
]  # fmt: skip


def tracer(trace: Path) -> list[str]:
    """strace of outgoing calls in the whole process tree, where it may be used."""
    strace = shutil.which("strace")
    calls = "trace=connect,sendto,sendmsg,sendmmsg"
    command = [
        strace or "",
        "-f",
        "-qq",
        "-s",
        "64",
        "--seccomp-bpf",
        "-e",
        calls,
        "-o",
        str(trace),
    ]
    if strace and subprocess.run([*command, "true"], capture_output=True).returncode == 0:
        return command
    return []


def outside(trace: Path) -> list[str]:
    """Calls that name an address elsewhere.

    Not counted: asking the resolver for the name of 127.0.0.1, as torch's rendezvous does for its
    log. Its question is the first thing that the same thread sends.
    """
    found: list[str] = []
    asking: dict[str, str] = {}
    for line in trace.read_text().splitlines() if trace.is_file() else []:
        thread, call = line.split(maxsplit=1)  # padded where process ids are short
        address = re.search(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"', call)
        if address and not (address[1] or address[2]).startswith(("127.", "::1", "::ffff:127.")):
            found.append(line)
            if "htons(53)" in call:
                asking[thread] = line
        elif call.startswith("send") and thread in asking:
            question = asking.pop(thread)
            if LOOPBACK_NAME in call:
                found.remove(question)
    return found


def test_the_walk_asks_for_nothing_outside(tmp_path):
    report = tmp_path / "outside"
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "HF_"))}
    env |= {
        "PYTHONPATH": str(tmp_path / "hook"),
        "OUTSIDE_REPORT": str(report),
        "WANDB_API_KEY": "0123456789" * 4,
        "HF_TOKEN": "hf_token",
        "OMP_NUM_THREADS": "1",
    }
    roberta_dist = str(Path(sys.executable).parent / "roberta-dist")
    for arguments in WALK:
        trace = tmp_path / f"{arguments[0]}.trace"
        command = [*tracer(trace), roberta_dist, *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert outside(trace) == [], arguments[0]
        assert not report.exists(), report.read_text()
    assert (tmp_path / "run" / "DONE").is_file()
    assert (tmp_path / "run" / "wandb").is_dir()
    assert list((tmp_path / "run" / "upload").rglob("*.wandb"))


def test_the_hook_sees_what_it_should(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HOOK)
    env = os.environ | {"PYTHONPATH": str(tmp_path), "OUTSIDE_REPORT": str(tmp_path / "report")}
    ask = "import socket; s = socket.socket(2, 2); s.connect(('192.0.2.1', 9))"
    trace = tmp_path / "trace"
    subprocess.run([*tracer(trace), sys.executable, "-c", ask], env=env, check=True, timeout=60)
    assert "192.0.2.1" in (tmp_path / "report").read_text()
    assert not trace.is_file() or len(outside(trace)) == 1
