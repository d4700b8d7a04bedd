"""Any board's CPU with tflite-runtime: every builtin operator the runtime has a kernel for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgebuild.targets.cpu.operators import CUSTOM, NEWEST_VERSION, SOURCE
from edgebuild.targets.evidence import unavailable
from edgebuild.targets.placement import Placement, predicted
from edgebuild.targets.rules import Node, Refusal, Table, require
from edgebuild.targets.target import Memory

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from edgebuild.export.flatbuffer import Flatbuffer
    from edgebuild.export.formats import IoType, Precision
    from edgebuild.targets.target import Artifact, RuntimeName

NAME: str = "cpu"
SUMMARY: str = "tflite-runtime on the CPU of a board or phone"
PRECISIONS: tuple[Precision, ...] = ("int8", "float32", "float16", "dynamic", "int16x8")
IO_TYPES: tuple[IoType, ...] = ("float32", "int8", "uint8")
DENSE_PER_TENSOR: bool = False
SPARSE: tuple[Precision, ...] = ("float32", "float16", "int8")
FLASHED: bool = False
HOST_RUNS: bool = True
JUDGES: tuple[Precision, ...] = ()
OPTIONS: frozenset[str] = frozenset({"device", "sparse"})


def runtime() -> RuntimeName | None:
    """tflite-runtime itself."""
    return "tflite-runtime"


def place(model: Flatbuffer) -> Placement:
    """Predict what tflite-runtime's own kernels run; nothing runs the rest."""
    return predicted("tflite-runtime", "", len(model.main.operators), TABLE.refused(model), TABLE.source)


def runs_rest(model: Flatbuffer, lost: Collection[int]) -> str:
    """What runs the operators that an accelerator leaves: this CPU, or nothing where it does not know one of them.

    A model with an operator of somebody's own that nothing knows does not load at all.
    """
    left = (model.main.operators[index] for index in lost)
    return NAME if all(not op.is_custom or op.kind in CUSTOM for op in left) else ""


def _unknown(node: Node) -> Refusal:
    if node.operator.is_custom and node.kind.startswith("Flex"):
        return Refusal(
            reason=f"{node.kind} needs the Flex delegate, which tflite-runtime lacks",
            suggestion="convert with TFLITE_BUILTINS only",
        )
    kind = f"custom operator {node.kind}" if node.operator.is_custom else node.kind
    return Refusal(reason=f"tflite-runtime has no {kind}", suggestion="replace it by supported operators")


def _version(node: Node) -> Refusal | None:
    newest = NEWEST_VERSION.get(node.key, node.operator.version)
    return require(
        node.operator.version <= newest,
        f"version {node.operator.version} of {node.kind}; tflite-runtime runs up to {newest}",
        "convert with another precision, or with per-tensor weights",
    )


TABLE: Final = Table(
    rules=dict.fromkeys((*NEWEST_VERSION, *(f"custom:{name}" for name in CUSTOM)), ()),
    every=(_version,),
    unknown=_unknown,
    source=SOURCE,
)


def memory(artifact: Artifact) -> Memory:  # noqa: ARG001 - the same for every model
    """No figure: tflite-runtime plans its memory on the device and does not tell."""
    return Memory(
        arena_bytes=unavailable("tflite-runtime does not report its arena"),
        flash_bytes=unavailable("not a flash-resident target"),
    )


def package(artifact: Artifact, out: Path) -> None:
    """Write `model.tflite`; the runtime needs nothing else."""
    (out / "model.tflite").write_bytes(artifact.data)
