"""Functions of one number that an accelerator lacks, or has under another spelling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgebuild.pipeline.fitting.calls import Calls, Replacement, is_never_negative
from edgebuild.pipeline.fitting.islands import Grid, grid, instead_of, known, replacing

if TYPE_CHECKING:
    from edgebuild.pipeline.fitting.forms import Forms
    from edgebuild.pipeline.ingest.keras.program import Node

# 2 sqrt(2 / pi), and that times 0.044715. ref: Hendrycks and Gimpel 2016, with 0.5 (1 + tanh(z)) = sigmoid(2 z).
_GELU_SLOPE: Final = 2 * np.sqrt(2 / np.pi)
_GELU_CUBE: Final = _GELU_SLOPE * 0.044715


def _hard_swish(x: Grid) -> Grid:
    return x * _hard_sigmoid(x)


def _hard_sigmoid(x: Grid) -> Grid:
    return np.asarray(np.clip(x + 3, 0, 6) / 6)


def _gelu_by_tanh(x: Grid) -> Grid:
    return np.asarray(x / (1 + np.exp(-x * (_GELU_SLOPE + _GELU_CUBE * x * x))))


def _gelu(x: Grid) -> Grid:
    from math import erf

    return np.asarray([v * 0.5 * (1 + erf(v / np.sqrt(2))) for v in x])


def _leaky(values: Grid) -> Grid | None:
    """The leaky ReLU with the slope that the values have left of zero; others are no leaky ReLU."""
    slope = _slope(values)
    return np.where(grid() < 0, slope * grid(), grid()) if slope > 0 and slope != 1 else None


def _slope(values: Grid) -> float:
    return round(float(values[0] / grid()[0]), 6)


def _relu6(make: Forms, x: Any) -> Any:
    return make.layer("ReLU", x, max_value=6.0)


def _shifted(make: Forms, x: Any) -> Any:
    """Clipped to 0 to 6, around -3 to 3."""
    return _relu6(make, make.operator("AddV2", x, 3.0))


def _unfused_hard_swish(make: Forms, x: Any, _: Grid) -> Any:
    """The sixth goes to x: to the other factor, the converter makes HARD_SWISH of it again."""
    return make.operator("Mul", make.operator("Mul", x, 1 / 6), _shifted(make, x))


def _fused_hard_swish(make: Forms, x: Any, _: Grid) -> Any:
    """As the converter knows it."""
    return make.operator("Mul", make.operator("Mul", x, _shifted(make, x)), 1 / 6)


def _sigmoid_gelu(make: Forms, x: Any, _: Grid) -> Any:
    """Written with x * x, since a square of its own is no operator of the Edge TPU's."""
    bent = make.operator("AddV2", make.operator("Mul", make.operator("Mul", x, x), _GELU_CUBE), _GELU_SLOPE)
    return make.operator("Mul", x, make.operator("Sigmoid", make.operator("Mul", x, bent)))


def _prelu(make: Forms, x: Any, values: Grid) -> Any:
    """A slope a channel, all the same."""
    shape = tuple(x.shape)[1:]
    alpha = np.full((1,) * (len(shape) - 1) + shape[-1:], _slope(values), np.float32)
    return make.layer("PReLU", x, [alpha], shared_axes=list(range(1, len(shape))) or None)


def _leaky_relu(make: Forms, x: Any, values: Grid) -> Any:
    return make.layer("LeakyReLU", x, alpha=_slope(values))


def _activation(name: str) -> Callable[..., Any]:
    def build(make: Forms, x: Any, _: Grid) -> Any:
        return make.layer("Activation", x, activation=name)

    return build


relu6 = replacing(known(lambda x: np.clip(x, 0, 6)), lambda make, x, _: _relu6(make, x), spelled=2)
hard_sigmoid = replacing(
    known(_hard_sigmoid), lambda make, x, _: make.operator("Mul", _shifted(make, x), 1 / 6), spelled=2
)
unfused_hard_swish = replacing(known(_hard_swish), _unfused_hard_swish)
fused_hard_swish = replacing(known(_hard_swish), _fused_hard_swish, spelled=2)
leaky_relu = replacing(_leaky, _leaky_relu, spelled=2)
tanh_gelu = replacing(known(_gelu_by_tanh), _sigmoid_gelu)
gelu_by_tanh = replacing(known(_gelu), _sigmoid_gelu)
gelu = replacing(known(_gelu), _activation("gelu"), spelled=2)
_sloped = replacing(_leaky, _prelu)


def prelu(at: Calls, node: Node) -> Replacement | None:
    """A slope a channel; nothing where no value is below zero: the converter would drop the half it knows PRELU by."""
    found = _sloped(at, node)
    if found is None or not is_never_negative(at, found.reads[0]):
        return found
    return replace(found, build=lambda make, x: make.layer("Activation", x, activation="linear"))


absolute = instead_of("Abs", lambda make, x: make.operator("Maximum", x, make.operator("Mul", x, -1.0)))
square = instead_of("Square", lambda make, x: make.operator("Mul", x, x))
