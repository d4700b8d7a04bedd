"""The weights that compression works on, whatever layer holds them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

DEPTHWISE: Final = frozenset({"DepthwiseConv1D", "DepthwiseConv2D"})
_NOT_SUMMED: Final = frozenset({"alpha"})  # Of PReLU: a slope a position.


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One weight tensor of rank 2 or more that its layer multiplies inputs with.

    `channel_axes` index output channels, each of which has its own scale in an int8 flatbuffer.
    """

    layer: str
    kind: str
    name: str
    variable: Any
    channel_axes: tuple[int, ...]

    @property
    def value(self) -> NDArray[np.float32]:
        """A copy of the weights."""
        found: NDArray[np.float32] = self.variable.numpy()
        return found

    def channel_maxima(self) -> NDArray[np.float32]:
        """The largest magnitude in each channel, broadcastable to the kernel; 1 where a channel is all zero."""
        value = np.abs(self.value)
        rest = tuple(axis for axis in range(value.ndim) if axis not in self.channel_axes)
        largest: NDArray[np.float32] = value.max(axis=rest, keepdims=True)
        return np.where(largest > 0, largest, np.float32(1))


def kernels(model: Any) -> tuple[Kernel, ...]:
    """Every kernel of a flat tf_keras model, in the order of its layers; a shared layer's once."""
    return tuple(kernel for layer in model.layers for kernel in _of(layer))


def _of(layer: Any) -> Iterator[Kernel]:
    kind = type(layer).__name__
    for variable in layer.trainable_weights:
        name = variable.name.removeprefix(f"{layer.name}/").split(":")[0]
        if variable.shape.rank >= 2 and name.rpartition("/")[2] not in _NOT_SUMMED:
            yield Kernel(
                layer=layer.name, kind=kind, name=name, variable=variable, channel_axes=_channels(kind, variable)
            )


def _channels(kind: str, variable: Any) -> tuple[int, ...]:
    rank = variable.shape.rank
    if kind in DEPTHWISE:
        return (rank - 2, rank - 1)
    return (rank - 2,) if kind.endswith("Transpose") else (rank - 1,)
