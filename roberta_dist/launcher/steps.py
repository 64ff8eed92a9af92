"""The steps of a job: how `srun` starts what runs on the nodes, inside a container or not. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from roberta_dist.config.roots import PretrainConfig
from roberta_dist.config.slurm import CONTROL, Container, Transport
from roberta_dist.errors import ConfigError
from roberta_dist.runtime.remote_path import is_remote


@dataclass(frozen=True)
class Job:
    """What the script needs to know beside the configuration."""

    config: Path
    """Resolved configuration, the workers' one argument."""
    workers: int
    """Worker processes on a node."""
    gpus: int
    """GPUs asked of a node; 0 trains on its processors."""
    python: str
    """Interpreter on the nodes."""
    extensions: Path | None = None
    """Folder of extensions that torch builds; None leaves torch's default."""


def _srun(
    config: PretrainConfig, job: Job, *, nodes: int, per_node: int, further: Sequence[str] = ()
) -> list[str]:
    """srun and what both steps tell it."""
    slurm = config.cluster.slurm
    size = f"srun --nodes={nodes} --ntasks={nodes * per_node} --ntasks-per-node={per_node}"
    cores = slurm.cpus_per_task * job.workers // per_node
    # srun does not take --cpus-per-task over from sbatch, and binds a task without it to one core
    size += f" --cpus-per-task={cores}" if cores else " --cpu-bind=none"
    lines = [size]
    if slurm.container is Container.pyxis:
        mounts = ",".join(container_mounts(config, further))
        lines.append(shlex.join([f"--container-image={slurm.container_image}"]))
        lines.append(shlex.join([f"--container-mounts={mounts}"]))
    return lines


def container_mounts(config: PretrainConfig, further: Sequence[str] = ()) -> list[str]:
    """`SOURCE:TARGET` of every folder that a step needs to see, and of those asked for.

    Args:
        config: the run.
        further: paths beside the run folder and the corpora.

    Raises:
        ConfigError: a path holds what separates mounts; pyxis takes no blanks either (pyxis #133).
    """
    data = config.data
    paths = [config.run_dir, *data.locations.values(), data.cache_dir, config.init, *further]
    local = dict.fromkeys(path for path in paths if path and not is_remote(path))
    blanks = " \t" if config.cluster.slurm.container is Container.pyxis else ""
    for path in local:
        if set(path) & set(f",:{blanks}") or CONTROL.search(path):
            raise ConfigError(
                f"{path!r} cannot be mounted into a container: it holds `,`, `:`, a line break or, "
                "for pyxis, a blank",
                "rename the folder, or mount one above it by cluster.slurm.container_mounts",
            )
    return [*(f"{path}:{path}" for path in local), *config.cluster.slurm.container_mounts]


def _inside(config: PretrainConfig, job: Job, further: Sequence[str] = ()) -> list[str]:
    """Words that start a command inside the container, where srun itself does not."""
    slurm = config.cluster.slurm
    if slurm.container is not Container.apptainer:
        return []
    words = ["apptainer", "exec", *(["--nv"] if job.gpus else [])]
    words += [f"--bind={mount}" for mount in container_mounts(config, further)]
    return [shlex.join([*words, str(slurm.container_image)])]


def preflight_step(config: PretrainConfig, job: Job) -> list[str]:
    """Words of the step that looks at every node."""
    slurm = config.cluster.slurm
    nodes = config.cluster.nodes + slurm.spare_nodes
    minutes = int((slurm.fit.timeout_s + nodes) // 60) + 3  # a node's turn takes half a second
    return [
        *_srun(config, job, nodes=nodes, per_node=1),
        f"--kill-on-bad-exit=0 --time={minutes}" + ' --output="${logs//%/%%}/preflight.out"',
        *_inside(config, job),
        f"{shlex.quote(job.python)} -u -m roberta_dist.launcher.preflight",
        f'"$config" "$MASTER_PORT" {job.gpus} {job.workers} "$logs/preflight.txt" "${{hosts[@]}}"',
    ]


def command_step(config: PretrainConfig, job: Job, further: Sequence[str]) -> list[str]:
    """Words before a command that one task of one node runs and that needs to see `further` paths."""
    return [
        *_srun(config, job, nodes=1, per_node=1, further=further),
        *_inside(config, job, further),
    ]


def workers_step(config: PretrainConfig, job: Job) -> list[str]:
    """Words of the step that trains."""
    cluster = config.cluster
    through_deepspeed = cluster.slurm.transport is Transport.deepspeed
    per_node = 1 if through_deepspeed else job.workers
    lines = [
        *_srun(config, job, nodes=cluster.nodes, per_node=per_node),
        '--nodelist="$chosen" --kill-on-bad-exit=1 --wait=300',
    ]
    python = shlex.quote(job.python)
    if not through_deepspeed:
        return [
            *lines,
            '--output="${logs//%/%%}/rank_%t.out"',
            *_inside(config, job),
            f'{python} -u -m roberta_dist.train "$config"',
        ]
    # USR1 reaches all processes of a step; DeepSpeed's launchers, which know no handler, would die of it
    node_rank = """'trap "" USR1; exec "${@/#--node_rank=/--node_rank=$SLURM_NODEID}"'"""
    return [
        *lines,
        '--output="${logs//%/%%}/node_%n.out"',
        f"bash -c {node_rank} bash",
        *_inside(config, job),
        f'{python} -m deepspeed.launcher.runner --no_ssh --node_rank= --hostfile="$logs/hostfile"',
        '--master_addr="$MASTER_ADDR" --master_port="$MASTER_PORT" --no_local_rank',
        '--module roberta_dist.train "$config"',
    ]
