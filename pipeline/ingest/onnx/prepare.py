"""An ONNX model made ready for converting: functions inlined, sizes fixed, constants folded, names that are safe."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from edgebuild.pipeline.ingest.onnx.check import Input

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.]+")
_IR_VERSION: Final = 8  # From 4 on, constants need not be inputs as well.


def prepare(model: Any, inputs: Sequence[Input]) -> Any:
    """A copy with functions inlined, input sizes fixed, no remembered shapes, and every name safe and unique."""
    import onnx

    copy = onnx.inliner.inline_local_functions(model) if model.functions else _copied(model)
    copy.ir_version = max(copy.ir_version, _IR_VERSION)
    _fix_inputs(copy.graph, inputs)
    _give_axes(copy.graph)
    _forget_shapes(copy.graph)
    _rename(copy.graph)
    return onnx.shape_inference.infer_shapes(copy, data_prop=True)


def simplified(model: Any) -> Any:
    """The model with constants folded and what has no effect removed, or itself where that fails."""
    import onnxsim

    try:
        smaller, _ = onnxsim.simplify(model)
    except Exception:  # noqa: BLE001 - native code raises what it likes, and the model will do as it is
        return model
    _name_nodes(smaller.graph)
    return smaller


def _copied(model: Any) -> Any:
    return type(model).FromString(model.SerializeToString())


def _fix_inputs(graph: Any, inputs: Sequence[Input]) -> None:
    sizes = {entry.name: entry.shape for entry in inputs}
    kept = [value for value in graph.input if value.name in sizes]
    for value in kept:
        _set_shape(value, sizes[value.name])
    copies = [type(value).FromString(value.SerializeToString()) for value in kept]
    del graph.input[:]
    graph.input.extend(copies)


def _give_axes(graph: Any) -> None:
    """Make an input that is a single number a list of one: a layer's input has an axis at least."""
    import onnx

    for value in graph.input:
        if value.type.tensor_type.shape.dim:
            continue
        inner = f"{value.name}_number"
        for node in graph.node:  # Graphs inside nodes see the new name too: all are renamed after this.
            _redirect(node, value.name, inner)
        _set_shape(value, (1,))
        shape = onnx.helper.make_tensor(f"{inner}_shape", onnx.TensorProto.INT64, [0], [])
        graph.initializer.append(shape)
        graph.node.insert(0, onnx.helper.make_node("Reshape", [value.name, shape.name], [inner], name=inner))


def _redirect(node: Any, old: str, new: str) -> None:
    node.input[:] = [new if name == old else name for name in node.input]
    for inner in _inner(node):
        for inside in inner.node:
            _redirect(inside, old, new)


def _set_shape(value: Any, shape: Iterable[int]) -> None:
    value.type.tensor_type.ClearField("shape")
    value.type.tensor_type.shape.SetInParent()  # A scalar has a shape too, of no axes.
    for size in shape:
        value.type.tensor_type.shape.dim.add().dim_value = size


def _forget_shapes(graph: Any) -> None:
    """Shapes that a file remembers may be of another batch; they are inferred anew."""
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")


def _rename(graph: Any) -> None:
    """Give every value and node a name that TensorFlow takes; the graphs inside see the values around them."""
    values: dict[str, str] = {"": ""}
    taken: set[str] = set()
    for inner in _graphs(graph):
        for name in _made(inner):
            if name not in values:
                values[name] = _unique(name, taken)
    for inner in _graphs(graph):
        for value in (*inner.input, *inner.output, *inner.initializer):
            value.name = values.get(value.name, value.name)
        for node in inner.node:
            node.input[:] = [values.get(name, name) for name in node.input]
            node.output[:] = [values[name] for name in node.output]
    _name_nodes(graph)


def _made(graph: Any) -> Iterator[str]:
    yield from (value.name for value in (*graph.input, *graph.initializer))
    yield from (name for node in graph.node for name in node.output)


def _graphs(graph: Any) -> Iterator[Any]:
    yield graph
    for node in graph.node:
        for inner in _inner(node):
            yield from _graphs(inner)


def _inner(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        yield from (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs)


def _name_nodes(graph: Any) -> None:
    """Safe and unique names for the nodes, which become those of layers; a value of that name is no hindrance."""
    taken: set[str] = set()
    for inner in _graphs(graph):
        for node in inner.node:
            node.name = _unique(node.name or next(filter(None, node.output), node.op_type), taken)


def _unique(name: str, taken: set[str]) -> str:
    return claimed(_UNSAFE.sub("_", name).strip("_") or "value", taken)


def claimed(name: str, taken: set[str]) -> str:
    """The name, with the first free number where it is taken; it is taken from now on, in capitals or not."""
    found, count = name, 0
    while found.lower() in taken:
        count += 1
        found = f"{name}_{count}"
    taken.add(found.lower())
    return found
