"""What the weights of a flatbuffer are like: how many are zero, how many values they take, how small they could be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgebuild.export.flatbuffer import Flatbuffer, Subgraph, Tensor


# ref: the kernels' layouts in tensorflow/lite/kernels: [out, h, w, in], [out, in], [1, h, w, out], [d, h, w, in, out].
_CHANNEL_AXES: Final = {"CONV_2D": 0, "FULLY_CONNECTED": 0, "TRANSPOSE_CONV": 0, "DEPTHWISE_CONV_2D": 3, "CONV_3D": 4}
UNPACKS: Final = ("DEQUANTIZE", "DENSIFY")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """One weight tensor of two or more dimensions, as the file stores it, in `size_bytes`.

    `where` is the first tensor made with it, whose name tells of the layer. `zeros` counts stored values that stand for
    zero. `unique` counts distinct stored values, `unique_per_channel` those of the output channel that has most.
    `entropy_bytes` is what an ideal coder of single values would need.
    """

    where: str
    operator: str
    dtype: str
    shape: tuple[int, ...]
    weights: int
    zeros: int
    unique: int
    unique_per_channel: int
    size_bytes: int
    entropy_bytes: float


def measure(model: Flatbuffer) -> tuple[Weights, ...]:
    """The weights that operators read, in the order of their first use; what several tensors share counts for each."""
    return tuple(found for subgraph in model.subgraphs for found in _of(subgraph))


def unpacked(subgraph: Subgraph) -> dict[int, int]:
    """From tensors that only unpack a constant to that constant, through one such operator or several."""
    stored: dict[int, int] = {}
    for operator in subgraph.operators:
        if operator.kind in UNPACKS and operator.inputs and operator.outputs:
            source = stored.get(operator.inputs[0], operator.inputs[0])
            if source >= 0 and subgraph.tensors[source].is_constant:
                stored[operator.outputs[0]] = source
    return stored


def _of(subgraph: Subgraph) -> Iterator[Weights]:
    """What operators multiply with: behind what only unpacks it, what that reads."""
    stored = unpacked(subgraph)
    seen: set[int] = set()
    for operator in subgraph.operators:
        for index in (stored.get(i, i) for i in operator.inputs if operator.kind not in UNPACKS):
            if index >= 0 and index not in seen and is_kernel(subgraph.tensors[index]):
                seen.add(index)
                made = subgraph.tensors[operator.outputs[0]].name.split(";")[0] if operator.outputs else ""
                yield _measured(subgraph.tensors[index], made, operator.kind)


def is_kernel(tensor: Tensor) -> bool:
    """Whether a tensor holds learned numbers in two or more dimensions."""
    learned = tensor.is_constant and (tensor.dtype.startswith("float") or tensor.quantization is not None)
    return learned and len(tensor.shape) > 1 and tensor.elements > 1


def zeros(tensor: Tensor) -> NDArray[np.bool_]:
    """Where the values of a constant stand for zero, in its shape."""
    values, points = tensor.values(), np.asarray(tensor.quantization.zero_point if tensor.quantization else 0)
    if tensor.quantization is not None and points.size > 1:
        points = points.reshape([-1 if axis == tensor.quantization.axis else 1 for axis in range(values.ndim)])
    found: NDArray[np.bool_] = values == points
    return found


def entropy_bytes(values: NDArray[Any]) -> float:
    """Bytes that an ideal coder of single values needs. ref: Shannon 1948, H = -Σ p·log2 p bits a value."""
    _, counts = np.unique(values, return_counts=True)
    shares = counts / values.size
    return float(-(shares * np.log2(shares)).sum() * values.size / 8)


def _measured(tensor: Tensor, where: str, operator: str) -> Weights:
    values = tensor.values()
    return Weights(
        where=where,
        operator=operator,
        dtype=tensor.dtype,
        shape=tensor.shape,
        weights=values.size,
        zeros=int(zeros(tensor).sum()),
        unique=len(np.unique(values)),
        unique_per_channel=max(len(np.unique(channel)) for channel in _channels(tensor, values, operator)),
        size_bytes=tensor.stored_bytes,
        entropy_bytes=entropy_bytes(values),
    )


def _channels(tensor: Tensor, values: NDArray[Any], operator: str) -> Iterator[NDArray[Any]]:
    """The weights of each output channel; all at once where the operator knows none."""
    scaled = tensor.quantization is not None and len(tensor.quantization.scale) > 1
    axis = tensor.quantization.axis if tensor.quantization and scaled else _CHANNEL_AXES.get(operator)
    yield from [values] if axis is None else np.moveaxis(values, axis, 0)
