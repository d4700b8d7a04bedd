"""Frozen graphs made in code, and their lifted models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from edgebuild.pipeline.ingest.graph.graph import GraphInput, GraphOutput, lift

Frozen = tuple[Any, list[GraphInput], list[GraphOutput]]


def frozen(function: Callable[..., Any], *specs: Any) -> Frozen:
    """A function's graph with its variables as constants, and what goes in and out of it."""
    concrete = tf.function(function, autograph=False).get_concrete_function(*specs)
    traced = convert_variables_to_constants_v2(concrete, lower_control_flow=False)
    inputs = [
        GraphInput(name=f"in{i}", tensor=tensor.name, shape=tuple(tensor.shape.as_list()), dtype=tensor.dtype.name)
        for i, tensor in enumerate(traced.inputs)
    ]
    outputs = [GraphOutput(name=f"out{i}", tensor=tensor.name) for i, tensor in enumerate(traced.outputs)]
    return traced.graph.as_graph_def(), inputs, outputs


def lifted(function: Callable[..., Any], *specs: Any) -> Any:
    """The model that a function's graph becomes."""
    return lift(*frozen(function, *specs))


def of_keras(model: Any) -> Any:
    """The model that a Keras model's own graph becomes."""

    def call(*tensors: Any) -> Any:
        return model(tensors[0] if len(tensors) == 1 else list(tensors), training=False)

    return lifted(call, *[tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in model.inputs])
