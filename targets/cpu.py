"""Any board's CPU with tflite-runtime: every builtin operator the runtime has a kernel for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgebuild.targets.evidence import unavailable
from edgebuild.targets.placement import Placement
from edgebuild.targets.rules import Node, Refusal, nodes, unmapped
from edgebuild.targets.target import Memory
from edgebuild.targets.tflite_runtime_operators import CUSTOM, NEWEST_VERSION, SOURCE

if TYPE_CHECKING:
    from pathlib import Path

    from edgebuild.export.flatbuffer import Flatbuffer
    from edgebuild.targets.target import Artifact, IoType, Precision

NAME: str = "cpu"
SUMMARY: str = "tflite-runtime on the CPU of a board or phone"
PRECISIONS: tuple[Precision, ...] = ("int8", "float32", "float16", "dynamic", "int16x8")
IO_TYPES: tuple[IoType, ...] = ("float32", "int8", "uint8")


def place(model: Flatbuffer) -> Placement:
    """Predict what tflite-runtime's own kernels run; nothing runs the rest."""
    lost = tuple(unmapped(node, why) for node in nodes(model) if (why := _refusal(node)) is not None)
    operators = len(model.main.operators)
    return Placement(
        accelerator="tflite-runtime",
        fallback="",
        operators=operators,
        mapped=operators - len(lost),
        unmapped=lost,
        evidence="predicted",
        source=SOURCE,
    )


def _refusal(node: Node) -> Refusal | None:
    version = node.operator.version
    if node.operator.is_custom:
        return None if node.kind in CUSTOM else _custom(node.kind)
    if node.kind not in NEWEST_VERSION:
        return Refusal(reason=f"tflite-runtime has no {node.kind}", suggestion="replace it by supported operators")
    if version > NEWEST_VERSION[node.kind]:
        return Refusal(
            reason=f"version {version} of {node.kind}; tflite-runtime runs up to {NEWEST_VERSION[node.kind]}",
            suggestion="convert with another precision, or with per-tensor weights",
        )
    return None


def _custom(kind: str) -> Refusal:
    if kind.startswith("Flex"):
        return Refusal(
            reason=f"{kind} is a TensorFlow operator that only the Flex delegate runs, and tflite-runtime lacks it",
            suggestion="convert with TFLITE_BUILTINS only",
        )
    return Refusal(reason=f"tflite-runtime has no custom operator {kind}", suggestion="register it in the application")


def memory(artifact: Artifact) -> Memory:  # noqa: ARG001 - the same for every model
    """No figure: tflite-runtime plans its memory on the device and does not tell."""
    return Memory(
        arena_bytes=unavailable("tflite-runtime does not report its arena"),
        flash_bytes=unavailable("not a flash-resident target"),
    )


def package(artifact: Artifact, out: Path) -> None:
    """Write `model.tflite`; the runtime needs nothing else."""
    (out / "model.tflite").write_bytes(artifact.data)
