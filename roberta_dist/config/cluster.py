"""`cluster`: where workers run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from roberta_dist.config.fields import free, group, require
from roberta_dist.config.hosts import HostsConfig, Runner
from roberta_dist.config.secrets import refuse_secret
from roberta_dist.config.slurm import SlurmConfig


class ClusterKind(str, Enum):
    """Where the launcher starts workers."""

    local = "local"
    hostfile = "hostfile"
    slurm = "slurm"


class Fabric(str, Enum):
    """What connects the nodes, and so which variables NCCL gets."""

    auto = "auto"
    ethernet = "ethernet"
    infiniband = "infiniband"
    roce = "roce"


@dataclass(frozen=True)
class ClusterConfig:
    """Workers of one launch."""

    kind: ClusterKind = free(ClusterKind.local)
    """`local`: this machine, through the `deepspeed` launcher; `hostfile`: machines reached by ssh;
    `slurm`: a job of a SLURM cluster."""
    nodes: int = free(1)
    """Machines; for `hostfile` 0 takes all that the hostfile names."""
    workers_per_node: int = free(0)
    """Worker processes on a node; 0 means one an accelerator, or 1 without any."""
    threads_per_worker: int = free(0)
    """OMP_NUM_THREADS of a worker; 0 shares the cores out evenly."""
    bind_cores: bool = free(False)
    """Bind each worker to cores of its own with numactl, which then also decides its threads."""
    restarts: int = free(3)
    """Times in a row that the world is started again after a rank died or hung, without a new
    checkpoint in between; 0 never does."""
    restart_delay_s: float = free(5.0)
    """Seconds before the first of them, doubled for each that follows."""
    shrink: bool = free(False)
    """Start again with one worker less each time, down to 1; for `hostfile` with the machines that
    still pass the checks."""
    master_port: int = free(0)
    """Port of the rendezvous; 0 takes a free one."""
    interface: str | None = free(None)
    """Network interface that workers talk through (NCCL_ and GLOO_SOCKET_IFNAME); null leaves it to
    them."""
    fabric: Fabric = free(Fabric.auto)
    """`auto` leaves NCCL's own choice; `ethernet` sockets only; `infiniband`, `roce` its adapters."""
    environment: dict[str, str] | None = free(None)
    """Further variables of the workers. Never secrets: this is written into the run folder."""
    hosts: HostsConfig = group(HostsConfig)
    slurm: SlurmConfig = group(SlurmConfig)

    def __post_init__(self) -> None:
        for key in (
            "nodes",
            "workers_per_node",
            "threads_per_worker",
            "restarts",
            "restart_delay_s",
        ):
            value = vars(self)[key]
            require(value >= 0, f"cluster.{key}", value, "must be ≥ 0")
        require(
            0 <= self.master_port <= 65_535,
            "cluster.master_port",
            self.master_port,
            "must be in [0, 65535]",
        )
        require(
            self.nodes == 1 or self.kind is not ClusterKind.local,
            "cluster.nodes",
            self.nodes,
            "cluster=local is this one machine",
            "choose cluster=hostfile or cluster=slurm",
        )
        self._refuse_without_effect()
        for name, value in (self.environment or {}).items():
            require(
                name.isidentifier() and name.isascii(),
                "cluster.environment",
                repr(name),
                "is no name of a variable",
                "use letters, digits and underscores",
            )
            refuse_secret("cluster.environment", name, value)

    def _refuse_without_effect(self) -> None:
        """What the chosen kind of launch would pass over in silence."""
        slurm = self.kind is ClusterKind.slurm
        pdsh = self.kind is ClusterKind.hostfile and self.hosts.runner is Runner.pdsh
        for key, remedy in (
            ("bind_cores", "on SLURM srun binds: give cluster.slurm.cpus_per_task"),
            ("shrink", "a SLURM job requeues, or takes cluster.slurm.spare_nodes"),
        ):
            require(
                not (vars(self)[key] and (slurm or pdsh)),
                f"cluster.{key}",
                True,
                "has no effect here",
                remedy if slurm else "use cluster.hosts.runner=ssh",
            )
        require(
            self.nodes >= 1 or self.kind is ClusterKind.hostfile,
            "cluster.nodes",
            self.nodes,
            "must be ≥ 1 (0, all of them, is for a hostfile)",
        )
