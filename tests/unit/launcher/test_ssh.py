from __future__ import annotations

import json
import shlex
import subprocess

import pytest

from roberta_dist.launcher.describe import describe_start
from roberta_dist.launcher.pdsh import hostfile_text, pdsh_command
from roberta_dist.launcher.ssh import forwarded, node_program, ssh_command
from roberta_dist.launcher.wire import MARK, decode, encode

pytestmark = pytest.mark.unit
HOSTILE = "/a b/'q'/\"d\"/$(touch /tmp/x)/`id`;|&\n*"


def test_ssh_asks_nobody_and_the_users_options_come_through():
    command = ssh_command("node1", ["-F", "/c/my config"], 2.5, ["/env/bin/python", "-V"])
    assert command == [
        "ssh", "-T", "-x", "-o", "BatchMode=yes", "-o", "ConnectTimeout=3",
        "-o", "ClearAllForwardings=yes", "-F", "/c/my config",
        "-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3",
        "--", "node1", "exec /env/bin/python -V",
    ]  # fmt: skip


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_nothing_reaches_the_remote_shell_unquoted(shell):
    words = ["printf", "%s\\0", HOSTILE, "--", "$HOME"]
    remote = ssh_command("node1", [], 1, words)[-1]
    done = subprocess.run([shell, "-c", remote], stdout=subprocess.PIPE, check=True)
    assert done.stdout.split(b"\0")[:-1] == [HOSTILE.encode(), b"--", b"$HOME"]


def test_the_program_takes_its_path_along():
    assert node_program("/p", None) == ["/p", "-u", "-m", "roberta_dist.launcher.node"]
    assert node_program("/p", "/src")[:3] == ["env", "PYTHONPATH=/src", "/p"]


def test_what_goes_along_by_itself():
    environ = {"NCCL_DEBUG": "INFO", "UCX_TLS": "tcp", "WANDB_API_KEY": "k", "HOME": "/h"}
    assert forwarded(environ) == {"NCCL_DEBUG": "INFO", "UCX_TLS": "tcp"}


def test_messages_stand_out_from_what_a_login_shell_writes():
    message = {"do": "start", "environment": {"KEY": HOSTILE}}
    line = encode(message)
    assert line.count(b"\n") == 1 and decode(line) == message
    for noise in (
        b"Welcome\n",
        b"\n",
        MARK,
        MARK + b"{\n",
        MARK + b"[1]\n",
        json.dumps(message).encode(),
    ):
        assert decode(noise) is None


def test_a_description_can_be_run_and_hides_secrets(tmp_path):
    after = {"NAME": HOSTILE, "KEY": "hunter2", "SAME": "1"}
    text = describe_start(["printf", "%s", HOSTILE], {"SAME": "1", "GONE": "2"}, after, ["KEY"])
    assert "hunter2" not in text and "export KEY=…" in text and "SAME" not in text
    assert text.startswith("  unset GONE\n")
    shown = subprocess.run(["sh", "-c", text], stdout=subprocess.PIPE, check=True).stdout
    assert shown.decode() == HOSTILE


def test_pdsh():
    hosts = {"a": (0, 2), "b": (1,)}
    assert hostfile_text(hosts) == "a slots=3\nb slots=2\n"
    command = pdsh_command("/p", hosts, "/r/hostfile", "a", 7, "/s/pretrain.py", "/r/config.yaml")
    assert shlex.join(command) == (
        "/p -m deepspeed.launcher.runner --quiet --hostfile=/r/hostfile --include=a:0,2@b:1 "
        "--launcher=pdsh --force_multi --no_ssh_check --no_local_rank --master_addr=a "
        "--master_port=7 /s/pretrain.py /r/config.yaml"
    )
