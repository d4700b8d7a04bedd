"""A SavedModel read through one of its signatures: the graph it computes with, whatever classes it was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest import parity
from edgebuild.pipeline.ingest.keras import weight_limit
from edgebuild.pipeline.ingest.keras.check import loading
from edgebuild.pipeline.ingest.source import Options, Reading

_INTERNAL: Final = "__saved_model_"
_DEFAULT: Final = "serving_default"
_CALL: Final = "StatefulPartitionedCall/"  # How a SavedModel's graph calls the function behind a signature.


def read(path: Path, proto: Any, options: Options) -> Reading:
    """The signature the options name, the only one, or `serving_default`, as a model proven equal to it.

    Raises:
        ModelError: there is none or no telling which, a size is unknown, or the graph can't be lifted.
    """
    from edgebuild.pipeline.ingest.graph import graph
    from edgebuild.pipeline.ingest.graph import reading as graph_reading
    from edgebuild.pipeline.ingest.graph import variables as graph_variables

    meta_graph = _meta_graph(proto, path)
    name, signature = _chosen(meta_graph, path, options.signature)
    inputs = [_input(key, info, path) for key, info in sorted(signature.inputs.items())]
    outputs = [graph.GraphOutput(name=key, tensor=info.name) for key, info in sorted(signature.outputs.items())]
    inputs = graph_reading.sized(inputs, options.input_shapes, path)
    graph_def = graph_variables.frozen(
        meta_graph, path, [given.tensor for given in inputs], [wanted.tensor for wanted in outputs]
    )
    reading = graph_reading.lifted(graph_def, inputs, outputs, (f"read through its signature '{name}'",))
    if is_loadable(proto):
        _require_equal(reading, path, proto, name, graph_def, [given.tensor for given in inputs])
    return reading


def is_loadable(proto: Any) -> bool:
    """Whether TensorFlow 2 wrote it. Loading anything older runs the file's own operators, the saver's among them."""
    return len(proto.meta_graphs) == 1 and proto.meta_graphs[0].HasField("object_graph_def")


def has_any(proto: Any) -> bool:
    """Whether there is a signature to choose from."""
    return any(_signatures(graph) for graph in proto.meta_graphs)


def _meta_graph(proto: Any, path: Path) -> Any:
    serving = [graph for graph in proto.meta_graphs if "serve" in graph.meta_info_def.tags]
    if not proto.meta_graphs:
        raise ModelError(f"{path} holds no graph", cause="saved_model.pb is empty", action="save the model again")
    return (serving or list(proto.meta_graphs))[0]


def _signatures(meta_graph: Any) -> dict[str, Any]:
    return {
        name: signature
        for name, signature in sorted(meta_graph.signature_def.items())
        if not name.startswith(_INTERNAL) and signature.inputs and signature.outputs
    }


def _chosen(meta_graph: Any, path: Path, asked: str) -> tuple[str, Any]:
    found = _signatures(meta_graph)
    if not found:
        raise ModelError(
            f"{path} has no signature, and no Keras metadata that could be used",
            cause="nothing in it says what its inputs and outputs are",
            action="save it with tf.saved_model.save(model, folder, signatures=...), or as a Keras model",
        )
    name = asked or (next(iter(found)) if len(found) == 1 else _DEFAULT)
    if name not in found:
        raise ModelError(
            f"{path} has no signature '{asked}'" if asked else f"{path} has several signatures: {', '.join(found)}",
            cause=f"it has {', '.join(found)}" if asked else f"none of them is named {_DEFAULT}",
            action="give --signature NAME, or model.signature in edgebuild.yaml",
        )
    return name, found[name]


def _input(key: str, info: Any, path: Path) -> Any:
    import tensorflow as tf

    from edgebuild.pipeline.ingest.graph.graph import GraphInput

    dtype = tf.dtypes.as_dtype(info.dtype) if info.dtype else tf.string
    if info.WhichOneof("encoding") != "name" or not (dtype.is_floating or dtype.is_integer or dtype.is_bool):
        raise ModelError(
            f"{path}: input '{key}' is not a dense tensor of numbers",
            cause=f"it is {dtype.name}, ragged or sparse, and a flatbuffer for these targets takes dense numbers",
            action="leave text, ragged and sparse data outside the model, and give it numbers",
        )
    shape = tf.TensorShape(info.tensor_shape)
    return GraphInput(
        name=key, tensor=info.name, shape=None if shape.rank is None else tuple(shape.as_list()), dtype=dtype.name
    )


def _require_equal(reading: Reading, path: Path, proto: Any, name: str, graph_def: Any, feeds: Sequence[str]) -> None:
    """Compare with the signature as TensorFlow itself loads it: nothing is believed of how its variables were read."""
    arrays = parity.seeded_inputs(reading.model)
    rows = reading.batched and not _takes_many(proto, name)
    parts = [[array[i : i + 1] for array in arrays] for i in range(len(arrays[0]))] if rows else [arrays]
    names = [port.name for port in reading.inputs]
    with loading(path, "by TensorFlow", "check that the folder is whole, with its variables/"):
        results = _signature_outputs(path, name, [dict(zip(names, part, strict=True)) for part in parts])
    wanted = [
        np.concatenate([result[port.name] for result in results]) if rows else results[0][port.name]
        for port in reading.outputs
    ]
    error = parity.relative_error(wanted, parity.outputs(reading.model, arrays))
    if not error <= parity.MAX_RELATIVE_ERROR:
        part = _first_difference(path, name, graph_def, feeds, [array[:1] if rows else array for array in arrays])
        raise ModelError(
            f"{path}: the model read through signature '{name}' differs from it by {error:.2g} of its outputs' range"
            + (f", from '{part}' on" if part else ""),
            cause="a variable or an operator was read otherwise than TensorFlow reads it",
            action="please report it with the model; until then, save it as a Keras model",
        )


def _first_difference(path: Path, name: str, graph_def: Any, feeds: Sequence[str], data: Sequence[NDArray[Any]]) -> str:
    """The first operator that gives something else in the graph as TensorFlow loads it; empty where none can be told.

    There it has one call fewer around it.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    from edgebuild.pipeline.ingest.graph import proof

    loaded = tf.saved_model.load(str(path))  # Its variables last as long as it does.
    function = convert_variables_to_constants_v2(loaded.signatures[name], lower_control_flow=False)
    theirs = function.graph.as_graph_def()
    known, places = {node.name for node in theirs.node}, [tensor.name for tensor in function.inputs]
    for node in graph_def.node:
        same = node.name.removeprefix(_CALL)
        if node.op in ("Const", "Placeholder") or same not in known:
            continue
        try:
            ours = proof.run(graph_def, feeds, [f"{node.name}:0"], data)
            wanted = proof.run(theirs, places, [f"{same}:0"], data)
        except ModelError:
            continue  # It gives what is no array, or takes what is none.
        if not parity.relative_error(wanted, ours) <= parity.MAX_RELATIVE_ERROR:
            return str(same).replace(_CALL, "")
    return ""


def _takes_many(proto: Any, name: str) -> bool:
    """Whether the signature's own batch is free."""
    meta_graph = _meta_graph(proto, Path())
    shapes = [info.tensor_shape for info in meta_graph.signature_def[name].inputs.values()]
    return all(shape.unknown_rank or (shape.dim and shape.dim[0].size < 0) for shape in shapes)


def _signature_outputs(path: Path, name: str, parts: Sequence[Mapping[str, NDArray[Any]]]) -> list[dict[str, Any]]:
    import tensorflow as tf

    held = sum(file.stat().st_size for file in (path / "variables").glob("variables.data-*"))
    with weight_limit.at_most(held, path):
        function = tf.saved_model.load(str(path)).signatures[name]
    results = [function(**{key: tf.constant(array) for key, array in part.items()}) for part in parts]
    return [{key: np.asarray(value) for key, value in result.items()} for result in results]
