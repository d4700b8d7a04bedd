"""What a TFLM archive tells of itself: the core it is for, and how it was built."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgebuild.targets.errors import LibraryError
from edgebuild.targets.microcontroller.emulation import toolchain
from edgebuild.targets.microcontroller.emulation.machines import MACHINES

if TYPE_CHECKING:
    from pathlib import Path

    from edgebuild.targets.microcontroller.emulation.machines import Tflm


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """`has_messages` is False of a release build, which has neither words nor the names of operators."""

    architecture: str
    is_hard_float: bool
    has_messages: bool
    has_cmsis_nn: bool


def inspect(tflm: Tflm, folder: Path) -> Library:
    """Look into the archive, with tools that run in `folder`.

    Raises:
        ToolMissingError: there are no binutils for Arm.
        LibraryError: it is no archive of Arm code, or not for the machine's core.
    """
    if not tflm.library.is_file():
        raise LibraryError(f"there is no {tflm.library}", action="correct the path of TFLM's library")
    read = toolchain.run(["arm-none-eabi-readelf", "-A", str(tflm.library.resolve())], folder=folder)
    attributes = read.stdout.decode("utf-8", "replace")
    architectures = set(re.findall(r"Tag_CPU_arch: (\S+)", attributes))
    if not architectures:
        raise LibraryError(
            f"{tflm.library} holds no code for Arm", action="give the libtensorflow-microlite.a of a Cortex-M build"
        )
    _require_core(tflm, architectures, set(re.findall(r"Tag_FP_arch: (.+)", attributes)))
    listed = toolchain.run(["arm-none-eabi-nm", str(tflm.library.resolve())], folder=folder)
    symbols = listed.stdout.decode("utf-8", "replace")
    if listed.returncode:
        raise LibraryError(
            f"the symbols of {tflm.library} can't be read", cause=symbols.strip()[-300:], action="build TFLM anew"
        )
    return Library(
        architecture=max(architectures),
        is_hard_float="Tag_ABI_VFP_args: VFP registers" in attributes,
        has_messages=re.search(r" T _Z11MicroPrintf", symbols) is not None,
        has_cmsis_nn=re.search(r" T arm_(convolve|fully_connected|depthwise)", symbols) is not None,
    )


def _require_core(tflm: Tflm, architectures: set[str], floating_point: set[str]) -> None:
    machine = MACHINES[tflm.machine]
    foreign = architectures.difference(machine.architectures) | floating_point.difference(machine.floating_point)
    if foreign:
        raise LibraryError(
            f"this TFLM is not for the {machine.core} of {tflm.machine}",
            cause=f"it holds code for {', '.join(sorted(foreign))}",
            action=f"build TFLM with TARGET_ARCH={machine.cpu}, or name the machine of the core it was built for",
        )
