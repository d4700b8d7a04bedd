"""What edits build of: operators and layers on the tensors of a new model, under names that follow from the old one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebuild.pipeline.ingest.graph.values import encode_value


class Forms:
    """Makes the layers that stand in for one call, whose name theirs begin with."""

    def __init__(self, name: str) -> None:
        """No two calls may have the same name."""
        self._name, self._made = name, 0

    def operator(self, kind: str, *operands: Any, **attributes: Any) -> Any:
        """A TensorFlow operator on tensors and constants, arrays or numbers; a number is float32."""
        from edgebuild.pipeline.ingest.graph.layers import Operator

        tensors: list[Any] = []
        settings: list[Any] = []
        for operand in operands:
            if isinstance(operand, float | int | np.ndarray):
                settings.append(encode_value(_array(operand)))
            else:
                settings.append(len(tensors))
                tensors.append(operand)
        made = Operator(operator=kind, attributes=attributes, operands=settings, name=self._next(kind))
        return made(tensors[0] if len(tensors) == 1 else tensors)

    def layer(self, kind: str, x: Any, weights: Sequence[NDArray[Any]] = (), **settings: Any) -> Any:
        """One of Keras's layers by its class, with its weights."""
        import tf_keras

        made = getattr(tf_keras.layers, kind)(**settings, name=self._next(kind))
        y = made(x)
        if weights:
            made.set_weights(list(weights))
        return y

    def part(self, x: Any, axis: int, start: int, count: int) -> Any:
        """`count` entries of an axis from `start` on."""
        rank = len(x.shape)
        begin, size = np.zeros(rank, np.int32), np.full(rank, -1, np.int32)
        begin[axis], size[axis] = start, count
        return self.operator("Slice", x, begin, size)

    def reshaped(self, x: Any, sizes: Sequence[int]) -> Any:
        """The same values under other sizes behind the batch."""
        return x if tuple(x.shape)[1:] == tuple(sizes) else self.layer("Reshape", x, target_shape=tuple(sizes))

    def _next(self, kind: str) -> str:
        self._made += 1
        return f"{self._name}/{kind.lower()}_{self._made}"


def _array(operand: Any) -> NDArray[Any]:
    return operand if isinstance(operand, np.ndarray) else np.asarray(operand, np.float32)
