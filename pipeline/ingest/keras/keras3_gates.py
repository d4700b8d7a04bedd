"""The hard sigmoid of Keras 3 in recurrent layers, said by that of tf_keras.

Keras 3: `clip(x / 6 + 1/2, 0, 1)`; tf_keras: `clip(x / 5 + 1/2, 0, 1)`. The one at x is the other at 5/6 x, and what
goes into a gate is linear in the weights, so that the gates' weights times 5/6 say the same.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

_SCALE: Final = 5 / 6
# Which parts of the last axis of each weight feed a gate, in the order of the parts.
_GATES: Final = {
    "LSTMCell": (True, True, False, True),  # input, forget, (candidate), output
    "ConvLSTMCell": (True, True, False, True),
    "GRUCell": (True, True, False),  # update, reset, (candidate)
}


def rescaled(layer: Any, weight: Any) -> NDArray[Any]:
    """The values of one weight of a Keras 3 layer, as its tf_keras twin needs them."""
    values: NDArray[Any] = np.asarray(weight)
    gates = next((_gates(cell) for cell in _cells(layer) if any(weight is own for own in cell.weights)), None)
    if gates is None:
        return values
    scales = [_SCALE if gate else 1.0 for gate in gates]
    scaled: NDArray[Any] = values * np.repeat(scales, values.shape[-1] // len(gates))
    return scaled.astype(values.dtype)


def _cells(layer: Any) -> list[Any]:
    parts = layer._flatten_layers()  # noqa: SLF001 - wrappers and recurrent layers hold their cells in many ways
    return [part for part in parts if type(part).__name__ in _GATES]


def _gates(cell: Any) -> tuple[bool, ...] | None:
    import keras

    hard = cell.recurrent_activation is keras.activations.hard_sigmoid
    return _GATES[type(cell).__name__] if hard else None
