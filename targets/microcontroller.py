"""Microcontrollers with TFLite Micro: the model as C++ sources, and how much memory it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgebuild.targets.evidence import Figure
from edgebuild.targets.placement import Placement, predicted
from edgebuild.targets.target import Memory
from edgebuild.targets.tflm_rules import TABLE

if TYPE_CHECKING:
    from pathlib import Path

    from edgebuild.export.flatbuffer import Flatbuffer
    from edgebuild.export.formats import IoType, Precision
    from edgebuild.targets.target import Artifact

NAME: str = "mcu"
SUMMARY: str = "TFLite Micro on a microcontroller"
PRECISIONS: tuple[Precision, ...] = ("int8", "int16x8")
IO_TYPES: tuple[IoType, ...] = ("int8", "uint8", "float32")


def place(model: Flatbuffer) -> Placement:
    """Predict what TFLM runs; nothing runs the rest."""
    return predicted("tflite-micro", "", len(model.main.operators), TABLE.refused(model), TABLE.source)


def memory(artifact: Artifact) -> Memory:
    """The arena that TFLM's own interpreter needs on the host, and the model's share of flash."""
    from edgebuild.targets import tflm

    return Memory(
        arena_bytes=tflm.arena(artifact.data),
        flash_bytes=Figure(
            value=len(artifact.data), evidence="predicted", note="the model alone; TFLM's own code comes on top"
        ),
    )


def package(artifact: Artifact, out: Path) -> None:
    """Write `model.tflite` and the sources a firmware project includes.

    Raises:
        PlacementError: TFLM has no such operator, or C++ no such element type.
    """
    from edgebuild.targets import firmware, tflm

    vectors, origin = tflm.golden(artifact)
    files = {
        "model.h": firmware.model_header(),
        "model.cc": firmware.model_source(artifact.data),
        "op_resolver.h": firmware.op_resolver(artifact.flatbuffer),
        "model_settings.h": firmware.model_settings(artifact.flatbuffer, tflm.arena(artifact.data), artifact.labels),
        "test_vector.h": firmware.vectors_header(artifact.flatbuffer, vectors, origin),
    }
    (out / "model.tflite").write_bytes(artifact.data)
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf-8", newline="\n")
