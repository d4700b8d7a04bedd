"""Small ONNX models, built in code with a fixed seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def weights(*shape: int, seed: int = 7) -> Any:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, shape).astype(np.float32)


def model(
    nodes: Sequence[Any],
    inputs: Mapping[str, Sequence[Any]],
    outputs: Sequence[str],
    constants: Mapping[str, Any] | None = None,
    opset: int = 17,
) -> Any:
    """A model of float inputs; a text as a size is an open one."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def node(kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> Any:
    return helper.make_node(kind, inputs, outputs, name=attributes.pop("name", f"{outputs[0]}_node"), **attributes)


def one(kind: str, shape: Sequence[int], *constants: Any, opset: int = 17, **attributes: Any) -> Any:
    """One operator of an input `x` and constants."""
    named = {f"c{i}": constant for i, constant in enumerate(constants) if constant is not None}
    names = [f"c{i}" if constant is not None else "" for i, constant in enumerate(constants)]
    return model([node(kind, ["x", *names], ["y"], **attributes)], {"x": shape}, ["y"], named, opset)


def cnn(batch: Any = "N", size: Any = 8) -> Any:
    """Channels first: a convolution, pooling, a depthwise convolution, a dense layer."""
    nodes = [
        node("Conv", ["image", "w", "b"], ["a"], pads=[1, 1, 1, 1], name="stem/conv"),
        node("Relu", ["a"], ["r"], name="stem/relu"),
        node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p", "dw"], ["d"], group=4, name="depthwise"),
        node("GlobalAveragePool", ["d"], ["g"]),
        node("Flatten", ["g"], ["f"]),
        node("Gemm", ["f", "v", "c"], ["scores"], transB=1, name="head"),
    ]
    constants = {
        "w": weights(4, 3, 3, 3),
        "b": weights(4),
        "dw": weights(4, 1, 2, 2),
        "v": weights(5, 4),
        "c": weights(5),
    }
    return model(nodes, {"image": [batch, 3, size, size]}, ["scores"], constants)


def saved(made: Any, folder: Path, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(made.SerializeToString())
    return path
