"""A hostfile in DeepSpeed's form: parsed, checked and narrowed down. Pure but for `read_hosts`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from roberta_dist.config.cluster import ClusterConfig
from roberta_dist.errors import ConfigError

Hosts = dict[str, tuple[int, ...]]
"""Host → its slots, in the hostfile's order; a slot is the index of an accelerator."""

LINE = re.compile(r"(\S+)\s+slots=(\d+)\s*(?:#.*)?")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
SLOTS_MOST = 1024


def parse_hostfile(text: str, name: str) -> Hosts:
    """Hosts of a hostfile.

    Example: "node1 slots=2 # rack 3" → {"node1": (0, 1)}.

    Args:
        text: of the hostfile.
        name: of the file, for messages.

    Raises:
        ConfigError: a line that is no `HOST slots=N`, a host twice, no slot, no host; all are named.
    """
    hosts: Hosts = {}
    wrong = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = LINE.fullmatch(line)
        if match is None:
            wrong.append(f"line {number}: {line!r} is not HOST slots=N")
        elif not NAME.fullmatch(match[1]):
            wrong.append(
                f"line {number}: {match[1]!r} is no name of a host (letters, digits, . _ -; a user, a "
                "port or an IPv6 address belongs into ssh's configuration)"
            )
        elif match[1] in hosts:
            wrong.append(f"line {number}: {match[1]} is there twice")
        elif not 1 <= int(match[2]) <= SLOTS_MOST:
            wrong.append(f"line {number}: {match[1]} has slots={match[2]}, not 1 to {SLOTS_MOST}")
        else:
            hosts[match[1]] = tuple(range(int(match[2])))
    if not hosts and not wrong:
        wrong.append("no host in it")
    if wrong:
        raise ConfigError(
            f"cluster.hosts.file={name}: " + "; ".join(wrong),
            "write a line `HOST slots=N` for each",
        )
    return hosts


def narrow(hosts: Mapping[str, tuple[int, ...]], include: str, exclude: str) -> Hosts:
    """What DeepSpeed's `--include` or `--exclude` leaves, in the hostfile's order.

    Example: {"a": (0, 1), "b": (0, 1)}, include "b@a:1" → {"a": (1,), "b": (0, 1)}.

    Raises:
        ConfigError: a host or a slot that the hostfile does not have, or nothing is left.
    """
    if not include and not exclude:
        return dict(hosts)
    key = "cluster.hosts.include" if include else "cluster.hosts.exclude"
    named = _parse_filter(include or exclude, key, hosts)
    left: Hosts = {}
    for host, slots in hosts.items():
        taken = named.get(host, set())
        kept = tuple(slot for slot in slots if (slot in taken) == bool(include))
        if kept:
            left[host] = kept
    if not left:
        raise ConfigError(f"{key}={include or exclude}: leaves no slot", "name fewer")
    return left


def _parse_filter(text: str, key: str, hosts: Mapping[str, tuple[int, ...]]) -> dict[str, set[int]]:
    """Slots that `HOST[:SLOT,…]@…` names."""
    named: dict[str, set[int]] = {}
    for part in text.split("@"):
        host, colon, listed = part.partition(":")
        if host not in hosts:
            raise ConfigError(
                f"{key}={text}: the hostfile has no {host!r}", f"it has {', '.join(hosts)}"
            )
        if colon and not re.fullmatch(r"\d+(,\d+)*", listed):
            raise ConfigError(
                f"{key}={text}: {part!r} is not HOST:SLOT,SLOT", "write host1@host2:0,2"
            )
        slots = set(map(int, listed.split(","))) if colon else set(hosts[host])
        unknown = sorted(slots - set(hosts[host]))
        if unknown:
            raise ConfigError(
                f"{key}={text}: {host} has no slot {', '.join(map(str, unknown))}",
                f"it has slots 0 to {len(hosts[host]) - 1}",
            )
        named.setdefault(host, set()).update(slots)
    return named


def choose(hosts: Mapping[str, tuple[int, ...]], nodes: int, workers_per_node: int) -> Hosts:
    """The first `nodes` hosts (0: all) with `workers_per_node` slots each (0: all theirs).

    Raises:
        ConfigError: there are fewer hosts, or a host has fewer slots.
    """
    if nodes > len(hosts):
        raise ConfigError(
            f"cluster.nodes={nodes}: the hostfile leaves {len(hosts)} ({', '.join(hosts)})",
            "ask for as many at most; 0 takes all",
        )
    chosen = dict(list(hosts.items())[: nodes or len(hosts)])
    for host, slots in chosen.items():
        if workers_per_node > len(slots):
            raise ConfigError(
                f"cluster.workers_per_node={workers_per_node}: {host} has {len(slots)} slot(s)",
                "ask for as many at most, or correct slots= in the hostfile; 0 takes all",
            )
    return {host: slots[: workers_per_node or len(slots)] for host, slots in chosen.items()}


def read_hosts(cluster: ClusterConfig) -> Hosts:
    """Hosts and slots that `cluster` asks for.

    Raises:
        ConfigError: see `parse_hostfile`, `narrow` and `choose`; or the file cannot be read.
    """
    path = Path(cluster.hosts.file).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cluster.hosts.file={path}: cannot be read ({error})",
            "give cluster.hosts.file=FILE with a line `HOST slots=N` a machine",
        ) from error
    hosts = narrow(parse_hostfile(text, str(path)), cluster.hosts.include, cluster.hosts.exclude)
    return choose(hosts, cluster.nodes, cluster.workers_per_node)
