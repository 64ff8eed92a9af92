from __future__ import annotations

import socket
import threading
import time

import pytest

from roberta_dist.config.slurm import FitConfig
from roberta_dist.launcher import preflight
from roberta_dist.launcher.machine import gpu_use
from roberta_dist.launcher.meeting import Meeting, visit
from roberta_dist.launcher.preflight import complaints, look, verdicts

pytestmark = pytest.mark.unit
WELL = {"memory_gib": 100.0, "disk_gib": 50.0, "shm_mib": 900.0, "to_mib_s": 900.0,
        "from_mib_s": 900.0, "clock_skew_s": 0.01}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"memory_gib": 0.5}, "0.5 GiB of memory free, wanted 1"),
        ({"disk_gib": 0.1}, "0.1 GiB free where the run folder lies, wanted 1"),
        ({"shm_mib": 64}, "64 MiB free in /dev/shm, wanted 128"),
        ({"to_mib_s": 1.5}, "1.5 MiB/s to the first node, wanted 10"),
        ({"from_mib_s": 2}, "2 MiB/s from the first node, wanted 10"),
        ({"gpus": 7, "gpu_memory_used": 0}, "7 GPUs, wanted 8"),
        ({"gpus": 8, "gpu_memory_used": 0.4}, "others hold 40% of a GPU's memory"),
        ({"clock_skew_s": -61.0}, "its clock is -61.0 s off the first node's"),
    ],
)
def test_complaints_name_figure_and_limit(change, told):
    assert complaints(WELL | change, FitConfig(), 8) == [told]


def test_a_fit_node_has_none():
    assert complaints(WELL | {"gpus": 8, "gpu_memory_used": 0.02}, FitConfig(), 8) == []


def test_verdicts():
    answers = {
        "a": {"shm_mib": 900.0},
        "b": WELL | {"shm_mib": 1},
        "c": {"error": "does not see\nthe run"},
    }
    lines = verdicts(["a", "b", "c", "d"], answers, FitConfig(timeout_s=9), 0)
    assert lines == [
        "a fit shm_mib=900",
        "b unfit 1 MiB free in /dev/shm, wanted 128",
        "c unfit does not see the run",
        "d unfit no answer in 9 s",
    ]


def test_a_first_node_that_nobody_reached_is_the_one():
    lines = verdicts(["a", "b", "c"], {"a": {"shm_mib": 900.0}}, FitConfig(), 0)
    assert lines == ["a unfit none of the others reached it", "b fit", "c fit"]
    # of two, the one that collects cannot know better
    assert verdicts(["a", "b"], {"a": {}}, FitConfig(), 0)[1].startswith("b unfit no answer")


def test_this_machine(tmp_path):
    found = look(tmp_path, 0)
    assert found.keys() == {"memory_gib", "disk_gib", "shm_mib"} and min(found.values()) > 0


def test_gpu_use():
    assert gpu_use("1024, 81559\n0, 81559\n") == [1024 / 81559, 0.0]
    assert gpu_use("0, 81559\n[N/A], [N/A]\nUnable to determine the device handle\n") == [0.0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_nodes_meet():
    port, deadline = free_port(), time.monotonic() + 30
    visitors = [
        threading.Thread(target=visit, args=("127.0.0.1", port, node, {"shm_mib": 5.0}, deadline))
        for node in ("b", "c")
    ]
    for visitor in visitors:
        visitor.start()
    time.sleep(0.3)  # the first node may be the last to come
    with Meeting(port) as meeting:
        answers = meeting.collect({"b", "c"}, deadline)
    for visitor in visitors:
        visitor.join()
    for node in ("b", "c"):
        assert answers[node]["shm_mib"] == 5.0
        assert abs(answers[node]["clock_skew_s"]) < 1
        assert answers[node]["to_mib_s"] > 10 and answers[node]["from_mib_s"] > 10


def test_who_does_not_come_or_breaks_off_is_known():
    port = free_port()
    with Meeting(port) as meeting:
        for said in (b"GET / HTTP/1.0\r\n\r\n", b'{"node": "b", "answer": {}}\n'):
            with socket.create_connection(("127.0.0.1", port)) as guest:
                guest.sendall(said)
        answers = meeting.collect({"b", "c"}, time.monotonic() + 2)
    assert list(answers) == ["b"] and "broke" in answers["b"]["error"]


def test_a_node_without_the_run_folder_says_so(tmp_path):
    port, target = free_port(), tmp_path / "preflight.txt"
    absent = [str(tmp_path / "absent.yaml"), str(port), "0", "1", str(target), "127.0.0.1", "b"]
    other = threading.Thread(target=preflight.main, args=(absent, {"SLURMD_NODENAME": "b"}))
    other.start()
    assert preflight.main(absent, {"SLURMD_NODENAME": "127.0.0.1"}) == 0
    other.join()
    lines = target.read_text().splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        f"{node} unfit does not see the run folder" for node in ("127.0.0.1", "b")
    ]
