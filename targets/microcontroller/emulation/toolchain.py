"""Debian's cross compiler and QEMU: where they are, which ones, and how they are run."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgebuild.targets import leash
from edgebuild.targets.errors import ToolMissingError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence
    from pathlib import Path

COMPILER: Final = "arm-none-eabi-g++"
QEMU: Final = "qemu-system-arm"
GET: Final = (
    "apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi libstdc++-arm-none-eabi-newlib qemu-system-arm (Debian)"
)
_MEMORY_BYTES: Final = 8 * 2**30  # AN547 has 2 GiB of its own, which QEMU reserves.
_TOOL_TIMEOUT_S: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolchain:
    """What is here, as it calls itself."""

    compiler: str
    qemu: str


def find(folder: Path) -> Toolchain:
    """The compiler and the emulator; both run in `folder`.

    Raises:
        ToolMissingError: one of them is not here.
    """
    return Toolchain(compiler=_version(COMPILER, folder), qemu=_version(QEMU, folder))


def require(versions: tuple[str, ...], folder: Path) -> None:
    """Hold this machine to the compiler and the emulator that were found where the work was planned.

    Raises:
        ToolMissingError: one of them is not here, or is another one.
    """
    here = find(folder)
    for wanted, found in zip(versions, (here.compiler, here.qemu), strict=True):
        if wanted != found:
            raise ToolMissingError(
                f"this machine has another tool than the one that planned the build: {found}",
                cause=f"there it is {wanted}, and what comes of it is kept under that name",
                action="install the same version on all machines that build together",
            )


def _version(program: str, folder: Path) -> str:
    return tool(program, "--version", folder=folder).splitlines()[0].strip()


def tool(program: str, *arguments: str, folder: Path) -> str:
    """What a tool says that can't fail on what we give it.

    Raises:
        ToolMissingError: it is not here, or failed all the same.
    """
    done = run([program, *arguments], folder=folder)
    said = done.stdout.decode("utf-8", "replace")
    if done.returncode:
        raise ToolMissingError(f"{program} failed", cause=said.strip()[-300:], action=f"install it anew: {GET}")
    return said


def run(
    command: Sequence[str],
    *,
    folder: Path,
    seconds: float = _TOOL_TIMEOUT_S,
    most_bytes: int = leash.MOST_BYTES,
    apart: bool = False,
) -> subprocess.CompletedProcess[bytes]:
    """Run a program in `folder` with bounds of time, memory and words, both its streams together or `apart`.

    Raises:
        ToolMissingError: it is not here.
        ModelError: it said more than `most_bytes`.
    """
    found = shutil.which(command[0])
    if found is None:
        raise ToolMissingError(f"there is no {command[0]} here", action=GET)
    return leash.run(
        [found, *command[1:]],
        seconds=seconds,
        memory_bytes=_MEMORY_BYTES,
        folder=folder,
        most_bytes=most_bytes,
        apart=apart,
    )
