"""The machines that QEMU emulates, and what of a TFLM library runs on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

MachineName: TypeAlias = Literal["mps2-an386", "mps2-an500", "mps3-an547"]

# At `-icount shift=7` every instruction takes 128 ns of the emulated time, more than three ticks of either clock: the
# count of ticks tells every single one. ref: https://www.qemu.org/docs/master/devel/tcg-icount.html
ICOUNT_SHIFT: Final = 7
INSTRUCTION_PS: Final = 1000 << ICOUNT_SHIFT
INTERRUPT_INSTRUCTIONS: Final = 6  # Of `tick` in start.c.

_ARMV7: Final = ("v6S-M", "v6-M", "v7", "v7E-M")
_ARMV8: Final = ("v8-M.baseline", "v8-M.mainline", "v8.1-M.mainline")
_FPV4: Final = ("", "VFPv4-D16")
_FPV5: Final = (*_FPV4, "FPv5/FP-D16 for ARMv8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A board that QEMU knows; `tick_ps` is a tick of its processor's clock.

    `architectures` and `floating_point` are the build attributes of code that its core runs, as readelf names them.
    """

    core: str
    cpu: str
    tick_ps: int
    architectures: tuple[str, ...]
    floating_point: tuple[str, ...]


# Clocks: 25 MHz on MPS2, 32 MHz on AN547. ref: https://gitlab.com/qemu-project/qemu/-/blob/v7.2.0/hw/arm/mps2.c and
# mps2-tz.c
MACHINES: Final[dict[MachineName, Machine]] = {
    "mps2-an386": Machine(
        core="Cortex-M4F", cpu="cortex-m4", tick_ps=40_000, architectures=_ARMV7, floating_point=_FPV4
    ),
    "mps2-an500": Machine(
        core="Cortex-M7", cpu="cortex-m7", tick_ps=40_000, architectures=_ARMV7, floating_point=_FPV5
    ),
    "mps3-an547": Machine(
        core="Cortex-M55",
        cpu="cortex-m55",
        tick_ps=31_250,
        architectures=(*_ARMV7, *_ARMV8),
        floating_point=_FPV5,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tflm:
    """A TFLM that the user built: its archive, the include folders it needs, and where to run it.

    As TFLM's own Makefile builds it these are the folder that holds `tensorflow/`, and of `downloads` the folders
    `flatbuffers/include`, `gemmlowp` and `ruy`.
    """

    library: Path
    include: tuple[Path, ...]
    machine: MachineName
