"""What is started and with which environment: pure functions, so that a golden test can hold them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from roberta_dist.errors import ConfigError
from roberta_dist.runtime.parent import LAUNCHER_VARIABLE
from roberta_dist.runtime.rundir import ATTEMPT_VARIABLE

RENDEZVOUS_HOST = "127.0.0.1"
INHERITED_WORLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables of a world that we may have been started in; DeepSpeed would believe LOCAL_SIZE."""


def worker_count(asked: int, devices: Sequence[int]) -> int:
    """Workers to start: as asked, or (0) one an accelerator, or 1 without any.

    Raises:
        ConfigError: more workers than accelerators; two ranks cannot share one.
    """
    if devices and asked > len(devices):
        raise ConfigError(
            f"cluster.workers_per_node={asked}: this machine shows {len(devices)} accelerator(s)",
            "ask for as many at most, or set DS_ACCELERATOR=cpu to train on the processor",
        )
    return asked or len(devices) or 1


def deepspeed_command(
    python: str, devices: Sequence[int], workers: int, port: int, script: Path, config: Path
) -> list[str]:
    """The `deepspeed` launcher for one machine.

    Args:
        python: interpreter of the launcher and of the workers.
        devices: accelerators this process may use, the first `workers` of which are taken;
            empty without any.
        workers: worker processes.
        port: TCP port of the rendezvous on this machine.
        script: the worker as a file.
        config: resolved configuration, the worker's one argument.
    """
    if devices:
        # --num_gpus would replace the user's CUDA_VISIBLE_DEVICES by 0, 1, …
        placement = "--include=localhost:" + ",".join(str(d) for d in devices[:workers])
    else:
        placement = f"--num_gpus={workers}"
    return [
        python,
        "-m",
        "deepspeed.launcher.runner",
        "--quiet",
        # without one DeepSpeed reads /job/hostfile, whoever left it there
        f"--hostfile={config.parent / 'no_hostfile'}",
        placement,
        f"--master_addr={RENDEZVOUS_HOST}",
        f"--master_port={port}",
        "--no_local_rank",
        str(script),
        str(config),
    ]


def worker_environment(
    environ: Mapping[str, str],
    python: str,
    attempt: str,
    launcher_pid: int,
    threads: int,
    extensions: Path | None,
    without_accelerator: bool,
) -> dict[str, str]:
    """Environment of the DeepSpeed launcher, which its workers inherit.

    Args:
        environ: ours.
        python: interpreter whose folder comes first on PATH: another ninja version there would
            build DeepSpeed's extensions again.
        attempt: name of the attempt's folder.
        launcher_pid: process whose end ends the workers.
        threads: OMP_NUM_THREADS of a worker.
        extensions: folder of extensions that torch builds; None leaves torch's default.
        without_accelerator: tell DeepSpeed, which would otherwise search and warn.
    """
    env = {name: value for name, value in environ.items() if name not in INHERITED_WORLD}
    env["PATH"] = os.pathsep.join([str(Path(python).parent), env.get("PATH", os.defpath)])
    env["OMP_NUM_THREADS"] = str(threads)
    env["PYTHONFAULTHANDLER"] = "1"
    env[ATTEMPT_VARIABLE] = attempt
    env[LAUNCHER_VARIABLE] = str(launcher_pid)
    if extensions is not None:
        env["TORCH_EXTENSIONS_DIR"] = str(extensions)
    if without_accelerator:
        env.setdefault("DS_ACCELERATOR", "cpu")
        # gloo would look up this machine's own name and listen there
        env.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return env
