"""What speaks against starting workers on the machines that answered, or did not: pure functions."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from roberta_dist import __version__
from roberta_dist.errors import LaunchError
from roberta_dist.launcher.hostfile import Hosts
from roberta_dist.launcher.survey import LIBRARIES, Survey

SKEW_S = 5.0
SAME = "install the same versions in the environment of all machines"
SSH_FAILED = 255
NOT_FOUND = (126, 127)


@dataclass(frozen=True)
class Finding:
    """One reason why a machine cannot take part."""

    host: str
    problem: str
    remedy: str


class HostsError(LaunchError):
    """Machines that cannot take part, all of them with all that was found.

    Args:
        findings: at least one.
    """

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        self.hosts = {finding.host for finding in findings}
        problems = "".join(f"\n  {f.host}: {f.problem}" for f in findings)
        remedies = dict.fromkeys(f.remedy for f in findings)
        super().__init__(
            f"nothing was started: {len(self.hosts)} machine(s) cannot take part{problems}",
            "; ".join(remedies),
        )


def no_answer(host: str, code: int | None, words: str, python: str, limit_s: float) -> Finding:
    """Why a machine sent no survey.

    Args:
        host: its name.
        code: exit code of ssh; None if it still runs.
        words: end of what it wrote to standard error.
        python: interpreter that was asked for.
        limit_s: seconds that it had.
    """
    last = next(
        (line for line in reversed(words.splitlines()) if line.strip()), "no message"
    ).strip()
    if code is None:
        return Finding(
            host,
            f"no answer within {limit_s:g} s",
            "look at the machine, raise cluster.hosts.connect_timeout_s, or leave it out with "
            f"cluster.hosts.exclude={host}",
        )
    if code == SSH_FAILED:
        return Finding(
            host,
            f"ssh cannot reach it: {last}",
            f"make `ssh -o BatchMode=yes {host} true` work (name, key, known_hosts, "
            f"cluster.hosts.ssh_options), or leave it out with cluster.hosts.exclude={host}",
        )
    if code in NOT_FOUND:
        return Finding(
            host,
            f"{python} cannot be run there: {last}",
            "install the environment at the same path on all machines, or give cluster.hosts.python",
        )
    if "No module named" in words:
        return Finding(
            host,
            f"{python} has no roberta_dist there: {last}",
            "install it in the same environment on all machines, or give cluster.hosts.python",
        )
    return Finding(host, f"its checks ended with {code}: {last}", "run `roberta-dist doctor` there")


def other_version(host: str, version: str) -> Finding:
    """It runs another roberta_dist, whose answers may mean something else."""
    return Finding(host, f"roberta_dist {version} there, {__version__} here", SAME)


def judge(
    hosts: Hosts,
    surveys: Mapping[str, Survey],
    token: str,
    run_dir: str,
    asked_port: int,
    bind_cores: bool,
) -> list[Finding]:
    """What is wrong with machines that did answer, in the hostfile's order.

    Args:
        hosts: all that are asked for; the first offers the rendezvous.
        surveys: of those that answered.
        token: what the token file says.
        run_dir: the run folder.
        asked_port: cluster.master_port.
        bind_cores: cluster.bind_cores.
    """
    first = next(iter(hosts))
    findings = []
    for host, slots in hosts.items():
        survey = surveys.get(host)
        if survey is None:
            continue
        problems = [
            *_software(survey, surveys.get(first, survey), first),
            *_room(survey, slots),
            *_storage(survey, token, run_dir),
        ]
        if host == first and survey.port is None:
            problems.append((
                f"port {asked_port} is taken there",
                "give another cluster.master_port, or 0 for a free one",
            ))  # fmt: skip
        if bind_cores and not survey.numactl:
            problems.append((
                "cluster.bind_cores=true, and numactl is not installed there",
                "install the package numactl, or leave cluster.bind_cores=false",
            ))  # fmt: skip
        findings += [Finding(host, problem, remedy) for problem, remedy in problems]
    return findings


def _software(survey: Survey, first: Survey, first_host: str) -> list[tuple[str, str]]:
    problems = [(trouble, "run `roberta-dist doctor` there") for trouble in survey.trouble]
    for name in LIBRARIES:
        there, wanted = survey.libraries.get(name), first.libraries.get(name)
        if there is None:
            problems.append((f"{survey.python} has no {name}", SAME))
        elif wanted is not None and there != wanted:
            problems.append((f"{name} {there} there, {wanted} on {first_host}", SAME))
    return problems


def _room(survey: Survey, slots: Sequence[int]) -> list[tuple[str, str]]:
    remedy = "correct slots= in the hostfile, or give cluster.workers_per_node"
    if survey.devices:
        absent = [slot for slot in slots if slot not in survey.devices]
        if absent:
            wanted = ", ".join(map(str, absent))
            return [(
                f"slot(s) {wanted} are asked for, and it shows {len(survey.devices)} accelerator(s) "
                f"({', '.join(map(str, survey.devices))})",
                remedy,
            )]  # fmt: skip
    elif len(slots) > survey.cores:
        # two workers on one core wait for each other: no intention, but a wrong number
        return [(
            f"{len(slots)} workers are asked for, and it has no accelerator and {survey.cores} core(s)",
            remedy,
        )]  # fmt: skip
    return []


def _storage(survey: Survey, token: str, run_dir: str) -> list[tuple[str, str]]:
    if survey.token != token:
        return [(
            f"{run_dir} is not the folder that is seen here (a file just written is "
            f"{'missing' if survey.token is None else 'another one'})",
            "put run_dir on a file system that all machines share at the same path",
        )]  # fmt: skip
    problems = []
    if not survey.writable:
        problems.append((f"{run_dir} cannot be written there", "mount it writable for this user"))
    if survey.missing:
        problems.append((
            f"missing there: {', '.join(survey.missing)}",
            "put the corpora on a file system that all machines share at the same path",
        ))  # fmt: skip
    return problems


def skewed(surveys: Mapping[str, Survey], now: Mapping[str, float]) -> list[str]:
    """Machines whose clock is off ours: no reason to stop, but their logs will mislead.

    Args:
        surveys: of all machines.
        now: our clock when each answer came.
    """
    off = {host: survey.clock - now[host] for host, survey in surveys.items()}
    return [
        f"{host}: its clock is {value:+.0f} s off this machine's; set it by NTP"
        for host, value in off.items()
        if abs(value) > SKEW_S
    ]


def rendezvous(asked: str | None, hosts: Hosts, surveys: Mapping[str, Survey]) -> str:
    """Address of the first machine that the others can use.

    It is the one at which ssh found the machine. That is a loopback address where `launch` runs on the
    first machine; the others then saw its true one as the address that ssh came from.

    Raises:
        HostsError: none is known.
    """
    if asked:
        return asked
    first, *others = hosts
    if surveys[first].server and not _is_loopback(surveys[first].server):
        return surveys[first].server
    elsewhere = [surveys[h] for h in others if surveys[h].machine != surveys[first].machine]
    if not elsewhere:
        return surveys[first].server or "127.0.0.1"
    for survey in elsewhere:
        if survey.client and not _is_loopback(survey.client):
            return survey.client
    raise HostsError([
        Finding(first, "its address is not known", "give cluster.hosts.master_addr=ADDRESS")
    ])  # fmt: skip


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.split("%")[0]).is_loopback
    except ValueError:
        return False
