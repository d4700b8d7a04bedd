"""Layers that compute otherwise than in float32, as flatbuffers do: half precision is for training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from edgebuild.export.errors import ModelError

_FLOAT: Final = "float32"
_OTHERS: Final = frozenset({"bfloat16", "float16", "float64"})
_MULTIPLYING: Final = frozenset(
    "BatchNormalization Conv1D Conv2D Conv2DTranspose Conv3D Conv3DTranspose Dense DepthwiseConv1D DepthwiseConv2D "  # noqa: SIM905 - shorter
    "SeparableConv1D SeparableConv2D".split()
)


def in_float32(layers: Iterable[Any], path: Path, change: Callable[[Any], None]) -> tuple[str, ...]:
    """Let layers of mixed precision, whose weights are float32, compute in float32 too, by `change`; and say so.

    Raises:
        ModelError: a layer's weights are of another precision.
    """
    changed: dict[str, None] = {}
    for layer in layers:
        policy = layer.dtype_policy
        if type(layer).__name__ == "InputLayer" or policy.compute_dtype not in _OTHERS:
            continue
        if policy.variable_dtype != _FLOAT:
            raise _refusal(layer, path)
        changed[policy.name] = None
        change(layer)
    return tuple(f"layers of the policy {name} compute in float32, as their weights are" for name in changed)


def require_float32(model: Any, path: Path) -> None:
    """Refuse a model, whatever it was read from, that TensorFlow's converter would refuse in its own words.

    Raises:
        ModelError: a layer that multiplies by weights has them in another precision.
    """
    for layer in model.layers:
        if type(layer).__name__ in _MULTIPLYING and layer.compute_dtype in _OTHERS:
            raise _refusal(layer, path)


def _refusal(layer: Any, path: Path) -> ModelError:
    return ModelError(
        f"{path}: layer '{layer.name}' computes in {layer.compute_dtype}",
        cause="flatbuffers for these targets compute in float32, or in integers made from it",
        action="export the model in float32; of Keras, build it under the policy float32, give it the weights with "
        "new.set_weights(old.get_weights()), and save that",
    )
