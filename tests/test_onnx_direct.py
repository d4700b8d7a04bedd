"""What onnx2tf can't convert is replayed operator by operator, and computes what onnxruntime computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx_models import FLOAT, cnn, model, node, one, weights

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest import parity
from edgebuild.pipeline.ingest.onnx import runtime as onnx_runtime
from edgebuild.pipeline.ingest.onnx.check import Input
from edgebuild.pipeline.ingest.onnx.conversion import Conversion, matches
from edgebuild.pipeline.ingest.onnx.direct import convert
from edgebuild.pipeline.ingest.onnx.match import match
from edgebuild.pipeline.ingest.onnx.parting import first_difference
from edgebuild.pipeline.ingest.onnx.prepare import prepare, simplified

SCALES = np.asarray([1, 1, 2, 1.5], np.float32)


def lstm() -> Any:
    return one("LSTM", [5, 2, 3], weights(1, 16, 3), weights(1, 16, 4), weights(1, 32), hidden_size=4)


def gru() -> Any:
    return one("GRU", [5, 2, 3], weights(2, 12, 3), weights(2, 12, 4), direction="bidirectional", hidden_size=4)


def summing_loop() -> Any:
    """Adds x to itself three times over, and keeps each step."""
    values = {name: helper.make_tensor_value_info(name, FLOAT, [1, 4]) for name in ("s", "t", "k")}
    ends = [helper.make_tensor_value_info(name, kind, []) for name, kind in (("i", TensorProto.INT64), ("go", 9))]
    inner = [
        node("Add", ["s", "x"], ["t"]),
        node("Identity", ["t"], ["k"]),
        node("Identity", ["go"], ["on"]),
    ]
    on = helper.make_tensor_value_info("on", TensorProto.BOOL, [])
    body = helper.make_graph(inner, "body", [*ends, values["s"]], [on, values["t"], values["k"]])
    return model(
        [node("Loop", ["count", "", "x"], ["y", "steps"], body=body)],
        {"x": [1, 4]},
        ["y", "steps"],
        {"count": np.asarray(3, np.int64)},
    )


CASES: dict[str, Callable[[], Any]] = {
    "convolution, padded, in groups": lambda: one(
        "Conv", [1, 4, 7, 6], weights(6, 2, 3, 3), weights(6), group=2, pads=[1, 0, 2, 1], strides=[2, 1]
    ),
    "convolution, dilated with a stride": lambda: one(
        "Conv", [1, 2, 9, 9], weights(3, 2, 3, 3), dilations=[2, 2], strides=[2, 2]
    ),
    "depthwise convolution": lambda: one("Conv", [1, 4, 7, 7], weights(8, 1, 3, 3), group=4, auto_pad="SAME_UPPER"),
    "convolution over one axis": lambda: one("Conv", [2, 3, 9], weights(4, 3, 3), strides=[2]),
    "convolution over three axes": lambda: one("Conv", [1, 2, 5, 5, 5], weights(3, 2, 2, 2, 2), dilations=[2, 1, 1]),
    "transposed convolution": lambda: one(
        "ConvTranspose",
        [1, 4, 3, 3],
        weights(4, 2, 3, 3),
        group=2,
        strides=[2, 2],
        pads=[1, 1, 0, 1],
        output_padding=[1, 1],
    ),
    "transposed convolution of a given size": lambda: one(
        "ConvTranspose", [1, 1, 3, 3], weights(1, 2, 3, 3), strides=[3, 2], output_shape=[10, 8]
    ),
    "pooling that rounds up": lambda: one(
        "AveragePool", [1, 2, 7, 7], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1
    ),
    "pooling, dilated": lambda: one("MaxPool", [1, 2, 9, 9], kernel_shape=[3, 3], dilations=[2, 2], pads=[1] * 4),
    "pooling over three axes": lambda: one(
        "MaxPool", [1, 2, 6, 5, 4], kernel_shape=[3, 2, 4], strides=[2, 1, 3], pads=[2, 0, 3, 1, 1, 2], ceil_mode=1
    ),
    "pooling over one axis, smaller than its window": lambda: one(
        "MaxPool", [1, 2, 2], kernel_shape=[5], dilations=[2], pads=[4, 4]
    ),
    "pooling, windows that see nothing": lambda: one(
        "MaxPool", [1, 2, 1, 5], kernel_shape=[2, 2], dilations=[2, 1], pads=[1, 0, 1, 0]
    ),
    "resizing, cubic": lambda: one("Resize", [1, 2, 4, 6], None, SCALES, mode="cubic"),
    "resizing, linear, corners aligned": lambda: one(
        "Resize", [1, 2, 4, 6], None, SCALES, mode="linear", coordinate_transformation_mode="align_corners"
    ),
    "resizing, nearest": lambda: one("Resize", [1, 2, 4, 6], None, SCALES, mode="nearest"),
    "LSTM": lstm,
    "GRU in both directions": gru,
    "layer normalization, by its definition": lambda: one("LayerNormalization", [2, 3, 8], weights(8), weights(8)),
    "a loop": summing_loop,
    "slicing backwards": lambda: one("Slice", [3, 8], *(np.asarray([value]) for value in (-1, -7, 1, -2))),
    "softmax of old": lambda: one("Softmax", [2, 3, 4], axis=1, opset=9),
    "negative padding": lambda: one("Pad", [1, 2, 5, 5], np.asarray([0, 0, 1, -1, 0, 0, 2, 1]), mode="constant"),
}


def given(made: Any) -> tuple[Input, ...]:
    return tuple(
        Input(
            name=value.name,
            dtype="float32",
            shape=tuple(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim),
            batched=False,
        )
        for value in made.graph.input
    )


def directly(made: Any) -> tuple[Any, Conversion, Any]:
    inputs = given(made)
    prepared = prepare(made, inputs)
    return prepared, convert(prepared), onnx_runtime.references(prepared, inputs)


@pytest.mark.parametrize("name", CASES)
def test_computes_what_onnxruntime_computes(name: str) -> None:
    _, conversion, references = directly(CASES[name]())
    found = matches(conversion, references, batched=False)
    assert all(one.axes == () and one.error <= parity.MAX_RELATIVE_ERROR for one in found)


@pytest.mark.parametrize("name", ["pooling, dilated", "pooling over three axes"])
def test_a_maximum_has_no_border_of_the_lowest_number(name: str) -> None:
    """Quantized, it would leave nothing of the tensor's range."""
    _, conversion, _ = directly(CASES[name]())
    assert not {"Pad", "PadV2"} & {node.op for node in conversion.function.graph.as_graph_def().node}


def test_preparing_and_simplifying_keeps_names_safe_and_results_equal() -> None:
    made = cnn()
    prepared = simplified(prepare(made, given(made)))
    assert {"stem_conv", "head"} <= {found.name for found in prepared.graph.node}
    ((arrays, wanted), *_) = onnx_runtime.references(prepared, given(made))
    got = onnx_runtime.run(made, {"image": arrays[0]})
    assert parity.relative_error(wanted, got) == 0


def test_a_single_number_becomes_a_list_of_one() -> None:
    made = model([node("Add", ["x", "n"], ["y"])], {"x": [1, 4], "n": []}, ["y"])
    prepared = prepare(made, given(made))
    assert [len(value.type.tensor_type.shape.dim) for value in prepared.graph.input] == [2, 1]
    convert(prepared)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (one("Unique", [4]), "edgebuild has no rule"),
        (model([node("Tile", ["x", "n"], ["y"])], {"x": [1, 4], "n": [2]}, ["y"]), "can't be known before"),
    ],
)
def test_names_the_node_it_has_no_rule_for(made: Any, words: str) -> None:
    with pytest.raises(ModelError, match=r"node y_node \(\w+\) can't be replayed") as refused:
        convert(made)
    assert words in refused.value.cause


def test_finds_the_first_node_that_differs() -> None:
    prepared, _, references = directly(cnn())
    other = cnn()
    other.graph.initializer[2].CopyFrom(cnn().graph.initializer[2])
    other.graph.initializer[2].raw_data = weights(4, 1, 2, 2, seed=8).tobytes()
    _, conversion, _ = directly(other)
    assert first_difference(prepared, conversion, references[0][0]) == "node 'depthwise' (Conv)"


@pytest.mark.parametrize("axes", [(0, 2, 3, 1), (0, 3, 1, 2), (0, 1, 3, 2), (0, 1, 2, 3)])
def test_finds_the_order_of_axes_by_values_where_shapes_are_equal(axes: tuple[int, ...]) -> None:
    wanted = np.random.default_rng(1).standard_normal((1, 4, 4, 4))
    found = match([wanted], [wanted.transpose(axes)], batched=True)
    assert found.error == 0
    np.testing.assert_array_equal(wanted.transpose(found.axes or range(4)), wanted.transpose(axes))


def test_a_batch_stays_in_front() -> None:
    wanted = np.random.default_rng(1).standard_normal((1, 4))
    assert match([wanted], [wanted.T], batched=True).error == float("inf")
    assert match([wanted], [wanted.T], batched=False).error == 0
