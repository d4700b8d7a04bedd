"""Fold batch normalization into the layer before it, as the converter would: what is compressed is what ships.

A kernel that is clustered first and folded afterwards has other values in every channel; folded first, it keeps them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import tf_keras
from numpy.typing import NDArray

from edgebuild.pipeline.ingest import float_model, folding


def fold(model: Any) -> tuple[Any, tuple[str, ...]]:
    """A copy of a flat tf_keras model without the batch normalizations that can be folded, and their names.

    A linear activation takes the place of each. The function of the model in inference stays the same.
    """
    ranks = {layer.name: len(float_model.first_output_shape(layer)) for layer in model.layers}
    folds = folding.folded(json.loads(model.to_json()), ranks)

    def copy(layer: Any) -> Any:
        if layer.name in folds:
            return tf_keras.layers.Activation("linear", name=layer.name)
        bias = {"use_bias": True} if layer.name in folds.values() else {}
        return type(layer).from_config(layer.get_config() | bias)

    folded = tf_keras.models.clone_model(model, clone_function=copy)
    into = {name: model.get_layer(bn) for bn, name in folds.items()}
    for layer in model.layers:
        if layer.name not in folds:
            weights = _folded(layer, into[layer.name]) if layer.name in into else layer.get_weights()
            folded.get_layer(layer.name).set_weights(weights)
    return folded, tuple(folds)


def _folded(layer: Any, bn: Any) -> list[NDArray[Any]]:
    """The weights of `layer` with the scale and shift of `bn` in its last kernel and its bias."""
    kernels = layer.get_weights()[: -1 if layer.use_bias else None]
    scale, shift = _affine({weight.name.rpartition("/")[2].split(":")[0]: weight.numpy() for weight in bn.weights}, bn)
    bias = layer.get_weights()[-1] if layer.use_bias else np.float32(0)
    return [*kernels[:-1], kernels[-1] * _along(type(layer).__name__, kernels[-1], scale), bias * scale + shift]


def _affine(weights: Mapping[str, NDArray[Any]], bn: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Y = scale · x + shift, a value a channel. ref: Ioffe and Szegedy 2015, algorithm 2."""
    scale = weights.get("gamma", np.float32(1)) / np.sqrt(weights["moving_variance"] + np.float32(bn.epsilon))
    return scale, weights.get("beta", np.float32(0)) - weights["moving_mean"] * scale


def _along(kind: str, kernel: NDArray[Any], scale: NDArray[Any]) -> NDArray[Any]:
    """A value a channel in the shape that a kernel of this kind multiplies with."""
    if kind.startswith("Depthwise"):
        return scale.reshape(kernel.shape[-2:])
    return scale[:, None] if kind.endswith("Transpose") else scale
