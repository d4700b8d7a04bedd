"""A frozen graph becomes live layers that compute the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from graphs import lifted, of_keras
from hypothesis import given, settings
from hypothesis import strategies as st
from projects import shared
from tf_keras import layers

from edgebuild.export import convert
from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest import float_model, load, parity
from edgebuild.pipeline.ingest.graph.layers import Operator
from edgebuild.pipeline.ingest.source import plain

PRUNABLE = ("Conv1D", "Conv2D", "Conv3D", "Conv2DTranspose", "Dense", "DepthwiseConv2D", "Embedding")
ROUNDING = 1e-5  # The order of float32 additions differs where weights are folded; a wrong weight shows above 1e-3.
GROWTH = 1.02  # A lifted model may carry a few reshapes more than its source.
random = np.random.default_rng(7)


def weights(*shape: int) -> Any:
    return tf.constant(random.normal(size=shape) / np.sqrt(max(int(np.prod(shape[:-1])), 1)), tf.float32)


def kinds(model: Any) -> list[str]:
    """Layers by class, operators by what they call, inputs left out."""
    named = [
        layer.get_config()["operator"] if isinstance(layer, Operator) else type(layer).__name__
        for layer in model.layers
    ]
    return [name for name in named if name != "InputLayer"]


def agree(function: Callable[..., Any], *shapes: Sequence[int | None], dtype: str = "float32") -> Any:
    """Lift a function of tensors with the given shapes, and hold the model to it on data of its own."""
    specs = [tf.TensorSpec(shape, dtype) for shape in shapes]
    model = lifted(function, *specs)
    data = np.random.default_rng(3)
    arrays = [data.normal(size=[size or 2 for size in shape]).astype(dtype) for shape in shapes]
    wanted = [np.asarray(each) for each in tf.nest.flatten(function(*map(tf.constant, arrays)))]
    assert parity.relative_error(wanted, parity.outputs(model, arrays)) <= ROUNDING
    return model


IMAGE = (None, 8, 8, 4)
ROW = (None, 6)


@pytest.mark.parametrize("padding", ["SAME", "VALID", [[0, 0], [1, 2], [0, 3], [0, 0]]], ids=str)
@pytest.mark.parametrize(("strides", "dilations"), [(1, 1), (2, 1), (1, 2), ([1, 2], 1), (2, 2)])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_of_every_setting(padding: Any, strides: Any, dilations: int, groups: int) -> None:
    kernel = weights(3, 3, 4 // groups, 6)
    model = agree(lambda x: tf.nn.conv2d(x, kernel, strides, padding, dilations=dilations), IMAGE)
    assert any(isinstance(layer, Operator) for layer in model.layers) == (strides == dilations == 2)
    assert model.count_params() == np.prod(kernel.shape)


@pytest.mark.parametrize("multiplier", [1, 3])
@pytest.mark.parametrize(("strides", "dilations"), [(1, 1), (2, 1), (1, 2)])
def test_depthwise_convolutions(multiplier: int, strides: int, dilations: int) -> None:
    kernel = weights(3, 3, 4, multiplier)
    model = agree(
        lambda x: tf.nn.depthwise_conv2d(x, kernel, [1, strides, strides, 1], "SAME", dilations=[dilations] * 2), IMAGE
    )
    assert kinds(model) == ["DepthwiseConv2D"]


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CAUSAL"])
def test_dilated_convolutions_over_lines(padding: str) -> None:
    kernel, bias = weights(3, 4, 5), weights(5)

    def function(x: Any) -> Any:
        left, rest = ([[0, 0], [4, 0], [0, 0]], "VALID") if padding == "CAUSAL" else ([[0, 0]] * 3, padding)
        return tf.nn.relu(tf.nn.convolution(tf.pad(x, left), kernel, padding=rest, dilations=2) + bias)

    model = agree(function, (None, 11, 4))
    assert "SpaceToBatchND" not in kinds(model)
    assert model.count_params() == 3 * 4 * 5 + 5


def test_a_group_a_channel_is_a_depthwise_convolution() -> None:
    kernel = weights(3, 3, 1, 8)
    assert kinds(agree(lambda x: tf.nn.conv2d(x, kernel, 1, "SAME"), IMAGE)) == ["DepthwiseConv2D"]


def fits(size: int, width: int, padding: Any, axis: int) -> bool:
    """Whether a convolution with stride 2 makes 8 of the size."""
    padded = size if isinstance(padding, str) else size + sum(padding[axis])
    return (-(-padded // 2) if padding == "SAME" else (padded - width) // 2 + 1) == 8


@pytest.mark.parametrize("padding", ["SAME", "VALID", [[0, 0], [1, 1], [0, 1], [0, 0]]], ids=str)
@pytest.mark.parametrize(("size", "width"), [(15, 2), (16, 2), (15, 3), (16, 3), (17, 3), (17, 4)])
def test_transposed_convolutions_of_every_size_that_tensorflow_takes(padding: Any, size: int, width: int) -> None:
    kernel, bias = weights(width, width, 5, 4), weights(5)

    def function(x: Any) -> Any:
        y = tf.nn.conv2d_transpose(x, kernel, tf.stack([tf.shape(x)[0], size, size, 5]), 2, padding)
        return tf.nn.bias_add(y, bias)

    if not fits(size, width, padding, 1) or not fits(size, width, padding, 2):
        with pytest.raises(ModelError, match="can't"):
            lifted(function, tf.TensorSpec(IMAGE))
        return
    assert set(kinds(agree(function, IMAGE))) <= {"Conv2DTranspose", "Cropping2D"}


def test_a_convolution_in_three_dimensions() -> None:
    kernel = weights(2, 2, 2, 3, 4)
    model = agree(lambda x: tf.nn.conv3d(x, kernel, [1] * 5, "SAME") + weights_of_four, (None, 4, 4, 4, 3))
    assert kinds(model) == ["Conv3D"]
    assert model.count_params() == 8 * 3 * 4 + 4


weights_of_four = weights(4)


def test_a_line_convolution_is_one_over_images_of_height_one() -> None:
    kernel, bias = weights(3, 4, 5), weights(5)
    model = agree(lambda x: tf.nn.bias_add(tf.nn.conv1d(x, kernel, 1, "SAME"), bias), (None, 9, 4))
    assert kinds(model) == ["Reshape", "Conv2D", "Reshape"]
    assert model.count_params() == 3 * 4 * 5 + 5


@pytest.mark.parametrize("shape", [(4,), (1, 1, 1, 4), (), (1, 4)], ids=str)
def test_constants_a_channel_after_a_convolution_go_into_it(shape: tuple[int, ...]) -> None:
    kernel, factor, summand = weights(3, 3, 4, 4), weights(*shape) + 2, weights(*shape)
    model = agree(lambda x: (summand - tf.nn.conv2d(x, kernel, 1, "SAME") * factor) / factor, IMAGE)
    assert kinds(model) == ["Conv2D"]


@pytest.mark.parametrize(
    ("before", "wanted"), [(tf.nn.relu, "ZeroPadding2D"), (tf.identity, "MirrorPad")], ids=["positive", "any"]
)
@pytest.mark.parametrize(("size", "border"), [(3, 1), (2, 1), (5, 2), (3, 2), (7, 6), (12, 10)])
def test_a_border_of_the_lowest_number_before_pooling_is_said_without_it(
    before: Callable[[Any], Any], wanted: str, size: int, border: int
) -> None:
    """Quantized, it would leave nothing of the tensor's range."""
    pads = [[0, 0], [border, border], [border, border], [0, 0]]

    def function(x: Any) -> Any:
        return tf.nn.max_pool2d(tf.pad(before(x), pads, constant_values=float("-inf")), size, 2, "VALID")

    model = agree(function, IMAGE)
    assert wanted in kinds(model)
    assert "PadV2" not in kinds(model)


@pytest.mark.parametrize("shape", [(None, 1, 1, 4), (None, 2, 8, 4)], ids=str)
def test_a_border_wider_than_its_image_is_said_without_the_lowest_number(shape: tuple[int | None, ...]) -> None:
    pads = [[0, 0], [4, 3], [2, 4], [0, 0]]

    def function(x: Any) -> Any:
        return tf.nn.max_pool2d(tf.pad(x, pads, constant_values=float("-inf")), [6, 5], 1, "VALID")

    assert "PadV2" not in kinds(agree(function, shape))


@pytest.mark.parametrize("before", [tf.nn.relu, tf.identity], ids=["positive", "any"])
def test_windows_that_see_nothing_but_border_keep_their_lowest_number(before: Callable[[Any], Any]) -> None:
    pads = [[0, 0], [3, 3], [3, 3], [0, 0]]

    def function(x: Any) -> Any:
        return tf.nn.max_pool2d(tf.pad(before(x), pads, constant_values=float("-inf")), 3, 1, "VALID")

    assert "PadV2" in kinds(agree(function, IMAGE))


def test_a_border_of_minus_one_after_relu_is_not_taken_for_what_is_never_negative() -> None:
    pads = [[0, 0], [2, 2], [2, 2], [0, 0]]

    def function(x: Any) -> Any:
        y = tf.pad(tf.nn.relu(x) - 0.0, pads, constant_values=-1.0)
        return tf.nn.max_pool2d(tf.pad(y, pads, constant_values=float("-inf")), 3, 1, "VALID")

    assert kinds(agree(function, IMAGE)).count("MirrorPad") == 2


def test_a_node_named_under_a_pooling_s_border_keeps_its_place() -> None:
    pads = [[0, 0], [2, 2], [2, 2], [0, 0]]

    def function(x: Any) -> Any:
        y = tf.pad(x, pads, constant_values=float("-inf"), name="border")
        return tf.nn.relu(tf.nn.max_pool2d(y, 3, 1, "VALID"), name="border/1")

    assert kinds(agree(function, IMAGE)) == ["MirrorPad", "MirrorPad", "MaxPooling2D", "ReLU"]


def test_nothing_is_folded_through_a_tensor_that_is_used_twice() -> None:
    kernel = weights(6, 6)

    def function(x: Any) -> Any:
        y = x @ kernel
        return y + 1.0, tf.nn.relu(y)

    assert kinds(agree(function, ROW)) == ["Dense", "AddV2", "ReLU"]


def test_nothing_is_folded_through_an_output() -> None:
    kernel = weights(6, 6)

    def function(x: Any) -> Any:
        y = x @ kernel
        return y, y + weights_of_six

    assert "Dense" in kinds(agree(function, ROW))


weights_of_six = weights(6)


def test_a_constant_of_another_axis_is_not_taken_for_one_a_channel() -> None:
    kernel, rows = weights(3, 3, 4, 8), weights(8, 1, 1)
    assert kinds(agree(lambda x: tf.nn.conv2d(x, kernel, 1, "SAME") * rows, IMAGE)) == ["Conv2D", "Mul"]


def test_a_constant_that_adds_axes_is_not_folded() -> None:
    kernel, more = weights(6, 6), weights(3, 1, 6)
    agree(lambda x: x @ kernel + more, (1, 6))


@pytest.mark.parametrize("epsilon", [1e-3, 1e-5, 1e-7])
def test_batch_normalization_stays_one(epsilon: float) -> None:
    gamma, beta, mean, variance = weights(4), weights(4), weights(4), tf.constant([1e-4, 0.5, 1.0, 2.0])

    def function(x: Any) -> Any:
        return tf.raw_ops.FusedBatchNormV3(
            x=x, scale=gamma, offset=beta, mean=mean, variance=variance, epsilon=epsilon, is_training=False
        ).y

    model = agree(function, IMAGE)
    assert kinds(model) == ["BatchNormalization"]
    assert len(model.trainable_weights) == 2


@pytest.mark.parametrize("transpose", [False, True])
def test_products_with_a_constant_matrix_are_dense(*, transpose: bool) -> None:
    kernel = weights(5, 6) if transpose else weights(6, 5)
    model = agree(lambda x: tf.matmul(x, kernel, transpose_b=transpose) + 1.0, ROW)
    assert kinds(model) == ["Dense"]
    assert model.count_params() == 35


def test_a_product_over_the_last_axis_of_several_is_dense() -> None:
    kernel, bias = weights(6, 5), weights(5)
    assert kinds(agree(lambda x: tf.tensordot(x, kernel, 1) + bias, (None, 3, 6))) == ["Dense"]
    assert kinds(agree(lambda x: tf.matmul(x, kernel[None]) + bias, (None, 3, 6))) == ["Dense"]


def test_a_product_from_the_left_is_none() -> None:
    kernel = weights(5, 3)
    assert kinds(agree(lambda x: tf.matmul(kernel, x), (None, 3, 6))) == ["BatchMatMulV2"]


@pytest.mark.parametrize(
    ("equation", "kernel", "bias"),
    [("abc,cd->abd", (6, 5), (5,)), ("abc,cde->abde", (6, 2, 3), (2, 3)), ("abcd,cde->abe", (6, 2, 5), (5,))],
)
def test_einsums_of_attention_are_dense(equation: str, kernel: tuple[int, ...], bias: tuple[int, ...]) -> None:
    w, b = weights(*kernel), weights(*bias)
    shape = (None, 3, 6, 2) if equation.startswith("abcd") else (None, 3, 6)
    model = agree(lambda x: tf.einsum(equation, x, w) + b, shape)
    assert set(kinds(model)) <= {"Dense", "Reshape"}
    assert model.count_params() == np.prod(kernel) + np.prod(bias)


def test_other_einsums_stay_operators() -> None:
    w = weights(6, 3)
    assert kinds(agree(lambda x: tf.einsum("abc,cb->ac", x, w), (None, 3, 6))) == ["Einsum"]


def test_a_look_up_in_a_table_is_an_embedding() -> None:
    table = weights(9, 3)
    model = lifted(lambda ids: tf.gather(table, ids), tf.TensorSpec((None, 5), tf.int32))
    assert kinds(model) == ["Embedding"]
    np.testing.assert_array_equal(model(np.array([[0, 8, 3, 3, 1]])), np.asarray(table)[[[0, 8, 3, 3, 1]]])


def test_a_slope_a_channel_is_a_prelu() -> None:
    slope = weights(1, 1, 4)
    assert kinds(agree(lambda x: tf.nn.relu(x) + slope * tf.nn.relu(-x), IMAGE)) == ["PReLU"]


SIMPLE: dict[str, tuple[Callable[[Any], Any], tuple[int | None, ...], list[str]]] = {
    "relu": (tf.nn.relu, IMAGE, ["ReLU"]),
    "relu6": (tf.nn.relu6, IMAGE, ["ReLU"]),
    "leaky": (tf.nn.leaky_relu, IMAGE, ["LeakyReLU"]),
    "tanh": (tf.tanh, ROW, ["Activation"]),
    "swish": (tf.nn.silu, ROW, ["Activation", "Multiply"]),
    "softmax": (tf.nn.softmax, ROW, ["Softmax"]),
    "max_pool": (lambda x: tf.nn.max_pool2d(x, [2, 3], 2, "SAME"), IMAGE, ["MaxPooling2D"]),
    "avg_pool": (lambda x: tf.nn.avg_pool2d(x, 3, [1, 2], "VALID"), IMAGE, ["AveragePooling2D"]),
    "global": (lambda x: tf.reduce_mean(x, [1, 2]), IMAGE, ["GlobalAveragePooling2D"]),
    "global_kept": (lambda x: tf.reduce_max(x, [-2, 1], keepdims=True), IMAGE, ["GlobalMaxPooling2D"]),
    "steps": (lambda x: tf.reduce_mean(x, 1), (None, 5, 3), ["GlobalAveragePooling1D"]),
    "channels": (lambda x: tf.reduce_mean(x, -1), IMAGE, ["Mean"]),
    "pad": (lambda x: tf.pad(x, [[0, 0], [1, 2], [0, 3], [0, 0]]), IMAGE, ["ZeroPadding2D"]),
    "pad_ones": (lambda x: tf.pad(x, [[0, 0], [1, 2], [0, 3], [0, 0]], constant_values=1), IMAGE, ["PadV2"]),
    "pad_channels": (lambda x: tf.pad(x, [[0, 0], [0, 0], [0, 0], [0, 3]]), IMAGE, ["Pad"]),
    "flatten": (lambda x: tf.reshape(x, [tf.shape(x)[0], -1]), IMAGE, ["Flatten"]),
    "reshape": (lambda x: tf.reshape(x, [-1, 16, 4, 4]), IMAGE, ["Reshape"]),
    "rows": (lambda x: tf.reshape(tf.reshape(x, [-1, 4]) * 2, [-1, 8, 8, 4]), IMAGE, ["Reshape", "Mul", "Reshape"]),
    "permute": (lambda x: tf.transpose(x, [0, 2, 1, 3]), IMAGE, ["Permute"]),
    "transpose": (lambda x: tf.transpose(tf.transpose(x, [1, 0, 2, 3]), [1, 0, 2, 3]), IMAGE, ["Transpose"] * 2),
    "add": (lambda x: tf.tanh(x) + x, ROW, ["Activation", "Add"]),
    "gates": (lambda x: x * tf.reduce_mean(x, [1, 2], keepdims=True), IMAGE, ["GlobalAveragePooling2D", "Multiply"]),
    "concat": (lambda x: tf.concat([x, tf.tanh(x)], -1), ROW, ["Activation", "Concatenate"]),
    "batch_concat": (lambda x: tf.concat([x, x], 0)[:1] + x, ROW, ["ConcatV2", "StridedSlice", "AddV2"]),
    "split": (lambda x: tf.add_n(tf.split(x, 3, 1)), ROW, ["Split", "Add"]),
    "top": (lambda x: list(tf.math.top_k(x, 3)), ROW, ["TopKV2"]),
    "clip": (lambda x: tf.clip_by_value(x, -0.5, 0.5), ROW, ["Minimum", "Maximum"]),
    "doubled": (lambda x: tf.image.resize(x, tf.shape(x)[1:3] * 2), IMAGE, ["ResizeBilinear"]),
    "neutral": (lambda x: tf.identity(tf.stop_gradient(x) * 1.0 + 0.0) @ tf.eye(6), ROW, ["Dense"]),
    "constants": (lambda x: x + tf.reduce_sum(tf.range(10.0) ** 2), ROW, ["AddV2"]),
}


@pytest.mark.parametrize("name", SIMPLE)
def test_operators_become_keras_layers_where_those_are_the_same(name: str) -> None:
    function, shape, wanted = SIMPLE[name]
    assert kinds(agree(function, shape)) == wanted


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_types_other_than_float32_are_kept(dtype: str) -> None:
    kernel = tf.cast(weights(6, 3), dtype)
    specs = tf.TensorSpec(ROW, dtype)
    model = lifted(lambda x: tf.nn.relu(x @ kernel + kernel[0]) * kernel[1], specs)
    assert {weight.dtype.name for weight in model.weights} == {dtype}
    assert model.output.dtype.name == dtype


def test_channels_first_is_computed_channels_last() -> None:
    """TensorFlow does not run such a graph on a plain CPU; XLA does, and is what the layers are compared with."""
    kernel, bias = weights(3, 3, 4, 5), weights(5)

    def function(x: Any) -> Any:
        y = tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME", data_format="NCHW"), bias, data_format="NCHW")
        z = tf.nn.max_pool2d(tf.nn.relu(y) + y, 2, 2, "VALID", data_format="NCHW")
        return tf.reduce_mean(tf.concat([z, tf.nn.relu(z)], 1), [2, 3])

    model = lifted(function, tf.TensorSpec((None, 4, 8, 8)))
    found = kinds(model)
    assert found[0] == "Permute"
    assert found.count("Permute") == 1
    assert not any(isinstance(layer, Operator) for layer in model.layers)


def test_constants_behind_an_operator_are_live_weights() -> None:
    scale = weights(6, 4)
    model = agree(lambda x: x[..., None] * scale, ROW)
    assert [weight.shape for weight in model.trainable_weights] == [(6, 4)]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(tf.ones((2, 6))))
    np.testing.assert_allclose(tape.gradient(loss, model.trainable_weights[0]), 2.0)


def test_layers_that_were_shared_stay_shared() -> None:
    kernel, bias = weights(6, 6), weights(6)
    model = agree(lambda a, b: tf.tanh(a @ kernel + bias) - tf.tanh(b @ kernel + bias), ROW, ROW)
    assert kinds(model).count("Dense") == 1
    assert model.count_params() == 42


def test_layers_are_named_after_the_nodes_whatever_came_before() -> None:
    def build() -> Any:
        image = layers.Input((8, 8, 3))
        x = layers.Conv2D(4, 3, name="stem")(image)
        return tf_keras.Model(image, layers.Dense(2, name="head")(layers.Flatten(name="flat")(x)), name="net")

    names = [[layer.name for layer in of_keras(build()).layers] for _ in range(2)]
    assert names[0] == names[1]
    assert names[0][1:] == ["stem", "flat_Reshape", "head"]


def trained(model: Any) -> Any:
    """With weights that are not those of initializers: a bias of zeros is no bias."""
    values = np.random.default_rng(5)
    model.set_weights([values.uniform(0.1, 0.5, weight.shape).astype("float32") for weight in model.weights])
    return model


def recurrent(cell: Any, **settings: Any) -> Callable[[], Any]:
    def build() -> Any:
        steps = layers.Input((5, 3))
        return tf_keras.Model(steps, layers.Dense(2)(cell(4, **settings)(steps)))

    return build


def attention() -> Any:
    steps = layers.Input((6, 8))
    x = layers.LayerNormalization()(layers.Add()([steps, layers.MultiHeadAttention(2, 4)(steps, steps)]))
    return tf_keras.Model(steps, layers.LayerNormalization()(layers.Dense(8, activation="gelu")(x)))


def segmentation() -> Any:
    image = layers.Input((16, 16, 3))
    a = layers.Conv2D(8, 3, padding="same", activation="relu")(image)
    b = layers.Conv2D(8, 3, padding="same", dilation_rate=2, activation="relu6")(layers.MaxPooling2D()(a))
    c = layers.Concatenate()([a, layers.Conv2DTranspose(8, 2, strides=2)(layers.BatchNormalization()(b))])
    return tf_keras.Model(image, layers.Conv2D(2, 1, activation="softmax")(layers.PReLU(shared_axes=[1, 2])(c)))


def grouped() -> Any:
    image = layers.Input((8, 8, 4))
    x = layers.SeparableConv2D(6, 3)(layers.Conv2D(8, 3, groups=2, padding="same")(image))
    return tf_keras.Model(image, layers.GlobalMaxPooling2D()(layers.LeakyReLU()(x)))


ZOO = {
    "LSTM": (recurrent(layers.LSTM), 15),
    "GRU": (recurrent(layers.GRU, return_sequences=True), 15),
    "SimpleRNN": (recurrent(layers.SimpleRNN), 10),
    "unrolled GRU": (recurrent(layers.GRU, unroll=True), 150),
    "attention": (attention, 20),
    "segmentation": (segmentation, 0),
    "grouped": (grouped, 0),
}


@pytest.mark.parametrize("name", ZOO)
def test_whole_networks_compute_the_same_and_lose_no_weight(name: str) -> None:
    build, operators = ZOO[name]
    source = trained(build())
    model = of_keras(source)
    arrays = parity.seeded_inputs(source)
    assert parity.relative_error(parity.outputs(source, arrays), parity.outputs(model, arrays)) <= ROUNDING
    assert model.count_params() == source.count_params()
    assert sum(isinstance(layer, Operator) for layer in model.layers) <= operators


def gradients(model: Any, samples: Any) -> list[Any]:
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(samples) ** 2)
    found: list[Any] = tape.gradient(loss, model.trainable_weights, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return found


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_weights_that_a_loop_reads_can_be_trained(name: str, *, traced: bool) -> None:
    model = of_keras(ZOO[name][0]())
    found = (tf.function(gradients) if traced else gradients)(model, tf.ones((2, 5, 3)))
    assert len(found) == len(model.trainable_weights) > 3
    assert all(float(tf.reduce_max(tf.abs(gradient))) > 0 for gradient in found)


@pytest.mark.parametrize("name", ["attention", "unrolled GRU"])
def test_training_reaches_every_weight_through_operators(name: str) -> None:
    """In a graph, where training happens, as it does eagerly."""
    source = trained(ZOO[name][0]())
    model, samples = of_keras(source), list(parity.seeded_inputs(source))
    given = samples[0] if len(samples) == 1 else samples
    eager, traced = gradients(model, given), tf.function(gradients)(model, given)
    assert any(isinstance(layer, Operator) for layer in model.layers)
    scale = max(float(tf.reduce_max(tf.abs(gradient))) for gradient in eager)
    assert all(float(tf.reduce_max(tf.abs(gradient))) > 0 for gradient in traced)
    for one, two in zip(eager, traced, strict=True):  # An attention's key bias has none but rounding's.
        np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-5 * scale)


def tflite_size(model: Any, folder: Path) -> int:
    """Bytes of a float32 flatbuffer of a model that went through its two plain files."""
    folder.mkdir()
    float_model.save(plain(model), "test", folder)
    described = float_model.describe(folder)
    convert.freeze(float_model.rebuild(folder), described.inputs, described.outputs, folder / "frozen")
    return len(convert.to_float(folder / "frozen", "float32"))


@pytest.mark.parametrize("name", ["LSTM", "segmentation"])
def test_a_lifted_model_survives_as_data_and_converts(name: str, tmp_path: Path) -> None:
    source = ZOO[name][0]()
    slack = 2_000 if name == "LSTM" else 0  # A loop's functions carry names.
    assert (
        tflite_size(of_keras(source), tmp_path / "lifted") <= GROWTH * tflite_size(source, tmp_path / "source") + slack
    )


@pytest.mark.parametrize("name", ["LSTM", "attention", "grouped"])
def test_a_lifted_model_is_the_same_after_saving(name: str, tmp_path: Path) -> None:
    model = of_keras(ZOO[name][0]())
    float_model.save(plain(model), "test", tmp_path)
    arrays = parity.seeded_inputs(model)
    rebuilt = float_model.rebuild(tmp_path)
    for wanted, got in zip(parity.outputs(model, arrays), parity.outputs(rebuilt, arrays), strict=True):
        np.testing.assert_array_equal(wanted, got)


def test_functions_of_a_loop_are_named_by_what_they_hold() -> None:
    """TensorFlow numbers functions by what the process did before; equal models must give equal bytes."""
    source = ZOO["LSTM"][0]()
    texts = []
    for _ in range(2):
        operators = [layer for layer in of_keras(source).layers if isinstance(layer, Operator)]
        texts.append(next(layer.get_config()["functions"] for layer in operators if layer.weights))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("path", ["resnet8_cifar10/pretrainedResnet.h5", "mnist/lenet5_caffe.h5"])
def test_a_fixture_traced_to_a_graph_has_its_layers_again(path: str, tmp_path: Path) -> None:
    source = load.read(shared(path)).model
    model = of_keras(source)
    learned = [layer for layer in model.layers if layer.count_params() and type(layer).__name__ != "BatchNormalization"]
    assert all(type(layer).__name__ in PRUNABLE for layer in learned)
    assert model.count_params() == source.count_params()
    assert tflite_size(model, tmp_path / "lifted") <= GROWTH * tflite_size(source, tmp_path / "source")


def test_a_batch_of_one_is_made_free_where_that_changes_nothing() -> None:
    kernel = weights(6, 3)
    assert lifted(lambda x: x @ kernel, tf.TensorSpec((1, 6))).input_shape == (None, 6)


def test_a_batch_that_the_graph_mixes_stays_fixed() -> None:
    kernel = weights(6, 3)
    for function in (
        lambda x: tf.reduce_sum(x @ kernel, 0),
        lambda x: tf.reshape(x, [3, 2]) @ kernel[:2],
        tf.linalg.trace,
    ):
        assert lifted(function, tf.TensorSpec((1, 6))).input_shape == (1, 6)


def test_inputs_and_repeated_results_may_be_outputs() -> None:
    kernel = weights(6, 6)

    def function(x: Any) -> Any:
        y = x @ kernel
        return x, y, y

    model = lifted(function, tf.TensorSpec(ROW))
    data = np.ones((2, 6), "float32")
    x, y, again = model(data)
    np.testing.assert_array_equal(x, data)
    np.testing.assert_array_equal(y, again)
    assert len(set(model.output_names)) == 3


@given(st.lists(st.sampled_from(["dense", "relu", "add", "scale", "split", "double", "norm", "skip"]), max_size=6))
@settings(max_examples=10)
def test_any_chain_of_operators_computes_the_same(steps: list[str]) -> None:
    def function(x: Any) -> Any:
        first = x
        for step in steps:
            first, x = (x, CHAIN[step](x)) if step != "skip" else (first, x + first)
        return x + 0.5

    agree(function, (None, 4, 6))


_MATRIX, _SLOPE, _SIXES = weights(6, 6), weights(6) + 1.5, weights(6)
CHAIN: dict[str, Callable[[Any], Any]] = {
    "dense": lambda x: tf.tensordot(x, _MATRIX, 1),
    "relu": tf.nn.relu,
    "add": lambda x: x + _SIXES,
    "scale": lambda x: x * _SLOPE,
    "split": lambda x: tf.concat(tf.split(x, 2, -1)[::-1], -1),
    "double": lambda x: x + x,
    "norm": lambda x: (
        (x - tf.reduce_mean(x, -1, keepdims=True)) / tf.sqrt(tf.math.reduce_variance(x, -1, keepdims=True) + 1.0)
    ),
}


def test_samples_never_share_the_branch_of_a_graph_that_takes_one_at_a_time() -> None:
    """Where all seeded samples happen to take one branch, no comparison would tell."""

    def branching(x: Any) -> Any:
        return tf.cond(tf.reduce_sum(x) > -100, lambda: x * 2, lambda: x - 1)

    assert lifted(branching, tf.TensorSpec((1, 4))).input_shape == (1, 4)
