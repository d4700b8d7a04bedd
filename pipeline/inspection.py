"""What a model is made of: a source model's layers, or a flatbuffer's operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgebuild.export.errors import ModelError
from edgebuild.export.flatbuffer import Flatbuffer, Operator, Tensor, read
from edgebuild.pipeline.engine import Event, execute
from edgebuild.pipeline.ingest import float_model
from edgebuild.pipeline.plan import model_task
from edgebuild.pipeline.store import Store, default_root


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """An input or output; -1 stands for a dynamic dimension."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A layer or operator; `macs` is multiply-accumulates for one sample, of convolutions and matrix products alone."""

    index: int
    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    macs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A whole model."""

    format: str
    inputs: tuple[End, ...]
    outputs: tuple[End, ...]
    nodes: tuple[Node, ...]
    parameters: int
    macs: int


def inspect(path: Path, on_event: Callable[[Event], None] = lambda _: None, store: Store | None = None) -> Summary:
    """Describe a model of any supported format; a source model is ingested, so a build that follows starts ahead.

    Raises:
        ModelError: it can't be read.
    """
    if path.suffix == ".tflite":
        return _of_flatbuffer(_read(path))
    from edgebuild.pipeline.ingest.load import source_format

    source_format(path)
    task = model_task(path)
    outcome = execute({task.key: task}, [task.key], store or Store(default_root()), jobs=1, on_event=on_event)
    if task.key in outcome.failures:
        raise outcome.failures[task.key]
    return _of_float_model(float_model.describe(outcome.results[task.key]))


def _read(path: Path) -> Flatbuffer:
    try:
        return read(path.read_bytes())
    except OSError as e:
        raise ModelError(f"{path} can't be read", cause=str(e), action="give a model file or folder") from e


def _of_float_model(described: float_model.Description) -> Summary:
    nodes = tuple(
        Node(
            index=index,
            name=layer.name,
            kind=layer.kind,
            shape=_plain(layer.output_shape),
            parameters=layer.parameters,
            macs=layer.macs,
        )
        for index, layer in enumerate(described.layers)
    )
    outputs = zip(described.outputs, described.output_shapes, strict=True)
    return Summary(
        format=described.source_format,
        inputs=tuple(End(name=spec.name, dtype=spec.dtype, shape=(-1, *spec.shape)) for spec in described.inputs),
        outputs=tuple(End(name=name, dtype="float32", shape=_plain(shape)) for name, shape in outputs),
        nodes=nodes,
        parameters=described.parameters,
        macs=sum(node.macs for node in nodes),
    )


def _of_flatbuffer(model: Flatbuffer) -> Summary:
    nodes = tuple(_node(model, operator) for operator in model.main.operators)
    return Summary(
        format="TFLite flatbuffer",
        inputs=tuple(_end(name, tensor) for name, tensor in model.inputs.items()),
        outputs=tuple(_end(name, tensor) for name, tensor in model.outputs.items()),
        nodes=nodes,
        parameters=sum(tensor.elements for tensor in model.weights),
        macs=sum(node.macs for node in nodes),
    )


def _node(model: Flatbuffer, operator: Operator) -> Node:
    output = model.main.tensors[operator.outputs[0]] if operator.outputs else None
    learned = {tensor.index for tensor in model.weights}
    constants = [model.main.tensors[i] for i in operator.inputs if i in learned]
    return Node(
        index=operator.index,
        name=output.name if output else "",
        kind=operator.kind,
        shape=output.shape if output else (),
        parameters=sum(tensor.elements for tensor in constants),
        macs=macs(model, operator),
    )


def macs(model: Flatbuffer, operator: Operator) -> int:
    """Multiply-accumulates of one operator: outputs times what each of them sums over; 0 for other kinds."""
    if len(operator.inputs) < 2 or not operator.outputs:
        return 0
    tensors = model.main.tensors
    output = tensors[operator.outputs[0]].elements
    weights = tensors[operator.inputs[1]].shape
    if operator.kind == "CONV_2D" and len(weights) == 4:  # [out, height, width, in]
        return output * weights[1] * weights[2] * weights[3]
    if operator.kind == "DEPTHWISE_CONV_2D" and len(weights) == 4:  # [1, height, width, out]
        return output * weights[1] * weights[2]
    if operator.kind == "FULLY_CONNECTED" and len(weights) == 2:  # [out, in]
        return output * weights[1]
    if operator.kind == "TRANSPOSE_CONV" and len(operator.inputs) > 2 and len(weights) == 4:
        return tensors[operator.inputs[2]].elements * weights[0] * weights[1] * weights[2]
    if operator.kind == "BATCH_MATMUL" and tensors[operator.inputs[0]].shape:
        return output * tensors[operator.inputs[0]].shape[-2 if operator.options.get("adjX") else -1]
    return 0


def _end(name: str, tensor: Tensor) -> End:
    return End(name=name, dtype=tensor.dtype, shape=tensor.shape_signature)


def _plain(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    return tuple(-1 if size is None else size for size in shape)
