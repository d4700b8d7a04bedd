"""What a full-integer flatbuffer does to numbers, as a float computation that gradients pass through unchanged.

TF-MOT would use TensorFlow's fake quantization here. It rounds the same way; but its gradient is refused on a GPU that
has to be deterministic, and it has no rule for the channels of depthwise and transposed convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import tensorflow as tf

_WEIGHT_MAX: Final = 127  # ref: TFLite's quantization spec, weights are symmetric and -128 is left out.
_LOWEST, _HIGHEST = -128, 127
_TINY: Final = 1e-12  # Keeps what is all zero from being divided by zero.


def weights(values: Any, channel_axes: Sequence[int]) -> Any:
    """A kernel as its int8 values stand for it: a scale a channel, the largest magnitude at 127."""
    rest = [axis for axis in range(len(values.shape)) if axis not in channel_axes]
    scale = tf.maximum(tf.reduce_max(tf.abs(values), rest, keepdims=True), _TINY) / _WEIGHT_MAX
    return _through(values, tf.round(values / scale) * scale)


def activations(values: Any) -> Any:
    """A tensor as its int8 values stand for it: one scale from its least to its largest value, zero included."""
    least, most = tf.minimum(tf.reduce_min(values), 0.0), tf.maximum(tf.reduce_max(values), 0.0)
    scale = tf.maximum(most - least, _TINY) / (_HIGHEST - _LOWEST)
    zero = tf.round(_LOWEST - least / scale)
    stored = tf.clip_by_value(tf.round(values / scale) + zero, _LOWEST, _HIGHEST)
    return _through(values, (stored - zero) * scale)


def _through(values: Any, rounded: Any) -> Any:
    """`rounded`, with the gradient of `values`. ref: Bengio et al. 2013, the straight-through estimator."""
    return values + tf.stop_gradient(rounded - values)
