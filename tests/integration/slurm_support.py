"""A real SLURM of several nodes on this machine, for tests: Debian's own daemons, no container runtime.

Each node is a process with its own network, process, mount, host name and IPC namespaces, so that it has
its own address, /dev/shm and process table; a bridge in a further namespace joins them. Nothing
outside is touched or named: namespaces, processes and mounts go when the processes that hold them do, and
these go with the process that made the laboratory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import psutil

PROGRAMS = (
    "munged",
    "slurmctld",
    "slurmd",
    "sbatch",
    "srun",
    "ip",
    "nsenter",
    "unshare",
    "setpriv",
)
NETWORK = "10.77.0"
CONTROLLER = 250
"""Last part of the controller's address; node N has N."""

SLURM_CONF = """\
ClusterName=laboratory
SlurmctldHost=ctl({network}.{controller})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/sock
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool/%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
SlurmdTimeout=20
MinJobAge=600
{gres}
{nodes}
PartitionName={partition} Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=10
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


class Missing(Exception):
    """This machine cannot hold the laboratory; the message says why."""


def wait_until(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Poll until `condition` holds; AssertionError naming `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout:g} s"
        time.sleep(0.1)


class SlurmLab:
    """munge, slurmctld and slurmd on `nodes` nodes (node1, …; from 10 on node001, …) and a login node, ctl.

    Args:
        nodes: how many.
        cpus: cores that each node pretends to have.
        gpus: GPUs that each node pretends to have (copies of /dev/null).
        gpu_type: of these GPUs, also the feature of the nodes.
        partition: name of the default one; `urgent` preempts it.

    Raises:
        Missing: not root, no namespaces, or programs that are not installed.
    """

    def __init__(
        self,
        nodes: int = 2,
        cpus: int = 4,
        gpus: int = 0,
        gpu_type: str = "any",
        partition: str = "batch",
    ) -> None:
        if os.geteuid() != 0:
            raise Missing("a real SLURM needs root, to make network namespaces")
        if absent := [name for name in PROGRAMS if shutil.which(name) is None]:
            raise Missing(
                f"{', '.join(absent)} not found: apt-get install slurmctld slurmd slurm-client munge iproute2"
            )
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        width = 1 if nodes < 10 else 3
        self.names = [f"node{index:0{width}d}" for index in range(1, nodes + 1)]
        self.partition = partition
        self._started: list[subprocess.Popen[bytes]] = []
        self._first: dict[str, int] = {}
        self.environ = os.environ | {"SLURM_CONF": str(self.folder / "slurm.conf")}
        try:
            self._write_configuration(cpus, gpus, gpu_type)
            self._start_nodes()
            self._start_daemons()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> SlurmLab:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _write_configuration(self, cpus: int, gpus: int, gpu_type: str) -> None:
        folder = self.folder
        folder.chmod(0o755)
        for part in ("munge", "log", "state", "dev", *(f"spool/{name}" for name in self.names)):
            (folder / part).mkdir(parents=True)
        (folder / "munge").chmod(0o755)
        key = folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        for index in range(gpus):
            os.mknod(folder / "dev" / f"gpu{index}", 0o20666, os.makedev(1, 3))
        if gpus:
            last = f"[0-{gpus - 1}]" if gpus > 1 else "0"
            (folder / "gres.conf").write_text(
                f"Name=gpu Type={gpu_type} File={folder}/dev/gpu{last}\n"
            )
        # slurmd loads a cgroup plugin whatever ProctrackType says; that of version 1 touches nothing
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        lines = [
            f"NodeName={name} NodeAddr={NETWORK}.{index} CPUs={cpus} RealMemory=8000 Feature={gpu_type}"
            + (f" Gres=gpu:{gpu_type}:{gpus}" if gpus else "")
            for index, name in enumerate(self.names, 1)
        ]
        (folder / "slurm.conf").write_text(
            SLURM_CONF.format(
                folder=folder,
                network=NETWORK,
                controller=CONTROLLER,
                partition=self.partition,
                gres="GresTypes=gpu" if gpus else "",
                nodes="\n".join(lines),
            )
        )
        hosts = [f"{NETWORK}.{index} {name}" for index, name in enumerate(self.names, 1)]
        hosts += ["127.0.0.1 localhost", f"{NETWORK}.{CONTROLLER} ctl", ""]
        (folder / "hosts").write_text("\n".join(hosts))

    def _spawn(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        """Start a process that ends with this one, its output in log/NAME.log."""
        with open(self.folder / "log" / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def _start_nodes(self) -> None:
        self._first["switch"] = self._first_process("switch", ["--net"], "ip link set lo up")
        self._ip("switch", "link add br0 type bridge")
        self._ip("switch", "link set br0 up")
        for index, name in [*enumerate(self.names, 1), (CONTROLLER, "ctl")]:
            self._first[name] = self._first_process(
                name,
                ["--net", "--uts", "--ipc", "--mount", "--pid", "--mount-proc"],
                f"hostname {name}; mount -t tmpfs -o size=512m tmpfs /dev/shm; "
                f"mount --bind {self.folder}/hosts /etc/hosts; ip link set lo up",
            )
            inside, outside = self._first[name], self._first["switch"]
            self._ip(
                "switch",
                f"link add v-{name} type veth peer name eth0 netns {inside}",
            )
            self._ip("switch", f"link set v-{name} master br0 up")
            self._ip(name, f"addr add {NETWORK}.{index}/24 dev eth0")
            self._ip(name, "link set eth0 up")
            assert outside != inside

    def _first_process(self, name: str, namespaces: list[str], setup: str) -> int:
        """Process 1 of a node, as seen from here. It reaps orphans; to kill it is to crash the node."""
        ready = self.folder / f"{name}.ready"
        script = f"{setup}; echo > {ready}; while :; do sleep 86400 & wait; done"
        process = self._spawn(
            name, ["unshare", "--fork", "--kill-child", *namespaces, "bash", "-c", script]
        )
        deadline = time.monotonic() + 20
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                said = (self.folder / "log" / f"{name}.log").read_text().strip()
                raise Missing(f"no namespaces here: {said or 'unshare does not answer'}")
            time.sleep(0.02)
        return int(psutil.Process(process.pid).children()[0].pid)

    def _ip(self, node: str, words: str) -> None:
        command = ["nsenter", "-t", str(self._first[node]), "-n", "ip", *words.split()]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Missing(f"ip {words}: {done.stderr.strip()}")

    def _start_daemons(self) -> None:
        munge = self.folder / "munge"
        options = [f"--{name}-file={munge}/{name}" for name in ("key", "pid", "log", "seed")]
        self._spawn("munged", ["munged", "--foreground", f"--socket={munge}/sock", *options])
        wait_until((munge / "sock").exists, 20, "munged")
        self._spawn("slurmctld", self.inside("ctl", "slurmctld", "-D"))
        for name in self.names:
            self._spawn(f"slurmd.{name}", self.inside(name, "slurmd", "-D", "-N", name))
        wait_until(self._idle, 60, f"SLURM in {self.folder}: all nodes idle")

    def _idle(self) -> bool:
        states = self.run("sinfo", "-h", "-N", "-p", self.partition, "-o", "%t", check=False)
        return states.split() == ["idle"] * len(self.names)

    def inside(self, node: str, *command: str) -> list[str]:
        """`command` as it is started on `node`."""
        enter = ["nsenter", "-t", str(self._first[node]), "-m", "-u", "-i", "-n", "-p"]
        return [*enter, f"--wd={os.getcwd()}", "--", *command]

    def run(self, *command: str, node: str = "ctl", check: bool = True, **environ: str) -> str:
        """Standard output of `command` on `node`."""
        done = subprocess.run(
            self.inside(node, *command),
            env=self.environ | environ,
            capture_output=True,
            text=True,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def close(self) -> None:
        """End every process of the laboratory, and remove its folder."""
        for first in self._first.values():
            with suppress(ProcessLookupError):
                os.kill(first, 9)  # process 1: everything of the node ends with it
        for process in self._started:
            process.kill()
            process.wait()
        for _ in range(50):
            shutil.rmtree(self.folder, ignore_errors=True)
            if not self.folder.exists():
                break
            time.sleep(0.1)

    def state(self, job: str) -> str:
        """JobState of `job`, such as PENDING, RUNNING or COMPLETED."""
        return self.show(job)["JobState"]

    def show(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says."""
        text = self.run("scontrol", "show", "job", "-o", job)
        return dict(word.partition("=")[::2] for word in text.split() if "=" in word)

    def start_now(self, job: str, timeout: float = 120) -> None:
        """Wait until `job` was requeued, and spare it SLURM's hold of two minutes.

        A start in the second of the requeue fails ("Job credential revoked"), hence the pause.
        """
        wait_until(
            lambda: self.show(job).get("Reason") == "BeginTime",
            timeout,
            f"job {job} is put back into the queue",
        )
        time.sleep(2)
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now")
