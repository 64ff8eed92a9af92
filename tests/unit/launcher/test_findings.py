from __future__ import annotations

from dataclasses import replace

import pytest

from roberta_dist import __version__
from roberta_dist.launcher.findings import (
    Finding,
    HostsError,
    judge,
    no_answer,
    rendezvous,
    skewed,
)
from roberta_dist.launcher.survey import Survey

pytestmark = pytest.mark.unit
FINE = Survey(
    version=__version__, python="/p", libraries={"torch": "2", "deepspeed": "0.19"}, machine="m1",
    clock=100.0, devices=[], cores=4, token="t", writable=True, missing=[], port=5,
    server="10.0.0.1", client="10.0.0.9", numactl=False,
)  # fmt: skip
OTHER = replace(FINE, machine="m2", port=None, server="10.0.0.2")
HOSTS = {"a": (0, 1), "b": (0, 1)}


def found(a=FINE, b=OTHER, hosts=HOSTS, bind_cores=False):
    return judge(hosts, {"a": a, "b": b}, "t", "/run", 7, bind_cores)


def test_nothing_speaks_against_fine_machines():
    assert found() == []
    assert found(replace(FINE, devices=[0, 1]), replace(OTHER, devices=[0, 1, 2])) == []


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"cores": 1}, "2 workers are asked for, and it has no accelerator and 1 core"),
        ({"devices": [0]}, r"slot\(s\) 1 are asked for, and it shows 1 accelerator\(s\) \(0\)"),
        ({"devices": [1, 2]}, r"slot\(s\) 0 are asked for, and it shows 2 accelerator"),
        ({"token": None}, "/run is not the folder that is seen here .*missing"),
        ({"token": "other"}, "/run is not the folder that is seen here .*another one"),
        ({"writable": False}, "/run cannot be written there"),
        ({"missing": ["/c/train/manifest.json"]}, "missing there: /c/train/manifest.json"),
        ({"libraries": {"torch": "3", "deepspeed": "0.19"}}, "torch 3 there, 2 on a"),
        ({"libraries": {"torch": "2", "deepspeed": None}}, "/p has no deepspeed"),
        ({"trouble": ["no script"]}, "no script"),
    ],
)
def test_each_reason_names_host_finding_and_remedy(wrong, told):
    (finding,) = found(b=replace(OTHER, **wrong))
    assert finding.host == "b" and finding.remedy
    with pytest.raises(HostsError, match=f"(?s)1 machine.*b: {told}.*remedy: ") as caught:
        raise HostsError([finding])
    assert caught.value.hosts == {"b"} and caught.value.exit_code == 6


def test_a_taken_port_is_the_first_machines():
    (finding,) = found(a=replace(FINE, port=None))
    assert finding.host == "a" and "port 7 is taken there" in finding.problem


def test_binding_needs_numactl_on_every_machine():
    assert [f.host for f in found(bind_cores=True)] == ["a", "b"]
    assert not found(replace(FINE, numactl=True), replace(OTHER, numactl=True), bind_cores=True)


def test_all_machines_are_told_at_once_and_a_remedy_once():
    findings = found(a=replace(FINE, token=None), b=replace(OTHER, token=None, cores=1))
    text = str(HostsError(findings))
    assert text.count("\n  a: ") == 1 and text.count("\n  b: ") == 2
    assert text.count("put run_dir on a file system") == 1


@pytest.mark.parametrize(
    ("code", "words", "told", "remedy"),
    [
        (None, "", "no answer within 30 s", "cluster.hosts.exclude=b"),
        (255, "x\nssh: connect to host b port 22: Connection refused\n", "ssh cannot reach it: ssh: connect", "BatchMode=yes b true"),
        (127, "bash: line 1: /p: No such file", "/p cannot be run there", "cluster.hosts.python"),
        (1, "/p: Error while finding module: No module named 'roberta_dist'", "has no roberta_dist", "install"),
        (9, "", "its checks ended with 9: no message", "doctor"),
    ],
)  # fmt: skip
def test_why_a_machine_does_not_answer(code, words, told, remedy):
    finding = no_answer("b", code, words, "/p", 30.0)
    assert isinstance(finding, Finding) and told in finding.problem and remedy in finding.remedy


def test_a_clock_that_is_off_is_a_warning():
    now = {"a": 100.0, "b": 92.0}
    assert skewed({"a": FINE, "b": OTHER}, now) == [
        "b: its clock is +8 s off this machine's; set it by NTP"
    ]


def test_the_rendezvous_is_where_the_others_find_the_first_machine():
    both = {"a": FINE, "b": OTHER}
    assert rendezvous("ib0.example", HOSTS, both) == "ib0.example"
    assert rendezvous(None, HOSTS, both) == "10.0.0.1"
    # launch runs on a: ssh went over loopback there, and b saw where it came from
    here = replace(FINE, server="127.0.1.1", client="127.0.0.1")
    assert rendezvous(None, HOSTS, {"a": here, "b": OTHER}) == "10.0.0.9"
    # one machine with two names
    assert rendezvous(None, HOSTS, {"a": here, "b": replace(OTHER, machine="m1")}) == "127.0.1.1"
    with pytest.raises(HostsError, match="master_addr"):
        rendezvous(None, HOSTS, {"a": here, "b": replace(OTHER, client="")})
