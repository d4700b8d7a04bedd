"""A frozen TensorFlow graph looked over and read.

What does not reach an output is dropped, arithmetic over constants and shapes is done once, within bounds, and
identities are gone. A model file is data from anywhere: nothing of it is trusted before it is checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest.graph import functions as graph_functions
from edgebuild.pipeline.ingest.graph import shapes as graph_shapes
from edgebuild.pipeline.ingest.graph.check import check
from edgebuild.pipeline.ingest.graph.nodes import Graph, Node, content_name, first_line, pruned, tensor_name

# Operators that give what they are given.
_SAME: Final = frozenset(
    "Identity IdentityN StopGradient PreventGradient CheckNumerics Snapshot EnsureShape PlaceholderWithDefault "  # noqa: SIM905 - shorter
    "ReadVariableOp DebugIdentity".split()
)
_LARGEST_FOLDED: Final = 2**26  # Elements of one tensor that constants alone decide; 256 MiB as float32.
_LARGEST: Final = 2**28  # Elements of any tensor: 1 GiB of float32, a hundred times what a device holds.
_BATCHES: Final = (5, 7)  # Two sizes that a model hardly has itself; see `_shapes`.
_SMALL: Final = 8  # Elements up to which a constant is no weight.
_ROUNDS: Final = 20  # Each settles shapes that hang on those of the round before.


def read(graph_def: Any, feeds: Mapping[str, Any], fetches: Sequence[str]) -> Graph:
    """The part of a frozen graph between feeds, given as `TensorSpec`s by tensor name, and fetches.

    Raises:
        ModelError: it is damaged, cyclic, too large, holds operators that do more than compute, or its control flow is
            of TensorFlow 1.
    """
    import tensorflow as tf

    fetches = [tensor_name(fetch) for fetch in fetches]
    needed = pruned(graph_def, set(feeds), fetches)
    check(needed)
    needed = pruned(graph_functions.inlined(needed), set(feeds), fetches)
    check(needed)
    for _ in range(_ROUNDS):
        graph = imported(needed, feeds)
        values, targets = graph_shapes.known(graph)
        known = _evaluated(graph) | values
        live = {name: array for name, array in known.items() if not _is_constant(graph, name)}
        if not live and not targets:
            break
        fetches = [_folded(name, live) for name in fetches]
        needed = pruned(_with_constants(needed, live, targets), set(feeds), fetches)
    _require_fit(graph)
    shapes = _shapes(needed, feeds)
    constants = {op.outputs[0].name: tf.make_ndarray(op.get_attr("value")) for op in _constants(graph)}
    found = _graph(graph, fetches, constants, graph_def.library)
    found.shapes |= {name: shape for name, shape in shapes.items() if name in found.shapes}
    return found


def _shapes(graph_def: Any, feeds: Mapping[str, Any]) -> dict[str, tuple[int | None, ...]]:
    """Shapes by tensor, where the batch alone is open: what is the same for two batches is the same for all.

    With an open batch TensorFlow loses track of sizes that are computed in the graph. What this takes for fixed and is
    not would show when layers and graph are compared, with a third batch.
    """
    import tensorflow as tf

    open_axes = {axis for spec in feeds.values() for axis, size in enumerate(spec.shape) if size is None}
    if open_axes != {0}:
        return {}
    found = []
    for batch in _BATCHES:
        fixed = {
            name: tf.TensorSpec([batch if size is None else size for size in spec.shape], spec.dtype)
            for name, spec in feeds.items()
        }
        graph = imported(graph_def, fixed)
        names = {place.name: feed for feed, place in graph.feeds.items()}
        found.append({names.get(tensor.name, tensor.name): _static(tensor) for tensor in _all_tensors(graph)})
    pairs = {name: (found[0][name], found[1].get(name)) for name in found[0]}
    return {
        name: tuple(a if a == b else None for a, b in zip(one, other, strict=True))
        for name, (one, other) in pairs.items()
        if one is not None and other is not None and len(one) == len(other)
    }


def _require_fit(graph: Any) -> None:
    """Refuse inputs that nobody feeds, and tensors that no small device could hold and this machine hardly."""
    fed = {place.name for place in graph.feeds.values()}
    for tensor in _all_tensors(graph):
        if tensor.op.type == "Placeholder" and tensor.name not in fed:
            raise ModelError(
                f"'{tensor.op.name}' is an input of the graph that nobody feeds",
                cause="an output depends on it, and it is not among the inputs",
                action="name it among the inputs, or export the model without it",
            )
        sizes = [] if tensor.shape.rank is None else [size for size in tensor.shape.as_list() if size]
        if prod(sizes) > _LARGEST:
            raise ModelError(
                f"'{tensor.op.name}' gives a tensor of {prod(sizes):,} numbers",
                cause="no small device holds that; the file is damaged, or made to exhaust memory",
                action="export the model with smaller inputs",
            )


def imported(graph_def: Any, feeds: Mapping[str, Any]) -> Any:
    """A `tf.Graph` of a graph whose feeds are placeholders of the given `TensorSpec`s."""
    import tensorflow as tf

    used = {tensor_name(reference) for node in graph_def.node for reference in node.input}
    graph = tf.Graph()
    with graph.as_default():
        places = {name: _placeholder(spec) for name, spec in feeds.items()}
        try:
            tf.graph_util.import_graph_def(
                graph_def, input_map={name: place for name, place in places.items() if name in used}, name=""
            )
        except (ValueError, TypeError, KeyError, tf.errors.OpError) as e:
            raise ModelError(
                "TensorFlow refuses the graph",
                cause=first_line(e),
                action="export the model again; if it is whole, its operators may be of a newer TensorFlow",
            ) from e
    graph.feeds = places
    return graph


def _placeholder(spec: Any) -> Any:
    import tensorflow as tf

    return tf.compat.v1.placeholder(spec.dtype, spec.shape, name="edgebuild_feed")


def _evaluated(graph: Any) -> dict[str, NDArray[Any]]:
    """The values of tensors that constants alone decide, where they are used by what depends on the inputs."""
    import tensorflow as tf

    wanted = _frontier(graph, _decided_by_constants(graph))
    if not wanted:
        return {}
    options = tf.compat.v1.ConfigProto()
    options.graph_options.rewrite_options.disable_meta_optimizer = True
    try:
        with tf.compat.v1.Session(graph=graph, config=options) as session:
            values = session.run(wanted)
    except tf.errors.OpError as e:
        raise ModelError(
            f"the graph's constants don't fit together: '{wanted[0].op.name}' or one beside it can't be computed",
            cause=str(e.message).splitlines()[0][:300],
            action="export the model again",
        ) from e
    return {tensor.name: np.asarray(value) for tensor, value in zip(wanted, values, strict=True)}


def _decided_by_constants(graph: Any) -> set[str]:
    """Names of constants and of what follows from them alone, as far as the limits of size go."""
    constant: set[str] = set()
    budget = 4.0 * _LARGEST_FOLDED
    for op in graph.get_operations():
        size = sum(_size(tensor) for tensor in op.outputs)
        if op.type == "Const" or (_foldable(op, constant) and size <= min(budget, _LARGEST_FOLDED)):
            budget -= 0 if op.type == "Const" else size
            constant.update(tensor.name for tensor in op.outputs)
    return constant


def _frontier(graph: Any, constant: set[str]) -> list[Any]:
    """Computed constants that an operator outside them uses, or nobody, which are results."""
    computed = [tensor for tensor in _all_tensors(graph) if tensor.name in constant and tensor.op.type != "Const"]
    return [
        tensor
        for tensor in computed
        if any(not _within(user, constant) for user in tensor.consumers()) or not tensor.consumers()
    ]


def _all_tensors(graph: Any) -> Iterable[Any]:
    return (tensor for op in graph.get_operations() for tensor in op.outputs)


def _within(op: Any, constant: set[str]) -> bool:
    """Whether constants decide all that an operator gives."""
    return bool(op.outputs) and all(tensor.name in constant for tensor in op.outputs)


def _foldable(op: Any, constant: set[str]) -> bool:
    calls = any("func" in attribute.type for attribute in op.op_def.attr)  # It might hold a loop, and that no end.
    if op.type == "Placeholder" or calls or op.op_def.is_stateful or not op.outputs:
        return False
    return all(tensor.name in constant for tensor in op.inputs)


def _size(tensor: Any) -> float:
    """Elements; what nobody knows counts as too many, and text and resources too."""
    import tensorflow as tf

    if tensor.dtype.base_dtype in (tf.variant, tf.resource):
        return float("inf")
    return prod(tensor.shape.as_list()) if tensor.shape.is_fully_defined() else float("inf")


def _is_constant(graph: Any, tensor: str) -> bool:
    return bool(graph.get_tensor_by_name(tensor).op.type == "Const")


def _constants(graph: Any) -> list[Any]:
    return [op for op in graph.get_operations() if op.type == "Const"]


def _with_constants(graph_def: Any, values: Mapping[str, NDArray[Any]], targets: Mapping[str, NDArray[Any]]) -> Any:
    """The graph with tensors, and the second inputs of the operators in `targets`, replaced by constants."""
    import tensorflow as tf
    from tensorflow.core.framework import graph_pb2

    replaced = graph_pb2.GraphDef()
    replaced.CopyFrom(graph_def)
    added: set[str] = set()

    def add(name: str, array: NDArray[Any]) -> None:
        node = replaced.node.add(name=name, op="Const")
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(array))
        node.attr["dtype"].type = node.attr["value"].tensor.dtype
        added.add(name)

    places = {}
    for tensor, array in values.items():
        places[tensor] = _place(tensor, array)
        if places[tensor] not in added:
            add(places[tensor], array)
    for node in list(replaced.node):
        if node.name in targets:
            add(f"{node.name}/target", targets[node.name])
            node.input[1] = f"{node.name}/target"
    for node in replaced.node:
        for i, reference in enumerate(node.input):
            node.input[i] = places.get(tensor_name(reference), reference)
    return replaced


def _graph(graph: Any, fetches: Sequence[str], constants: dict[str, NDArray[Any]], library: Any) -> Graph:
    """A `tf.Graph` as a `Graph`: feeds under their own names, operators that change nothing left out."""
    names = {place.name: feed for feed, place in graph.feeds.items()}
    nodes: dict[str, Node] = {}
    same: dict[str, str] = {}
    shapes = {feed: _static(place) for feed, place in graph.feeds.items()}
    types = {feed: place.dtype for feed, place in graph.feeds.items()}
    for op in graph.get_operations():
        if op.type in ("Placeholder", "NoOp") and all(tensor.name in names for tensor in op.outputs):
            continue
        inputs = tuple(names.get(tensor.name, tensor.name) for tensor in op.inputs)
        outputs = [tensor.name for tensor in op.outputs]
        shapes |= {tensor.name: _static(tensor) for tensor in op.outputs}
        types |= {tensor.name: tensor.dtype for tensor in op.outputs}
        if op.type in _SAME or (op.type == "Cast" and op.inputs[0].dtype == op.outputs[0].dtype):
            same |= dict(zip(outputs, inputs, strict=True))
        elif op.type != "Const":
            nodes[op.name] = Node(
                name=op.name, kind=op.type, inputs=inputs, attributes=dict(op.node_def.attr), outputs=len(outputs)
            )
    found = Graph(nodes=nodes, constants=constants, shapes=shapes, types=types, fetches=tuple(fetches), library=library)
    found.redirect(same)
    found.drop_dead()
    return found


def _folded(tensor: str, values: Mapping[str, NDArray[Any]]) -> str:
    return f"{_place(tensor, values[tensor])}:0" if tensor in values else tensor


def _place(tensor: str, array: NDArray[Any]) -> str:
    """A constant's name; that of a large one tells its content, so that what shares weights goes on sharing them."""
    if array.size > _SMALL and array.dtype != object:
        return content_name("folded", array)
    name, _, index = tensor.rpartition(":")
    return f"{name}/folded_{index}"


def _static(tensor: Any) -> tuple[int | None, ...] | None:
    return None if tensor.shape.rank is None else tuple(tensor.shape.as_list())
