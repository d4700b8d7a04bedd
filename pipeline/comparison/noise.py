"""Seeded noise to run models on where no samples are given, kept to what their inputs can hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgebuild.calibration.checks import InputSpec
from edgebuild.export.flatbuffer import Flatbuffer, Quantization, Tensor
from edgebuild.pipeline.comparison.outputs import Arrays

Range: TypeAlias = tuple[float, float]

ROWS: Final = 64
_SEED: Final = 0
_LARGEST_INTEGER: Final = 127  # Valid in every integer type, and pixels worth the name.
_TABLES: Final = ("GATHER", "EMBEDDING_LOOKUP")


def for_all(wanted: Sequence[InputSpec], models: Sequence[tuple[Flatbuffer, Sequence[int]]]) -> Arrays:
    """Values `[ROWS, ...]` by input name that every model takes without clipping, the same on every call.

    They are uniform over a range that is known, else normal; whole numbers where a model looks rows up by them. Each
    model comes with the places of its inputs in `wanted`.
    """
    ranges: list[Range | None] = [None] * len(wanted)
    for model, order in models:
        for place, found in zip(order, _ranges(model), strict=True):
            ranges[place] = _both(ranges[place], found)
    rows = min((count for model, _ in models if (count := _smallest_table(model)) is not None), default=None)
    random = np.random.default_rng(_SEED)
    return {spec.name: _values(random, spec, bounds, rows) for spec, bounds in zip(wanted, ranges, strict=True)}


def _ranges(model: Flatbuffer) -> tuple[Range | None, ...]:
    """The real values that each input can hold before it clips, where it is quantized or is quantized at once."""
    first = {
        operator.inputs[0]: model.main.tensors[operator.outputs[0]]
        for operator in model.main.operators
        if operator.kind == "QUANTIZE"
    }
    return tuple(_range(tensor) or _range(first.get(tensor.index)) for tensor in model.inputs.values())


def _both(a: Range | None, b: Range | None) -> Range | None:
    if a is None or b is None:
        return a or b
    low, high = max(a[0], b[0]), min(a[1], b[1])
    return (low, high) if low < high else a


def _smallest_table(model: Flatbuffer) -> int | None:
    """The rows of the smallest constant table that the model looks something up in."""
    tables = [
        tensor.shape[0]
        for operator in model.main.operators
        if operator.kind in _TABLES
        for tensor in model.operator_tensors(operator)
        if tensor.is_constant and len(tensor.shape) > 1
    ]
    return min(tables, default=None)


def _values(random: np.random.Generator, spec: InputSpec, bounds: Range | None, rows: int | None) -> NDArray[Any]:
    shape = (ROWS, *spec.shape)
    if rows is None and spec.dtype.startswith("float"):
        values = random.standard_normal(shape) if bounds is None else random.uniform(*bounds, shape)
        return values.astype(spec.dtype)
    highest = 1 if spec.dtype == "bool" else min((rows or _LARGEST_INTEGER + 1) - 1, _LARGEST_INTEGER)
    return random.integers(0, highest, shape, endpoint=True).astype(spec.dtype)


def _range(tensor: Tensor | None) -> Range | None:
    if tensor is None or tensor.quantization is None or np.dtype(tensor.dtype).kind not in "iu":
        return None
    limits = np.iinfo(tensor.dtype)
    low, high = (_real(q, tensor.quantization) for q in (limits.min, limits.max))
    return low, high


def _real(value: int, quantization: Quantization) -> float:
    return (value - quantization.zero_point[0]) * quantization.scale[0]
