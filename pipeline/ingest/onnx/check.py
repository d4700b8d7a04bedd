"""Look at an ONNX file as data, before any native code does: its sizes, its graph, what it names outside itself."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest.onnx.data import load_external, require_sizes, tensors
from edgebuild.pipeline.ingest.source import settle

MAX_BYTES: Final = 2**31  # Of a model with its data: no flatbuffer holds more.
MAX_NODES: Final = 200_000
MAX_SHAPE: Final = 2**28  # Elements of one input: a gibibyte of float32.
_STANDARD: Final = ("", "ai.onnx")


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """An input as it will be converted: a whole shape, and whether its first axis counts samples."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    batched: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A model that looks sound: the parsed file with its data inside, nodes in order, and what goes in and out."""

    model: Any
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]


def look(path: Path, input_shapes: Mapping[str, tuple[int, ...]]) -> Source:
    """Parse and check the file; nothing of it is run.

    Raises:
        ModelError: it is damaged, too large, reaches outside its folder, holds operators of somebody's own, or an
            input's shape is open; names the part.
    """
    model = _parsed(path)
    known = {function.name for function in model.functions}
    for graph in graphs(model):
        _require_operators(graph, known, path)
    budget = MAX_BYTES
    for graph in graphs(model):
        for tensor in tensors(graph):
            budget -= load_external(tensor, path, budget)
            require_sizes(tensor, path)
    _sort(model.graph, path)
    inputs = tuple(_inputs(model.graph, input_shapes, path))
    return Source(model=model, inputs=inputs, outputs=_outputs(model.graph, path))


def graphs(model: Any) -> Iterator[Any]:
    """The main graph, the bodies of its functions, and every graph inside these."""
    for outer in (model.graph, *model.functions):
        yield outer
        yield from _inner(outer)


def _inner(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield inner
                yield from _inner(inner)


def _parsed(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        if path.stat().st_size >= MAX_BYTES:
            raise _too_large(path)
        model = onnx.ModelProto.FromString(path.read_bytes())
    except (DecodeError, OSError) as e:
        raise ModelError(f"{path} is no readable ONNX file", cause=str(e), action="export or copy it again") from e
    if not model.graph.node or not model.opset_import:
        raise ModelError(
            f"{path} holds no ONNX graph",
            cause="it has no nodes, or does not say which operators it means: another kind of file, or a part of one",
            action="export or copy it again",
        )
    return model


def _too_large(path: Path) -> ModelError:
    return ModelError(
        f"{path} is larger than 2 GiB", cause="no flatbuffer holds as much", action="make the model smaller"
    )


def _require_operators(graph: Any, known: set[str], path: Path) -> None:
    foreign = [
        node for node in graph.node if node.domain not in _STANDARD and not (node.op_type in known and node.domain)
    ]
    if foreign:
        named = ", ".join(sorted({f"{node.domain}.{node.op_type}" for node in foreign}))
        raise ModelError(
            f"{path}: node '{_named(foreign[0])}' is of somebody's own operators: {named}",
            cause="ONNX says nothing of what they compute; a runtime's optimizer may have put them there",
            action="export the model without custom operators, and before any runtime optimizes it",
        )
    if len(graph.node) > MAX_NODES:
        raise ModelError(
            f"{path} holds {len(graph.node):,} nodes",
            cause=f"more than {MAX_NODES:,} in one graph",
            action="export a smaller model, with its loops kept as loops",
        )


def _named(node: Any) -> str:
    return str(node.name or next(iter(node.output), "") or node.op_type)


def _sort(graph: Any, path: Path) -> None:
    """Put nodes behind what they need, which is what makes a graph one."""
    made = {value.name for value in (*graph.input, *graph.initializer)}
    made |= {sparse.values.name for sparse in graph.sparse_initializer}
    producers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    needs = [_needs(node) - made for node in graph.node]
    missing = next(((i, name) for i, names in enumerate(needs) for name in names - producers.keys()), None)
    if missing:
        raise ModelError(
            f"{path}: node '{_named(graph.node[missing[0]])}' takes '{missing[1]}', which nothing makes",
            cause="a part of the graph is missing",
            action="export it again",
        )
    order = _order([{producers[name] for name in names} for names in needs])
    if len(order) < len(needs):
        stuck = next(i for i in range(len(needs)) if i not in set(order))
        raise ModelError(
            f"{path}: node '{_named(graph.node[stuck])}' needs its own result", cause="the graph runs in a circle"
        )
    if order != sorted(order):
        nodes = [graph.node[i] for i in order]
        copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)


def _needs(node: Any) -> set[str]:
    """What a node takes by name, the graphs inside it included: they see all around them."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
            own = {value.name for value in (*inner.input, *inner.initializer)}
            own |= {name for inside in inner.node for name in inside.output}
            names |= {name for inside in inner.node for name in _needs(inside)} - own
    return names


def _order(needs: list[set[int]]) -> list[int]:
    """Indices so that each stands behind those it needs, otherwise as they were; those in circles are left out."""
    users: dict[int, list[int]] = {}
    for i, needed in enumerate(needs):
        for other in needed:
            users.setdefault(other, []).append(i)
    waiting = [len(needed) for needed in needs]
    ready = [i for i, count in enumerate(waiting) if not count]
    order = []
    while ready:
        order.append(heapq.heappop(ready))
        for user in users.get(order[-1], ()):
            waiting[user] -= 1
            if not waiting[user]:
                heapq.heappush(ready, user)
    return order


def _inputs(graph: Any, given: Mapping[str, tuple[int, ...]], path: Path) -> Iterator[Input]:
    constants = {tensor.name for tensor in graph.initializer}  # Older files list these as inputs too.
    values = [value for value in graph.input if value.name not in constants]
    if not values:
        raise ModelError(
            f"{path} has no inputs", cause="it would compute the same every time", action="export it again"
        )
    unknown = sorted(given.keys() - {value.name for value in values})
    if unknown:
        raise ModelError(
            f"{path} has no input '{unknown[0]}', to which input_shapes gives a shape",
            cause=f"its inputs are {', '.join(value.name for value in values)}",
            action="name one of them",
        )
    for value in values:
        yield _input(value, given.get(value.name), path)


def _input(value: Any, given: tuple[int, ...] | None, path: Path) -> Input:
    import onnx

    kind = value.type.tensor_type
    dtype = "" if not value.type.HasField("tensor_type") else onnx.TensorProto.DataType.Name(kind.elem_type).lower()
    name = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    if name not in {"float16", "float32", "float64", "bool", "int8", "int16", "int32", "int64", "uint8"}:
        raise ModelError(
            f"{path}: input '{value.name}' is no tensor of numbers that TensorFlow Lite takes",
            cause=f"it is {dtype or 'a sequence, or optional'}, which has no place in a flatbuffer",
            action="leave them outside the model",
        )
    sizes = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else 0 for dim in kind.shape.dim]
    shape = _shape(value.name, sizes if kind.HasField("shape") else None, given, path)
    if prod(shape) > MAX_SHAPE:
        raise ModelError(
            f"{path}: input '{value.name}' is {list(shape)}",
            cause=f"more than {MAX_SHAPE:,} elements, which no target of edgebuild's holds",
            action="export the model with smaller inputs",
        )
    declared = kind.shape.dim[0] if sizes else None
    open_first = declared is not None and not declared.dim_value
    return Input(name=value.name, dtype=name, shape=shape, batched=bool(shape) and (shape[0] == 1 or open_first))


def _shape(name: str, sizes: list[int] | None, given: tuple[int, ...] | None, path: Path) -> tuple[int, ...]:
    """The whole shape; a size of 0 is open, and the first of them, where it is the first axis, is a batch of 1."""
    if given is not None:
        fits = sizes is None or (
            len(sizes) == len(given) and all(size in {0, new} for size, new in zip(sizes, given, strict=True))
        )
        if not fits:
            raise ModelError(
                f"{path}: input '{name}' can't have the shape {list(given)}",
                cause=f"the model says {[size or '?' for size in sizes or ()]}",
                action=f"change the open sizes alone: --set model.input_shapes.{name}=…",
            )
        return given
    if sizes is None or 0 in sizes[1:]:
        axis = "has no known rank" if sizes is None else f"is open at axis {sizes.index(0, 1)}"
        raise ModelError(
            f"{path}: input '{name}' {axis}",
            cause="a flatbuffer for these targets has fixed sizes"
            + ("" if sizes is None else f"; it is {[s or '?' for s in sizes]}"),
            action=settle(name, sizes and [size or (None if i else 1) for i, size in enumerate(sizes)]),
        )
    return tuple(size or 1 for size in sizes)


def _outputs(graph: Any, path: Path) -> tuple[str, ...]:
    for value in graph.output:
        if not value.type.HasField("tensor_type") and value.type.WhichOneof("value"):
            raise ModelError(
                f"{path}: output '{value.name}' is no tensor",
                cause="sequences and optional values have no place in a flatbuffer",
                action="give its parts as outputs",
            )
    if not graph.output:
        raise ModelError(f"{path} has no outputs", action="export it again")
    return tuple(value.name for value in graph.output)
