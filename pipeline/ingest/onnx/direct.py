"""ONNX replayed node by node as TensorFlow operators, in ONNX's own order of axes, where onnx2tf fails.

All sizes are fixed, so whatever follows from shapes and constants alone is computed here and now, loops included.
What has no rule is replayed as the function that ONNX's own specification says it is, where it says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest.onnx.conversion import Conversion, frozen
from edgebuild.pipeline.ingest.onnx.rules import RULES
from edgebuild.pipeline.ingest.onnx.rules_node import Node, unsupported

_MOST_STEPS: Final = 512  # Of an unrolled loop.


def convert(model: Any) -> Conversion:
    """The model in its own layout.

    Raises:
        ModelError: a node has no rule, or depends on values where a flatbuffer needs constants; names it.
    """
    import tensorflow as tf

    versions = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    dtypes = {value.name: tf.dtypes.as_dtype(_dtype(value)) for value in model.graph.input}
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in model.graph.input}
    specs = [tf.TensorSpec(shapes[name], dtypes[name]) for name in dtypes]

    def values(*tensors: Any) -> dict[str, Any]:
        return _run(model.graph, dict(zip(dtypes, tensors, strict=True)), {}, versions["ai.onnx"])

    def call(*tensors: Any) -> list[Any]:
        found = values(*tensors)
        return [tf.identity(tf.convert_to_tensor(found[output.name])) for output in model.graph.output]

    def counterparts(wanted: Sequence[str]) -> tuple[list[str], Any]:
        names: list[str] = []

        def inner(*tensors: Any) -> list[Any]:
            found = values(*tensors)
            names[:] = [name for name in wanted if not isinstance(found.get(name), list | type(None))]
            return [tf.identity(tf.convert_to_tensor(found[name])) for name in names]

        return names, frozen(inner, specs)

    return Conversion(function=frozen(call, specs), input_axes=((),) * len(specs), counterparts=counterparts)


def _dtype(value: Any) -> Any:
    import onnx

    return onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)


def _run(graph: Any, values: dict[str, Any], references: Mapping[str, Any], version: int) -> dict[str, Any]:
    """Every value of a graph by name; `references` are attributes that the nodes of a function take from its caller."""
    from onnx import numpy_helper

    values |= {tensor.name: numpy_helper.to_array(tensor) for tensor in getattr(graph, "initializer", ())}
    values[""] = None
    for proto in graph.node:
        node = Node.of(proto, references, version)
        outputs = _outputs(node, proto, [values[name] for name in proto.input], values)
        values |= {name: value for name, value in zip(proto.output, outputs, strict=False) if name}
    return values


def _outputs(node: Node, proto: Any, inputs: list[Any], values: dict[str, Any]) -> Sequence[Any]:
    try:
        if node.kind in _WITH_GRAPHS:
            return _WITH_GRAPHS[node.kind](node, inputs, values)
        if node.kind in RULES:
            return _applied(node, inputs)
        return _as_function(node, proto, inputs)
    except ModelError:
        raise
    except (TypeError, ValueError, IndexError, KeyError, AttributeError, NotImplementedError) as e:
        cause = f"{type(e).__name__}: {' '.join(str(e).split())}"[:300]
        raise ModelError(f"node {node.name} ({node.kind}) can't be replayed", cause=cause) from e


def _applied(node: Node, inputs: list[Any]) -> Sequence[Any]:
    """The rule's results; what follows from constants alone is computed now, outside the graph that is being made."""
    import tensorflow as tf

    if any(tf.is_tensor(part) for value in inputs for part in (value if isinstance(value, list) else [value])):
        return _several(RULES[node.kind](node, *inputs))
    with tf.init_scope():
        return [_plain(value) for value in _several(RULES[node.kind](node, *inputs))]


def _several(result: Any) -> Sequence[Any]:
    """A rule gives one result, or a tuple of them; a list is ONNX's sequence."""
    return result if isinstance(result, tuple) else (result,)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if value is None else np.asarray(value)


def _as_function(node: Node, proto: Any, inputs: list[Any]) -> Sequence[Any]:
    """What ONNX's specification says the operator is, in terms of others."""
    import onnx

    try:
        schema = onnx.defs.get_schema(node.kind, node.version)
    except onnx.defs.SchemaError as e:
        raise unsupported(node, "edgebuild has no rule for it") from e
    if schema.has_function:
        body = schema.function_body
    elif schema.has_context_dependent_function:
        types = [_type(value).SerializeToString() for value in inputs]
        encoded = schema.get_context_dependent_function(proto.SerializeToString(), types)
        body = onnx.FunctionProto.FromString(encoded)
    else:
        raise unsupported(node, "edgebuild has no rule for it")
    version = next((entry.version for entry in body.opset_import if entry.domain in {"", "ai.onnx"}), node.version)
    defaults = {name: attribute.default_value for name, attribute in schema.attributes.items()}
    given = {name: Node.value(value) for name, value in defaults.items() if value.name} | dict(node.attributes)
    padded = [*inputs, *[None] * len(body.input)]
    values = _run(body, dict(zip(body.input, padded, strict=False)), given, version)
    pairs = zip(body.output, proto.output, strict=False)
    return [values[name] if wanted else None for name, wanted in pairs]


def _type(value: Any) -> Any:
    import onnx

    if value is None:
        return onnx.TypeProto()
    dtype = np.dtype(value.dtype.as_numpy_dtype if hasattr(value.dtype, "as_numpy_dtype") else value.dtype)
    return onnx.helper.make_tensor_type_proto(onnx.helper.np_dtype_to_tensor_dtype(dtype), list(value.shape))


def _if(node: Node, inputs: list[Any], values: dict[str, Any]) -> Sequence[Any]:
    graph = node.attributes["then_branch" if bool(node.constant(inputs[0], "condition").all()) else "else_branch"]
    found = _run(graph, dict(values), {}, node.version)
    return [found[output.name] for output in graph.output]


def _loop(node: Node, inputs: list[Any], values: dict[str, Any]) -> Sequence[Any]:
    """Unrolled, for as often as its condition, known now, lets it run."""
    graph = node.attributes["body"]
    count, going, *carried = inputs
    most = _MOST_STEPS + 1 if count is None else int(node.constant(count, "number of rounds"))
    rounds: list[list[Any]] = []
    while len(rounds) < most and (going is None or bool(node.constant(going, "condition").all())):
        ends = [np.asarray(len(rounds), np.int64), np.asarray(1, bool) if going is None else going, *carried]
        names = [value.name for value in graph.input]
        found = _run(graph, values | dict(zip(names, ends, strict=True)), {}, node.version)
        going, *results = (found[output.name] for output in graph.output)
        carried, kept = results[: len(carried)], results[len(carried) :]
        rounds.append(kept)
        if len(rounds) > _MOST_STEPS:
            raise unsupported(node, f"it runs for more than {_MOST_STEPS} rounds")
    return [*carried, *(RULES["Stack"](node, *stack) for stack in zip(*rounds, strict=True))]


def _scan(node: Node, inputs: list[Any], values: dict[str, Any]) -> Sequence[Any]:
    """Unrolled over its sequences, which have a fixed length."""
    import tensorflow as tf

    graph, number = node.attributes["body"], node.attributes["num_scan_inputs"]
    if node.version < 9:
        if inputs[0] is not None:
            raise unsupported(node, "its sequences are of several lengths")
        return _old_scan(node, inputs[1:], values)
    axes = node.attributes.get("scan_input_axes", [0] * number)
    back = node.attributes.get("scan_input_directions", [0] * number)
    state, sequences = inputs[:-number], inputs[-number:]
    slices = [tf.unstack(sequence, axis=axis) for sequence, axis in zip(sequences, axes, strict=True)]
    slices = [part[::-1] if reverse else part for part, reverse in zip(slices, back, strict=True)]
    state, kept = _steps(node, graph, values, state, list(zip(*slices, strict=True)))
    backwards = node.attributes.get("scan_output_directions", [0] * len(kept))
    out_axes = node.attributes.get("scan_output_axes", [0] * len(kept))
    ordered = [part[::-1] if reverse else part for part, reverse in zip(kept, backwards, strict=True)]
    return [*state, *(tf.stack(part, axis=axis) for part, axis in zip(ordered, out_axes, strict=True))]


def _old_scan(node: Node, inputs: list[Any], values: dict[str, Any]) -> Sequence[Any]:
    """Before version 9 every value had a batch in front, and sequences came second."""
    import tensorflow as tf

    graph, number = node.attributes["body"], node.attributes["num_scan_inputs"]
    if any(node.attributes.get("directions", ())):
        raise unsupported(node, "it scans backwards")
    results = []
    for row in range(inputs[0].shape[0]):
        state = [value[row] for value in inputs[:-number]]
        slices = [tf.unstack(value[row]) for value in inputs[-number:]]
        state, kept = _steps(node, graph, values, state, list(zip(*slices, strict=True)))
        results.append([*state, *(tf.stack(part) for part in kept)])
    return [tf.stack(rows) for rows in zip(*results, strict=True)]


def _steps(
    node: Node, graph: Any, values: dict[str, Any], state: list[Any], slices: list[tuple[Any, ...]]
) -> tuple[list[Any], list[list[Any]]]:
    if len(slices) > _MOST_STEPS:
        raise unsupported(node, f"it runs for more than {_MOST_STEPS} rounds")
    kept: list[list[Any]] = []
    for parts in slices:
        names = [value.name for value in graph.input]
        found = _run(graph, values | dict(zip(names, [*state, *parts], strict=True)), {}, node.version)
        results = [found[output.name] for output in graph.output]
        state, new = results[: len(state)], results[len(state) :]
        kept.append(new)
    return state, [list(part) for part in zip(*kept, strict=True)]


_WITH_GRAPHS: Final = {"If": _if, "Loop": _loop, "Scan": _scan}
