"""The shape of a target module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from edgebuild.targets.evidence import Figure  # At run time too: the report's JSON Schema is made from annotations.

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from edgebuild.export.flatbuffer import Flatbuffer
    from edgebuild.export.formats import IoType, Precision
    from edgebuild.targets.placement import Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What the model occupies on the device, in bytes: working memory and program storage."""

    arena_bytes: Figure
    flash_bytes: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A finished flatbuffer on its way to a target.

    `vectors` are a few evaluation inputs and what the model gives for them on tflite-runtime, in the model's own
    types (`int8 [1, H, W, C]` for an int8 input), by signature name: `(inputs, outputs)` pairs.
    """

    data: bytes
    flatbuffer: Flatbuffer
    vectors: tuple[tuple[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]], ...]
    labels: tuple[str, ...] = ()


class Target(Protocol):
    """What a target module provides, at module level."""

    NAME: str
    SUMMARY: str
    PRECISIONS: tuple[Precision, ...]  # The first is the default.
    IO_TYPES: tuple[IoType, ...]  # The first is the default for quantized models; float models keep float32.
    SPARSE: tuple[Precision, ...]  # Whose weights it takes stored without their zeros.
    FLASHED: bool  # Whether the file lies as it is in program storage; elsewhere it comes in a compressed download.
    HOST_RUNS: bool  # Whether this machine's tflite-runtime is the target itself, or only stands in for it.

    def place(self, model: Flatbuffer) -> Placement:
        """Say which operators of the main subgraph the target takes."""

    def memory(self, artifact: Artifact) -> Memory:
        """Say what it occupies there."""

    def package(self, artifact: Artifact, out: Path) -> None:
        """Write `model.tflite` and what the target needs beside it into the empty folder `out`."""
