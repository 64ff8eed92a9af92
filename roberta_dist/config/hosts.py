"""`cluster.hosts`: machines that are reached by ssh."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from roberta_dist.config.fields import free, require


class Runner(str, Enum):
    """Who starts the node launchers."""

    ssh = "ssh"
    pdsh = "pdsh"


@dataclass(frozen=True)
class HostsConfig:
    """A hostfile and how its machines are reached; used by `cluster=hostfile` alone."""

    file: str = free("hostfile")
    """Hostfile of DeepSpeed's form: a line `HOST slots=N` a machine; `#` begins a comment."""
    include: str = free("")
    """DeepSpeed's `--include`: `host1@host2:0,2` takes these machines and slots only."""
    exclude: str = free("")
    """DeepSpeed's `--exclude`, of the same form."""
    runner: Runner = free(Runner.ssh)
    """`ssh`: one connection a machine, held by `launch`; `pdsh`: DeepSpeed's own runner, which leaves
    the workers running when `launch` is killed and forwards no secrets."""
    python: str | None = free(None)
    """Interpreter on the machines; null takes the one that runs `launch`."""
    ssh_options: list[str] = free([])
    """Further arguments of ssh, for instance [-F,/path/to/config]."""
    forward: list[str] = free([])
    """Names of variables of this shell that the workers get too, beside NCCL_*, GLOO_*, UCX_*, TORCH_*
    and DS_*; secrets travel here, over ssh's standard input, and are written nowhere."""
    connect_timeout_s: float = free(10.0)
    """Seconds in which a machine must let us in; its checks have 20 s more."""
    master_addr: str | None = free(None)
    """Address of the rendezvous; null takes that at which ssh found the first machine."""

    def __post_init__(self) -> None:
        require(
            self.connect_timeout_s > 0,
            "cluster.hosts.connect_timeout_s",
            self.connect_timeout_s,
            "must be positive",
        )
        require(
            not (self.include and self.exclude),
            "cluster.hosts.exclude",
            self.exclude,
            f"and cluster.hosts.include={self.include} exclude each other",
            "give one of them",
        )
        for name in self.forward:
            require(
                name.isidentifier() and name.isascii(),
                "cluster.hosts.forward",
                repr(name),
                "is no name of a variable",
                "give names only; the values are those of this shell",
            )
