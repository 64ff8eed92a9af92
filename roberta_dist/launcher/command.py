"""What is started and with which environment: pure functions, so that a golden test can hold them."""

from __future__ import annotations

import base64
import json
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


def node_command(
    python: str,
    nodes: Mapping[str, Sequence[int]],
    node_rank: int,
    master_addr: str,
    port: int | str,
    bind_cores: bool,
    script: Path,
    config: Path,
) -> list[str]:
    """DeepSpeed's launcher of one machine, which starts its workers and ends them together.

    `deepspeed` itself would only find the accelerators, which we know, and start this; it takes
    seconds to import, and exits 0 when this is killed.

    Args:
        python: interpreter of the launcher and of the workers.
        nodes: machine → indices of its accelerators (or 0, 1, …), one a worker; the same everywhere.
        node_rank: which of them this is.
        master_addr: address of the first machine.
        port: TCP port of the rendezvous there.
        bind_cores: give each worker cores of its own, with numactl.
        script: the worker as a file.
        config: resolved configuration, the worker's one argument.
    """
    world = base64.urlsafe_b64encode(json.dumps(dict(nodes)).encode()).decode()
    return [
        python,
        "-u",
        "-m",
        "deepspeed.launcher.launch",
        "--quiet",
        f"--world_info={world}",
        f"--node_rank={node_rank}",
        f"--master_addr={master_addr}",
        f"--master_port={port}",
        *(["--bind_cores_to_rank"] if bind_cores else []),
        # Hydra-like parsers refuse the argument that it adds otherwise
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
    interface: str | None,
    gloo_interface: str | None,
) -> dict[str, str]:
    """Environment of DeepSpeed's launcher, which its workers inherit.

    Args:
        environ: of this machine, with what was asked for.
        python: interpreter whose folder comes first on PATH: another ninja version there would
            build DeepSpeed's extensions again.
        attempt: name of the attempt's folder.
        launcher_pid: process on this machine whose end ends the workers.
        threads: OMP_NUM_THREADS of a worker.
        extensions: folder of extensions that torch builds; None leaves torch's default.
        without_accelerator: tell DeepSpeed, which would otherwise search and warn.
        interface: network interface that was asked for.
        gloo_interface: what gloo gets where none was: it would look up this machine's own name and
            listen there, which is often 127.0.1.1.
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
    if interface is not None:
        env["GLOO_SOCKET_IFNAME"] = env["NCCL_SOCKET_IFNAME"] = interface
    elif gloo_interface is not None:
        env.setdefault("GLOO_SOCKET_IFNAME", gloo_interface)
    return env
