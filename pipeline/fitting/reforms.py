"""Edits of a finished flatbuffer that give an operator another form: nothing is computed otherwise, bit for bit.

They need no float model, so that a .tflite file that is given can be edited too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from edgebuild.export.surgery import Surgeon
from edgebuild.targets.rules import Node

if TYPE_CHECKING:
    from edgebuild.export.flatbuffer import Flatbuffer

# Edits a model, and names the tensors where it did.
Reform: TypeAlias = "Callable[[Flatbuffer, Surgeon], tuple[str, ...]]"
_POOLS: Final = ("AVERAGE_POOL_2D", "MAX_POOL_2D")
_ACTIVATIONS: Final = ("RELU", "RELU6", "RELU_N1_TO_1")
_EMPTY: Final = -1


def separate_activation(node: Node, surgeon: Surgeon) -> bool:
    """A pool's fused activation behind it, in the pool's own quantization."""
    fused = str(node.option("fusedActivationFunction", "NONE"))
    if node.kind not in _POOLS or fused not in _ACTIVATIONS:
        return False
    surgeon.split_activation(node.operator.index, fused, _version(node, fused))
    return True


def nearest_from_one(node: Node, surgeon: Surgeon) -> bool:
    """From a single pixel, every way of resizing repeats it."""
    if node.kind != "RESIZE_BILINEAR" or node.inputs[0].shape[1:3] != (1, 1):
        return False
    if node.inputs[0].quantization != node.outputs[0].quantization:
        return False
    version = _version(node, "RESIZE_NEAREST_NEIGHBOR")
    surgeon.turn_into(
        node.operator.index, "RESIZE_NEAREST_NEIGHBOR", version, alignCorners=False, halfPixelCenters=False
    )
    return True


def squeeze_as_reshape(node: Node, surgeon: Surgeon) -> bool:
    """Dropping axes of size 1 moves nothing, and neither does a reshape."""
    if node.kind != "SQUEEZE" or _EMPTY in node.outputs[0].shape_signature:
        return False
    shape = np.asarray(node.outputs[0].shape, np.int32)
    surgeon.turn_into(node.operator.index, "RESHAPE", 1, newShape=shape)
    surgeon.take_input(node.operator.index, 1, surgeon.constant(shape, f"{node.outputs[0].name}/shape"))
    return True


def fixed_batch(model: Flatbuffer, surgeon: Surgeon) -> tuple[str, ...]:
    """Sizes as the file has them, where nothing but a batch of one sample is open; names the inputs."""
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    dynamic = [tensor for tensor in tensors if _EMPTY in tensor.shape_signature]
    if any(tensor.shape[:1] != (1,) or _EMPTY in tensor.shape_signature[1:] for tensor in dynamic):
        return ()
    surgeon.fix_sizes()
    return tuple(tensor.name for tensor in model.inputs.values() if tensor in dynamic)


def each(function: Callable[[Node, Surgeon], bool]) -> Reform:
    """An edit of single operators as one of a model."""

    def reform(model: Flatbuffer, surgeon: Surgeon) -> tuple[str, ...]:
        nodes = [Node(operator, model.main.tensors) for operator in reversed(model.main.operators)]  # Indices hold.
        return tuple(node.outputs[0].name for node in nodes if function(node, surgeon))[::-1]

    return reform


def _version(node: Node, kind: str) -> int:
    """The least of a kind that takes the tensor's type. ref: tensorflow/lite/tools/versioning/op_version.cc."""
    return 2 if node.inputs[0].dtype == "int8" and kind != "RELU_N1_TO_1" else 1
