"""TFLite's GPU delegate: float operators, the largest connected group of them, the rest on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgebuild.targets.evidence import unavailable
from edgebuild.targets.gpu_rules import FOLDED, TABLE
from edgebuild.targets.partition import groups
from edgebuild.targets.placement import Placement, Unmapped, predicted, to_json
from edgebuild.targets.rules import Refusal, unmapped
from edgebuild.targets.target import Memory

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from edgebuild.export.flatbuffer import Flatbuffer, Subgraph
    from edgebuild.export.formats import IoType, Precision
    from edgebuild.targets.target import Artifact

NAME: str = "gpu"
SUMMARY: str = "TFLite GPU delegate on phones and boards"
PRECISIONS: tuple[Precision, ...] = ("float16", "float32", "int8")
IO_TYPES: tuple[IoType, ...] = ("float32",)
SPARSE: tuple[Precision, ...] = ()
FLASHED: bool = False
HOST_RUNS: bool = False


def place(model: Flatbuffer) -> Placement:
    """Predict what the delegate takes with its default options, from the rules in its source."""
    folding = _folding(model.main)
    folded = frozenset(tensor for index in folding for tensor in model.main.operators[index].outputs)
    lost = TABLE.refused(model, folded)
    lost |= _left_out(model, folding, lost.keys())
    return predicted("gpu delegate", "cpu", len(model.main.operators), lost, TABLE.source)


def _folding(graph: Subgraph) -> frozenset[int]:
    """Operators that only unpack constants (float16 weights); the delegate reads the constants itself."""
    return frozenset(
        op.index
        for op in graph.operators
        if not op.is_custom
        and op.kind in FOLDED
        and op.inputs
        and all(i >= 0 and graph.tensors[i].is_constant for i in op.inputs)
    )


def _left_out(model: Flatbuffer, folding: frozenset[int], refused: Collection[int]) -> dict[int, Unmapped]:
    """Operators the delegate could run, outside the one group it takes (max_delegated_partitions is 1 by default)."""
    made = [frozenset(group) - folding for group in groups(model.main, refused)]
    taken: frozenset[int] = max(made, key=len, default=frozenset())
    read = {tensor for index in taken for tensor in model.main.operators[index].inputs}
    why = Refusal(
        reason=f"outside the largest group of neighbours ({len(taken)} operators), the only one the delegate takes",
        suggestion="make the operators between the groups supported, or raise max_delegated_partitions in the app",
    )
    return {
        op.index: unmapped(op, model, why)
        for op in model.main.operators
        if op.index not in taken and op.index not in refused and not (op.index in folding and read & set(op.outputs))
    }


def memory(artifact: Artifact) -> Memory:  # noqa: ARG001 - the same for every model
    """No figure: the driver allocates, and does not tell."""
    return Memory(
        arena_bytes=unavailable("the GPU driver allocates buffers on the device"),
        flash_bytes=unavailable("not a flash-resident target"),
    )


def package(artifact: Artifact, out: Path) -> None:
    """Write `model.tflite` and `placement.json`."""
    (out / "model.tflite").write_bytes(artifact.data)
    (out / "placement.json").write_text(to_json(place(artifact.flatbuffer)), encoding="utf-8")
