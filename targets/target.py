"""The shape of a target module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from edgebuild.targets.evidence import Figure  # At run time too: the report's JSON Schema is made from annotations.

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from edgebuild.export.flatbuffer import Flatbuffer
    from edgebuild.export.formats import IoType, Precision
    from edgebuild.targets.placement import Placement

RuntimeName: TypeAlias = Literal["tflite-runtime", "tflite-micro"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What the model occupies on the device, in bytes: working memory and program storage.

    An accelerator with memory of its own keeps `on_chip_bytes` of the model's parameters there and has `streamed_bytes`
    sent anew at every inference. Both are None where there is no such memory. `least_arena_bytes` is the arena without
    the margin that `arena_bytes` has, None where it has none.
    """

    arena_bytes: Figure
    flash_bytes: Figure
    on_chip_bytes: Figure | None = None
    streamed_bytes: Figure | None = None
    least_arena_bytes: Figure | None = None


def memory_from_plain(raw: Mapping[str, Any]) -> Memory:
    """A record that `asdict` made plain."""
    figures: dict[str, Any] = {kind: None if figure is None else Figure(**figure) for kind, figure in raw.items()}
    return Memory(**figures)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What a target's own compiler made of an artifact for the accelerator `name`: `folder`, and what it said of it."""

    name: str
    folder: Path
    placement: Placement
    memory: Memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A finished flatbuffer on its way to a target.

    `vectors` are a few evaluation inputs and what the model gives for them on `runtime`, in the model's own types
    (`int8 [1, H, W, C]` for an int8 input), by signature name: `(inputs, outputs)` pairs. `compiled` is None where the
    target's own compiler was not run, `placed` where no more is known of its placement than the file tells. `core` is
    that of the board, or empty, and `arena_margin` the share that a microcontroller's arena has on top.
    """

    data: bytes
    flatbuffer: Flatbuffer
    vectors: tuple[tuple[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]], ...]
    labels: tuple[str, ...] = ()
    compiled: Compiled | None = None
    placed: Placement | None = None
    runtime: RuntimeName = "tflite-runtime"
    core: str = ""
    arena_margin: float = 0.15


class Target(Protocol):
    """What a target module provides, at module level."""

    NAME: str
    SUMMARY: str
    PRECISIONS: tuple[Precision, ...]  # The first is the default.
    IO_TYPES: tuple[IoType, ...]  # The first is the default for quantized models; float models keep float32.
    DENSE_PER_TENSOR: bool  # Whether int8 kernels of dense layers have one scale, not one a channel.
    SPARSE: tuple[Precision, ...]  # Whose weights it takes stored without their zeros.
    FLASHED: bool  # Whether the file lies as it is in program storage; elsewhere it comes in a compressed download.
    HOST_RUNS: bool  # Whether this machine's tflite-runtime is the target itself, or only stands in for it.
    JUDGES: tuple[Precision, ...]  # Of finished flatbuffers, whose refusal it leaves to its own stages: they say why.
    OPTIONS: frozenset[str]  # The settings it takes that not every target takes.

    def runtime(self) -> RuntimeName | None:
        """Say what runs its artifacts on this machine, as itself or in its stead; None where that is not installed."""

    def place(self, model: Flatbuffer) -> Placement:
        """Say which operators of the main subgraph the target takes."""

    def memory(self, artifact: Artifact) -> Memory:
        """Say what it occupies there."""

    def package(self, artifact: Artifact, out: Path) -> None:
        """Write `model.tflite` and what the target needs beside it into the empty folder `out`."""
