"""A real sshd on the loopback, with keys, a home and a folder for temporary files of its own, made for a test run."""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from servers import free_port

SSHD: Final = "/usr/sbin/sshd"
_SERVER: Final = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile {folder}/pid
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
SetEnv HOME={folder}/home TMPDIR={folder}/tmp
"""
_CLIENT: Final = """\
Host *
    User {user}
    IdentityFile {folder}/user_key
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known_hosts
    GlobalKnownHostsFile none
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SshServer:
    """A device as `sshd` makes one of this machine: its URI, the client's configuration, and its folder."""

    uri: str
    config: Path
    folder: Path
    pid: int

    @property
    def home(self) -> Path:
        """The user's home there."""
        return self.folder / "home"

    def left(self) -> list[str]:
        """What stands in its folder for temporary files."""
        return sorted(path.name for path in (self.folder / "tmp").rglob("*"))

    def sessions(self) -> list[int]:
        """The processes of sshd that serve its connections, parents first."""
        found = [self.pid]
        for process in found:
            found += [child for child in _processes() if _parent(child) == process and "sshd" in _command_line(child)]
        return found[1:]

    def processes(self) -> list[str]:
        """The command lines of whatever was started through it and still runs."""
        sign = f"HOME={self.home}\0"
        return [_command_line(process) for process in _processes() if sign in _read(process, "environ")]


@contextmanager
def ssh_server(folder: Path, *, settings: str = "", under: Sequence[str] = ()) -> Iterator[SshServer]:
    """Start sshd with this user's rights and let it know one key; `settings` are more lines of its configuration.

    `under` is a command that runs another, and that is sshd.
    """
    for name in ("tmp", "home"):
        (folder / name).mkdir(parents=True)
    for key in ("host_key", "user_key"):
        _make_key(folder / key)
    port = free_port()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host_key.pub').read_text()}")
    (folder / "sshd_config").write_text(_SERVER.format(port=port, folder=folder) + settings)
    (folder / "ssh_config").write_text(_CLIENT.format(user=getpass.getuser(), folder=folder))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # Where sshd locks itself in before it knows its user.
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*under, SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    try:
        _wait_for(port, folder / "log")
        uri = f"ssh://127.0.0.1:{port}"
        yield SshServer(uri=uri, config=folder / "ssh_config", folder=folder, pid=process.pid)
    finally:
        process.terminate()
        process.wait(timeout=30)


def _make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True, timeout=30)


def _wait_for(port: int, log: Path) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(log.read_text())


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _read(process: int, name: str) -> str:
    try:
        return Path(f"/proc/{process}/{name}").read_text(errors="replace")
    except OSError:  # It ended meanwhile.
        return ""


def _command_line(process: int) -> str:
    return _read(process, "cmdline").replace("\0", " ").strip()


def _parent(process: int) -> int:
    fields = _read(process, "stat").rpartition(")")[2].split()
    return int(fields[1]) if fields else 0
