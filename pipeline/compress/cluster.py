"""Weight clustering: few values shared by many weights. TF-MOT's centroids, settled by Lloyd's iterations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from edgebuild.pipeline.compress.kernels import Kernel
from edgebuild.pipeline.compress.settings import OPEN, Granularity, Initialization
from edgebuild.pipeline.compress.structure import FREE, ZERO, Structure

if TYPE_CHECKING:
    from edgebuild.pipeline.compress.checkpoint import Epoch
    from edgebuild.pipeline.compress.settings import Cluster
    from edgebuild.pipeline.compress.work import Work

LEVELS: Final = (128, 64, 32, 24, 16, 12, 8, 6, 4)
_ITERATIONS: Final = 50
_STEPS: Final = 4  # An octave.


def apply(technique: Cluster, work: Work) -> tuple[Epoch, ...]:
    """Share values in every kernel, as few as is said or as the metric allows, then fine-tune them."""
    otherwise = OPEN if technique.clusters == "auto" else technique.clusters
    chosen: Mapping[str, float] = dict(
        work.chosen(depthwise=technique.depthwise, layers=technique.layers, otherwise=otherwise)
    )
    if technique.clusters == "auto":
        chosen = _searched(technique, work, chosen)
    return _apply(technique, work, chosen)


def _searched(technique: Cluster, work: Work, chosen: Mapping[str, float]) -> Mapping[str, float]:
    from edgebuild.pipeline.compress import automatic

    return automatic.decide(
        work,
        chosen,
        LEVELS,
        make=lambda name, level: _structure(technique, work.kernels[name], level),
        train=lambda levels: _apply(technique, work, levels),
        max_drop=technique.max_drop,
    )


def _apply(technique: Cluster, work: Work, chosen: Mapping[str, float]) -> tuple[Epoch, ...]:
    for name, clusters in chosen.items():
        work.structures[name] = _structure(technique, work.kernels[name], clusters)
    work.project()
    return work.tune(lambda *_: work.projections())


def _structure(technique: Cluster, kernel: Kernel, clusters: float) -> Structure:
    return cluster(
        kernel,
        int(clusters),
        granularity=technique.granularity,
        initialization=technique.initialization,
        keep_zeros=technique.preserve_zeros,
    )


def cluster(
    kernel: Kernel, clusters: int, *, granularity: Granularity, initialization: Initialization, keep_zeros: bool
) -> Structure:
    """Groups of equal weights for a kernel; zeros, where there are any and they are kept, are one of `clusters`.

    `tensor` shares a table of values over the whole kernel, `channel` has one a channel. `channel_scaled` shares one
    that is scaled to each channel's largest weight, whose magnitude stays: an int8 flatbuffer scales each channel by
    just that, so that the same few int8 values remain in all of them.
    """
    weights, ends = kernel.value, granularity == "channel_scaled"
    kept = weights != 0 if keep_zeros else np.ones_like(weights, bool)
    scale = _snapped(kernel.channel_maxima()) if ends else np.ones((1,) * weights.ndim, np.float32)
    values = _stretched(kernel, weights / scale) if ends else weights
    wanted = clusters - int(not kept.all())
    channels = _channel_of(kernel) if granularity == "channel" else np.zeros(weights.shape, np.int32)
    groups = np.full(weights.shape, ZERO, np.int32)
    pinned: list[float] = []
    for channel in range(channels.max() + 1):
        chosen = kept & (channels == channel)
        if not chosen.any():
            continue
        centroids = centres(values[chosen], wanted, initialization, ends=ends)
        groups[chosen] = nearest(values[chosen], centroids) + len(pinned)
        pinned += [float(c) if ends and abs(c) == 1 else float(FREE) for c in centroids]
    return Structure(
        kept=kept, groups=groups, scale=np.broadcast_to(scale, weights.shape), pinned=np.array(pinned, np.float32)
    )


def _snapped(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales on a grid of a quarter octave: few distinct ones, which compress, at most 9 % off."""
    snapped: NDArray[np.float32] = np.exp2(np.round(np.log2(scale) * _STEPS) / _STEPS).astype(np.float32)
    return snapped


def _stretched(kernel: Kernel, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scaled weights with the largest of every channel at exactly -1 or 1, and none beyond."""
    largest = np.abs(kernel.value) == kernel.channel_maxima()
    stretched: NDArray[np.float32] = np.where(largest, np.sign(values), np.clip(values, -1, 1))
    return stretched


def centres(
    values: NDArray[np.float32], count: int, initialization: Initialization, *, ends: bool
) -> NDArray[np.float32]:
    """At most `count` sorted centroids of float32 `values`, [n]; with `ends`, -1 and 1 stay among them.

    ref: Lloyd 1982, from the centroids that TF-MOT starts with.
    """
    distinct = np.unique(values)
    if len(distinct) <= count:
        return distinct
    from edgebuild.pipeline.compress import tfmot

    fixed = np.array([end for end in (-1, 1) if ends and end in distinct], np.float32)
    free = np.sort(tfmot.centroids(values, count, initialization))
    free = np.clip(free[int(-1 in fixed) : count - int(1 in fixed)], distinct[0], distinct[-1])
    free = free[~np.isin(free, fixed)]
    for _ in range(_ITERATIONS):
        table = np.sort(np.concatenate([free, fixed]))
        index = nearest(values, table)
        sums, counts = np.bincount(index, values, len(table)), np.bincount(index, minlength=len(table))
        means = np.where(counts > 0, sums / np.maximum(counts, 1), table).astype(np.float32)
        moved = means[~np.isin(table, fixed)]
        if np.array_equal(moved, free):
            break
        free = moved
    settled: NDArray[np.float32] = np.unique(np.concatenate([free, fixed]))
    return settled


def nearest(values: NDArray[np.float32], table: NDArray[np.float32]) -> NDArray[np.int32]:
    """Index of the nearest of the sorted values of `table` for each of `values`."""
    found: NDArray[np.int32] = np.searchsorted((table[1:] + table[:-1]) / 2, values).astype(np.int32)
    return found


def _channel_of(kernel: Kernel) -> NDArray[np.int32]:
    """The channel each weight belongs to, in the kernel's shape."""
    shape = kernel.value.shape
    sizes = tuple(shape[axis] for axis in kernel.channel_axes)
    numbers = np.arange(np.prod(sizes), dtype=np.int32).reshape(sizes)
    axes = tuple(axis for axis in range(len(shape)) if axis not in kernel.channel_axes)
    return np.broadcast_to(np.expand_dims(numbers, axes), shape)
