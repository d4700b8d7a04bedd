"""What the weights of a flatbuffer are like: how many are zero, how many values they take, how small they could be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgebuild.export.flatbuffer import Flatbuffer, Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """One weight tensor of two or more dimensions, as the file stores it.

    `where` is the first tensor made with it, whose name tells of the layer. `zeros` counts stored values that stand for
    zero. `unique` counts distinct stored values, `unique_per_channel` those of the channel that has most; both are the
    same without scales a channel. `entropy_bytes` is what an ideal coder of single values would need.
    """

    where: str
    operator: str
    shape: tuple[int, ...]
    weights: int
    zeros: int
    unique: int
    unique_per_channel: int
    bytes: int
    entropy_bytes: float


def measure(model: Flatbuffer) -> tuple[Weights, ...]:
    """The weights of every operator of the main subgraph, in the order of their first use."""
    seen: dict[int, Weights] = {}
    for operator in model.main.operators:
        for index in operator.inputs:
            tensor = model.main.tensors[index] if index >= 0 else None
            if tensor is not None and index not in seen and is_kernel(tensor):
                made = model.main.tensors[operator.outputs[0]].name.split(";")[0]
                seen[index] = _measured(tensor, made, operator.kind)
    return tuple(seen.values())


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
        shape=tensor.shape,
        weights=values.size,
        zeros=int(zeros(tensor).sum()),
        unique=len(np.unique(values)),
        unique_per_channel=max(len(np.unique(channel)) for channel in _channels(tensor, values)),
        bytes=values.nbytes,
        entropy_bytes=entropy_bytes(values),
    )


def _channels(tensor: Tensor, values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    quantization = tensor.quantization
    if quantization is None or len(quantization.scale) < 2:
        yield values
        return
    yield from np.moveaxis(values, quantization.axis, 0)
