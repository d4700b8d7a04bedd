"""From a frozen graph to what a reader gives back: open sizes fixed, the batch found, names kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest.graph.graph import GraphInput, GraphOutput, lift
from edgebuild.pipeline.ingest.source import Port, Reading, settle

_WHOLE: Final = "its first axis is no batch, or only fits one sample: a sample is a whole input"


def sized(inputs: Sequence[GraphInput], shapes: Mapping[str, tuple[int, ...]], path: Path) -> list[GraphInput]:
    """Inputs with the shapes the user gave, and no unknown size but the batch's.

    Raises:
        ModelError: a size is unknown, or what the user gave does not fit; says what to give.
    """
    unknown = sorted(set(shapes) - {given.name for given in inputs})
    if unknown:
        raise ModelError(
            f"{path} has no input '{unknown[0]}', for which a shape is given",
            cause=f"its inputs are {', '.join(given.name for given in inputs)}",
            action="correct model.input_shapes",
        )
    return [_sized(given, shapes.get(given.name), path) for given in inputs]


def lifted(
    graph_def: Any, inputs: Sequence[GraphInput], outputs: Sequence[GraphOutput], notes: tuple[str, ...]
) -> Reading:
    """The reading of a frozen graph.

    Raises:
        ModelError: see `graph.lift`.
    """
    model = lift(graph_def, inputs, outputs)
    batched = all(tensor.shape.rank and tensor.shape[0] is None for tensor in model.inputs)
    return Reading(
        model=model,
        inputs=tuple(Port(name=given.name) for given in inputs),
        outputs=tuple(Port(name=wanted.name) for wanted in outputs),
        batched=batched,
        notes=notes if batched else (*notes, _WHOLE),
    )


def _sized(given: GraphInput, shape: tuple[int, ...] | None, path: Path) -> GraphInput:
    if shape is not None:
        own = given.shape
        fits = own is None or _fits(own, shape)
        if not fits or min(shape, default=1) < 1:
            raise ModelError(
                f"{path}: input '{given.name}' can't have the shape {list(shape)}",
                cause=f"in the model it is {_shown(own)}",
                action="correct model.input_shapes; None may be any size from 1, every other number is fixed",
            )
        return replace(given, shape=tuple(shape))
    if given.shape is None or None in given.shape[1:]:
        axis = "its rank is unknown" if given.shape is None else f"axis {given.shape.index(None, 1)} has no fixed size"
        raise ModelError(
            f"{path}: input '{given.name}' has the dynamic shape {_shown(given.shape)}",
            cause=f"{axis}, which a flatbuffer needs",
            action=settle(given.name, given.shape and (given.shape[0] or 1, *given.shape[1:])),
        )
    return given


def _fits(own: tuple[int | None, ...], shape: tuple[int, ...]) -> bool:
    return len(own) == len(shape) and all(a in (None, b) for a, b in zip(own, shape, strict=True))


def _shown(shape: tuple[int | None, ...] | None) -> str:
    return "of unknown rank" if shape is None else str(list(shape))
