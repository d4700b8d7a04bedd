"""TFLite's GPU delegate: float operators, the largest connected group of them, the rest on the CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgebuild.targets.cpu import target as cpu
from edgebuild.targets.evidence import unavailable
from edgebuild.targets.gpu import half as gpu_half
from edgebuild.targets.gpu.rules import FOLDED, TABLE
from edgebuild.targets.partition import groups
from edgebuild.targets.placement import Placement, Unmapped, predicted, to_json
from edgebuild.targets.rules import Refusal, unmapped
from edgebuild.targets.target import Memory

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from edgebuild.export.flatbuffer import Flatbuffer, Subgraph
    from edgebuild.export.formats import IoType, Precision
    from edgebuild.targets.gpu.half import Ranges
    from edgebuild.targets.target import Artifact, RuntimeName

NAME: str = "gpu"
SUMMARY: str = "TFLite GPU delegate on phones and boards"
PRECISIONS: tuple[Precision, ...] = ("float16", "float32", "int8")
IO_TYPES: tuple[IoType, ...] = ("float32",)
DENSE_PER_TENSOR: bool = False
SPARSE: tuple[Precision, ...] = ()
FLASHED: bool = False
HOST_RUNS: bool = False
JUDGES: tuple[Precision, ...] = ()
OPTIONS: frozenset[str] = frozenset({"device", "cut", "fix", "oracle"})


def runtime() -> RuntimeName | None:
    """tflite-runtime on the CPU stands in."""
    return "tflite-runtime"


def place(model: Flatbuffer, ranges: Ranges | None = None) -> Placement:
    """Predict what the delegate takes with its default options, from the rules in its source.

    `ranges` are those of activations in real values, by tensor name, beside those that the file carries: what leaves
    float16 is among the findings.
    """
    lost = refused(model)
    lost |= left_out(model, next(iter(call_groups(model, lost)), frozenset()), lost)
    found = predicted("gpu delegate", cpu.runs_rest(model, lost), len(model.main.operators), lost, TABLE.source)
    return replace(found, findings=gpu_half.findings(model, ranges or {}, lost))


def refused(model: Flatbuffer) -> dict[int, Unmapped]:
    """Operators that a rule refuses, by index."""
    folded = frozenset(tensor for index in folding(model.main) for tensor in model.main.operators[index].outputs)
    return TABLE.refused(model, folded)


def folding(graph: Subgraph) -> frozenset[int]:
    """Operators that only unpack constants (float16 weights); the delegate reads the constants itself."""
    return frozenset(
        op.index
        for op in graph.operators
        if not op.is_custom
        and op.kind in FOLDED
        and op.inputs
        and all(i >= 0 and graph.tensors[i].is_constant for i in op.inputs)
    )


def call_groups(model: Flatbuffer, lost: Collection[int]) -> list[frozenset[int]]:
    """Accepted operators in groups that one call of the delegate can run, the largest first; unpacking is in none."""
    unpacking = folding(model.main)
    halves = {index for index in unpacking if _is_of_halves(model.main, index)}
    made = [frozenset(group) - unpacking for group in groups(model.main, {*lost, *halves})]
    return sorted(filter(None, made), key=len, reverse=True)


def _is_of_halves(graph: Subgraph, index: int) -> bool:
    """Whether it unpacks float16; the delegate counts such among the CPU's until the groups are made.

    ref: tensorflow/lite/delegates/utils.cc, FP16GraphPartitionHelper::IsNodeSupported.
    """
    operator = graph.operators[index]
    return operator.kind == "DEQUANTIZE" and graph.tensors[operator.inputs[0]].dtype == "float16"


def left_out(model: Flatbuffer, taken: Collection[int], lost: Collection[int]) -> dict[int, Unmapped]:
    """Operators the delegate could run, outside the one group it takes (max_delegated_partitions is 1 by default)."""
    read = {tensor for index in taken for tensor in model.main.operators[index].inputs}
    unpacking = {index for index in folding(model.main) if read & set(model.main.operators[index].outputs)}
    why = Refusal(
        reason=f"outside the largest group of neighbours ({len(taken)} operators), the only one the delegate takes",
        collateral=True,
        suggestion="make the operators between the groups supported, or raise max_delegated_partitions in the app",
    )
    return {
        op.index: unmapped(op, model, why)
        for op in model.main.operators
        if op.index not in taken and op.index not in lost and op.index not in unpacking
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
    placement = artifact.placed or place(artifact.flatbuffer)
    (out / "placement.json").write_text(to_json(placement), encoding="utf-8")
