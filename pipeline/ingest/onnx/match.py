"""In which order a converter left an output's axes: found by comparing values, since several orders may fit a shape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Final

from numpy.typing import NDArray

from edgebuild.pipeline.ingest import parity

_MOST_AXES: Final = 6  # 720 orders.


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """`got` is `wanted.transpose(axes)` but for `error`, relative to its range; `axes` is empty for the same order."""

    axes: tuple[int, ...]
    error: float


def match(wanted: Sequence[NDArray[Any]], got: Sequence[NDArray[Any]], *, batched: bool) -> Match:
    """The order in which `got` comes closest to `wanted`, over several sets of data; the same order if that fits."""
    best = Match(axes=(), error=float("inf"))
    for axes in _orders(wanted[0].shape, got[0].shape, batched=batched):
        pairs = [(array.transpose(axes), other) for array, other in zip(wanted, got, strict=True)]
        error = max(parity.relative_error([array], [other]) for array, other in pairs)
        if error < best.error:
            best = Match(axes=() if axes == tuple(range(len(axes))) else axes, error=error)
        if best.error <= parity.MAX_RELATIVE_ERROR:
            break
    return best


def _orders(wanted: tuple[int, ...], got: tuple[int, ...], *, batched: bool) -> Iterator[tuple[int, ...]]:
    """Orders that give the right shape: the same first, then channels last, then all others; a batch stays in front."""
    axes = tuple(range(len(wanted)))
    if len(wanted) != len(got):
        return
    usual = [axes, (*axes[:1], *axes[2:], *axes[1:2])]
    others = permutations(axes) if len(axes) <= _MOST_AXES else ()
    for order in dict.fromkeys((*usual, *others)):
        if tuple(wanted[axis] for axis in order) == got and (order[:1] == (0,) or not batched):
            yield order
