"""Microcontrollers with TFLite Micro: the model as C++ sources, and how much memory it needs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from edgebuild.targets.errors import PlacementError
from edgebuild.targets.evidence import Figure
from edgebuild.targets.microcontroller.rules import TABLE
from edgebuild.targets.placement import Placement, predicted
from edgebuild.targets.target import Memory

if TYPE_CHECKING:
    from pathlib import Path

    from edgebuild.export.flatbuffer import Flatbuffer
    from edgebuild.export.formats import IoType, Precision
    from edgebuild.targets.target import Artifact

NAME: str = "mcu"
SUMMARY: str = "TFLite Micro on a microcontroller"
PRECISIONS: tuple[Precision, ...] = ("int8", "int16x8")
IO_TYPES: tuple[IoType, ...] = ("int8", "uint8", "float32")
DENSE_PER_TENSOR: bool = True  # Firmware of some years ago reads the first scale alone, and says nothing.
SPARSE: tuple[Precision, ...] = ()
FLASHED: bool = True
HOST_RUNS: bool = False

ARENA_MARGIN: Final = 0.15
ARENA_ALIGNMENT: Final = 16
# TFLM's core is said to fit in 16 KB on a Cortex-M3 (https://ai.google.dev/edge/litert/microcontrollers/overview); what
# a kernel takes is a choice of ours, on the safe side of optimised ones. Only the linker knows.
RUNTIME_CODE_BYTES: Final = 16 * 1024
KERNEL_CODE_BYTES: Final = 8 * 1024


def place(model: Flatbuffer) -> Placement:
    """Predict what TFLM runs; nothing runs the rest."""
    return predicted("tflite-micro", "", len(model.main.operators), TABLE.refused(model), TABLE.source)


def memory(artifact: Artifact) -> Memory:
    """The arena to give the model, margin included, and its flash with an allowance for TFLM's code."""
    from edgebuild.targets.microcontroller import tflm

    return Memory(arena_bytes=with_margin(tflm.arena(artifact.data)), flash_bytes=_flash(artifact))


def with_margin(arena: Figure) -> Figure:
    """The arena that ships: the smallest one and 15 %, in steps of 16 bytes.

    Host figures bound a Cortex-M4's from above (its pointers are half as long) but not those of cores with vector
    kernels, which were seen to take 13 % more.
    """
    if arena.value is None:
        return arena
    size = math.ceil(arena.value * (1 + ARENA_MARGIN) / ARENA_ALIGNMENT) * ARENA_ALIGNMENT
    note = f"{arena.value:,.0f} bytes are {arena.note}, and {ARENA_MARGIN:.0%} are margin"
    return Figure(value=size, evidence=arena.evidence, note=note)


def _flash(artifact: Artifact) -> Figure:
    kinds = {operator.kind for graph in artifact.flatbuffer.subgraphs for operator in graph.operators}
    code = RUNTIME_CODE_BYTES + KERNEL_CODE_BYTES * len(kinds)
    note = f"the model's {len(artifact.data):,} bytes and an allowance of {code:,} for TFLM with {len(kinds)} kernels"
    return Figure(value=len(artifact.data) + code, evidence="predicted", note=note)


def package(artifact: Artifact, out: Path) -> None:
    """Write `model.tflite` and the sources a firmware project includes.

    Raises:
        PlacementError: TFLM can't run the model, or C++ has no such element type.
    """
    from edgebuild.targets.microcontroller import firmware, tflm

    arena = tflm.arena(artifact.data)
    _require_runnable(artifact, arena)
    vectors, origin = tflm.golden(artifact)
    files = {
        "model.h": firmware.model_header(),
        "model.cc": firmware.model_source(artifact.data),
        "op_resolver.h": firmware.op_resolver(artifact.flatbuffer),
        "model_settings.h": firmware.model_settings(artifact.flatbuffer, with_margin(arena), artifact.labels),
        "test_vector.h": firmware.vectors_header(artifact.flatbuffer, vectors, origin),
    }
    (out / "model.tflite").write_bytes(artifact.data)
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf-8", newline="\n")


def _require_runnable(artifact: Artifact, arena: Figure) -> None:
    """Nothing takes over what TFLM lacks, so a model it refuses never becomes firmware."""
    from edgebuild.targets.microcontroller import tflm

    refused = place(artifact.flatbuffer).unmapped
    if refused:
        first = refused[0]
        raise PlacementError(
            f"TFLite Micro can't run operator {first.operator} ({first.kind}, {first.tensor})",
            cause=f"{first.reason}; {len(refused)} of the model's operators are refused",
            action=first.suggestion or "replace the layer",
        )
    if arena.value is None and tflm.installed():
        raise PlacementError("TFLite Micro refuses the model", cause=arena.note, action="change the layer it names")
