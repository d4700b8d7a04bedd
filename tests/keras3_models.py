"""Small Keras 3 models, one for each thing that a Keras 3 file may hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import keras
import numpy as np
import own_layers
from keras import layers, ops


def randomized(model: Any) -> Any:
    """Weights that no initializer gives: a twin that kept zeros, ones or a wrong order computes something else."""
    random = np.random.default_rng(7)
    values = [random.uniform(0.1, 0.6, weight.shape) for weight in model.weights]
    signs = [random.choice([-1.0, 1.0], weight.shape) if "kernel" in weight.path else 1.0 for weight in model.weights]
    model.set_weights([(value * sign).astype("float32") for value, sign in zip(values, signs, strict=True)])
    for layer in model.layers:
        if isinstance(layer, layers.Normalization):
            layer.finalize_state()  # It computes with a copy of its weights.
    return model


def alive(model: Any) -> Any:
    """Batch statistics of a trained net: with those of a new one, its signal dies out on the way."""
    random = np.random.default_rng(5)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            spread = [random.uniform(0.5, 1.5, w.shape) if "variance" in w.path else w.numpy() for w in layer.weights]
            layer.set_weights([value + 0.05 * random.standard_normal(value.shape) for value in spread])
    return model


def inputs_of(model: Any) -> list[np.ndarray[Any, Any]]:
    """Data in the order of the model's flat inputs, with the zeros that Masking masks where there is one."""
    random = np.random.default_rng(3)
    integers = [random.integers(0, 11, (3, *t.shape[1:])).astype("int32") for t in model.inputs]
    floats = [random.normal(0, 2, (3, *t.shape[1:])).astype("float32") for t in model.inputs]
    for array in floats if any(isinstance(layer, layers.Masking) for layer in model.layers) else ():
        array[0, 2:] = 0
    return [i if t.dtype == "int32" else f for t, i, f in zip(model.inputs, integers, floats, strict=True)]


def cnn() -> Any:
    return keras.Sequential(
        [
            keras.Input((8, 8, 3), name="image"),
            layers.Conv2D(4, 3, padding="same", use_bias=False, kernel_regularizer="l2"),
            layers.BatchNormalization(epsilon=0.01),
            layers.ReLU(max_value=6.0, negative_slope=0.1),
            layers.MaxPooling2D(),
            layers.Dropout(0.3, seed=1),
            layers.Flatten(),
            layers.Dense(5, activation="softmax", name="scores"),
        ],
        name="cnn",
    )


def residual() -> Any:
    image = keras.Input((8, 8, 3), name="image")
    x = layers.ZeroPadding2D(1)(layers.Rescaling(0.5, offset=-1.0)(image))
    x = layers.PReLU(shared_axes=[1, 2])(layers.SeparableConv2D(6, 3, activation="silu")(x))
    y = layers.LeakyReLU(negative_slope=0.2)(layers.DepthwiseConv2D(3, padding="same", depth_multiplier=1)(x))
    y = layers.LayerNormalization()(layers.add([x, y]))
    pooled = layers.Concatenate()([layers.GlobalAveragePooling2D()(y), layers.GlobalMaxPooling2D()(x)])
    return keras.Model(image, layers.Dense(4, activation="gelu")(pooled), name="residual")


def two_in_two_out() -> Any:
    left, right = keras.Input((4,), name="zeta"), keras.Input((6,), name="alpha")
    joined = layers.Concatenate()([layers.Dense(3, name="d_left")(left), layers.Dense(3, name="d_right")(right)])
    return keras.Model([left, right], [layers.Dense(2, name="second")(joined), layers.Dense(1, name="first")(joined)])


def dictionaries() -> Any:
    inputs = {"zeta": keras.Input((4,), name="zeta"), "alpha": keras.Input((6,), name="alpha")}
    joined = layers.Concatenate()([inputs["zeta"], inputs["alpha"]])
    return keras.Model(inputs, {"z": layers.Dense(2, name="z")(joined), "a": layers.Dense(1, name="a")(joined)})


def recurrent() -> Any:
    sequence = keras.Input((5, 3), name="sequence")
    x = layers.LSTM(4, return_sequences=True)(sequence)
    x = layers.Bidirectional(layers.GRU(3, return_sequences=True, reset_after=False))(x)
    x, state = layers.GRU(4, return_state=True)(layers.TimeDistributed(layers.Dense(4))(x))
    return keras.Model(sequence, layers.Add()([x, state]))


def attention() -> Any:
    sequence = keras.Input((5, 8), name="sequence")
    attended = layers.MultiHeadAttention(2, 3, value_dim=5)(sequence, sequence)
    return keras.Model(sequence, layers.LayerNormalization(epsilon=1e-5)(layers.Add()([sequence, attended])))


def causal_attention() -> Any:
    sequence = keras.Input((5, 8), name="sequence")
    attended = layers.MultiHeadAttention(2, 3)(sequence, sequence, use_causal_mask=True)
    return keras.Model(sequence, layers.Dense(2)(attended))


def tokens() -> Any:
    start = keras.Input((6,), dtype="int32", name="ids")
    return keras.Sequential([start, layers.Embedding(11, 4, mask_zero=True), layers.LSTM(3), layers.Dense(2)])


def masked() -> Any:
    return keras.Sequential([keras.Input((5, 3)), layers.Masking(0.0), layers.Bidirectional(layers.GRU(3))])


def nested() -> Any:
    inner_input = keras.Input((6, 6, 2))
    inner = keras.Sequential([layers.Conv2D(3, 3, name="c"), layers.BatchNormalization(name="n")], name="inner")
    middle = keras.Model(inner_input, inner(inner_input), name="middle")
    image = keras.Input((6, 6, 2), name="image")
    return keras.Model(image, layers.Concatenate()([middle(image), middle(layers.ReLU()(image))]))


def shared() -> Any:
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    tower = layers.Dense(3, activation="tanh", name="tower")
    return keras.Model([left, right], layers.Dot(axes=1)([tower(left), tower(right)]))


def time_distributed_model() -> Any:
    frames = keras.Input((3, 6, 6, 1), name="frames")
    stack = [layers.Flatten(), layers.Dense(3), layers.BatchNormalization(), layers.Dense(3)]
    per_frame = keras.Sequential([keras.Input((6, 6, 1)), layers.Conv2D(2, 3), *stack])
    return keras.Model(frames, layers.LSTM(2)(layers.TimeDistributed(per_frame)(frames)))


def hard_activations() -> Any:
    image = keras.Input((4,), name="features")
    x = layers.Dense(4, activation="hard_sigmoid", name="inside")(image)
    x = layers.Activation("hard_swish", name="after")(layers.Dense(4, activation="relu6")(x))
    return keras.Model(image, layers.Activation("hard_sigmoid", name="gate")(x))


def normalized() -> Any:
    features = keras.Input((3,), name="features")
    return keras.Model(features, layers.Dense(2)(layers.Normalization()(features)))


def hard_recurrent() -> Any:
    sequence = keras.Input((5, 3), name="sequence")
    x = layers.LSTM(4, recurrent_activation="hard_sigmoid", return_sequences=True, go_backwards=True)(sequence)
    x = layers.Bidirectional(layers.GRU(3, recurrent_activation="hard_sigmoid", return_sequences=True))(x)
    return keras.Model(sequence, layers.GRU(2, recurrent_activation="hard_sigmoid", reset_after=False)(x))


def states() -> Any:
    sequence = keras.Input((5, 3), name="sequence")
    return keras.Model(sequence, layers.LSTM(4, return_state=True, name="memory")(sequence))


def masked_attention() -> Any:
    ids = keras.Input((6,), dtype="int32", name="ids")
    embedded = layers.Embedding(11, 8, mask_zero=True)(ids)
    attended = layers.LSTM(3, return_sequences=True)(layers.MultiHeadAttention(2, 4)(embedded, embedded))
    return keras.Model(ids, layers.GlobalAveragePooling1D()(attended))


def given_mask() -> Any:
    ids = keras.Input((6,), dtype="int32", name="ids")
    embedded = layers.Embedding(11, 8, mask_zero=True)(ids)
    return keras.Model(ids, layers.GRU(3)(embedded, mask=ops.greater(ids, 3)))


def called_twice() -> Any:
    inner_input = keras.Input((6, 6, 2))
    convolved = layers.PReLU(name="p")(layers.Conv2D(3, 3, name="c")(inner_input))
    inner = keras.Model(inner_input, [convolved, layers.Flatten(name="f")(convolved)], name="inner")
    left, right = keras.Input((6, 6, 2), name="left"), keras.Input((6, 6, 2), name="right")
    (image, flat), (_, other) = inner(left), inner(right)
    return keras.Model({"left": left, "right": right}, {"joined": layers.Add()([flat, other]), "image": image})


def between_layers() -> Any:
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same")(image)
    x = ops.add(x, ops.mean(x, axis=-1, keepdims=True))
    x = ops.reshape(layers.RMSNormalization(name="rms")(x), (-1, 64, 4))
    x = layers.GroupQueryAttention(4, 2, 1)(x * 0.5 + x, x)
    return keras.Model(image, layers.Dense(2)(layers.Flatten()(x[:, :8])))


def odd_activations() -> Any:
    features = keras.Input((4,), name="features")
    x = layers.Dense(4, activation="log_softmax")(layers.Dense(4, activation="gelu")(features))
    return keras.Model(features, layers.Dense(3, activation="hard_shrink")(layers.Activation("celu")(x)))


def own_layer() -> Any:
    left, right = keras.Input((6, 6, 2), name="left"), keras.Input((6, 6, 2), name="right")
    gated = own_layers.Gated(3, name="gated")
    joined = layers.Flatten()(layers.Concatenate()([gated(left), gated(right)]))
    return keras.Model([left, right], layers.Dense(2, activation=own_layers.softsign_squared)(joined))


def frames() -> Any:
    video = keras.Input((3, 6, 6, 1), name="video")
    x = layers.TimeDistributed(layers.DepthwiseConv2D(3, padding="same"))(video)
    return keras.Model(video, layers.TimeDistributed(layers.Dense(2))(layers.TimeDistributed(layers.Flatten())(x)))


_SETTINGS: Final = {"weights": None, "input_shape": (32, 32, 3), "classes": 10, "classifier_activation": None}


def mobilenet_v2() -> Any:
    return keras.applications.MobileNetV2(**_SETTINGS)


def mobilenet_v3_small() -> Any:
    return keras.applications.MobileNetV3Small(**_SETTINGS)


def efficientnet_b0() -> Any:
    return keras.applications.EfficientNetB0(**_SETTINGS)


def resnet_50() -> Any:
    return keras.applications.ResNet50(**_SETTINGS)


TRANSLATED: Final[tuple[Callable[[], Any], ...]] = (
    cnn,
    residual,
    two_in_two_out,
    dictionaries,
    recurrent,
    attention,
    causal_attention,
    tokens,
    masked,
    nested,
    shared,
    time_distributed_model,
    hard_activations,
    normalized,
    hard_recurrent,
    states,
    masked_attention,
    called_twice,
    frames,
)
TRACED: Final[tuple[Callable[[], Any], ...]] = (given_mask, between_layers, odd_activations, own_layer)
APPLICATIONS: Final[tuple[Callable[[], Any], ...]] = (mobilenet_v2, mobilenet_v3_small, efficientnet_b0, resnet_50)
