"""Models that never become firmware: TFLite Micro lacks an operator of theirs, or they compute in floating point.

Nothing takes over on a microcontroller what its runtime lacks. Floats TFLM does run, at four times the memory and, on
cores without a floating-point unit, many times the time: that is worth a build's refusal, and a word where nothing is
built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgebuild.export.errors import ModelError
from edgebuild.targets.errors import PlacementError
from edgebuild.targets.microcontroller.rules import TABLE, is_hybrid
from edgebuild.targets.placement import Finding
from edgebuild.targets.rules import Node

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from edgebuild.export.flatbuffer import Flatbuffer

_TOLD: Final = 6
_QUANTIZE_IT: Final = "set `precision: int8` and give calibration data, with the trained source model as the model"


@dataclass(frozen=True, slots=True)
class _Place:
    """An operator with its tensors, and where it stands; `fed` are the inputs of the whole model."""

    node: Node
    subgraph: int
    fed: frozenset[int]

    def __str__(self) -> str:
        where = f" of subgraph {self.subgraph}" if self.subgraph else ""
        layer = next((tensor.name for tensor in self.node.outputs), "").partition(";")[0]  # Fused ones are all named.
        return f"operator {self.node.operator.index}{where} ({self.node.kind}, layer {layer})"

    @property
    def computes_in_floats(self) -> bool:
        """Whether it reads floats that are computed at run time, but for what makes the model's own inputs integers."""
        floats = [t for t in self.node.inputs if t.dtype.startswith("float") and not t.is_constant]
        enters = self.node.kind == "QUANTIZE" and all(tensor.index in self.fed for tensor in floats)
        return bool(floats) and not enters


def require_runnable(model: Flatbuffer) -> None:
    """Refuse what TFLM can't run, and what a build does not make for microcontrollers, in any subgraph.

    Raises:
        PlacementError: TFLM has no such operator, or not for such types.
        ModelError: weights are integers and activations floats, or an operator computes in floating point.
    """
    places = tuple(_places(model))
    _require_operators(places)
    _require_integers(places)
    _require_kernels(places)


def findings(model: Flatbuffer) -> tuple[Finding, ...]:
    """What a build would refuse though TFLM runs it: arithmetic in floating point."""
    floats = [place for place in _places(model) if place.computes_in_floats]
    if not floats:
        return ()
    what = f"{floats[0]} computes in {_dtype(floats[0])}{_others(floats)}; a build for microcontrollers refuses that"
    return (Finding(name="float-arithmetic", what=what, action=_QUANTIZE_IT),)


def _places(model: Flatbuffer) -> Iterator[_Place]:
    for number, graph in enumerate(model.subgraphs):
        fed = frozenset(graph.inputs if number == 0 else ())
        yield from (_Place(Node(operator, graph.tensors), number, fed) for operator in graph.operators)


def _require_operators(places: tuple[_Place, ...]) -> None:
    missing = [place for place in places if place.node.key not in TABLE.rules]
    if missing:
        why = TABLE.unknown(missing[0].node)
        raise PlacementError(
            f"{why.reason}: {missing[0]}{_others(missing)}",
            cause="a microcontroller has no second runtime to fall back on",
            action=why.suggestion,
        )


def _require_integers(places: tuple[_Place, ...]) -> None:
    hybrid = [place for place in places if is_hybrid(place.node)]
    if hybrid:
        raise ModelError(
            f"{hybrid[0]} has hybrid weights{_others(hybrid)}",
            cause="dynamic precision keeps float activations over integer weights; kernels of TFLM take no mixture",
            action=_QUANTIZE_IT,
        )
    floats = [place for place in places if place.computes_in_floats]
    if floats:
        raise ModelError(
            f"{floats[0]} computes in {_dtype(floats[0])}{_others(floats)}",
            cause="a microcontroller's model computes in integers; only its inputs and outputs may be floats",
            action=_QUANTIZE_IT,
        )


def _require_kernels(places: tuple[_Place, ...]) -> None:
    """The rest of the table: operators that are there, but not for such types."""
    lost = [(place, why) for place in places if (why := TABLE.refusal(place.node)) is not None]
    if lost:
        place, why = lost[0]
        raise PlacementError(
            f"TFLite Micro can't run {place}{_others([place for place, _ in lost])}",
            cause=why.reason,
            action=why.suggestion or "replace the layer",
        )


def _dtype(place: _Place) -> str:
    return next(tensor.dtype for tensor in place.node.inputs if tensor.dtype.startswith("float"))


def _others(found: Sequence[_Place]) -> str:
    """The rest of them, as many as one reads."""
    rest = [f"{place.node.operator.index} ({place.node.kind})" for place in found[1 : 1 + _TOLD]]
    more = f" and {len(found) - 1 - _TOLD} more" if len(found) - 1 > _TOLD else ""
    return f", and so operator{'s' if len(found) > 2 else ''} {', '.join(rest)}{more}" if rest else ""
