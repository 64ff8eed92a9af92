"""Two sshd of our own on two loopback addresses, with keys of their own: "hosts" for a hostfile."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import ClassVar

from run_support import free_port

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
NEEDED = {"sshd": SSHD, "ssh": shutil.which("ssh"), "ssh-keygen": shutil.which("ssh-keygen")}
MISSING = [name for name, path in NEEDED.items() if path is None]
REASON = f"{', '.join(MISSING)} not installed: apt-get install openssh-server openssh-client"

SERVER = """\
ListenAddress {address}:{port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile {folder}/{host}.pid
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PubkeyAuthentication yes
PermitRootLogin prohibit-password
PrintMotd no
MaxStartups 100
"""
CLIENT = """\
Host {host}
  HostName {address}
  Port {port}
  User {user}
  IdentityFile {folder}/user_key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
"""


class SshHosts:
    """`node1` and `node2`; nothing of the user's is read or written.

    Args:
        folder: for keys and configuration.
        hidden: a folder in whose place `node2` sees an empty file system (as root only).
    """

    ADDRESSES: ClassVar = {"node1": "127.0.1.1", "node2": "127.0.1.2"}

    def __init__(self, folder: Path, hidden: Path | None = None) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.config = folder / "ssh_config"
        for key in ("host_key", "user_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
            subprocess.run(command, check=True)
        self.servers: dict[str, subprocess.Popen[bytes]] = {}
        known, client = [], []
        public = (folder / "host_key.pub").read_text().strip()
        for host, address in self.ADDRESSES.items():
            values = {
                "host": host, "address": address, "port": free_port(), "folder": folder,
                "user": getpass.getuser(),
            }  # fmt: skip
            (folder / f"{host}.conf").write_text(SERVER.format(**values))
            client.append(CLIENT.format(**values))
            known.append(f"[{address}]:{values['port']} {public}\n")
            self._start(host, address, values["port"], hidden if host == "node2" else None)
        (folder / "known_hosts").write_text("".join(known))
        self.config.write_text("".join(client))

    def _start(self, host: str, address: str, port: int, hidden: Path | None) -> None:
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where it gives up its rights
        command = [str(SSHD), "-D", "-e", "-f", str(self.folder / f"{host}.conf")]
        if hidden is not None:
            mount = 'mount -t tmpfs tmpfs "$0" && exec "$@"'
            command = ["unshare", "--mount", "sh", "-c", mount, str(hidden), *command]
        with open(self.folder / f"{host}.log", "wb") as log:
            self.servers[host] = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection((address, port), 1).close()
                return
            except OSError:
                log = (self.folder / f"{host}.log").read_text()
                assert self.servers[host].poll() is None and time.monotonic() < deadline, log
                time.sleep(0.05)

    def hostfile(self, text: str = "node1 slots=1\nnode2 slots=1\n") -> Path:
        """Written anew."""
        path = self.folder / "hostfile"
        path.write_text(text)
        return path

    def overrides(self, hostfile: Path | None = None) -> list[str]:
        """Of `launch`."""
        return [
            "cluster=hostfile", f"cluster.hosts.file={hostfile or self.hostfile()}",
            f"cluster.hosts.ssh_options=[-F,{self.config}]",
        ]  # fmt: skip

    def stop(self) -> None:
        """End both servers, by the processes that were started."""
        for server in self.servers.values():
            server.terminate()
        for server in self.servers.values():
            server.wait(10)
