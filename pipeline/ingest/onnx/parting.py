"""Where a conversion parts from its source: the first node of ONNX whose value differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from numpy.typing import NDArray

from edgebuild.pipeline.ingest import parity
from edgebuild.pipeline.ingest.onnx import runtime as onnx_runtime
from edgebuild.pipeline.ingest.onnx.conversion import Conversion, run
from edgebuild.pipeline.ingest.onnx.match import match

_LARGEST: Final = 2**22  # Elements of a value that is compared in all orders of its axes.


def first_difference(model: Any, conversion: Conversion, arrays: Sequence[NDArray[Any]]) -> str:
    """The first node, with its operator, whose value the conversion does not have in any order of axes.

    Values that the conversion has no counterpart of, since it fused or folded them, are passed over; where all others
    agree, it is the first of these.
    """
    names = [name for node in model.graph.node for name in node.output if name]
    feeds = dict(zip((value.name for value in model.graph.input), arrays, strict=True))
    wanted = dict(zip(names, onnx_runtime.run(with_outputs(model, names), feeds), strict=True))
    found, function = conversion.counterparts([name for name in names if wanted[name].size <= _LARGEST])
    got = dict(zip(found, run(function, arrays, conversion.input_axes), strict=True))
    for node in model.graph.node:
        for name in node.output:
            if name in got and match([wanted[name]], [got[name]], batched=False).error > parity.MAX_RELATIVE_ERROR:
                return _told(node)
    lost = (node for node in model.graph.node if not got.keys() & set(node.output))
    return next(map(_told, lost), "")


def first_of_open_size(model: Any, sets: Sequence[Sequence[NDArray[Any]]]) -> str:
    """The first node whose results differ in size between sets of inputs."""
    names = [name for node in model.graph.node for name in node.output if name]
    inputs = [value.name for value in model.graph.input]
    larger = with_outputs(model, names)
    found = [onnx_runtime.run(larger, dict(zip(inputs, arrays, strict=True))) for arrays in sets]
    shapes = zip(*([array.shape for array in results] for results in found), strict=True)
    varied = {name for name, sizes in zip(names, shapes, strict=True) if len(set(sizes)) > 1}
    return next(_told(node) for node in model.graph.node if varied.intersection(node.output))


def _told(node: Any) -> str:
    return f"node '{node.name}' ({node.op_type})"


def with_outputs(model: Any, names: Sequence[str]) -> Any:
    """A copy of the model that gives the named values and nothing else."""
    copy = type(model).FromString(model.SerializeToString())
    del copy.graph.output[:]
    for name in names:
        copy.graph.output.add(name=name)
    return copy
