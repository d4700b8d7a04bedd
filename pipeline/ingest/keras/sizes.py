"""The input shapes the user gives for a Keras model that leaves some open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest.keras.program import MAX_VALUES, Program


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What a flat model's input is made from, in place of the source's own tensor."""

    shape: tuple[int | None, ...]
    dtype: Any


def settled(program: Program, shapes: Mapping[str, tuple[int, ...]], path: Path) -> Program:
    """The program with the shapes the user gave, batch included: a batch of one leaves an open batch open.

    Raises:
        ModelError: a shape is of no input, does not fit or is too large, or a size is still unknown.
    """
    if not shapes:
        return program
    from edgebuild.pipeline.ingest.graph.graph import GraphInput
    from edgebuild.pipeline.ingest.graph.reading import sized

    ends = [
        GraphInput(name=name, tensor=name, shape=tuple(tensor.shape), dtype=str(tensor.dtype))
        for name, (_, tensor) in program.inputs.items()
    ]
    found = {each.name: each.shape or () for each in sized(ends, shapes, path)}
    for name in shapes:
        _require_bounded(name, found[name], path)
    return replace(
        program,
        inputs={
            name: (value, Given(shape=_with_open_batch(found[name], tensor.shape), dtype=tensor.dtype))
            for name, (value, tensor) in program.inputs.items()
        },
    )


def _with_open_batch(shape: tuple[int | None, ...], own: Any) -> tuple[int | None, ...]:
    return (None, *shape[1:]) if shape[:1] == (1,) and own[0] is None else shape


def _require_bounded(name: str, shape: tuple[int | None, ...], path: Path) -> None:
    if prod(size or 1 for size in shape) > MAX_VALUES:
        raise ModelError(
            f"{path}: input '{name}' can't have the shape {list(shape)}",
            cause=f"that is more than {MAX_VALUES:,} values, which no target of edgebuild's holds",
            action="give a smaller one",
        )
