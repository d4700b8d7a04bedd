"""What leaves float16, in which GPU delegates compute unless they are told otherwise.

The delegate's Java interface and LiteRT allow that loss of precision by default. TFLite's C interface does not, and
nothing of this holds there. Sums inside an operator are not seen; some devices take them in float16 too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from edgebuild.targets.gpu.rules import FOLDED
from edgebuild.targets.placement import Finding

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from edgebuild.export.flatbuffer import Flatbuffer, Operator, Tensor

    Ranges: TypeAlias = Mapping[str, tuple[float, float]]

LARGEST: Final = 65504.0  # Of float16: (2 - 2**-10) * 2**15. ref: IEEE 754-2019, binary16.
SMALLEST: Final = 2.0**-24  # Above zero, a subnormal.
_FLOATS: Final = ("float16", "float32", "float64")
_QUANTIZED: Final = ("int8", "uint8", "int16")
OUTSIDE: Final = "outside-float16"
_TOLD: Final = 5  # Findings in full; the rest are counted.
_FLOAT32: Final = "keep the delegate in float32 (is_precision_loss_allowed = 0, or LiteRT's enforce_f32)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """A tensor whose values, from `low` to `high`, become infinite or zero in float16, and the operator it belongs to.

    An activation belongs to what gives it; inputs and weights to what reads them first. `layers` are the source model's
    layers that the operator was made of, as far as its name tells.
    """

    operator: Operator
    tensor: Tensor
    layers: tuple[str, ...]
    low: float
    high: float
    problem: Literal["overflows", "vanishes"]


def carried(model: Flatbuffer) -> Ranges:
    """The ranges that quantized activations carry: scale * (q - zero_point) for the least and the largest q."""
    return {
        tensor.name: _representable(tensor)
        for tensor in model.main.tensors
        if not tensor.is_constant and tensor.quantization is not None and tensor.dtype in _QUANTIZED
    }


def outside(model: Flatbuffer, ranges: Ranges, on_cpu: Collection[int] = ()) -> tuple[Outside, ...]:
    """Activations, by ranges of real values under their names, and floating-point weights that leave float16.

    What only operators `on_cpu` touch is left out: there nothing is float16.
    """
    found = []
    for tensor, operator in _owned(model, on_cpu):
        if not tensor.is_constant and tensor.name not in ranges:
            continue
        low, high = _extremes(tensor) if tensor.is_constant else ranges[tensor.name]
        if problem := _problem(low, high):
            layers = layers_of(model, operator)
            found.append(Outside(operator=operator, tensor=tensor, layers=layers, low=low, high=high, problem=problem))
    return tuple(sorted(found, key=lambda entry: (entry.problem, entry.operator.index)))


def findings(model: Flatbuffer, ranges: Ranges, on_cpu: Collection[int] = ()) -> tuple[Finding, ...]:
    """The same in words, what overflows first; `ranges` stand beside those that the file carries."""
    found = outside(model, {**carried(model), **ranges}, on_cpu)
    told = tuple(_finding(entry) for entry in found[:_TOLD])
    if len(found) <= _TOLD:
        return told
    more = ", ".join(dict.fromkeys(f"{entry.operator.index} ({entry.operator.kind})" for entry in found[_TOLD:]))
    rest = f"values of {len(found) - _TOLD} more tensors leave float16, at operators {more}"
    return (*told, Finding(name=OUTSIDE, what=rest, action=_FLOAT32))


def layers_of(model: Flatbuffer, operator: Operator) -> tuple[str, ...]:
    """Of an operator that gives `model/relu/Relu;model/conv/BiasAdd`: conv and relu, the first computed first."""
    name = next((model.main.tensors[i].name for i in operator.outputs if i >= 0), "")
    paths = [path.split("/") for path in reversed(name.split(";")) if "/" in path]
    return tuple(dict.fromkeys("/".join(path[1:-1]) or path[0] for path in paths))


def _finding(entry: Outside) -> Finding:
    operator = entry.operator
    layers = f" of layer {', '.join(entry.layers)}" if entry.layers else ""
    whose = "weights" if entry.tensor.is_constant else "values"
    where = f"{whose} of {entry.tensor.name} at operator {operator.index} ({operator.kind}){layers} leave float16: they"
    if entry.problem == "vanishes":
        return Finding(
            name=OUTSIDE,
            tensor=entry.tensor.name,
            what=f"{where} lie between {entry.low:.3g} and {entry.high:.3g}; float16 has no step below {SMALLEST:.2g}, "
            "so that they become zero",
            action=f"scale them up, as far as what follows allows, or {_FLOAT32}",
        )
    remedy = (
        "train again with weight decay" if entry.tensor.is_constant else "scale the inputs, clip or normalize before it"
    )
    return Finding(
        name=OUTSIDE,
        tensor=entry.tensor.name,
        what=f"{where} lie between {entry.low:.3g} and {entry.high:.3g}; float16 ends at {LARGEST:.0f}, and beyond is "
        "infinity",
        action=f"{remedy}, or {_FLOAT32}",
    )


def _problem(low: float, high: float) -> Literal["overflows", "vanishes"] | None:
    largest = max(abs(low), abs(high))
    if largest > LARGEST:
        return "overflows"
    return "vanishes" if 0 < largest < SMALLEST else None


def _owned(model: Flatbuffer, on_cpu: Collection[int]) -> Iterator[tuple[Tensor, Operator]]:
    """Tensors that an operator on the GPU touches, once, and the operator each belongs to."""
    unpacking = dict(_unpacking(model))
    packed = dict(unpacking.values())
    touching: dict[int, list[Operator]] = {}
    for operator in model.main.operators:
        for i in dict.fromkeys((*operator.outputs, *operator.inputs)) if operator.index not in unpacking else ():
            touching.setdefault(i, []).append(operator)
    for tensor in model.main.tensors:
        owners = touching.get(packed.get(tensor.index, tensor.index), [])
        is_real = tensor.dtype in _FLOATS if tensor.is_constant else tensor.index not in packed.values()
        if is_real and any(op.index not in on_cpu for op in owners):
            yield tensor, next((op for op in owners if tensor.index in op.outputs), owners[0])


def _unpacking(model: Flatbuffer) -> Iterator[tuple[int, tuple[int, int]]]:
    """Operators that unpack a constant, which the delegate reads itself: the constant, and what it becomes."""
    for operator in model.main.operators:
        ends = (*operator.inputs[:1], *operator.outputs[:1])
        if operator.kind in FOLDED and len(ends) == 2 and min(ends) >= 0 and model.main.tensors[ends[0]].is_constant:
            yield operator.index, (ends[0], ends[1])


def _extremes(tensor: Tensor) -> tuple[float, float]:
    """Of a constant's values as they are stored, without NaN; those of a sparse one lack its zeros."""
    import numpy as np

    if tensor.data is None or tensor.data.size < (size := np.dtype(tensor.dtype).itemsize):
        return 0.0, 0.0
    values = tensor.data[: tensor.data.size // size * size].view(tensor.dtype)
    return float(np.fmin.reduce(values)), float(np.fmax.reduce(values))


def _representable(tensor: Tensor) -> tuple[float, float]:
    import numpy as np

    assert tensor.quantization is not None  # noqa: S101 - the caller chose by it
    limits = np.iinfo(tensor.dtype)
    scale, zero_point = max(tensor.quantization.scale), tensor.quantization.zero_point[0]
    return scale * (limits.min - zero_point), scale * (limits.max - zero_point)
