"""Doubt representative data before a model sees it, and match it to the model's inputs by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgebuild.calibration.errors import DataError
from edgebuild.calibration.samples import LABELS, Arrays

FEW_SAMPLES: Final = 20
_LIKE_LABELS: Final = ("y", "label", "target", "targets", "class", "classes")  # As others call them.


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """One input of a model: `shape` without its batch dimension, numpy's name of its type."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def check(arrays: Arrays, source: str) -> None:
    """Refuse data no model should see.

    Raises:
        DataError: there is none, counts differ, or a value is NaN or infinite; names source, array, first bad index.
    """
    if not arrays:
        raise DataError(f"{source} holds no numeric array", action="save arrays named after the model's inputs")
    rows = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
    for name, count in rows.items():
        if count == 0:
            raise DataError(f"{source}: array '{name}' is empty", action="give at least one sample")
    if len(set(rows.values())) > 1:
        listed = ", ".join(f"'{name}' {count}" for name, count in rows.items())
        raise DataError(f"{source}: arrays hold different numbers of samples ({listed})", action="make them equal")
    for name, array in arrays.items():
        _refuse_non_finite(name, array, source)


def doubts(arrays: Arrays) -> tuple[str, ...]:
    """What makes these samples poor representatives, though they can be used."""
    found = []
    rows = len(next(iter(arrays.values())))
    if rows < FEW_SAMPLES:
        found.append(f"only {rows} samples: ranges may be too narrow, a few hundred are usual")
    for name, array in arrays.items():
        if rows > 1 and (array == array[0]).all():
            found.append(f"all samples of '{name}' are equal")
    return tuple(found)


def match(arrays: Arrays, inputs: Sequence[InputSpec], source: str) -> Arrays:
    """The model's inputs out of `arrays`, by name, in the model's types; `[N, *shape]` each.

    One input may match the one array there is besides `labels`, whatever its name. The order of arrays means nothing.

    Raises:
        DataError: an input has no array, a shape is wrong, or a cast would change values.
    """
    candidates = {name: array for name, array in arrays.items() if name != LABELS}
    if len(inputs) == 1 and len(candidates) == 1:
        candidates = {inputs[0].name: next(iter(candidates.values()))}
    return {spec.name: _fit(candidates, spec, source) for spec in inputs}


def labels(arrays: Arrays, source: str) -> NDArray[Any]:
    """The labels or wanted outputs, `[N, ...]`.

    Raises:
        DataError: there are none.
    """
    if LABELS not in arrays:
        raise DataError(
            f"{source} holds no array '{LABELS}', which the metric needs",
            cause=f"it holds {', '.join(sorted(arrays))}",
            action="add it: class indices for top1 and top5, 0 or 1 for auc, the wanted outputs for mse and mae "
            f"(of an auto-encoder, its inputs){_labels_hint(arrays)}",
        )
    return arrays[LABELS]


def _refuse_non_finite(name: str, array: NDArray[Any], source: str) -> None:
    if array.dtype.kind != "f":
        return
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        index = [int(i) for i in np.unravel_index(bad[0], array.shape)]
        raise DataError(
            f"{source}: array '{name}' holds {array[tuple(index)]} at index {index}",
            cause=f"{bad.size} of {array.size} values are NaN or infinite",
            action="repair or drop these samples: one of them spoils all that is computed from them",
        )


def _fit(candidates: Mapping[str, NDArray[Any]], spec: InputSpec, source: str) -> NDArray[Any]:
    if spec.name not in candidates:
        raise DataError(
            f"{source} holds no array for the model's input '{spec.name}'",
            cause=f"it holds {', '.join(repr(name) for name in sorted(candidates)) or 'no input at all'}",
            action=f"name an array '{spec.name}', of shape {_shape(spec)}{_labels_hint(candidates)}",
        )
    array = candidates[spec.name]
    if array.shape[1:] != spec.shape:
        raise DataError(
            f"{source}: array '{spec.name}' has shape {list(array.shape)}, the model's input takes {_shape(spec)}",
            cause=_shape_hint(array, spec),
            action="reshape the array",
        )
    return _cast(array, spec, source)


def _labels_hint(names: Iterable[str]) -> str:
    found = next((name for name in names if name.lower() in _LIKE_LABELS), None)
    return f"; if '{found}' holds the labels, name it '{LABELS}'" if found else ""


def _shape_hint(array: NDArray[Any], spec: InputSpec) -> str:
    if array.shape == spec.shape:
        return "the batch dimension is missing"
    if int(np.prod(array.shape[1:])) == int(np.prod(spec.shape)):
        return "the values are as many: the axes are flattened or in another order"
    return ""


def _cast(array: NDArray[Any], spec: InputSpec, source: str) -> NDArray[Any]:
    """Cast where no value changes but for float rounding: float64 to float32 yes, 0.5 to int32 no."""
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(spec.dtype)
        back = cast.astype(array.dtype)
    if array.dtype.kind == "f" and cast.dtype.kind == "f":
        spoilt = ~np.isfinite(cast)
    else:  # There and back alone would let -1 pass as the 255 of a uint8: the way back wraps again.
        spoilt = (back != array) | ((cast < 0) != (array < 0))
    if spoilt.any():
        index = [int(i) for i in np.unravel_index(int(np.argmax(spoilt)), array.shape)]
        raise DataError(
            f"{source}: array '{spec.name}' is {array.dtype} and does not fit the input's {spec.dtype}",
            cause=f"the first value that would change is {array[tuple(index)]} at index {index}",
            action=f"save the array as {spec.dtype}",
        )
    return cast


def _shape(spec: InputSpec) -> str:
    return f"[N, {', '.join(map(str, spec.shape))}]" if spec.shape else "[N]"
