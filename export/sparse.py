"""Constants of a flatbuffer that are stored without their zeros: TFLite's sparse tensors.

ref: `SparsityParameters` in TensorFlow's tensorflow/compiler/mlir/lite/schema/schema.fbs, after Kjolstad et al. 2017,
"The Tensor Algebra Compiler". Dimensions are stored one inside the other, in any order, each whole or as the
coordinates that hold something; a dimension that is cut into blocks is two of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edgebuild.export.errors import ModelError

_MOST_ELEMENTS: Final = 2**28  # A file of few bytes can claim any shape.
_MOST_LEVELS: Final = 32  # Each is walked for every value; twice the dimensions of any kernel, and their blocks.


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One stored dimension: `size` coordinates, or those of `indices` that `segments` gives to each outer position."""

    size: int
    segments: NDArray[Any] | None
    indices: NDArray[Any] | None

    @property
    def stored_bytes(self) -> int:
        """What its coordinates take in the file."""
        return sum(array.nbytes for array in (self.segments, self.indices) if array is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparsity:
    """How the values of a constant are to be laid out.

    `order` names each level's dimension: one of the tensor's rank `n`, or `n + i` for the inside of the blocks that
    dimension `blocks[i]` is cut into.
    """

    order: tuple[int, ...]
    blocks: tuple[int, ...]
    levels: tuple[Level, ...]


def misfit(sparsity: Sparsity, rank: int) -> str:
    """Why a description can be no tensor's of so many dimensions; nothing where it can."""
    order, levels = sparsity.order, len(sparsity.levels)
    if not len(order) == levels == rank + len(sparsity.blocks):
        blocks = f"{rank:,} dimensions and {len(sparsity.blocks):,} blocks"
        return f"{levels:,} sparse levels in an order of {len(order):,}, for {blocks}"
    if levels > _MOST_LEVELS:
        return f"{levels:,} sparse levels; {_MOST_LEVELS} are the most"
    return "" if sorted(order) == list(range(levels)) else f"the sparse order {list(order)}, which is no permutation"


def densify(stored: NDArray[Any], sparsity: Sparsity, shape: tuple[int, ...]) -> NDArray[Any]:
    """Stored values, `[N]`, in the shape of the tensor, and zeros elsewhere.

    Raises:
        ModelError: the description does not fit the values or the shape.
    """
    try:
        _require_size(shape)
        coordinates, positions = _walk(sparsity, _room(stored, sparsity))
        _require_all(positions, stored)
        dense = np.zeros(shape, stored.dtype)
        dense[_joined(coordinates, sparsity, len(shape))] = stored[positions]
    except (IndexError, ValueError, KeyError) as e:
        raise ModelError(
            f"a sparse constant of shape {list(shape)} can't be read",
            cause=f"the file is damaged: {e}",
            action="convert or download it again",
        ) from e
    return dense


def _require_size(shape: tuple[int, ...]) -> None:
    elements = prod(shape)
    if not 0 <= elements <= _MOST_ELEMENTS:
        raise ValueError(f"it claims {elements:,} elements")


def _require_all(positions: NDArray[np.int64], stored: NDArray[Any]) -> None:
    if len(positions) != len(stored):
        raise ValueError(f"it describes {len(positions):,} values, and holds {len(stored):,}")


def _room(stored: NDArray[Any], sparsity: Sparsity) -> int:
    """The most entries that a level can have: each is one of the next level's segments, or a value."""
    return max(len(stored), *(len(level.segments) for level in sparsity.levels if level.segments is not None), 1)


def _walk(sparsity: Sparsity, most: int) -> tuple[dict[int, NDArray[np.int64]], NDArray[np.int64]]:
    """The coordinate of every stored value in each dimension of `order`, and which value it is."""
    positions, found = np.zeros(1, np.int64), dict[int, NDArray[np.int64]]()
    for dimension, level in zip(sparsity.order, sparsity.levels, strict=True):
        outer, positions, coordinates = _inside(level, positions, most)
        found = {name: known[outer] for name, known in found.items()}
        found[dimension] = coordinates
    return found, positions


def _inside(
    level: Level, positions: NDArray[np.int64], most: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """For what lies at `positions`: which of them each inner entry belongs to, its own position, its coordinate."""
    if level.segments is None or level.indices is None:
        _require_room(len(positions) * level.size, most)
        outer = np.repeat(np.arange(len(positions)), level.size)
        coordinates = np.tile(np.arange(level.size), len(positions))
        return outer, positions[outer] * level.size + coordinates, coordinates
    segments = level.segments.astype(np.int64)
    starts, counts = segments[positions], np.diff(segments)[positions]
    if (counts < 0).any() or (starts < 0).any():
        raise ValueError("its segments run backwards")
    _require_room(int(counts.sum(dtype=object)), most)
    outer = np.repeat(np.arange(len(positions)), counts)
    inner = np.arange(len(outer)) - np.repeat(np.cumsum(counts) - counts, counts) + starts[outer]
    coordinates = level.indices[inner].astype(np.int64)
    if (coordinates < 0).any():
        raise ValueError("it has a negative coordinate")
    return outer, inner, coordinates


def _require_room(count: int, most: int) -> None:
    if count > most:
        raise ValueError(f"it describes {count:,} values where the file has room for {most:,}")


def _joined(found: dict[int, NDArray[np.int64]], sparsity: Sparsity, rank: int) -> tuple[NDArray[np.int64], ...]:
    """Coordinates in the tensor's own dimensions: a block's, times its size, and the place inside it."""
    joined = [found[dimension] for dimension in range(rank)]
    for inside, dimension in enumerate(sparsity.blocks, rank):
        size = sparsity.levels[sparsity.order.index(inside)].size
        if size < 1 or not 0 <= dimension < rank:
            raise ValueError(f"it has blocks of {size} along dimension {dimension}")
        joined[dimension] = joined[dimension] * size + found[inside]
    return tuple(joined)
