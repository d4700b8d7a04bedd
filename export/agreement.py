"""How far a converted model's outputs lie from the float model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebuild.export.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The worst over all outputs.

    max_abs: the largest |reference - candidate|, in the output's own unit.
    cosine: cosine similarity of all values, 1 for the same direction.
    relative_rmse: root mean square error over the reference's standard deviation, so that a large constant offset
        in the outputs does not hide an error. 0 is exact, about 1 is no better than the mean, more is unrelated.
    top1: share of samples whose largest class agrees; None where no output is `[N, classes]`.
    n: samples compared.
    """

    max_abs: float
    cosine: float
    relative_rmse: float
    top1: float | None
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far two runtimes of one model lie apart, over `n` samples, in the outputs' own types.

    max_steps: the largest difference of two values: in steps of the scale for integers, in their unit for others.
    differing: the share of all values that differ at all.
    """

    max_steps: float
    differing: float
    n: int


def difference(ours: Sequence[Mapping[str, NDArray[Any]]], theirs: Sequence[Mapping[str, NDArray[Any]]]) -> Difference:
    """Hold what two runtimes gave for the same samples against each other, by output name."""
    apart = [
        np.abs(mine[name].astype(np.float64) - other[name].astype(np.float64))
        for mine, other in zip(ours, theirs, strict=True)
        for name in mine
    ]
    values = np.concatenate([array.ravel() for array in apart]) if apart else np.zeros(1)
    return Difference(max_steps=float(values.max()), differing=float((values != 0).mean()), n=len(ours))


def compare(reference: Mapping[str, NDArray[Any]], candidate: Mapping[str, NDArray[Any]]) -> Agreement:
    """Compare outputs by name, `[N, ...]` each.

    Raises:
        ModelError: names or shapes differ: what was converted is another model. Or values are not finite.
    """
    if reference.keys() != candidate.keys():
        raise ModelError(f"the outputs are {sorted(candidate)}, the float model's are {sorted(reference)}")
    parts = [_compare(name, reference[name], candidate[name]) for name in reference]
    top1 = [part.top1 for part in parts if part.top1 is not None]
    return Agreement(
        max_abs=max(part.max_abs for part in parts),
        cosine=min(part.cosine for part in parts),
        relative_rmse=max(part.relative_rmse for part in parts),
        top1=min(top1, default=None),
        n=parts[0].n,
    )


def _compare(name: str, reference: NDArray[Any], candidate: NDArray[Any]) -> Agreement:
    if reference.shape != candidate.shape:
        raise ModelError(
            f"output '{name}' has shape {list(candidate.shape)}, the float model's {list(reference.shape)}"
        )
    wanted, got = reference.astype(np.float64), candidate.astype(np.float64)
    if not np.isfinite(wanted).all():
        raise ModelError(
            f"output '{name}' of the float model holds NaN or infinity",
            cause="the model itself overflows on these samples, so nothing can be told from its outputs",
            action="check the model and how the samples are scaled",
        )
    if not np.isfinite(got).all():
        raise ModelError(
            f"output '{name}' holds NaN or infinity where the float model's does not",
            cause="values that leave the number format's range, or a damaged conversion",
        )
    error = wanted - got
    scale = wanted.std() or np.abs(wanted).max() or 1.0
    is_classes = wanted.ndim == 2 and wanted.shape[1] > 1
    return Agreement(
        max_abs=float(np.abs(error).max()),
        cosine=_cosine(wanted.ravel(), got.ravel()),
        relative_rmse=float(np.sqrt(np.mean(error**2)) / scale),
        top1=float((wanted.argmax(1) == got.argmax(1)).mean()) if is_classes else None,
        n=len(wanted),
    )


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    if norms == 0.0:
        return 1.0 if np.array_equal(a, b) else 0.0
    return max(-1.0, min(float(a @ b) / norms, 1.0))  # Rounding may leave the range by an ulp.
