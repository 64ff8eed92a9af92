"""`cluster.slurm`: the job that a SLURM cluster is asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from roberta_dist.config.fields import free, group, require
from roberta_dist.config.secrets import refuse_secrets_in_shell

TIME = re.compile(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
OPTION = re.compile(r"--[a-z][a-z0-9-]*(=.*)?")
NODES = re.compile(r"[\w.\[\],-]+", re.ASCII)
MOUNT = re.compile(r"[^:,]+:[^:,]+")


class Transport(str, Enum):
    """Who starts the workers inside a job."""

    srun = "srun"
    deepspeed = "deepspeed"


class Container(str, Enum):
    """What the workers run in."""

    none = "none"
    pyxis = "pyxis"
    apptainer = "apptainer"


@dataclass(frozen=True)
class FitConfig:
    """What a node must offer to take part; looked at before the workers start."""

    memory_gib: float = free(1.0)
    """Free memory of the machine, GiB."""
    gpu_memory_used: float = free(0.1)
    """Fraction of a GPU's memory that others may hold already."""
    disk_gib: float = free(1.0)
    """Free space where the run folder lies, GiB."""
    shm_mib: float = free(128.0)
    """Free space in /dev/shm, MiB."""
    clock_skew_s: float = free(5.0)
    """Seconds that its clock may differ from the first node's."""
    bandwidth_mib_s: float = free(10.0)
    """MiB a second from and to the first node, over TCP."""
    all_reduce_mib_s: float = free(10.0)
    """MiB a second (bus bandwidth) of an all-reduce by the workers of two nodes; 0 measures none."""
    timeout_s: float = free(180.0)
    """Seconds in which a node must have answered."""

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            require(value >= 0, f"cluster.slurm.fit.{key}", value, "must be ≥ 0")


@dataclass(frozen=True)
class PrepareJobsConfig:
    """The jobs of `prepare_first`, on one node each and without GPUs; the rest is as for training."""

    partition: str | None = free(None)
    """Partition; null takes the training's."""
    time: str = free("24:00:00")
    """Time limit of each job."""
    cpus_per_task: int = free(0)
    """Cores of a task; 0 leaves it to the cluster."""
    memory: str | None = free(None)
    """Memory of a node; null takes the cluster's default."""
    extra: list[str] = free([])
    """Further `#SBATCH` options, such as `--constraint=cpu`; those of the training, its `constraint`
    and its `reservation` do not count here."""
    at_once: int = free(0)
    """Most tasks of a phase that run at the same time; 0 sets no limit."""

    def __post_init__(self) -> None:
        require_time("cluster.slurm.prepare.time", self.time)
        for key in ("cpus_per_task", "at_once"):
            value = vars(self)[key]
            require(value >= 0, f"cluster.slurm.prepare.{key}", value, "must be ≥ 0")
        require_options("cluster.slurm.prepare.extra", self.extra)


def require_options(key: str, options: list[str]) -> None:
    """Raise ConfigError unless each is one option of sbatch, on one line."""
    for text in options:
        fine = OPTION.fullmatch(text) and not CONTROL.search(text)
        require(bool(fine), key, repr(text), "is no option: write --name or --name=value")


def require_time(key: str, value: str) -> None:
    """Raise ConfigError unless `value` is a time limit of SLURM."""
    require(
        bool(TIME.fullmatch(value)),
        key,
        repr(value),
        "is no time limit",
        "write minutes, HH:MM:SS or D-HH:MM:SS",
    )


def seconds_of(time: str) -> int:
    """A time limit as SLURM writes it: minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    days, dash, rest = time.rpartition("-")
    numbers = [int(number) for number in rest.split(":")]
    if dash:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


@dataclass(frozen=True)
class SlurmConfig:
    """Lines of the job script; used by `cluster=slurm` alone."""

    job_name: str | None = free(None)
    """Name of the job; null takes the run folder's."""
    partition: str | None = free(None)
    """Partition; null takes the cluster's default."""
    account: str | None = free(None)
    """Account that is charged."""
    qos: str | None = free(None)
    """Quality of service."""
    reservation: str | None = free(None)
    """Reservation to run in."""
    constraint: str | None = free(None)
    """Node features that are asked for, such as `h100`."""
    exclude: list[str] = free([])
    """Nodes that must not be used."""
    time: str = free("24:00:00")
    """Time limit, as SLURM writes it: `minutes`, `HH:MM:SS` or `D-HH:MM:SS`."""
    gpus_per_node: int | None = free(None)
    """GPUs asked of a node; null asks for one a worker, 0 for none."""
    gpu_type: str | None = free(None)
    """Type of the generic resource, as in `--gpus-per-node=TYPE:8`."""
    cpus_per_task: int = free(0)
    """Cores of a worker; 0 leaves it to the cluster."""
    memory: str | None = free("0")
    """Memory of a node: `0` is all of it, null the cluster's default."""
    exclusive: bool = free(True)
    """Take whole nodes."""
    mail_user: str | None = free(None)
    """Address that is told of the end and of failures."""
    extra: list[str] = free([])
    """Further `#SBATCH` options, such as `--switches=1`, one an entry; the value is taken literally."""
    transport: Transport = free(Transport.srun)
    """`srun`: one task a worker; `deepspeed`: one `deepspeed` launcher a node."""
    signal_lead_s: int = free(180)
    """Seconds before the time limit at which the run is asked to save; SLURM may be up to 60 s early."""
    requeues: int = free(20)
    """Times that a job goes back into the queue after a time limit, a preemption or a failure;
    two attempts in a row that end at the same checkpoint stop it before."""
    chain: int = free(1)
    """Jobs submitted at once, each after the one before has ended, for runs longer than one limit
    on clusters that do not requeue."""
    sweep_at_once: int = free(0)
    """Most members of a sweep (`--multirun`) that run at the same time; 0 sets no limit."""
    prologue: list[str] = free([])
    """Lines of shell before the workers start, written as they are: `module load …`, `source …`."""
    python: str | None = free(None)
    """Interpreter on the nodes; null takes the one that runs `launch`, in a container `python3`."""
    container: Container = free(Container.none)
    """`pyxis` (`srun --container-image`) or `apptainer`."""
    container_image: str | None = free(None)
    """Image of the container."""
    container_mounts: list[str] = free([])
    """`SOURCE:TARGET` folders seen inside; the run folder and the corpora are added."""
    preflight: bool = free(True)
    """Look at every node before the workers start, and leave out those that are not fit."""
    spare_nodes: int = free(0)
    """Nodes asked for beyond cluster.nodes, so that the look before may leave some out."""
    fit: FitConfig = group(FitConfig)
    prepare: PrepareJobsConfig = group(PrepareJobsConfig)

    def __post_init__(self) -> None:
        require_time("cluster.slurm.time", self.time)
        for key in (
            "gpus_per_node",
            "cpus_per_task",
            "signal_lead_s",
            "requeues",
            "spare_nodes",
            "sweep_at_once",
        ):
            value = vars(self)[key] or 0
            require(value >= 0, f"cluster.slurm.{key}", value, "must be ≥ 0")
        self._check_text()
        for line in self.prologue:
            refuse_secrets_in_shell("cluster.slurm.prologue", line)
        require_options("cluster.slurm.extra", self.extra)
        require(
            self.signal_lead_s < seconds_of(self.time),
            "cluster.slurm.signal_lead_s",
            self.signal_lead_s,
            f"the warning would come before the job begins: cluster.slurm.time={self.time}",
            "give a shorter lead or a longer time",
        )
        require(self.chain >= 1, "cluster.slurm.chain", self.chain, "must be ≥ 1")
        require(
            self.container is Container.none or bool(self.container_image),
            "cluster.slurm.container_image",
            self.container_image,
            f"cluster.slurm.container={self.container.value} needs an image",
            "give cluster.slurm.container_image=IMAGE",
        )
        require(
            self.preflight or not self.spare_nodes,
            "cluster.slurm.spare_nodes",
            self.spare_nodes,
            "nothing tells which nodes to leave out without cluster.slurm.preflight",
            "set cluster.slurm.preflight=true, or spare_nodes=0",
        )

    def _check_text(self) -> None:
        """Nothing may leave its line of the script, or its place in a list."""
        for key, value in vars(self).items():
            for text in value if isinstance(value, list) else [value]:
                require(
                    key == "prologue" or not isinstance(text, str) or not CONTROL.search(text),
                    f"cluster.slurm.{key}",
                    repr(text),
                    "a line of a job script holds no line break or other control character",
                )
        for key, form, rule in (
            ("exclude", NODES, "is no node: write node7 or node[1-4]"),
            ("container_mounts", MOUNT, "is no mount: write SOURCE:TARGET, without `,`"),
        ):
            for text in getattr(self, key):
                require(bool(form.fullmatch(text)), f"cluster.slurm.{key}", repr(text), rule)
