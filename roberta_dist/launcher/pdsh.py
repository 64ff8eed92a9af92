"""`cluster.hosts.runner=pdsh`: DeepSpeed's own runner for several machines, with what it cannot do.

Its arguments and exports pass an unquoted remote shell, so only harmless characters are let through.
It starts no program of ours: no machine is looked at before, and a launcher that is killed leaves
the workers running.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from contextlib import suppress
from pathlib import Path

from roberta_dist.config.roots import PretrainConfig
from roberta_dist.errors import ConfigError, LaunchError
from roberta_dist.launcher.attempts import Ended, run_attempts, watch
from roberta_dist.launcher.command import INHERITED_WORLD
from roberta_dist.launcher.connect import python_of, shown_environment
from roberta_dist.launcher.describe import describe_start
from roberta_dist.launcher.hostfile import Hosts
from roberta_dist.launcher.machine import extensions_folder, free_port, worker_script
from roberta_dist.launcher.outcome import outcome
from roberta_dist.launcher.processes import ProcessGroup
from roberta_dist.launcher.start import record_launch, say, write_config
from roberta_dist.runtime.files import atomic_write
from roberta_dist.runtime.rundir import ATTEMPT_VARIABLE, RunPaths, next_attempt

HARMLESS = re.compile(r"[A-Za-z0-9_@+=:,./-]*")
"""For a shell and for pdsh, which replaces `%h` and its like."""
ASK_S = 15.0


def pdsh_command(
    python: str,
    hosts: Hosts,
    hostfile: Path,
    address: str,
    port: int | str,
    script: Path,
    config: Path,
) -> list[str]:
    """`deepspeed` with its pdsh runner.

    Args:
        python: interpreter here and there.
        hosts: machines and slots.
        hostfile: a file with these machines.
        address: of the first one.
        port: of the rendezvous.
        script: the worker as a file.
        config: its one argument.
    """
    include = "@".join(f"{host}:{','.join(map(str, slots))}" for host, slots in hosts.items())
    return [
        python, "-m", "deepspeed.launcher.runner", "--quiet",
        f"--hostfile={hostfile}", f"--include={include}",
        "--launcher=pdsh", "--force_multi", "--no_ssh_check", "--no_local_rank",
        f"--master_addr={address}", f"--master_port={port}",
        str(script), str(config),
    ]  # fmt: skip


def hostfile_text(hosts: Hosts) -> str:
    """A hostfile that has the slots asked for."""
    return "".join(f"{host} slots={max(slots) + 1}\n" for host, slots in hosts.items())


def exports(config: PretrainConfig, python: str, attempt: str) -> dict[str, str]:
    """Variables for the remote shells, all harmless to one.

    Raises:
        ConfigError: one is not, or secrets are to travel.
    """
    cluster = config.cluster
    if cluster.hosts.forward:
        raise ConfigError(
            f"cluster.hosts.forward={cluster.hosts.forward}: DeepSpeed's pdsh runner would write it "
            "into a file and a command line",
            "use cluster.hosts.runner=ssh",
        )
    made = shown_environment(cluster)
    made["PATH"] = os.pathsep.join([str(Path(python).parent), os.environ.get("PATH", os.defpath)])
    made["OMP_NUM_THREADS"] = str(cluster.threads_per_worker or 1)
    made["PYTHONFAULTHANDLER"] = "1"
    made[ATTEMPT_VARIABLE] = attempt
    extensions = extensions_folder(os.environ)
    if extensions is not None:
        made["TORCH_EXTENSIONS_DIR"] = str(extensions)
    if cluster.interface is not None:
        made["GLOO_SOCKET_IFNAME"] = made["NCCL_SOCKET_IFNAME"] = cluster.interface
    given = os.environ.get("PYTHONPATH", "")
    paths = {
        "PYTHONPATH": given,
        "run_dir": config.run_dir,
        "working directory": os.getcwd(),
        "worker script": str(worker_script()),
        "cluster.hosts.python": python,
    }
    for name, value in {**made, **paths}.items():
        if not HARMLESS.fullmatch(value):
            raise ConfigError(
                f"{name}={value!r}: DeepSpeed's pdsh runner passes it through a shell unquoted",
                "use cluster.hosts.runner=ssh",
            )
    return made


def launch_pdsh(config: PretrainConfig, paths: RunPaths, hosts: Hosts) -> int:
    """As `launch_hosts`, by DeepSpeed's runner."""
    exports(config, python_of(config.cluster), "attempt")
    record_launch(paths, config.cluster.kind)
    return run_attempts(config.cluster, paths, lambda restart: _attempt(config, paths, hosts))


def describe_pdsh(config: PretrainConfig, paths: RunPaths, hosts: Hosts) -> str:
    """What would be started, for people."""
    attempt = paths.logs / "attempt_NNN"
    made = exports(config, python_of(config.cluster), attempt.name)
    workers = sum(map(len, hosts.values()))
    port = config.cluster.master_port or "PORT"
    return f"{len(hosts)} machine(s), {workers} worker(s)\n" + describe_start(
        _command(config, hosts, attempt, port), {}, made
    )


class PdshWorkers(ProcessGroup):
    """DeepSpeed's runner here, and workers there that only another pdsh can reach."""

    def __init__(
        self, config: PretrainConfig, hosts: Hosts, attempt: Path, command: list[str]
    ) -> None:
        own = {k: v for k, v in os.environ.items() if k not in INHERITED_WORLD}
        own["DS_ENV_FILE"] = str(attempt / "environment")
        own["PDSH_SSH_ARGS_APPEND"] = shlex.join(
            ["-o", "BatchMode=yes", *config.cluster.hosts.ssh_options]
        )
        self._environ, self._hosts = own, hosts
        self._worker = f"-u {re.escape(command[-2])} {re.escape(command[-1])}$"
        super().__init__(command, own)

    def ask_workers_to_stop(self) -> int:
        """SIGUSR1 to every worker."""
        return self._signal_workers("USR1")

    def end(self, grace_s: float) -> int:
        """End the runner; its workers, if they are not gone yet, are killed."""
        alive = self.leader.poll() is None
        left = super().end(grace_s)
        if alive or not self.clean:
            self._signal_workers("KILL")
        return left

    def _signal_workers(self, signal_name: str) -> int:
        command = [
            "pdsh", "-R", "ssh", "-w", ",".join(self._hosts),
            shlex.join(["pkill", f"-{signal_name}", "-f", "--", self._worker]),
        ]  # fmt: skip
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                command,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=ASK_S,
                check=False,
            )
            return 1
        return 0


def _attempt(config: PretrainConfig, paths: RunPaths, hosts: Hosts) -> tuple[int, bool]:
    attempt = next_attempt(paths)
    write_config(config, paths, attempt)
    paths.requeue.unlink(missing_ok=True)
    made = exports(config, python_of(config.cluster), attempt.name)
    # the runner takes every line for a variable, an empty one too
    atomic_write(attempt / "environment", "\n".join(f"{k}={v}" for k, v in made.items()))
    atomic_write(attempt / "hostfile", hostfile_text(hosts))
    command = _command(config, hosts, attempt, config.cluster.master_port or free_port())
    say(f"{paths.root}: {attempt.name}, pdsh to {', '.join(hosts)}; Ctrl-C saves and stops")
    ended = _watch(config, hosts, attempt, command)
    return outcome(config, paths, attempt, ended), ended.interrupted


def _watch(config: PretrainConfig, hosts: Hosts, attempt: Path, command: list[str]) -> Ended:
    try:
        return watch(lambda: PdshWorkers(config, hosts, attempt, command), attempt / "exit_code")
    except OSError as error:
        raise LaunchError(
            f"pdsh: {error}", "install pdsh, or use cluster.hosts.runner=ssh"
        ) from error


def _command(config: PretrainConfig, hosts: Hosts, attempt: Path, port: int | str) -> list[str]:
    address = config.cluster.hosts.master_addr or next(iter(hosts))
    return pdsh_command(
        python_of(config.cluster), hosts, attempt / "hostfile", address, port, worker_script(), attempt / "config.yaml"
    )  # fmt: skip
