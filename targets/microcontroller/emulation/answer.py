"""What the bench said: figures, or the failure it tells of."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgebuild.targets.errors import EmulationError, ToolMissingError
from edgebuild.targets.microcontroller.emulation.machines import INSTRUCTION_PS, INTERRUPT_INSTRUCTIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgebuild.targets.microcontroller.emulation.machines import Machine

_OURS: Final = "edgebuild "
_NO_WORDS: Final = "it gave no reason: TFLM's release builds have no messages, those of BUILD_TYPE=release_with_logs do"
_STEPS: Final = {
    "register": "TFLM could not register the operators",
    "allocate": "TFLM can't run the model on the emulated core",
    "input": "an input of the model has another size than the test vectors",
    "invoke": "TFLM failed to run the model on the emulated core",
    "output": "an output of the model has another size than the test vectors",
    "abort": "TFLM stopped on the emulated core: a check of its own failed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorCount:
    """An operator of the main graph by TFLM's name for it, and the instructions it took."""

    name: str
    instructions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The arena TFLM says it used and the smallest it runs in, in bytes; instructions of each test vector.

    `operators` are the first ones of the main graph; `unlisted_operators` is how many more it has.
    """

    arena_used_bytes: int
    arena_min_bytes: int
    instructions: tuple[int, ...]
    operators: tuple[OperatorCount, ...]
    unlisted_operators: int


def parse(said: str, machine: Machine) -> Answer:
    """Read what was said on a machine.

    Raises:
        EmulationError: a step failed, a vector differs, the end is missing, or a line is none of the bench's.
        ToolMissingError: this QEMU counts otherwise.
    """
    try:
        return _parsed(said, machine)
    except (KeyError, IndexError, ValueError) as e:  # The program can print whatever it likes.
        raise EmulationError(
            "the emulated program said what the bench never says", cause=repr(e), action="build TFLM anew"
        ) from e


def _parsed(said: str, machine: Machine) -> Answer:
    lines = [line.strip() for line in said.splitlines()]
    ours = [line.removeprefix(_OURS).split() for line in lines if line.startswith(_OURS)]
    found = {name: [rest for key, *rest in ours if key == name] for name in {key for key, *_ in ours}}
    _require_success(found, words(lines))
    _require_right_count(found, machine)
    overhead = _instructions(found["nothing"][0], machine)
    used, smallest = found["arena"][0]
    return Answer(
        arena_used_bytes=int(used, 16),
        arena_min_bytes=int(smallest, 16),
        instructions=tuple(_instructions(span, machine) - overhead for span in found.get("vector", ())),
        operators=tuple(
            OperatorCount(name=" ".join(name), instructions=_instructions((ticks, interrupts), machine) - overhead)
            for ticks, interrupts, *name in found.get("operator", ())
        ),
        unlisted_operators=int(found["unlisted"][0][0], 16),
    )


def words(lines: Sequence[str]) -> str:
    """What TFLM said, in one line."""
    theirs = (line for line in lines if line and not line.startswith(_OURS))
    return "; ".join(theirs)[:500] or _NO_WORDS


def fault_address(said: str) -> str | None:
    """Where the program faulted, in hexadecimal."""
    match = re.search(rf"^{_OURS}fault (\w+)", said, re.MULTILINE)
    return match and match[1]


def _instructions(span: Sequence[str], machine: Machine) -> int:
    """Ticks as instructions, without those of the interrupt that counts them.

    An instruction is more than three ticks long, so that rounding to the nearest gives their exact number.
    """
    ticks, interrupts = (int(number, 16) for number in span)
    return round(ticks * machine.tick_ps / INSTRUCTION_PS) - interrupts * INTERRUPT_INSTRUCTIONS


def _require_success(found: dict[str, list[list[str]]], theirs: str) -> None:
    if failed := found.get("failed"):
        raise EmulationError(_STEPS[failed[0][0]], cause=theirs, action="change the layer it names, or build TFLM anew")
    if differs := found.get("differs"):
        raise _difference(differs)
    if "end" not in found:
        raise EmulationError("the emulated program ended before its time", cause=theirs, action="build TFLM anew")


def _require_right_count(found: dict[str, list[list[str]]], machine: Machine) -> None:
    """A loop of known length tells whether the emulated clock is what the count takes it for."""
    once, often = (_instructions(span, machine) for span in found["spin"])
    expected = 2 * int(found["rounds"][0][0], 16)
    if often - once != expected:
        raise ToolMissingError(
            "this QEMU does not count instructions as the bench does",
            cause=f"a loop of {expected:,} instructions was counted as {often - once:,}",
            action="use qemu-system-arm 7.2, as Debian 12 has it",
        )


def _difference(differs: list[list[str]]) -> EmulationError:
    *numbers, kind, size, expected, got = differs[0]
    vector, output, element, count, elements = (int(number, 16) for number in numbers)
    more = f", and {len(differs) - 1} more outputs differ" if len(differs) > 1 else ""
    return EmulationError(
        f"TFLM gives another answer on the emulated core than the package expects: test vector {vector}, "
        f"output {output}, element {element}: expected {_value(expected, kind, size)}, got {_value(got, kind, size)}",
        cause=f"{count} of {elements} elements differ there{more}",
        action="the kernels of this TFLM are not those of the host: build both from one version of TFLM",
    )


def _value(bits: str, kind: str, size: str) -> str:
    data = int(bits, 16).to_bytes(int(size, 16), "little")
    if kind == "float":
        return repr(struct.unpack("<f" if len(data) == 4 else "<d", data)[0])
    return str(int.from_bytes(data, "little", signed=kind == "signed"))
