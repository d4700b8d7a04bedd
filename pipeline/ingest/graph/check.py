"""Refuse a TensorFlow graph that does more than compute, or is too large to look at, before any of it is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from typing import Any, Final

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest.code_check import reaches_out

_OLD_CONTROL_FLOW: Final = frozenset(
    "Enter RefEnter Exit RefExit NextIteration RefNextIteration Switch RefSwitch Merge RefMerge LoopCond".split()  # noqa: SIM905 - shorter
)
# What keeps state in TensorFlow's books and yet only computes: calls, and placeholders of what variables hold.
STATEFUL_ALLOWED: Final = frozenset(
    "Placeholder PlaceholderWithDefault StatefulPartitionedCall While If Case Assert NoOp "  # noqa: SIM905 - shorter
    "VarHandleOp VariableV2 Variable ReadVariableOp ResourceGather ResourceGatherNd VarIsInitializedOp".split()
)
_LARGEST_CONSTANT: Final = 2**31  # Bytes; a protobuf message can't hold more, so more is a forgery.
_LARGEST_REPEATED: Final = 2**28  # Bytes of a constant that is one value repeated: a few bytes in the file.


def check(graph_def: Any) -> None:
    """Look at every operator, in the graph and in the functions it may call.

    Raises:
        ModelError: one does more than compute, is unknown, or is of the control flow of TensorFlow 1, or constants are
            too large; names it.
    """
    own = {function.signature.name for function in graph_def.library.function}
    for node in nodes(graph_def):
        check_operator(node.op, node.name, own)
    _check_sizes(nodes(graph_def))


def nodes(graph_def: Any) -> Iterator[Any]:
    """Every node of the graph and of all its functions."""
    yield from graph_def.node
    for function in graph_def.library.function:
        yield from function.node_def


def check_operator(kind: str, name: str, own: set[str]) -> None:
    """Refuse one operator, unless it calls one of the graph's `own` functions by name.

    Raises:
        ModelError: it does more than compute, or is of TensorFlow 1's control flow.
    """
    from tensorflow.python.framework import op_def_registry

    if kind in own:
        return
    if kind in _OLD_CONTROL_FLOW:
        raise ModelError(
            f"the graph holds '{name}', a {kind} of TensorFlow 1's control flow",
            cause="its loops and branches can't be told apart from its arithmetic",
            action="export the model with TensorFlow 2, whose loops are functions",
        )
    record = op_def_registry.get(kind)
    if record is None:
        raise ModelError(
            f"the graph holds '{name}', whose operator '{kind}' TensorFlow does not know",
            cause="it is a custom operator, or of another version of TensorFlow",
            action="export the model with TensorFlow's own operators",
        )
    if reaches_out(kind) or (record.is_stateful and kind not in STATEFUL_ALLOWED):
        raise ModelError(
            f"the graph holds '{name}', a {kind}, which does more than compute",
            cause="such operators touch files, Python or the network, keep state, or draw random numbers",
            action="export the model without it",
        )


def _check_sizes(found: Iterable[Any]) -> None:
    total = 0
    for node in found:
        if node.op != "Const":
            continue
        held, size = _sizes(node.attr["value"].tensor)
        total += size
        if size > _LARGEST_CONSTANT or total > _LARGEST_CONSTANT or (size > _LARGEST_REPEATED and held < size / 2):
            raise ModelError(
                f"the graph's constant '{node.name}' claims {size:,} bytes, and the file holds {held:,} for it",
                cause="the file is damaged, or made to exhaust memory",
                action="export the model again",
            )


def _sizes(tensor: Any) -> tuple[int, int]:
    """Bytes that a constant takes in the file, and in memory."""
    import tensorflow as tf

    try:
        width = tf.dtypes.as_dtype(tensor.dtype).size
    except TypeError:
        width = 0
    sizes = [dim.size for dim in tensor.tensor_shape.dim]
    if min(sizes, default=0) < 0:
        raise ModelError("a constant of the graph has a negative size", cause="the file is damaged")
    return tensor.ByteSize(), prod(sizes) * max(width, 1)
