"""TFLite's GPU delegate: float operators, the largest connected group of them, the rest on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgebuild.targets import gpu_rules
from edgebuild.targets.evidence import unavailable
from edgebuild.targets.partition import groups
from edgebuild.targets.placement import Placement, Unmapped, to_json
from edgebuild.targets.rules import Node, Refusal, nodes, refusal, unmapped
from edgebuild.targets.target import Memory

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from edgebuild.export.flatbuffer import Flatbuffer, Subgraph
    from edgebuild.targets.target import Artifact, IoType, Precision

NAME: str = "gpu"
SUMMARY: str = "TFLite GPU delegate on phones and boards"
PRECISIONS: tuple[Precision, ...] = ("float16", "float32", "int8")
IO_TYPES: tuple[IoType, ...] = ("float32",)


def place(model: Flatbuffer) -> Placement:
    """Predict what the delegate takes with its default options, from the rules in its source."""
    folding = _folding(model.main)
    folded = frozenset(tensor for index in folding for tensor in model.main.operators[index].outputs)
    found = {
        node.operator.index: unmapped(node, why)
        for node in nodes(model, folded)
        if (why := refusal(node, gpu_rules.RULES, gpu_rules.EVERY, gpu_rules.unknown_operator)) is not None
    }
    found |= _left_out(model.main, folding, found.keys())
    operators = len(model.main.operators)
    return Placement(
        accelerator="gpu delegate",
        fallback="cpu",
        operators=operators,
        mapped=operators - len(found),
        unmapped=tuple(found[index] for index in sorted(found)),
        evidence="predicted",
        source=gpu_rules.SOURCE,
    )


def _folding(graph: Subgraph) -> frozenset[int]:
    """Operators that only unpack constants (float16 weights); the delegate reads the constants itself."""
    return frozenset(
        op.index
        for op in graph.operators
        if not op.is_custom
        and op.kind in gpu_rules.FOLDED
        and op.inputs
        and all(i >= 0 and graph.tensors[i].is_constant for i in op.inputs)
    )


def _left_out(graph: Subgraph, folding: Collection[int], refused: Collection[int]) -> dict[int, Unmapped]:
    """Operators the delegate could run, outside the one group it takes (max_delegated_partitions is 1 by default)."""
    made = [frozenset(group) - frozenset(folding) for group in groups(graph, refused)]
    taken: frozenset[int] = max(made, key=len, default=frozenset())
    reason = Refusal(
        reason=f"outside the largest group of neighbours ({len(taken)} operators), the only one the delegate takes",
        suggestion="make the operators between the groups supported, or raise max_delegated_partitions in the app",
    )
    return {
        op.index: unmapped(Node(op, graph.tensors), reason)
        for op in graph.operators
        if op.index not in taken and op.index not in refused and op.index not in folding
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
