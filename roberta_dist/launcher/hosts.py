"""`launch` on the machines of a hostfile, over ssh."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from roberta_dist.config.cluster import ClusterConfig
from roberta_dist.config.hosts import Runner
from roberta_dist.config.roots import PretrainConfig
from roberta_dist.errors import ConfigError
from roberta_dist.launcher.attempts import run_attempts, watch
from roberta_dist.launcher.connect import Connected, python_of, shown_environment, ssh_of
from roberta_dist.launcher.describe import describe_start
from roberta_dist.launcher.findings import HostsError
from roberta_dist.launcher.hostfile import Hosts, read_hosts
from roberta_dist.launcher.node import Start, command_of
from roberta_dist.launcher.outcome import outcome
from roberta_dist.launcher.pdsh import describe_pdsh, launch_pdsh
from roberta_dist.launcher.remote import RemoteNode, RemoteWorkers, close_all
from roberta_dist.launcher.start import record_launch, say, write_config
from roberta_dist.runtime.rundir import RunPaths, next_attempt


def launch_hosts(config: PretrainConfig) -> int:
    """Start or resume `config.run_dir` on the hostfile's machines and wait for the end.

    Args:
        config: with absolute paths.

    Returns:
        As `launch_local`.

    Raises:
        ConfigError: the hostfile, or what is asked of it, makes no sense.
        StorageError: the run folder cannot be written.
        LaunchError: a machine cannot take part (HostsError, nothing was started), or the workers
            ended without a word.
    """
    hosts, paths = read_hosts(config.cluster), RunPaths(Path(config.run_dir))
    if config.cluster.hosts.runner is Runner.pdsh:
        return launch_pdsh(config, paths, hosts)
    secret = _asked_for(config.cluster)
    ready: Connected | None = Connected(config, paths, hosts)
    record_launch(paths, config.cluster.kind)

    def attempt(restart: int) -> tuple[int, bool]:
        nonlocal ready
        connected, ready = ready or _again(config, paths, hosts), None
        return _attempt(config, paths, connected, secret)

    return run_attempts(config.cluster, paths, attempt)


def describe_hosts(config: PretrainConfig) -> str:
    """What `launch_hosts` would start, for people; no machine is asked.

    Raises:
        ConfigError: as `launch_hosts`.
    """
    hosts, paths = read_hosts(config.cluster), RunPaths(Path(config.run_dir))
    if config.cluster.hosts.runner is Runner.pdsh:
        return describe_pdsh(config, paths, hosts)
    secret = _asked_for(config.cluster)
    address = config.cluster.hosts.master_addr or next(iter(hosts))
    port = config.cluster.master_port or "PORT"
    start = _start(config, paths.logs / "attempt_NNN", hosts, address, port)
    lines = [f"{len(hosts)} machine(s), {sum(map(len, hosts.values()))} worker(s)"]
    for rank, (host, slots) in enumerate(hosts.items()):
        lines += [
            f"{host}: slots {', '.join(map(str, slots))}",
            describe_start(ssh_of(config.cluster, host), {}, {}),
            " which starts",
            describe_start(
                command_of(
                    start.for_node(rank), python_of(config.cluster), Path("launch/pretrain.py")
                ),
                {},
                start.environment | secret,
                secret,
            ),
        ]
    return "\n".join(lines)


def _again(config: PretrainConfig, paths: RunPaths, hosts: Hosts) -> Connected:
    """For another attempt; with `cluster.shrink` without the machines that cannot take part."""
    try:
        return Connected(config, paths, hosts)
    except HostsError as error:
        rest = {host: slots for host, slots in hosts.items() if host not in error.hosts}
        if not config.cluster.shrink or not rest:
            raise
        say(f"{error.problem}; going on without")
        return Connected(config, paths, rest)


def _attempt(
    config: PretrainConfig, paths: RunPaths, connected: Connected, secret: dict[str, str]
) -> tuple[int, bool]:
    """One world, from its start to its end: (exit code, whether a signal came)."""
    try:
        attempt = next_attempt(paths)
        write_config(config, paths, attempt)
        # it told how the last attempt ended; this one speaks for itself
        paths.requeue.unlink(missing_ok=True)
    except BaseException:
        close_all(connected.nodes)
        raise
    workers = sum(map(len, connected.hosts.values()))
    say(
        f"{paths.root}: {attempt.name}, {workers} worker(s) on {', '.join(connected.hosts)}; "
        "Ctrl-C saves and stops"
    )
    start = _start(config, attempt, connected.hosts, connected.address, connected.port)
    ended = watch(lambda: _go(connected.nodes, start, secret), attempt / "exit_code")
    _see_what_others_wrote(paths.root, attempt)
    return outcome(config, paths, attempt, ended), ended.interrupted


def _go(nodes: Sequence[RemoteNode], start: Start, secret: dict[str, str]) -> RemoteWorkers:
    for rank, node in enumerate(nodes):
        own = asdict(start.for_node(rank))
        own["environment"] = start.environment | secret
        node.show_words()
        node.send(do="start", start=own)
    return RemoteWorkers(nodes)


def _start(
    config: PretrainConfig, attempt: Path, hosts: Hosts, address: str, port: int | str
) -> Start:
    cluster = config.cluster
    return Start(
        nodes={host: list(slots) for host, slots in hosts.items()},
        node_rank=0,
        master_addr=address,
        master_port=port,
        run_dir=config.run_dir,
        config=str(attempt / "config.yaml"),
        attempt=attempt.name,
        threads=cluster.threads_per_worker,
        bind_cores=cluster.bind_cores,
        interface=cluster.interface,
        environment=shown_environment(cluster),
    )


def _asked_for(cluster: ClusterConfig) -> dict[str, str]:
    """The variables of `cluster.hosts.forward`, which may be secrets."""
    absent = [name for name in cluster.hosts.forward if name not in os.environ]
    if absent:
        raise ConfigError(
            f"cluster.hosts.forward: {', '.join(absent)} is not set in this shell",
            "export it, or leave it out",
        )
    return {name: os.environ[name] for name in cluster.hosts.forward}


def _see_what_others_wrote(*folders: Path) -> None:
    """Have a network file system look again.

    Its client remembers for up to a minute that a file was not there, unless the folder has changed;
    our own change makes it compare.
    """
    for folder in folders:
        with suppress(OSError):
            probe = folder / f".look-{os.getpid()}"
            probe.touch()
            probe.unlink()
