"""Connections to the machines of a hostfile, each looked at before anything is started."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from roberta_dist import __version__
from roberta_dist.config.cluster import ClusterConfig
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.launcher.fabric import fabric_settings
from roberta_dist.launcher.findings import (
    Finding,
    HostsError,
    judge,
    no_answer,
    other_version,
    rendezvous,
    skewed,
)
from roberta_dist.launcher.hostfile import Hosts
from roberta_dist.launcher.remote import RemoteNode, close_all
from roberta_dist.launcher.ssh import forwarded, node_program, ssh_command
from roberta_dist.launcher.start import say
from roberta_dist.launcher.survey import Question, Survey
from roberta_dist.runtime.files import atomic_write
from roberta_dist.runtime.remote_path import is_remote
from roberta_dist.runtime.rundir import RunPaths

ANSWER_S = 20.0
"""Seconds for the checks of a machine that let us in."""


class Connected:
    """Machines that passed the checks, each with the program of ours waiting.

    Raises:
        HostsError: machines that cannot take part, all of them in one message.
    """

    def __init__(self, config: PretrainConfig, paths: RunPaths, hosts: Hosts) -> None:
        self.hosts = hosts
        self.nodes = [RemoteNode(host, ssh_of(config.cluster, host), os.environ) for host in hosts]
        try:
            surveys = self._survey(config, paths)
            self.port = surveys[next(iter(hosts))].port or 0
            self.address = rendezvous(config.cluster.hosts.master_addr, hosts, surveys)
            self._meet(config.cluster.hosts.connect_timeout_s)
        except BaseException:
            close_all(self.nodes)
            raise

    def _survey(self, config: PretrainConfig, paths: RunPaths) -> dict[str, Survey]:
        limit = config.cluster.hosts.connect_timeout_s + ANSWER_S
        deadline = time.monotonic() + limit
        surveys: dict[str, Survey] = {}
        now: dict[str, float] = {}
        findings: list[Finding] = []
        with _token(paths) as (token_file, token):
            for number, node in enumerate(self.nodes):
                port = config.cluster.master_port if number == 0 else None
                question = Question(
                    str(token_file), _needed(config), port, shown_environment(config.cluster)
                )
                node.send(do="look", version=__version__, question=asdict(question))
            for node in self.nodes:
                answer = node.receive("survey", deadline)
                if answer is None:
                    python = python_of(config.cluster)
                    findings.append(no_answer(node.host, node.code, node.words, python, limit))
                elif answer["survey"]["version"] != __version__:
                    findings.append(other_version(node.host, answer["survey"]["version"]))
                else:
                    surveys[node.host] = Survey(**answer["survey"])
                    now[node.host] = answer["received"]
        findings += judge(
            self.hosts,
            surveys,
            token,
            str(paths.root),
            config.cluster.master_port,
            config.cluster.bind_cores,
        )
        if findings:
            raise HostsError(findings)
        for warning in skewed(surveys, now):
            say(f"warning: {warning}")
        return surveys

    def _meet(self, timeout_s: float) -> None:
        """Every other machine connects to the first one's port, as its workers will."""
        first, *others = self.nodes
        for node in others:
            node.send(do="reach", address=self.address, port=self.port, timeout_s=timeout_s)
        deadline = time.monotonic() + timeout_s + ANSWER_S
        findings = []
        for node in others:
            answer = node.receive("refused", deadline) or {"refused": "no answer"}
            if answer["refused"] is not None:
                findings.append(
                    Finding(
                        node.host,
                        f"cannot reach {self.address} port {self.port} of {first.host}: "
                        f"{answer['refused']}",
                        "open the port between the machines (cluster.master_port fixes it), or give "
                        "cluster.hosts.master_addr=ADDRESS",
                    )
                )
        if findings:
            raise HostsError(findings)


def python_of(cluster: ClusterConfig) -> str:
    """Interpreter on the machines."""
    return cluster.hosts.python or sys.executable


def ssh_of(cluster: ClusterConfig, host: str) -> list[str]:
    """ssh that starts the program of ours on `host`."""
    given = os.environ.get("PYTHONPATH")
    path = given and os.pathsep.join(str(Path(p).absolute()) for p in given.split(os.pathsep))
    hosts, program = cluster.hosts, node_program(python_of(cluster), path)
    return ssh_command(host, hosts.ssh_options, hosts.connect_timeout_s, program)


def shown_environment(cluster: ClusterConfig) -> dict[str, str]:
    """Variables for the workers that may be shown."""
    fabric = {setting.name: setting.value for setting in fabric_settings(cluster.fabric)}
    return fabric | forwarded(os.environ) | (cluster.environment or {})


def _needed(config: PretrainConfig) -> list[str]:
    """Files that every machine must see."""
    corpora = [path for path in config.data.locations.values() if not is_remote(path)]
    return [f"{path}/train/manifest.json" for path in corpora] + (
        [config.init] if config.init else []
    )


@contextmanager
def _token(paths: RunPaths) -> Iterator[tuple[Path, str]]:
    """A file in the run folder that no other folder has: (its path, its contents)."""
    made = not paths.root.exists()
    token_file = paths.root / f".shared-{secrets.token_hex(8)}"
    token = secrets.token_hex(16)
    atomic_write(token_file, token)
    try:
        yield token_file, token
    finally:
        with suppress(OSError):
            token_file.unlink(missing_ok=True)
            if made:
                paths.root.rmdir()  # only while nothing else is in it
