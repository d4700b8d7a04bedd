"""Microcontrollers with TFLite Micro: the model as C++ sources, and how much memory it needs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from edgebuild.export.errors import ModelError
from edgebuild.targets.evidence import Figure
from edgebuild.targets.microcontroller.refusal import findings
from edgebuild.targets.microcontroller.rules import TABLE
from edgebuild.targets.placement import Placement, predicted
from edgebuild.targets.target import Memory

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgebuild.export.flatbuffer import Flatbuffer
    from edgebuild.export.formats import IoType, Precision
    from edgebuild.targets.target import Artifact, RuntimeName

NAME: str = "mcu"
SUMMARY: str = "TFLite Micro on a microcontroller"
PRECISIONS: tuple[Precision, ...] = ("int8", "int16x8")
IO_TYPES: tuple[IoType, ...] = ("int8", "uint8", "float32")
DENSE_PER_TENSOR: bool = True  # Firmware of some years ago reads the first scale alone, and says nothing.
SPARSE: tuple[Precision, ...] = ()
FLASHED: bool = True
HOST_RUNS: bool = False
JUDGES: tuple[Precision, ...] = ("float32", "float16", "dynamic")
OPTIONS: frozenset[str] = frozenset(
    {"board", "lut", "tflm", "arena_margin", "max_cycles", "max_sram_kib", "max_cpu_operators"}
)

ARENA_MARGIN: Final = 0.15
ARENA_ALIGNMENT: Final = 16
VECTOR_CORES: Final = ("cortex-m55", "cortex-m85")
RUNTIMES: Final[Mapping[RuntimeName, str]] = {  # As firmware files name what gave their expected outputs.
    "tflite-micro": "TFLite Micro on the host",
    "tflite-runtime": "tflite-runtime, from which TFLite Micro may differ by some steps of the scale",
}


def runtime() -> RuntimeName | None:
    """TFLM on this host, in a child process, where its wheel is installed."""
    from edgebuild.targets.microcontroller import tflm

    return "tflite-micro" if tflm.installed() else None


def place(model: Flatbuffer) -> Placement:
    """Predict what TFLM runs; nothing runs the rest."""
    found = predicted("tflite-micro", "", len(model.main.operators), TABLE.refused(model), TABLE.source)
    return replace(found, findings=findings(model))


def memory(artifact: Artifact) -> Memory:
    """The arena to give the model, margin included, and its flash with an estimate of TFLM's code on the core."""
    if artifact.compiled is not None:
        return artifact.compiled.memory
    return _memory(artifact.data, artifact.flatbuffer, artifact.core, artifact.arena_margin)


def _memory(data: bytes, model: Flatbuffer, core: str, margin: float) -> Memory:
    from edgebuild.targets.microcontroller import tflm

    least = tflm.arena(data)
    flash_bytes = in_flash(len(data), code(model, core))
    arena_bytes = with_margin(least, sums_bytes(model, core), margin)
    return Memory(arena_bytes=arena_bytes, flash_bytes=flash_bytes, least_arena_bytes=least)


def in_tables(data: bytes, core: str, margin: float = ARENA_MARGIN) -> tuple[Placement, Memory]:
    """What is known of a model whose weights were put into tables, which TFLM alone runs."""
    from edgebuild.export import flatbuffer

    model = flatbuffer.read(data)
    return place(model), _memory(data, model, core, margin)


def in_flash(model_bytes: int, code: Figure) -> Figure:
    """What a model takes of program storage with its code."""
    if code.value is None:
        return code
    return replace(code, value=model_bytes + code.value, note=f"the model's {model_bytes:,} bytes, and {code.note}")


def with_margin(arena: Figure, sums: int = 0, margin: float = ARENA_MARGIN) -> Figure:
    """The arena that ships: the smallest one, the core's `sums`, and the margin on top, in steps of 16 bytes.

    Host figures bound a Cortex-M4's from above (its pointers are half as long). Vector kernels of convolutions were
    seen to take 13 % more.
    """
    if arena.value is None:
        return arena
    size = math.ceil((arena.value + sums) * (1 + margin) / ARENA_ALIGNMENT) * ARENA_ALIGNMENT
    own = f", {sums:,} are sums of weights that this core's kernels keep" if sums else ""
    note = f"{arena.value:,.0f} bytes are {arena.note}{own}, and {margin:.0%} are margin"
    return Figure(value=size, evidence=arena.evidence, note=note)


def sums_bytes(model: Flatbuffer, core: str) -> int:
    """What CMSIS-NN keeps in the arena on cores with vector instructions: an int32 for each output of a dense layer.

    ref: arm_fully_connected_s8_get_buffer_size_mve in
    https://github.com/ARM-software/CMSIS-NN/blob/main/Source/FullyConnectedFunctions/arm_fully_connected_get_buffer_sizes_s8.c
    """
    if core not in VECTOR_CORES:
        return 0
    dense = (
        graph.tensors[operator.inputs[1]]
        for graph in model.subgraphs
        for operator in graph.operators
        if operator.kind == "FULLY_CONNECTED"
    )
    return sum(4 * weights.shape[0] for weights in dense if weights.dtype == "int8" and weights.shape)


def largest_arena(limit_bytes: int, sums: int = 0, margin: float = ARENA_MARGIN) -> int:
    """The largest arena without its margin, and without the core's `sums`, that holds to a limit with both."""
    return int(limit_bytes // ARENA_ALIGNMENT * ARENA_ALIGNMENT / (1 + margin)) - sums


def code(model: Flatbuffer, core: str) -> Figure:
    """What the code that runs a model takes of program storage; `core` is empty where none is named."""
    from edgebuild.targets.microcontroller import code_size

    return code_size.estimate({op.kind for graph in model.subgraphs for op in graph.operators}, core)


def package(artifact: Artifact, out: Path) -> None:
    """Write `model.tflite` and the sources a firmware project includes.

    With an Ethos-U, or weights in tables, these hold what was made of the model, `model_vela.tflite` or
    `model_lut.tflite`, and vectors of the model before that.

    Raises:
        ModelError: TFLM can't run the model.
        PlacementError: TFLM has no such operator, or C++ has no such element type.
    """
    from edgebuild.export import flatbuffer
    from edgebuild.targets.microcontroller import firmware

    needs = memory(artifact)
    shipped, model, name = artifact.data, artifact.flatbuffer, "model.tflite"
    if artifact.compiled is not None:
        (file,) = artifact.compiled.folder.iterdir()
        shipped, name = file.read_bytes(), file.name
        model = flatbuffer.read(shipped)
        (out / name).write_bytes(shipped)
    elif needs.arena_bytes.value is None and runtime():
        cause, action = needs.arena_bytes.note, "change the layer it names"
        raise ModelError("TFLite Micro can't run the model", cause=cause, action=action)
    texts = firmware.files(
        model,
        shipped,
        needs,
        artifact.vectors,
        RUNTIMES[artifact.runtime],
        artifact.labels,
        verified=artifact.flatbuffer,
        file=name,
        made_for=artifact.compiled.name if artifact.compiled else "",
    )
    (out / "model.tflite").write_bytes(artifact.data)
    for path, text in texts.items():
        (out / path).write_text(text, encoding="utf-8", newline="\n")
