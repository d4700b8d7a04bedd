"""The only door to TensorFlow Model Optimization: its masks, schedule, centroids and rules of int8. For workers only.

Its own wrappers around layers are left alone for pruning and clustering: they refuse layers that its code for bare
weights serves, skip models inside models without a word, and change the model they are given. That of
quantization-aware training is used, a layer at a time: `quantize_apply` takes no model with a layer it can't rebuild.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from edgebuild.pipeline.compress import rounding
from edgebuild.pipeline.compress.settings import Initialization

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "distutils Version classes", DeprecationWarning)  # Its check of TensorFlow's.
    from tensorflow_model_optimization.python.core.clustering.keras import clustering_centroids
    from tensorflow_model_optimization.python.core.quantization.keras import (
        quantize,
        quantize_aware_activation,
        quantize_layer,
        quantize_wrapper,
        quantizers,
    )
    from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
        default_8bit_quantize_registry as default_8bit,
    )
    from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl, pruning_schedule

_CENTROIDS: Final[dict[Initialization, Any]] = {
    "kmeans++": clustering_centroids.KmeansPlusPlusCentroidsInitialisation,
    "linear": clustering_centroids.LinearCentroidsInitialisation,
    "density": clustering_centroids.DensityBasedCentroidsInitialisation,
}
_REGISTRY: Final = default_8bit.Default8BitQuantizeRegistry()
_AWARE: Final = quantize_aware_activation.QuantizeAwareActivation
_ACTIVATIONS: Final = _AWARE._PRE_QUANT_ACTIVATIONS | _AWARE._POST_QUANT_ACTIVATIONS  # noqa: SLF001 - no public way
_NEARLY_ALL: Final = 1 - 1e-9  # The schedule takes shares below 1.


def mask(
    scores: NDArray[np.float32], sparsity: float, m_by_n: tuple[int, int] | None, block: tuple[int, int]
) -> NDArray[np.bool_]:
    """Where the weights of the largest scores are, in the scores' shape."""
    found = tf.Variable(tf.ones_like(scores), trainable=False)
    pruning: Any = pruning_impl.Pruning(
        lambda: 1,
        [(tf.Variable(scores), found, tf.Variable(0.0))],
        pruning_schedule.ConstantSparsity(sparsity, begin_step=0, frequency=1),
        block,
        "AVG",
        m_by_n,
    )
    pruning.conditional_mask_update()
    kept: NDArray[np.bool_] = found.numpy().astype(bool)
    return kept


def share_at(step: int, end: int, updates: int) -> float | None:
    """The share of the wanted sparsity due at a step of a cubic rise from 0 to `end`; None between its updates.

    ref: Zhu and Gupta 2017, equation 1.
    """
    frequency = max(1, end // updates)
    last = end - end % frequency
    due, share = pruning_schedule.PolynomialDecay(0.0, _NEARLY_ALL, 0, last, frequency=frequency)(step)
    return (1.0 if step == last else float(share)) if bool(due) else None


def centroids(values: NDArray[np.float32], count: int, initialization: Initialization) -> NDArray[np.float32]:
    """`count` values to start clustering float32 `values`, [n], from; in no order, and some perhaps equal."""
    found: NDArray[np.float32] = _CENTROIDS[initialization](tf.constant(values), count).get_cluster_centroids().numpy()
    return found


class Rounded(quantizers.Quantizer):  # type: ignore[misc]
    """Rounds weights to int8 by channel, or activations, where no axes are given, over the whole batch.

    Unlike TF-MOT's it holds no ranges: theirs start at -6 to 6, follow in thousands of steps, and move in training
    alone, while fine-tuning runs layers as in inference. A calibration gives the flatbuffer's in the end.
    """

    def __init__(self, axes: Sequence[int] = ()) -> None:
        self.axes = tuple(axes)

    def build(self, *_: Any) -> dict[str, Any]:
        """No variables."""
        return {}

    def __call__(self, inputs: Any, *_: Any, **__: Any) -> Any:
        """The tensor, rounded, in training or not."""
        return rounding.weights(inputs, self.axes) if self.axes else rounding.activations(inputs)

    def get_config(self) -> dict[str, Any]:
        """Plain data: training may copy the model."""
        return {"axes": self.axes}


class Int8(default_8bit.Default8BitQuantizeConfig):  # type: ignore[misc]
    """What of a layer is rounded, by TF-MOT's names; how, by `Rounded`."""

    def __init__(
        self, *, weight_attrs: list[str], activation_attrs: list[str], quantize_output: bool, axes: Sequence[int]
    ) -> None:
        super().__init__(weight_attrs, activation_attrs, quantize_output)
        self.axes = tuple(axes)
        self.weight_quantizer, self.activation_quantizer = Rounded(axes), Rounded()

    def get_config(self) -> dict[str, Any]:
        """Plain data."""
        return {**super().get_config(), "axes": self.axes}


def refusal(layer: Any) -> str:
    """The kind of a layer that TF-MOT has no rule of int8 for, or whose activation it has none for; else empty."""
    kind = type(layer).__name__
    if not _REGISTRY.supports(layer):
        return kind
    found = _REGISTRY.get_quantize_config(layer)
    named = {_name(activation) for activation, _ in found.get_activations_and_quantizers(layer)}
    try:
        found.get_output_quantizers(layer)
    except ValueError:  # Its answer to an `Activation` of another kind.
        named = {_name(layer.activation)}
    return f"{kind} with {', '.join(unknown)}" if (unknown := sorted(named - _ACTIVATIONS)) else ""


def rounded(layer: Any, axes: Sequence[int], *, fused: bool) -> Any:
    """An unbuilt layer inside TF-MOT's wrapper, under its own name: kernel and outputs rounded to int8 in each call.

    `axes` index the kernel's channels. What a `fused` layer gives is not rounded: in a flatbuffer it is one operator
    with the activation behind it. TF-MOT's rules say what else is; the layer must be one without a `refusal`.
    """
    found = _REGISTRY.get_quantize_config(layer)
    rules = found.get_config()
    config = Int8(
        weight_attrs=rules.get("weight_attrs", []),
        activation_attrs=[] if fused else rules.get("activation_attrs", []),
        quantize_output=bool(found.get_output_quantizers(layer)) and not fused,
        axes=axes,
    )
    return quantize_wrapper.QuantizeWrapperV2(layer, config, name_prefix="")


def rounded_input(tensor: Any) -> Any:
    """A model's input as int8 stands for it."""
    return quantize_layer.QuantizeLayer(Rounded(), name=f"{tensor.node.layer.name}_int8")(tensor)


def scope() -> Any:
    """A context in which layers made by `rounded` can be made anew from their configuration."""
    return quantize.quantize_scope({"Rounded": Rounded, "Int8": Int8})


def _name(activation: Any) -> str:
    return str(getattr(activation, "__name__", type(activation).__name__))
