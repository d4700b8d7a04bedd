"""What each way of converting ONNX gives: a TensorFlow function, and in which order of axes it takes its inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest.onnx.match import Match, match
from edgebuild.pipeline.ingest.onnx.runtime import References

MODEL: Final = "model"  # The name of the Keras model that a conversion goes through, if it does.


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """A frozen TensorFlow function that should compute what the ONNX model computes.

    `input_axes` is, for each input, the order in which the function takes its axes; empty where that is ONNX's own.
    `counterparts`, for finding the node at which the two part, takes names of values inside the ONNX model. It returns
    the names of those that the conversion has too, and a function of the same inputs that gives these.
    """

    function: Any
    input_axes: tuple[tuple[int, ...], ...]
    counterparts: Callable[[Sequence[str]], tuple[list[str], Any]]


def frozen(call: Any, specs: Sequence[Any]) -> Any:
    """A function with constants for variables, and its loops left whole, as the lifting of graphs wants it."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    named = [tf.TensorSpec(spec.shape, spec.dtype, name=f"input_{i}") for i, spec in enumerate(specs)]
    function = tf.function(call, autograph=False).get_concrete_function(*named)
    return convert_variables_to_constants_v2(function, lower_control_flow=False)


def run(function: Any, arrays: Sequence[NDArray[Any]], axes: Sequence[tuple[int, ...]]) -> list[NDArray[Any]]:
    """What a conversion's function makes of inputs in ONNX's order of axes."""
    import tensorflow as tf

    tensors = [
        tf.constant(np.ascontiguousarray(array.transpose(order) if order else array), spec.dtype)
        for array, order, spec in zip(arrays, axes, function.inputs, strict=True)
    ]
    results = function(*tensors)
    return [np.asarray(result) for result in (results if isinstance(results, list | tuple) else [results])]


def matches(conversion: Conversion, references: References, *, batched: bool) -> list[Match]:
    """For each output, in which order its axes stand and how far it is from the reference.

    Raises:
        ModelError: the function can't be run, or gives another number of outputs.
    """
    import tensorflow as tf

    try:
        got = [run(conversion.function, arrays, conversion.input_axes) for arrays, _ in references]
    except (tf.errors.OpError, ValueError, TypeError) as e:
        raise ModelError("the converted model can't be run", cause=_said(e)) from e
    wanted = [outputs for _, outputs in references]
    if {len(outputs) for outputs in got} != {len(outputs) for outputs in wanted}:
        raise ModelError("the converted model has another number of outputs")
    pairs = zip(zip(*wanted, strict=True), zip(*got, strict=True), strict=True)
    return [match(theirs, ours, batched=batched) for theirs, ours in pairs]


def _said(error: Exception) -> str:
    """What went wrong, out of TensorFlow's pages: the line before the one that marks the node."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    marked = [i for i, line in enumerate(lines) if line.startswith("[[")]
    return lines[marked[0] - 1 if marked and marked[0] else 0][:300] if lines else type(error).__name__


def exports(conversion: Conversion) -> bool:
    """Whether the converter makes a flatbuffer of it, as it does for every target, and the runtime takes that."""
    import tensorflow as tf

    from edgebuild.export.interpreter import require_running

    try:
        require_running(bytes(tf.lite.TFLiteConverter.from_concrete_functions([conversion.function]).convert()))
    except Exception:  # noqa: BLE001 - the converter's errors have no common base; another way may do
        return False
    return True


def graph_def(function: Any, *, batched: bool) -> Any:
    """The function's graph, with nodes named after their layers where a layer has but one.

    With `batched`, every `Reshape` leaves the batch's size open, so that lifting the graph may free it.
    """
    graph = function.graph.as_graph_def()
    if batched:
        _open_batch(graph)
    layers = Counter(_layer(node.name) for node in graph.node if node.op != "Const")
    taken = {node.name for node in graph.node}
    names = {}
    for node in graph.node:
        layer = _layer(node.name)
        new = layer if node.op != "Const" and layers[layer] == 1 else node.name.removeprefix(f"{MODEL}/")
        if layer and new not in taken:
            names[node.name] = new
            taken.add(new)
    for node in graph.node:
        node.name = names.get(node.name, node.name)
        node.input[:] = [_renamed(reference, names) for reference in node.input]
    return graph


def _open_batch(graph: Any) -> None:
    """Let the first size of every result of reshaping follow from the others; for a batch of 1 that changes nothing."""
    import tensorflow as tf

    constants = {node.name: tf.make_ndarray(node.attr["value"].tensor) for node in graph.node if node.op == "Const"}
    for node in [node for node in graph.node if node.op == "Reshape"]:
        shape = constants.get(node.input[1].partition(":")[0])
        if shape is None or not shape.size or (shape < 1).any():
            continue
        opened = graph.node.add(name=f"{node.name}/open_shape", op="Const")
        opened.attr["dtype"].type = tf.as_dtype(shape.dtype).as_datatype_enum
        opened.attr["value"].tensor.CopyFrom(tf.make_tensor_proto([-1, *shape[1:]], dtype=shape.dtype))
        node.input[1] = opened.name


def _layer(name: str) -> str:
    """The name of the layer that made a node, which Keras puts behind the model's."""
    model, _, rest = name.partition("/")
    return rest.partition("/")[0] if model == MODEL else ""


def _renamed(reference: str, names: Mapping[str, str]) -> str:
    mark, node = ("^", reference[1:]) if reference.startswith("^") else ("", reference)
    name, colon, index = node.partition(":")
    return f"{mark}{names.get(name, name)}{colon}{index}"
