"""A frozen TensorFlow graph replayed as live Keras layers: what every source that is a graph goes through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import tf_keras

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest.graph import names as graph_names
from edgebuild.pipeline.ingest.graph import proof as graph_proof
from edgebuild.pipeline.ingest.graph.replay import Replay

_BRANCHES: Final = frozenset({"Case", "If", "StatelessCase", "StatelessIf", "Switch"})


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphInput:
    """A tensor of a graph that is fed, under the name it has for the user; `shape` with its batch.

    An unknown size is None, and so is a shape of unknown rank, which `lift` does not take.
    """

    name: str
    tensor: str
    shape: tuple[int | None, ...] | None
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphOutput:
    """A tensor of a graph that is a result, under the name it has for the user."""

    name: str
    tensor: str


def call(graph_def: Any, feeds: Mapping[str, Any], fetches: Sequence[str], prefix: str = "") -> list[Any]:
    """Replay a frozen graph onto Keras tensors and give one for each fetch.

    `feeds` are by tensor name; the names of layers are those of the graph's nodes after `prefix`.

    Raises:
        ModelError: the graph is damaged or does more than compute, or a result does not depend on any feed.
    """
    return Replay(graph_def, feeds, prefix).results(fetches)


def lift(graph_def: Any, inputs: Sequence[GraphInput], outputs: Sequence[GraphOutput]) -> Any:
    """A frozen graph as a tf_keras functional model, proven equal to it; its batch is free where that changes nothing.

    Raises:
        ModelError: the graph is damaged or does more than compute, or the layers compute something else; names the
            first node where they part.
    """
    flat = [given.name for given in inputs if given.shape == ()]
    if flat:
        raise ModelError(
            f"input '{flat[0]}' is a single number",
            cause="a layer's input has axes, the batch at least",
            action="export the model with an axis of size 1 there, or with the number inside",
        )
    fixed = [replace(given, shape=_with_batch(given.shape, 1)) for given in inputs]
    if not all(given.shape and given.shape[0] in (None, 1) for given in inputs):
        return _lifted(graph_def, fixed, outputs, rows=False)
    own = all(given.shape[0] is None for given in inputs if given.shape)
    if not own and _branches(graph_def):
        return _lifted(graph_def, fixed, outputs, rows=False)  # Several samples would all take the same branch.
    free = [replace(given, shape=_with_batch(given.shape, None)) for given in inputs]
    try:
        return _lifted(graph_def, free, outputs, rows=not own)
    except ModelError as first:
        try:
            return _lifted(graph_def, fixed, outputs, rows=False)  # It holds sizes that only fit a batch of one.
        except ModelError as second:
            raise (first if own else second) from None


def _branches(graph_def: Any) -> bool:
    """Whether what is computed may depend on values: on seeded data, all samples may happen to take one branch."""
    bodies = [graph_def.node, *(function.node_def for function in graph_def.library.function)]
    return any(node.op in _BRANCHES for body in bodies for node in body)


def _with_batch(shape: tuple[int | None, ...] | None, batch: int | None) -> tuple[int | None, ...]:
    """A shape whose first size, where it is open or one, is `batch`."""
    return (batch, *shape[1:]) if shape and shape[0] in (None, 1) else tuple(shape or ())


def _lifted(graph_def: Any, inputs: Sequence[GraphInput], outputs: Sequence[GraphOutput], *, rows: bool) -> Any:
    names = graph_names.unique([graph_names.safe(given.name) or "input" for given in inputs])
    tensors = [
        tf_keras.Input(batch_shape=given.shape, dtype=given.dtype, name=name)
        for given, name in zip(inputs, names, strict=True)
    ]
    feeds, fetches = [given.tensor for given in inputs], [wanted.tensor for wanted in outputs]
    replay = Replay(graph_def, dict(zip(feeds, tensors, strict=True)))
    results = replay.results(fetches)
    if (
        inputs[0].shape
        and inputs[0].shape[0] is None
        and not all(end.shape.rank and end.shape[0] is None for end in results)
    ):
        raise ModelError(
            "an output of the graph has no batch, and its inputs have",
            cause="it sums over all samples, or keeps the size of a batch",
            action="fix the shapes of its inputs, batch included, with model.input_shapes",
        )
    ends = _own_ends(results, tensors, outputs)
    model = tf_keras.Model(tensors, ends, name="model")
    graph_proof.require_equal(graph_def, model, feeds, replay.tensors, fetches, rows=rows)
    if not all(end.shape.is_fully_defined() for end in ends):
        graph_proof.require_fixed_sizes(model, [wanted.name for wanted in outputs])
    return model


def _own_ends(results: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[GraphOutput]) -> list[Any]:
    """Results of which none is an input, or another result: each output needs a tensor of its own."""
    ends: list[Any] = []
    for result, output in zip(results, outputs, strict=True):
        taken = any(result is other for other in (*ends, *inputs))
        linear = tf_keras.layers.Activation(
            "linear", name=f"output_{len(ends)}_{graph_names.safe(output.name)}", dtype=result.dtype
        )
        ends.append(linear(result) if taken else result)
    return ends
