"""Run a package on an emulated Cortex-M: golden vectors bit for bit, the true arena, code size, instructions.

Instructions are no time: caches, wait states and how many of them an actual core runs at once are not emulated.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from edgebuild.targets import leash
from edgebuild.targets.errors import EmulationError, ToolMissingError
from edgebuild.targets.microcontroller.emulation import answer, machines, toolchain
from edgebuild.targets.microcontroller.emulation.answer import OperatorCount
from edgebuild.targets.microcontroller.emulation.library import inspect
from edgebuild.targets.microcontroller.emulation.program import function_at, link, sizes

if TYPE_CHECKING:
    from subprocess import CompletedProcess

    from edgebuild.targets.microcontroller.emulation.answer import Answer
    from edgebuild.targets.microcontroller.emulation.library import Library
    from edgebuild.targets.microcontroller.emulation.machines import Tflm
    from edgebuild.targets.microcontroller.emulation.program import Sizes
    from edgebuild.targets.microcontroller.emulation.toolchain import Toolchain

TIMEOUT_S: Final = 300
_MOST_BYTES: Final = 4 * 2**20  # A thousand operators and as many wrong outputs take a twentieth.
# What is left to a program that broke out of the emulated core. ref: qemu-system-arm(1), -sandbox
_SANDBOX: Final = ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulation:
    """What an emulated core says of a package that gave every expected output, bit for bit.

    Bytes: `arena_package_bytes` is what the package states, if it does; `arena_used_bytes` TFLM's own word; and
    `arena_min_bytes` the smallest arena that it ran in, in steps of 16: kernels of another core may need more than the
    package states. `code_bytes`, the sum of text, rodata and data, is what TFLM, its kernels and the C library take of
    flash beside the model, `bss_bytes` what they take of RAM beside the arena. `instructions` are those of the first
    test vector, and exact; `operators` are empty where TFLM was built without their names, and hold the first thousand
    of the main graph: `unlisted_operators` is how many more it has. Builds of TFLM with messages
    (`has_messages`) take more flash than releases, and those with checks take several times the instructions.
    """

    machine: str
    core: str
    evidence: Literal["simulated"] = "simulated"
    kernels: Literal["CMSIS-NN", "reference"]
    architecture: str
    has_messages: bool
    arena_package_bytes: int | None
    arena_used_bytes: int
    arena_min_bytes: int
    model_bytes: int
    text_bytes: int
    rodata_bytes: int
    data_bytes: int
    bss_bytes: int
    code_bytes: int
    vectors: int
    instructions: int | None
    operators: tuple[OperatorCount, ...]
    compiler: str
    qemu: str
    unlisted_operators: int = 0


def emulate(package: Path, tflm: Tflm, *, seconds: float = TIMEOUT_S) -> Emulation:
    """Build the package's program for the machine and run it there for `seconds` at most.

    Raises:
        ToolMissingError: there is no cross compiler or no QEMU, or it failed of itself.
        LibraryError: the library is for another core, or the program can't be built with it.
        PlacementError: the library has no kernel for an operator.
        EmulationError: the program does not fit, fails, never ends, or gives another output than the package expects.
        ModelError: it prints without end.
    """
    with tempfile.TemporaryDirectory(prefix="edgebuild-") as name:
        folder = Path(name)
        tools = toolchain.find(folder)
        library = inspect(tflm, folder)
        program = link(package, tflm, library, folder)
        found = answer.parse(_run(program, tflm, seconds), machines.MACHINES[tflm.machine])
        taken = sizes(program)
    return _record(_stated_arena(package), tflm, tools, library, taken, found)


def _run(program: Path, tflm: Tflm, seconds: float) -> str:
    command = _command(program, tflm)
    done = toolchain.run(command, folder=program.parent, seconds=seconds, most_bytes=_MOST_BYTES, apart=True)
    said = done.stdout.decode("utf-8", "replace")
    if done.returncode == leash.TIMED_OUT:
        raise EmulationError(
            f"the model did not finish within {seconds:g} s on the emulated {machines.MACHINES[tflm.machine].core}",
            cause="an operator never ends, or the model is too large to be emulated",
            action="give it fewer test vectors, or leave the check on an emulated core out",
        )
    address = answer.fault_address(said)
    if address is not None:
        raise EmulationError(
            f"the program faulted on the emulated core in {function_at(program, address)}",
            cause=answer.words([line.strip() for line in said.splitlines()]),
            action="build TFLM with its messages and checks (BUILD_TYPE=default) to see why",
        )
    if done.returncode:
        raise _failure_of_qemu(done, tflm)
    return said


def _failure_of_qemu(done: CompletedProcess[bytes], tflm: Tflm) -> EmulationError | ToolMissingError:
    """It ends well whatever the program does, but for a fault within a fault: that stops the core for good."""
    words = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if "warning:" not in line]
    cause = (words[0] if words else f"it gave no reason, and ended with {done.returncode}")[:300]
    if cause.startswith("qemu: fatal:"):
        return EmulationError(
            f"the program stopped the emulated {machines.MACHINES[tflm.machine].core} for good",
            cause=cause,
            action="build TFLM with its messages and checks (BUILD_TYPE=default) to see why",
        )
    return ToolMissingError(
        f"{toolchain.QEMU} could not run {tflm.machine}",
        cause=cause,
        action="use qemu-system-arm 7.2 or later, on a machine with memory to spare",
    )


def _command(program: Path, tflm: Tflm) -> list[str]:
    return [
        toolchain.QEMU,
        *("-machine", tflm.machine, "-kernel", program.name, "-accel", "tcg,tb-size=32"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"),
        *("-icount", f"shift={machines.ICOUNT_SHIFT}"),
        *(_SANDBOX if _has_sandbox(program.parent) else ()),
    ]


def _has_sandbox(folder: Path) -> bool:
    """Whether QEMU was built with it, and the machine allows it."""
    return toolchain.run([toolchain.QEMU, *_SANDBOX, "-cpu", "help"], folder=folder).returncode == 0


def _stated_arena(package: Path) -> int | None:
    stated = re.search(r"kArenaBytes = (\d+);", (package / "model_settings.h").read_text(encoding="utf-8"))
    return int(stated[1]) if stated else None


def _record(
    arena: int | None, tflm: Tflm, tools: Toolchain, library: Library, taken: Sizes, found: Answer
) -> Emulation:
    return Emulation(
        machine=tflm.machine,
        core=machines.MACHINES[tflm.machine].core,
        kernels="CMSIS-NN" if library.has_cmsis_nn else "reference",
        architecture=library.architecture,
        has_messages=library.has_messages,
        arena_package_bytes=arena,
        arena_used_bytes=found.arena_used_bytes,
        arena_min_bytes=found.arena_min_bytes,
        model_bytes=taken.model,
        text_bytes=taken.text,
        rodata_bytes=taken.rodata,
        data_bytes=taken.data,
        bss_bytes=taken.bss,
        code_bytes=taken.code,
        vectors=len(found.instructions),
        instructions=next(iter(found.instructions), None),
        operators=found.operators,
        compiler=tools.compiler,
        qemu=tools.qemu,
        unlisted_operators=found.unlisted_operators,
    )
