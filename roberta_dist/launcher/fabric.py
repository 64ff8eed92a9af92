"""What NCCL and gloo are told about the network: pure, the same for hostfile and slurm."""

from __future__ import annotations

from dataclasses import dataclass

from roberta_dist.config.cluster import Fabric


@dataclass(frozen=True)
class Setting:
    """A variable of the workers and why it has this value."""

    name: str
    value: str
    reason: str


def fabric_settings(fabric: Fabric) -> list[Setting]:
    """Variables of NCCL for what connects the nodes; `auto` leaves the choice to NCCL."""
    adapters = [
        Setting("NCCL_NET", "IB", "stop where no adapter is found, rather than crawl over TCP"),
        Setting("NCCL_IB_TIMEOUT", "22", "4 µs x 2^22 = 17 s: a switch that reroutes ends no run"),
        Setting("NCCL_IB_RETRY_CNT", "7", "the most that adapters can count"),
    ]
    match fabric:
        case Fabric.auto:
            return []
        case Fabric.ethernet:
            return [Setting("NCCL_IB_DISABLE", "1", "sockets only")]
        case Fabric.infiniband:
            return adapters
        case Fabric.roce:
            return [
                *adapters,
                Setting("NCCL_IB_GID_INDEX", "3", "RoCE v2 over IPv4 on most adapters"),
                Setting(
                    "NCCL_IB_TC", "106", "DSCP 26, the lossless class of common switch set-ups"
                ),
            ]


def interface_settings(interface: str | None) -> list[Setting]:
    """Which interface the workers meet through; without one both libraries choose."""
    if interface is None:
        return []
    return [
        Setting(name, interface, "cluster.interface")
        for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
    ]
