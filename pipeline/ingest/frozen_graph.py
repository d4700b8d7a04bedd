"""A frozen TensorFlow graph, a lone .pb: inputs are its placeholders, outputs what nobody consumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest.source import Options, Reading

_NO_RESULT: Final = frozenset({"Const", "NoOp", "Assert", "Placeholder", "PlaceholderWithDefault"})
_MOST_OUTPUTS: Final = 256
_LARGEST_FILE: Final = 2**31  # A protobuf message can't be larger.


def read(path: Path, options: Options) -> Reading:
    """The graph as a model proven equal to it, its inputs and outputs under the names of their nodes.

    Raises:
        ModelError: it is damaged, not frozen, does more than compute, or a size is unknown.
    """
    from edgebuild.pipeline.ingest.graph import reading as graph_reading
    from edgebuild.pipeline.ingest.graph.check import check
    from edgebuild.pipeline.ingest.graph.graph import GraphOutput

    graph_def = _parsed(path)
    _require_frozen(graph_def, path)
    check(graph_def)
    inputs = graph_reading.sized([_input(node) for node in _placeholders(graph_def, path)], options.input_shapes, path)
    outputs = [
        GraphOutput(name=f"{node.name}:{i}" if i else node.name, tensor=f"{node.name}:{i}")
        for node in _ends(graph_def, path)
        for i in range(_outputs(node))
    ]
    return graph_reading.lifted(graph_def, inputs, outputs, ())


def _parsed(path: Path) -> Any:
    from google.protobuf.message import DecodeError
    from tensorflow.core.framework import graph_pb2

    graph_def = graph_pb2.GraphDef()
    try:
        if path.stat().st_size >= _LARGEST_FILE:
            raise ModelError(f"{path} is over two gigabytes", cause="no graph is", action="check that it is the model")
        graph_def.ParseFromString(path.read_bytes())
    except (DecodeError, OSError) as e:
        raise ModelError(
            f"{path} is damaged, or no frozen graph",
            cause=str(e) or type(e).__name__,
            action="copy or export it again; of a SavedModel, give the folder around saved_model.pb",
        ) from e
    if not graph_def.node:
        raise ModelError(
            f"{path} holds no graph",
            cause="it is empty, or the saved_model.pb of a SavedModel",
            action="of a SavedModel, give the folder around saved_model.pb",
        )
    return graph_def


def _require_frozen(graph_def: Any, path: Path) -> None:
    variables = [node.name for node in graph_def.node if node.op in ("VarHandleOp", "VariableV2", "Variable")]
    if variables:
        raise ModelError(
            f"{path} is not frozen: '{variables[0]}' is a variable",
            cause="its values lie in a checkpoint, outside the file",
            action="freeze it with tf.compat.v1.graph_util.convert_variables_to_constants, or give the SavedModel",
        )


def _placeholders(graph_def: Any, path: Path) -> list[Any]:
    consumed = _consumed(graph_def)
    found = [node for node in graph_def.node if node.op == "Placeholder" and node.name in consumed]
    if not found:
        raise ModelError(
            f"{path} has no input",
            cause="no node in it is a placeholder that others use",
            action="export it with its placeholders",
        )
    return found


def _ends(graph_def: Any, path: Path) -> list[Any]:
    consumed = _consumed(graph_def)
    found = [node for node in graph_def.node if node.name not in consumed and node.op not in _NO_RESULT]
    if not found:
        raise ModelError(
            f"{path} has no output",
            cause="every operator in it feeds another one, so they run in a circle, or there is none",
            action="export it again",
        )
    return found


def _consumed(graph_def: Any) -> set[str]:
    return {reference.removeprefix("^").partition(":")[0] for node in graph_def.node for reference in node.input}


def _outputs(node: Any) -> int:
    """How many tensors an operator gives."""
    from tensorflow.python.framework import op_def_registry

    from edgebuild.pipeline.ingest.graph import functions as graph_functions

    record = op_def_registry.get(node.op)
    counts = [graph_functions.count(node, result) for result in record.output_arg]
    return min(sum(counts), _MOST_OUTPUTS)


def _input(node: Any) -> Any:
    import tensorflow as tf

    from edgebuild.pipeline.ingest.graph.graph import GraphInput

    shape = node.attr["shape"].shape
    known = "shape" in node.attr and not shape.unknown_rank
    sizes = tuple(None if dim.size < 0 else int(dim.size) for dim in shape.dim)
    try:
        dtype = tf.dtypes.as_dtype(node.attr["dtype"].type)
    except TypeError as e:
        raise ModelError(f"the placeholder '{node.name}' is of no type", cause=str(e), action="export it again") from e
    if not (dtype.is_floating or dtype.is_integer or dtype.is_bool):
        raise ModelError(
            f"the placeholder '{node.name}' takes {dtype.name}",
            cause="a flatbuffer for these targets takes dense numbers",
            action="leave text outside the model, and give it numbers",
        )
    return GraphInput(name=node.name, tensor=f"{node.name}:0", shape=sizes if known else None, dtype=dtype.name)
