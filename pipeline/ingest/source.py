"""What a reader of a source format is told and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the user says about a source model, beyond its path.

    `signature` chooses among a SavedModel's; empty means the only one, or `serving_default`. `input_shapes` fixes
    whole shapes, batch included, by the source's own input names. `custom` are modules that register layers when
    imported. `trust_code` lets code inside the model file run.
    """

    signature: str = ""
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    custom: tuple[str, ...] = ()
    trust_code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """An input or output under the source's own name.

    `axes` is the order in which the source's axes, batch included, stand in the model; empty where they agree:
    `model_array = source_array.transpose(axes)`.
    """

    name: str
    axes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A source as a tf_keras functional or sequential model, proven to compute what its source computes.

    `inputs` and `outputs` are in the model's order. `batched` is false where the first axis is no batch of samples: a
    sample is then a whole input. `notes` are for the user: what came in otherwise than one would wish.
    """

    model: Any
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    batched: bool = True
    notes: tuple[str, ...] = ()


def plain(model: Any, notes: tuple[str, ...] = ()) -> Reading:
    """The reading of a tf_keras model that keeps its own names and layout."""
    return Reading(
        model=model,
        inputs=tuple(Port(name=name) for name in model.input_names),
        outputs=tuple(Port(name=name) for name in model.output_names),
        notes=notes,
    )


def settle(name: str, shape: Sequence[int | None] | None) -> str:
    """What to do about an input of open size; `shape` is whole, with its batch, and None where its rank is unknown."""
    sizes = ["..."] if shape is None else [str(size or "N") for size in shape]
    return (
        f"give --set 'model.input_shapes.{name}=[{', '.join(sizes)}]', or --input-shape '{name}={','.join(sizes)}' to "
        "init and inspect, with numbers for what is open, batch included"
    )
