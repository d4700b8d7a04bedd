"""Recurrent operators, unrolled: sequences have a fixed length here, and most targets take no loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import tensorflow as tf

from edgebuild.pipeline.ingest.onnx.rules_node import Node, unsupported

_MOST_STEPS: Final = 256
_ACTIVATIONS: Final[dict[str, Callable[[Any], Any]]] = {
    "sigmoid": tf.sigmoid,
    "tanh": tf.tanh,
    "relu": tf.nn.relu,
    "softsign": tf.nn.softsign,
}


def _recurrent(step: Callable[..., Any], gates: int, defaults: Sequence[str], states: int) -> Callable[..., Any]:
    """The rule for a cell with so many gates and states, and these activations where the node names none.

    `step(node, functions, x, state, weights)` gives the next state, its output first.
    """

    def rule(node: Node, x: Any, w: Any, r: Any, b: Any = None, lengths: Any = None, *rest: Any) -> Any:
        x = tf.convert_to_tensor(x)
        by_batch = bool(node.attributes.get("layout"))
        x = tf.transpose(x, [1, 0, 2]) if by_batch else x
        _require_plain(node, x, lengths)
        hidden, directions = r.shape[-1], w.shape[0]
        given = [*rest, *[None] * 3]
        bias = tf.zeros([directions, 2 * gates * hidden]) if b is None else b
        functions = _functions(node, defaults, directions)
        peepholes = given[2] if states == 2 else None
        outputs, finals = [], []
        for d in range(directions):

            def cell(part: Any, state: list[Any], d: int = d) -> Any:
                weights = (w[d], r[d], bias[d], None if peepholes is None else peepholes[d])
                return step(node, functions[d], part, state, weights)

            start = [_start(given[i], d, x.shape[1], hidden, by_batch=by_batch) for i in range(states)]
            backwards = node.attributes.get("direction") == "reverse" or d == 1
            output, state = _unrolled(cell, x, start, backwards=backwards)
            outputs.append(output)
            finals.append(state)
        every = tf.stack(outputs, 1)  # [time, direction, batch, hidden]
        ends = [tf.stack([state[i] for state in finals]) for i in range(states)]
        if by_batch:
            every, ends = tf.transpose(every, [2, 0, 1, 3]), [tf.transpose(end, [1, 0, 2]) for end in ends]
        return (every, *ends)

    return rule


def _unrolled(cell: Callable[..., Any], x: Any, state: Any, *, backwards: bool) -> tuple[Any, Any]:
    """Outputs of a cell at all steps of `x`, `[time, batch, hidden]`, in the order of time, and its last state."""
    steps, outputs = tf.unstack(x), []
    for part in steps[::-1] if backwards else steps:
        state = cell(part, state)
        outputs.append(state[0])
    return tf.stack(outputs[::-1] if backwards else outputs), state


def _require_plain(node: Node, x: Any, lengths: Any) -> None:
    if lengths is not None and (node.constant(lengths, "lengths") != x.shape[0]).any():
        raise unsupported(node, "its sequences are of several lengths")
    if "clip" in node.attributes or node.attributes.get("activation_alpha"):
        raise unsupported(node, "it clips, or its activations have parameters")
    if x.shape[0] > _MOST_STEPS:
        raise unsupported(node, f"it would be unrolled to more than {_MOST_STEPS} steps")


def _functions(node: Node, defaults: Sequence[str], directions: int) -> list[list[Callable[[Any], Any]]]:
    names = [name.lower() for name in node.attributes.get("activations", [*defaults] * directions)]
    unknown = [name for name in names if name not in _ACTIVATIONS]
    if unknown:
        raise unsupported(node, f"edgebuild has no rule for its activation {unknown[0]}")
    size = len(defaults)
    return [[_ACTIVATIONS[name] for name in names[d * size : (d + 1) * size]] for d in range(directions)]


def _start(value: Any, direction: int, batch: int, hidden: int, *, by_batch: bool) -> Any:
    if value is None:
        return np.zeros((batch, hidden), np.float32)
    return value[:, direction] if by_batch else value[direction]


def _product(x: Any, weights: Any) -> Any:
    return tf.matmul(x, np.transpose(weights) if isinstance(weights, np.ndarray) else tf.transpose(weights))


def _rnn(_: Node, functions: Any, x: Any, state: list[Any], weights: Any) -> list[Any]:
    w, r, bias, _peepholes = weights
    before, after = tf.split(bias, 2)
    return [functions[0](_product(x, w) + _product(state[0], r) + before + after)]


def _gru(node: Node, functions: Any, x: Any, state: list[Any], weights: Any) -> list[Any]:
    w, r, bias, _peepholes = weights
    size = state[0].shape[-1]
    before, after = tf.split(bias, 2)
    inputs = tf.split(_product(x, w) + before, 3, -1)
    gates = _product(state[0], r[: 2 * size]) + after[: 2 * size]
    update, reset = (functions[0](a + b) for a, b in zip(inputs[:2], tf.split(gates, 2, -1), strict=True))
    if node.attributes.get("linear_before_reset"):
        inner = reset * (_product(state[0], r[2 * size :]) + after[2 * size :])
    else:
        inner = _product(reset * state[0], r[2 * size :]) + after[2 * size :]
    new = functions[1](inputs[2] + inner)
    return [(1.0 - update) * new + update * state[0]]


def _lstm(node: Node, functions: Any, x: Any, state: list[Any], weights: Any) -> list[Any]:
    w, r, bias, peepholes = weights
    hidden, cell = state
    before, after = tf.split(bias, 2)
    i, o, f, c = tf.split(_product(x, w) + _product(hidden, r) + before + after, 4, -1)
    pi, po, pf = (0.0, 0.0, 0.0) if peepholes is None else tf.split(peepholes, 3)
    entering = functions[0](i + pi * cell)
    forgetting = 1.0 - entering if node.attributes.get("input_forget") else functions[0](f + pf * cell)
    new = forgetting * cell + entering * functions[1](c)
    return [functions[0](o + po * new) * functions[2](new), new]


RULES: Final[dict[str, Callable[..., Any]]] = {
    "RNN": _recurrent(_rnn, 1, ("Tanh",), 1),
    "GRU": _recurrent(_gru, 3, ("Sigmoid", "Tanh"), 1),
    "LSTM": _recurrent(_lstm, 4, ("Sigmoid", "Tanh", "Tanh"), 2),
}
