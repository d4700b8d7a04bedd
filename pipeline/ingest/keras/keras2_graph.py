"""The graph of a tf_keras model, in the words of `program.py`."""

# ruff: noqa: SLF001 - the graph of a Keras model has no public face

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgebuild.pipeline.ingest.graph.names import unique
from edgebuild.pipeline.ingest.keras.program import Graph, Node, steps_of


def graph_of(model: Any) -> Graph:
    """The graph of a functional or sequential model."""
    import tensorflow as tf
    from tf_keras.src.engine.keras_tensor import KerasTensor

    nodes = [node for depth in sorted(model._nodes_by_depth, reverse=True) for node in model._nodes_by_depth[depth]]
    return Graph(
        inputs=dict(zip(unique(model.input_names), model.inputs, strict=True)),
        nodes=[
            Node(
                layer=node.layer,
                args=node.call_args,
                kwargs=node.call_kwargs,
                outputs=tf.nest.flatten(node.outputs),
                steps=_steps(node),
            )
            for node in _needed(nodes, model.outputs)
            if not node.is_input
        ],
        outputs=dict(zip(unique(model.output_names), model.outputs, strict=True)),
        is_tensor=lambda leaf: isinstance(leaf, KerasTensor),
        inner=lambda layer: graph_of(layer) if is_functional(layer) else None,
    )


def _needed(nodes: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
    """Those that outputs need, in their order; layers that only a loss took are among all, in no order at all."""
    import tensorflow as tf

    needed = set(map(id, outputs))
    kept = []
    for node in reversed(nodes):
        if needed.intersection(map(id, tf.nest.flatten(node.outputs))):
            kept.append(node)
            needed.update(map(id, node.keras_inputs))
    return kept[::-1]


def is_functional(layer: Any) -> bool:
    """Whether a layer is a model that does what its graph says, and no more."""
    from tf_keras.src.engine.functional import Functional
    from tf_keras.src.engine.sequential import Sequential

    known = (Functional.call, Sequential.call)
    return getattr(layer, "_is_graph_network", False) and type(layer).call in known


def _steps(node: Any) -> int | None:
    """Nothing where a mask goes through: cut into steps, it would be lost."""
    masked = any(getattr(tensor, "_keras_mask", None) is not None for tensor in node.keras_inputs)
    return None if masked or node.call_kwargs.get("mask") is not None else steps_of(node.layer, node.keras_inputs)
