from __future__ import annotations

import pytest

from roberta_dist.config.cluster import ClusterConfig, ClusterKind
from roberta_dist.config.hosts import HostsConfig
from roberta_dist.errors import ConfigError
from roberta_dist.launcher.hostfile import choose, narrow, parse_hostfile, read_hosts

pytestmark = pytest.mark.unit
POOL = {"a": (0, 1, 2, 3), "b": (0, 1, 2, 3), "c": (0, 1)}


def test_a_hostfile_keeps_its_order():
    text = "# rack 1\n\n  node2 slots=2   # spare\nnode-1.example\tslots=1\n"
    assert parse_hostfile(text, "h") == {"node2": (0, 1), "node-1.example": (0,)}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no host in it"),
        ("# only\n", "no host in it"),
        ("node1\n", "line 1: 'node1' is not HOST slots=N"),
        ("node1 slots=two\n", "line 1: 'node1 slots=two' is not HOST slots=N"),
        ("node1 slots=-1\n", "is not HOST slots=N"),
        ("node1 slots=1 slots=2\n", "is not HOST slots=N"),
        ("node1 slots=0\n", "node1 has slots=0"),
        ("node1 slots=99999\n", "node1 has slots=99999, not 1 to 1024"),
        ("a slots=1\nb slots=1\na slots=2\n", "line 3: a is there twice"),
        ("-oProxyCommand=x slots=1\n", "'-oProxyCommand=x' is no name of a host"),
        ("$(id) slots=1\n", "'$(id)' is no name of a host"),
        ("me@node1 slots=1\n", "'me@node1' is no name of a host"),
        ("fe80::1 slots=1\n", "'fe80::1' is no name of a host"),
    ],
)
def test_what_is_no_hostfile(text, told):
    with pytest.raises(ConfigError) as caught:
        parse_hostfile(text, "hosts.txt")
    assert told in str(caught.value) and "cluster.hosts.file=hosts.txt" in str(caught.value)


def test_every_wrong_line_is_told():
    with pytest.raises(ConfigError, match=r"line 1: .*; line 3: .*"):
        parse_hostfile("x\ny slots=1\nz slots=\n", "h")


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ("", "", POOL),
        ("b@a:2,0", "", {"a": (0, 2), "b": (0, 1, 2, 3)}),
        ("a:1@a:3", "", {"a": (1, 3)}),
        ("", "a", {"b": (0, 1, 2, 3), "c": (0, 1)}),
        ("", "a:0@c:0,1", {"a": (1, 2, 3), "b": (0, 1, 2, 3)}),
    ],
)
def test_include_and_exclude(include, exclude, expected):
    left = narrow(POOL, include, exclude)
    assert left == expected and list(left) == list(expected)


@pytest.mark.parametrize(
    ("include", "exclude", "told"),
    [
        ("d", "", "cluster.hosts.include=d: the hostfile has no 'd'"),
        ("", "a@d:1", "cluster.hosts.exclude=a@d:1: the hostfile has no 'd'"),
        ("c:2", "", "c has no slot 2"),
        ("a:", "", "is not HOST:SLOT,SLOT"),
        ("a:x", "", "is not HOST:SLOT,SLOT"),
        ("", "a@b@c", "leaves no slot"),
    ],
)
def test_a_filter_that_cannot_be(include, exclude, told):
    with pytest.raises(ConfigError) as caught:
        narrow(POOL, include, exclude)
    assert told in str(caught.value)


def test_nodes_and_workers():
    assert choose(POOL, 0, 0) == POOL
    assert choose(POOL, 2, 3) == {"a": (0, 1, 2), "b": (0, 1, 2)}
    with pytest.raises(ConfigError, match=r"cluster\.nodes=4: the hostfile leaves 3 \(a, b, c\)"):
        choose(POOL, 4, 0)
    with pytest.raises(ConfigError, match=r"cluster\.workers_per_node=3: c has 2 slot"):
        choose(POOL, 0, 3)


def test_a_hostfile_is_read(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("a slots=2\nb slots=2\n")
    hosts = HostsConfig(file=str(path), exclude="a:0")
    assert read_hosts(ClusterConfig(kind=ClusterKind.hostfile, nodes=1, hosts=hosts)) == {"a": (1,)}
    with pytest.raises(ConfigError, match=r"cluster\.hosts\.file=.*none: cannot be read"):
        read_hosts(ClusterConfig(hosts=HostsConfig(file=str(tmp_path / "none"))))


def test_the_same_as_deepspeed(monkeypatch):
    runner = pytest.importorskip("deepspeed.launcher.runner")
    text = "a slots=4\nb slots=4\nc slots=2\n"
    pool = runner._parse_hostfile(text.splitlines())
    for include, exclude in (("", ""), ("b@a:2,0", ""), ("", "a:0@c:0,1"), ("", "b")):
        theirs = runner.parse_inclusion_exclusion(pool, include, exclude)
        ours = narrow(parse_hostfile(text, "h"), include, exclude)
        assert {host: list(slots) for host, slots in ours.items()} == dict(theirs)
