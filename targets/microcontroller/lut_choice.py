"""Which weights would be smaller as indices into tables of the values they take, and by how much.

ref: tensorflow/lite/micro/compression in TFLite Micro: decode.py and lut.py have the format and its limits.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from edgebuild.export.flatbuffer import Flatbuffer, Operator, Tensor

KINDS: Final = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"})
_WEIGHTS: Final = 1  # Their place among the inputs of each of these.
_MOST_BITS: Final = 7
_HEADER_BYTES: Final = 16  # Before the tables of each tensor.
_OPERATOR_BYTES: Final = 160  # At most, what the file says of an operator that unpacks, of its output and its tables.


@dataclass(frozen=True, slots=True, kw_only=True)
class LutTensor:
    """One weight tensor and the first operator that reads it, by their indices in the model before.

    There is a table for each place along `axis`, as the quantization has scales, or a single one where that is None.
    `values` is how many the largest table holds, `bits` the width of an index; `after_bytes` are tables and indices.
    """

    tensor: int
    operator: int
    kind: str
    axis: int | None
    bits: int
    values: int
    before_bytes: int
    after_bytes: int


def gaining(model: Flatbuffer) -> list[LutTensor]:
    """Weights of the main subgraph that tables make smaller, all that the file then says counted, in operators' order.

    Each is read as weights alone and shares its buffer with no other tensor, since that would keep the values.
    """
    places = Counter(_place(tensor) for graph in model.subgraphs for tensor in graph.tensors)
    return [
        entry
        for tensor, readers in _weights(model)
        if places[_place(tensor)] == 1 and _is_packable(tensor)
        for entry in (_measured(tensor, readers[0]),)
        if entry.bits <= _MOST_BITS and entry.after_bytes + len(readers) * _OPERATOR_BYTES < entry.before_bytes
    ]


def working_bytes(model: Flatbuffer, entry: LutTensor) -> int:
    """What the operator needs in the arena: what it reads and writes, and its weights unpacked."""
    operator, tensors = model.main.operators[entry.operator], model.main.tensors
    ends = [tensors[i] for i in (*operator.inputs, *operator.outputs) if i >= 0 and not tensors[i].is_constant]
    return entry.before_bytes + sum(tensor.elements * np.dtype(tensor.dtype).itemsize for tensor in ends)


def _weights(model: Flatbuffer) -> Iterator[tuple[Tensor, list[Operator]]]:
    """Constants that are nothing but weights, each with the operators that read it."""
    readers: dict[int, list[Operator]] = {}
    for operator in model.main.operators:
        for index in operator.inputs:
            readers.setdefault(index, []).append(operator)
    for index, operators in readers.items():
        weighs = all(found.kind in KINDS and found.inputs[_WEIGHTS] == index for found in operators)
        if index >= 0 and weighs and index not in model.main.outputs and model.main.tensors[index].is_constant:
            yield model.main.tensors[index], operators


def _place(tensor: Tensor) -> int:
    """Where a constant lies in memory: tensors of one buffer lie at one place."""
    return 0 if tensor.data is None else int(tensor.data.__array_interface__["data"][0])


def _is_packable(tensor: Tensor) -> bool:
    """Whether it is dense int8 with one scale, or with one for each place along an axis that tables can follow."""
    scales, shape = tensor.quantization, tensor.shape
    if tensor.dtype != "int8" or tensor.sparsity is not None or scales is None or not shape:
        return False
    if len(scales.scale) == 1:
        return scales.axis == 0  # DECODE refuses a single scale along another axis, which other operators let pass.
    return scales.axis in (0, len(shape) - 1) and len(scales.scale) == shape[scales.axis]


def _measured(tensor: Tensor, operator: Operator) -> LutTensor:
    """With the narrowest indices: of tables that go by the scales, since TFLM's kernels do, whatever the tables say."""
    values, scales = tensor.values(), tensor.quantization
    axis = scales.axis if scales is not None and len(scales.scale) > 1 else None
    tables: list[NDArray[Any]] = [values] if axis is None else list(np.moveaxis(values, axis, 0))
    most = max(len(np.unique(table)) for table in tables)
    bits = max(1, (most - 1).bit_length())
    return LutTensor(
        tensor=tensor.index,
        operator=operator.index,
        kind=operator.kind,
        axis=axis,
        bits=bits,
        values=most,
        before_bytes=values.size,
        after_bytes=_HEADER_BYTES + most * len(tables) + -(-values.size * bits // 8),
    )
