"""ONNX's sequences and optional values: lists and None while the graph is made, and nothing in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import tensorflow as tf

from edgebuild.pipeline.ingest.onnx.rules_node import Node


def _at(node: Node, position: Any) -> int:
    return int(node.constant(position, "position").reshape(()))


def _erase(node: Node, sequence: Any, position: Any = None) -> Any:
    index = (len(sequence) - 1 if position is None else _at(node, position)) % len(sequence)
    return [*sequence[:index], *sequence[index + 1 :]]


def _insert(node: Node, sequence: Any, value: Any, position: Any = None) -> Any:
    index = len(sequence) if position is None else _at(node, position)
    return [*sequence[:index], value, *sequence[index:]]


def _concat_sequence(node: Node, sequence: Any) -> Any:
    join = tf.stack if node.attributes.get("new_axis") else tf.concat
    return join(sequence, node.attributes["axis"])


def _split_to_sequence(node: Node, x: Any, split: Any = None) -> Any:
    axis = node.attributes.get("axis", 0)
    size = x.shape[axis]
    if split is None:
        parts = tf.split(x, size, axis)
        return list(parts) if node.attributes.get("keepdims", 1) else [tf.squeeze(part, axis) for part in parts]
    wanted = node.constant(split, "split")
    if not wanted.shape:
        wanted = np.asarray([min(int(wanted), size - start) for start in range(0, size, int(wanted))])
    return list(tf.split(x, wanted, axis))


RULES: Final[dict[str, Callable[..., Any]]] = {
    "SequenceConstruct": lambda _, *values: list(values),
    "SequenceEmpty": lambda _: [],
    "SequenceAt": lambda node, sequence, position: sequence[_at(node, position)],
    "SequenceLength": lambda _, sequence: np.asarray(len(sequence), np.int64),
    "SequenceErase": _erase,
    "SequenceInsert": _insert,
    "ConcatFromSequence": _concat_sequence,
    "SplitToSequence": _split_to_sequence,
    "OptionalHasElement": lambda _, value=None: np.asarray(value is not None),
    "OptionalGetElement": lambda _, value: value,
}
