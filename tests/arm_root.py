"""An ARM device without hardware: a Debian root of arm64 that qemu's user mode runs, in namespaces of its own.

Its mounts, and the kernel's knowledge of what runs ARM's programs, are seen by nobody else and end with the namespaces.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ssh_server import SSHD

PLACE: Final = "/mnt"
"""Where the device stands in its namespaces: sshd accepts no root below a folder that others can write."""

_QEMU: Final = "qemu-aarch64-static"
_TOOLS: Final = {_QEMU: "qemu-user-static", SSHD: "openssh-server", "ssh": "openssh-client"}
_FORMATS: Final = "/proc/sys/fs/binfmt_misc"
_APART: Final = ("unshare", "--user", "--mount")
# An ELF header's first 20 bytes, of an executable or a library for machine 183, and which of their bits count. F opens
# qemu right now, since the device has none. ref: https://docs.kernel.org/admin-guide/binfmt-misc.html
_MAGIC: Final = r"\x7fELF\x02\x01\x01" + r"\x00" * 9 + r"\x02\x00\xb7\x00"
_MASK: Final = r"\xff" * 7 + r"\x00" + r"\xff" * 8 + r"\xfe\xff\xff\xff"
# What is written to the root goes to memory.
_ENTER: Final = f"""\
set -e
echo apart
read -r mapped
mount -t binfmt_misc none {_FORMATS}
printf '%s' ':arm64:M::{_MAGIC}:{_MASK}:'"$3:F" >{_FORMATS}/register
mount -t tmpfs none {PLACE}
mkdir {PLACE}/upper {PLACE}/work
mount -t overlay none -o "lowerdir=$1,upperdir={PLACE}/upper,workdir={PLACE}/work,userxattr" {PLACE}
for shared in /dev /proc /sys "$2"; do
    mkdir -p "{PLACE}$shared"
    mount --rbind "$shared" "{PLACE}$shared"
done
chroot {PLACE} /bin/true
echo ready
read -r end || true
"""


def missing() -> str:
    """What this machine lacks for such a device; empty where it lacks nothing."""
    packages = [package for tool, package in _TOOLS.items() if shutil.which(tool) is None]
    if packages:
        return f"apt-get install {' '.join(packages)}"
    if os.geteuid() != 0:
        return "only root can map users into a namespace"
    probe = [*_APART, "--map-root-user", "mount", "-t", "binfmt_misc", "none", _FORMATS]
    if subprocess.run(probe, capture_output=True, check=False, timeout=30).returncode:
        return "namespaces may not say here what runs ARM's programs: that needs Linux 6.7 and CAP_SYS_ADMIN"
    return ""


@contextmanager
def arm_device(root: Path, folder: Path) -> Iterator[list[str]]:
    """The device for as long as it is needed; what to put before a command that is to run where it stands.

    `folder` is there and here the same.

    Raises:
        OSError: something can't be mounted.
    """
    arguments = [str(root.resolve()), str(folder.resolve()), str(shutil.which(_QEMU))]
    with subprocess.Popen(
        [*_APART, "sh", "-c", _ENTER, "sh", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline().strip() == "apart":
            # Who leaves a namespace may map no more than itself; sshd needs another user for its unprivileged half.
            for kind in ("uid", "gid"):
                Path(f"/proc/{holder.pid}/{kind}_map").write_text("0 0 65536\n")
            holder.stdin.write("mapped\n")
        if holder.stdout.readline().strip() != "ready":
            raise OSError(holder.stderr.read())
        try:
            # Whatever ends us ends the command, too: it would keep the namespaces.
            yield ["nsenter", f"--target={holder.pid}", "--user", "--mount", "setpriv", "--pdeathsig", "TERM"]
        finally:
            holder.stdin.close()
            holder.wait(timeout=30)
