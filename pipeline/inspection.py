"""What a model is made of: a source model's layers, or a flatbuffer's operators."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgebuild.export.flatbuffer import Flatbuffer, Tensor, read_file
from edgebuild.pipeline.execution.engine import Event, execute
from edgebuild.pipeline.ingest import adopted, fitness, float_model, folding
from edgebuild.pipeline.ingest.fitness import Fitness
from edgebuild.pipeline.ingest.float_model import Layer
from edgebuild.pipeline.ingest.source import Options
from edgebuild.pipeline.source_task import model_task
from edgebuild.pipeline.storage.location import default_root
from edgebuild.pipeline.storage.store import Store

_PLAIN: Final = Options()


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """An input or output; -1 stands for a dynamic dimension."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A layer or operator; `macs` is multiply-accumulates for one sample, of convolutions and matrix products alone.

    `fitness` is what compression can do with it; None for an operator of a flatbuffer, where nothing can be trained.
    """

    index: int
    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    fitness: Fitness | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A whole model; `notes` tell what came in otherwise than one would wish.

    `prunable_parameters` are weights in layers that can be pruned, None where nothing can be trained;
    `folding_parameters` are those of layers that fold into another, of which nothing reaches an artifact.
    """

    format: str
    inputs: tuple[End, ...]
    outputs: tuple[End, ...]
    nodes: tuple[Node, ...]
    parameters: int
    macs: int
    notes: tuple[str, ...] = ()
    prunable_parameters: int | None = None
    folding_parameters: int = 0


def inspect(
    path: Path,
    on_event: Callable[[Event], None] = lambda _: None,
    store: Store | None = None,
    options: Options = _PLAIN,
) -> Summary:
    """Describe a model of any supported format; a source model is ingested, so a build that follows starts ahead.

    Raises:
        ModelError: it can't be read.
        ConfigError: `options` choose something that a flatbuffer leaves no choice of.
    """
    if adopted.is_flatbuffer(path):
        adopted.require_no_choice(path, options)
        return _of_flatbuffer(read_file(path))
    from edgebuild.pipeline.ingest.load import source_format

    source_format(path)
    task = model_task(path, options)
    outcome = execute({task.key: task}, [task.key], store or Store(default_root()), jobs=1, on_event=on_event)
    if task.key in outcome.failures:
        raise outcome.failures[task.key]
    return _of_float_model(outcome.results[task.key])


def _of_float_model(folder: Path) -> Summary:
    described = float_model.describe(folder)
    ranks = {layer.name: len(layer.output_shape) for layer in described.layers}
    folds = folding.folded(json.loads((folder / "architecture.json").read_bytes()), ranks)
    judged = [
        (layer, fitness.of(layer.kind, layer.parameters, folds.get(layer.name, ""))) for layer in described.layers
    ]
    nodes = tuple(_node(index, layer, fit) for index, (layer, fit) in enumerate(judged))
    ends, batch = described.source_inputs, (-1,) if described.batched else ()
    outputs = zip(described.outputs, described.output_shapes, strict=True)
    return Summary(
        format=described.source_format,
        inputs=tuple(End(name=spec.name, dtype=spec.dtype, shape=(*batch, *spec.shape)) for spec in ends),
        outputs=tuple(End(name=name, dtype="float32", shape=_plain(shape)) for name, shape in outputs),
        nodes=nodes,
        parameters=described.parameters,
        macs=sum(node.macs for node in nodes),
        notes=described.notes,
        prunable_parameters=sum(layer.parameters for layer, fit in judged if fit.prunable),
        folding_parameters=sum(layer.parameters for layer, fit in judged if fit.folds_into),
    )


def _of_flatbuffer(model: Flatbuffer) -> Summary:
    nodes = tuple(_node(index, layer) for index, layer in enumerate(adopted.layers(model)))
    return Summary(
        format=adopted.FORMAT,
        inputs=tuple(_end(name, tensor) for name, tensor in model.inputs.items()),
        outputs=tuple(_end(name, tensor) for name, tensor in model.outputs.items()),
        nodes=nodes,
        parameters=sum(tensor.elements for tensor in model.weights),
        macs=sum(node.macs for node in nodes),
    )


def _node(index: int, layer: Layer, fit: Fitness | None = None) -> Node:
    return Node(
        index=index,
        name=layer.name,
        kind=layer.kind,
        shape=_plain(layer.output_shape),
        parameters=layer.parameters,
        macs=layer.macs,
        fitness=fit,
    )


def _end(name: str, tensor: Tensor) -> End:
    return End(name=name, dtype=tensor.dtype, shape=tensor.shape_signature)


def _plain(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    return tuple(-1 if size is None else size for size in shape)
