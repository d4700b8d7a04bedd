"""What a flatbuffer's work and memory are made of, operator by operator, counted in the file itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from edgebuild.export.flatbuffer import Flatbuffer, Operator, Tensor
from edgebuild.export.recognise import macs
from edgebuild.export.weights import UNPACKS, unpacked

_NOT_IN_ARENA: Final = ("string", "resource", "variant")
_SCALE_BYTES: Final = 4 + 8  # A float32 scale and an int64 zero point.


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorCost:
    """One operator: its multiply-accumulates, the bytes of its constants, and both as shares of the model's.

    A constant that several operators share counts for each.
    """

    operator: int
    kind: str
    tensor: str
    macs: int
    mac_share: float
    weight_bytes: int
    weight_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FileParts:
    """Where a file's bytes go: learned numbers, their quantization scales, and the rest: graph, names, metadata."""

    weight_bytes: int
    scale_bytes: int
    other_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The operator during which most activation bytes are alive.

    It bounds the arena from below: a runtime adds scratch buffers, alignment and bookkeeping, and may not pack tight.
    """

    operator: int
    kind: str
    tensor: str
    live_bytes: int


def of_operators(model: Flatbuffer) -> tuple[OperatorCost, ...]:
    """Every operator of the main subgraph, the one with most multiply-accumulates first, then with most weights."""
    operators = model.main.operators
    work = {op.index: macs(model, op) for op in operators}
    packed = unpacked(model.main)
    weights = {op.index: _weight_bytes(model, op, packed) for op in operators}
    all_work, all_weights = sum(work.values()), sum(weights.values())
    found = (
        OperatorCost(
            operator=op.index,
            kind=op.kind,
            tensor=_output_name(model, op),
            macs=work[op.index],
            mac_share=work[op.index] / all_work if all_work else 0.0,
            weight_bytes=weights[op.index],
            weight_share=weights[op.index] / all_weights if all_weights else 0.0,
        )
        for op in operators
    )
    return tuple(sorted(found, key=lambda cost: (-cost.macs, -cost.weight_bytes, cost.operator)))


def of_file(model: Flatbuffer) -> FileParts:
    """What the file's bytes hold; buffers that tensors share count for each tensor, so `other_bytes` is at least 0."""
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    weights = sum(tensor.stored_bytes for tensor in tensors)
    scales = _SCALE_BYTES * sum(len(tensor.quantization.scale) for tensor in tensors if tensor.quantization is not None)
    return FileParts(weight_bytes=weights, scale_bytes=scales, other_bytes=max(model.size_bytes - weights - scales, 0))


def peak(model: Flatbuffer) -> Peak | None:
    """Where most activation bytes are alive at once; None for a graph without operators."""
    lives = _lives(model)
    sizes = {index: _bytes(model.main.tensors[index]) for index in lives}
    alive = {
        op.index: sum(sizes[i] for i, (first, last) in lives.items() if first <= op.index <= last)
        for op in model.main.operators
    }
    if not alive:
        return None
    operator = model.main.operators[max(alive, key=alive.__getitem__)]
    return Peak(
        operator=operator.index,
        kind=operator.kind,
        tensor=_output_name(model, operator),
        live_bytes=alive[operator.index],
    )


def _lives(model: Flatbuffer) -> dict[int, tuple[int, int]]:
    """For each tensor that is computed, the first and the last operator that needs it."""
    graph, end = model.main, len(model.main.operators)
    lives: dict[int, tuple[int, int]] = dict.fromkeys(graph.inputs, (0, 0))
    for op in graph.operators:
        for i in (*op.inputs, *op.outputs):
            if i >= 0 and not graph.tensors[i].is_constant:
                lives[i] = (lives.get(i, (op.index, 0))[0], op.index)
    lives |= {i: (lives[i][0], end) for i in graph.outputs if i in lives}
    return lives | {t.index: (0, end) for t in graph.tensors if t.is_variable}


def _weight_bytes(model: Flatbuffer, operator: Operator, packed: Mapping[int, int]) -> int:
    """What an operator reads of the file, through what only unpacks it."""
    if operator.kind in UNPACKS:
        return 0
    return sum(model.main.tensors[packed.get(i, i)].stored_bytes for i in operator.inputs if i >= 0)


def _bytes(tensor: Tensor) -> int:
    if tensor.dtype in _NOT_IN_ARENA:
        return 0
    return (tensor.elements + 1) // 2 if tensor.dtype == "int4" else tensor.elements * np.dtype(tensor.dtype).itemsize


def _output_name(model: Flatbuffer, operator: Operator) -> str:
    return next((model.main.tensors[i].name for i in operator.outputs if i >= 0), "")
