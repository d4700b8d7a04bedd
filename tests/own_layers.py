"""Layers of a user's own, as `--custom own_layers` brings them in: registered with both Kerases when imported."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
import tf_keras
from keras import ops


@keras.saving.register_keras_serializable("own")
class Gated(keras.layers.Layer):  # type: ignore[misc]
    """A convolution, and a gate of its own weights over it."""

    def __init__(self, filters: int, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.filters = filters
        self.conv = keras.layers.Conv2D(filters, 3, padding="same", name="conv")

    def build(self, shape: Any) -> None:
        self.conv.build(shape)
        self.gate = self.add_weight(shape=(self.filters, self.filters), name="gate")
        super().build(shape)

    def call(self, x: Any) -> Any:
        y = self.conv(x)
        return y * ops.sigmoid(ops.matmul(y, self.gate))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "filters": self.filters}


@keras.saving.register_keras_serializable("own")  # type: ignore[untyped-decorator]
def softsign_squared(x: Any) -> Any:
    return ops.square(x) / (1.0 + ops.abs(x))


@tf_keras.saving.register_keras_serializable("own")
class Residual(tf_keras.layers.Layer):  # type: ignore[misc]
    """A convolution, batch normalization and a short cut."""

    def __init__(self, filters: int, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.filters = filters
        self.conv = tf_keras.layers.Conv2D(filters, 3, padding="same", name="conv")
        self.norm = tf_keras.layers.BatchNormalization(name="norm")

    def build(self, shape: Any) -> None:
        self.conv.build(shape)
        self.norm.build((*shape[:-1], self.filters))
        super().build(shape)

    def call(self, x: Any) -> Any:
        return tf.nn.relu(self.norm(self.conv(x))) + x[..., :1]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "filters": self.filters}


@tf_keras.saving.register_keras_serializable("own")  # type: ignore[untyped-decorator]
def halved(x: Any) -> Any:
    return 0.5 * x / (1.0 + tf.abs(x))


class Unregistered(tf_keras.layers.Layer):  # type: ignore[misc]
    """A layer that nobody registered."""
