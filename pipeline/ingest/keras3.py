"""A Keras 3 model replayed into tf_keras, call by call, and compared with its source before it is believed."""

# ruff: noqa: SLF001 - the graph of a Keras 3 model has no public face

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest import float_model, parity
from edgebuild.pipeline.ingest.keras3_layers import copy_weights, twin_of, untranslatable
from edgebuild.pipeline.ingest.keras_check import loading
from edgebuild.pipeline.ingest.source import plain

os.environ["KERAS_BACKEND"] = "tensorflow"  # Read when Keras 3 is imported; a user's JAX or PyTorch is no use here.


def read(path: Path) -> Any:
    """A file that Keras 3 loads, as a tf_keras functional model.

    Raises:
        ModelError: Keras 3 can't load it, a layer has no equal in tf_keras, or the two compute different things; names
            the layer.
    """
    import keras

    action = "build it from layers alone, which is all a Keras 3 .h5 keeps, or save it with tf_keras"
    with loading(path, "by Keras 3, which wrote it", action):
        source = keras.models.load_model(str(path), compile=False)
    twin = replay(source)
    _require_equal(source, twin, path)
    return twin


def replay(source: Any) -> Any:
    """The tf_keras twin of a Keras 3 functional or sequential model, with its weights and its names.

    Raises:
        ModelError: it is neither, or a layer has no equal in tf_keras; names the layer and its class.
    """
    import keras
    import tf_keras

    graph = source._functional if isinstance(source, keras.Sequential) else source
    if not isinstance(graph, keras.Model) or not hasattr(graph, "_nodes_by_depth"):
        raise ModelError(
            f"model '{source.name}' is a {type(source).__name__}, not a functional or sequential Keras model",
            cause="a subclassed model, or a sequential one that never saw its input's shape, keeps no layer graph",
            action="rebuild it with the functional API and save it again",
        )
    tensors = {id(tensor): _input(tensor) for tensor in graph._inputs}
    twins: dict[int, Callable[..., Any]] = {}
    for node in _calls(graph):
        _call(node, twins, tensors)

    def twin(structure: Any) -> Any:
        return keras.tree.map_structure(lambda tensor: _twin_tensor(tensor, tensors), structure)

    return tf_keras.Model(twin(graph._inputs_struct), twin(graph._outputs_struct), name=source.name)


def _input(tensor: Any) -> Any:
    import tf_keras

    name = tensor._keras_history.operation.name
    if tensor.sparse or getattr(tensor, "ragged", False):
        raise ModelError(
            f"input '{name}' is sparse or ragged",
            cause="a flatbuffer for these targets takes dense numbers",
            action="give the model dense data",
        )
    return tf_keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=name)


def _calls(graph: Any) -> Iterator[Any]:
    """Every call of a layer, inputs first: the order in which Keras lists the layers."""
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        yield from (node for node in graph._nodes_by_depth[depth] if not node.is_input)


def _call(node: Any, twins: dict[int, Callable[..., Any]], tensors: dict[int, Any]) -> None:
    """Call the twin as its source was called, and note what came out.

    Operations outside layers are passed over: those that compute masks have no place in tf_keras, which carries masks
    along itself. Where another layer needs the result of one, `_arguments` refuses it.
    """
    import keras

    layer = node.operation
    if not isinstance(layer, keras.Layer):
        return
    args, kwargs = _arguments(node, tensors)
    first = id(layer) not in twins
    if first:
        twins[id(layer)] = replay(layer) if isinstance(layer, keras.Model) else twin_of(layer)
    try:
        results = twins[id(layer)](*args, **kwargs)
    except (TypeError, ValueError) as e:
        raise untranslatable(layer, f"it can't be called the same way. {type(e).__name__}: {e}") from e
    if first and not isinstance(layer, keras.Model):
        copy_weights(layer, twins[id(layer)])
    flat = keras.tree.flatten(results)
    tensors.update({id(output): tensor for output, tensor in zip(node.outputs, flat, strict=True)})


def _arguments(node: Any, tensors: dict[int, Any]) -> tuple[Any, dict[str, Any]]:
    """What the twin is called with, without the masks that tf_keras finds itself."""
    import keras

    def twin(value: Any) -> Any:
        return _twin_tensor(value, tensors) if isinstance(value, keras.KerasTensor) else value

    kwargs = {
        key: value
        for key, value in node.arguments.kwargs.items()
        if value is not None and key != "training" and not (key == "mask" and _is_computed(value, tensors))
    }
    args, given = keras.tree.map_structure(twin, (node.arguments.args, kwargs))
    return args, given


def _is_computed(mask: Any, tensors: dict[int, Any]) -> bool:
    import keras

    return all(id(value) not in tensors for value in keras.tree.flatten(mask) if value is not None)


def _twin_tensor(tensor: Any, tensors: dict[int, Any]) -> Any:
    if id(tensor) not in tensors:
        raise untranslatable(tensor._keras_history.operation, "it is an operation outside any layer")
    return tensors[id(tensor)]


def _require_equal(source: Any, twin: Any, path: Path) -> None:
    float_model.input_specs(plain(twin))  # Refuses by name what no seeded data could be made for.
    arrays = parity.seeded_inputs(twin)
    error = parity.relative_error(_outputs(source, arrays), parity.outputs(twin, arrays))
    if error <= parity.MAX_RELATIVE_ERROR:
        return
    name = _first_difference(source, twin, arrays)
    raise ModelError(
        f"{path}: its tf_keras twin differs from the Keras 3 model by {error:.2g} of the outputs' range",
        cause=f"they part at layer '{name}'" if name else "no single layer shows it",
        action="replace that layer, or save the model as .h5 with tf_keras",
    )


def _outputs(model: Any, arrays: list[Any]) -> list[Any]:
    import keras

    structure = getattr(model, "_inputs_struct", None)  # A sequential model has one input and no structure.
    inputs = arrays[0] if structure is None else keras.tree.pack_sequence_as(structure, arrays)
    results = keras.tree.flatten(model(inputs, training=False))
    return [keras.ops.convert_to_numpy(result) for result in results]


def _first_difference(source: Any, twin: Any, arrays: list[Any]) -> str:
    """The first layer whose outputs differ, in the order of the model's layers."""
    import keras
    import tf_keras

    theirs = {layer.name: layer for layer in source.layers}
    for layer in twin.layers:
        if layer.name not in theirs:
            continue
        wanted = _outputs(keras.Model(source.inputs, theirs[layer.name].output), arrays)
        got = parity.outputs(tf_keras.Model(twin.inputs, layer.get_output_at(0)), arrays)
        if not parity.relative_error(wanted, got) <= parity.MAX_RELATIVE_ERROR:
            return str(layer.name)
    return ""
