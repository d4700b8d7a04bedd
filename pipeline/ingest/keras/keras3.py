"""A Keras 3 model said in tf_keras, call by call, and compared with its source before it is believed."""

# ruff: noqa: SLF001 - the graph of a Keras 3 model has no public face

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest import float_model
from edgebuild.pipeline.ingest.graph.names import unique
from edgebuild.pipeline.ingest.keras import custom_code, precision, sizes, weight_limit
from edgebuild.pipeline.ingest.keras import flat as keras_flat
from edgebuild.pipeline.ingest.keras import proof as keras_proof
from edgebuild.pipeline.ingest.keras.check import loading, require_functional, unfunctional
from edgebuild.pipeline.ingest.keras.flat import Flat, Language, Masks
from edgebuild.pipeline.ingest.keras.keras2_graph import graph_of
from edgebuild.pipeline.ingest.keras.keras3_layers import copy_weights, twin_of
from edgebuild.pipeline.ingest.keras.program import Graph, Node, Program, require_bounded, steps_of, written_out
from edgebuild.pipeline.ingest.source import Options, Port, Reading

os.environ["KERAS_BACKEND"] = "tensorflow"  # Read when Keras 3 is imported; a user's JAX or PyTorch is no use here.


def read(path: Path, held: int, options: Options) -> Reading:
    """A file that Keras 3 loads and that holds so many weights, as a flat tf_keras functional model.

    Raises:
        ModelError: Keras 3 can't load it, a layer has no equal in tf_keras and can't be traced, or the two compute
            different things; names the layer.
    """
    import keras

    action = "save it again with the Keras that wrote it" + (", as .keras" if path.suffix != ".keras" else "")
    with loading(path, "by Keras 3, which wrote it", action), weight_limit.at_most(held, path):
        own = custom_code.by_short_name(keras, options) | _operations(path)
        source = keras.models.load_model(str(path), own, compile=False, safe_mode=not options.trust_code)
    layers = source._flatten_layers(include_self=False)
    notes = precision.in_float32(layers, path, lambda layer: setattr(layer, "dtype_policy", "float32"))
    program = sizes.settled(program_of(source, path), options.input_shapes, path)
    flat, run = replay(program, source.name), partial(_outputs, source, path)
    float_model.input_specs(_reading(program, flat))  # Refuses by name what no seeded data could be made for.
    require_bounded(graph_of(flat.model))
    if flat.carried and not keras_proof.is_equal(flat, run):
        flat = replay(program, source.name, masks="given")  # One of them is not what its layer would carry.
    require_functional(flat.model, path)
    keras_proof.require_equal(program, flat, run, path)
    reading = _reading(program, flat)
    return replace(reading, notes=notes + reading.notes)


def _reading(program: Program, flat: Flat) -> Reading:
    return Reading(
        model=flat.model,
        inputs=tuple(Port(name=name) for name in program.inputs),
        outputs=tuple(Port(name=name) for name in program.outputs),
        notes=flat.notes,
    )


def program_of(source: Any, path: Path) -> Program:
    """The calls of a Keras 3 functional or sequential model.

    Raises:
        ModelError: it is neither, or takes data that no flatbuffer takes.
    """
    graph = _graph_of(source)
    if graph is None:
        raise unfunctional(source, path)
    for name, tensor in graph.inputs.items():
        if tensor.sparse or getattr(tensor, "ragged", False):
            raise ModelError(
                f"input '{name}' is sparse or ragged",
                cause="a flatbuffer for these targets takes dense numbers",
                action="give the model dense data",
            )
    return written_out(graph)


def replay(program: Program, name: str, masks: Masks = "carried") -> Flat:
    """The tf_keras twin of a Keras 3 program, with its weights and its names.

    Raises:
        ModelError: a layer has no equal in tf_keras and can't be traced; names the layer and its class.
    """
    import keras

    language = Language(
        is_layer=lambda layer: isinstance(layer, keras.Layer),
        equal=twin_of,
        copy_weights=copy_weights,
        autograph=False,
    )
    return keras_flat.build(program, language, name, masks)


def _graph_of(layer: Any) -> Graph | None:
    """The graph of a layer that is a functional or sequential model and does what its graph says."""
    import keras
    from keras.src.models.functional import Functional

    graph = layer._functional if isinstance(layer, keras.Sequential) else layer
    if not isinstance(graph, Functional) or type(graph).call is not Functional.call:
        return None
    if type(layer).call not in (Functional.call, keras.Sequential.call):
        return None
    nodes = [node for depth in sorted(graph._nodes_by_depth, reverse=True) for node in graph._nodes_by_depth[depth]]
    return Graph(
        inputs=_named(graph._inputs_struct, graph._inputs),
        nodes=[
            Node(
                layer=node.operation,
                args=node.arguments.args,
                kwargs=node.arguments.kwargs,
                outputs=node.outputs,
                steps=_steps(node),
            )
            for node in nodes
            if not node.is_input
        ],
        outputs=_named(graph._outputs_struct, graph._outputs),
        is_tensor=lambda leaf: isinstance(leaf, keras.KerasTensor),
        inner=_graph_of,
    )


def _steps(node: Any) -> int | None:
    masked = node.arguments.kwargs.get("mask") is not None
    return None if masked else steps_of(node.operation, node.arguments.keras_tensors)


def _named(structure: Any, tensors: Sequence[Any]) -> Mapping[str, Any]:
    """Flat tensors by name: by their keys in a dictionary, else by their layers, which may give several each."""
    keys = {id(part): key for key, part in structure.items()} if isinstance(structure, Mapping) else {}
    names = [str(keys.get(id(tensor), tensor._keras_history.operation.name)) for tensor in tensors]
    return dict(zip(unique(names), tensors, strict=True))


def _operations(path: Path) -> dict[str, Any]:
    """Operations by class, for .h5, whose loader only looks for layers, and would take one for its namesake."""
    import keras
    from keras.src import ops

    if path.suffix == ".keras":
        return {}
    modules = [getattr(ops, name) for name in ("core", "image", "linalg", "math", "nn", "numpy")]
    found = {
        name: kind
        for module in modules
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, keras.Operation)
    }
    return {name: _either(kind, getattr(keras.layers, name, None)) for name, kind in found.items()}


def _either(operation: type, layer: type | None) -> type:
    """The operation, or its namesake among layers, whose configuration says whether it is trainable."""

    class Either:
        @staticmethod
        def from_config(config: dict[str, Any]) -> Any:
            kind: Any = layer if layer is not None and "trainable" in config else operation
            return kind.from_config(config)

    return Either


def _outputs(model: Any, path: Path, arrays: Sequence[Any]) -> list[Any]:
    """What Keras 3 itself gives; a call may have arguments in the file that are none."""
    import keras

    structure = getattr(model, "_inputs_struct", None)  # A sequential model has one input and no structure.
    inputs = arrays[0] if structure is None else keras.tree.pack_sequence_as(structure, list(arrays))
    with loading(path, "and run by Keras 3, which wrote it", "save it again with the Keras that wrote it"):
        results = keras.tree.flatten(model(inputs, training=False))
    return [keras.ops.convert_to_numpy(result) for result in results]
