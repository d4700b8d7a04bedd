"""Constants that are stored without their zeros come back whole, and damaged ones end in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from edgebuild.export import sparse
from edgebuild.export.errors import ModelError
from edgebuild.export.sparse import Level, Sparsity

Array = NDArray[Any]
SHAPES = arrays.array_shapes(min_dims=1, max_dims=4, max_side=5)


def whole(size: int) -> Level:
    return Level(size=size, segments=None, indices=None)


def rows_of(matrix: Array) -> tuple[Array, Level]:
    """The values of a matrix that are not zero, row by row, and the level that names their columns."""
    rows, columns = np.nonzero(matrix)
    segments = np.searchsorted(rows, np.arange(len(matrix) + 1))
    level = Level(size=0, segments=segments.astype(np.uint16), indices=columns.astype(np.uint8))
    return matrix[rows, columns], level


def stored(dense: Array) -> tuple[Array, Sparsity]:
    """All dimensions whole but the last, as the converter stores weights."""
    *outer, last = dense.shape
    values, level = rows_of(dense.reshape(-1, last))
    return values, Sparsity(order=tuple(range(dense.ndim)), blocks=(), levels=(*map(whole, outer), level))


@given(st.data(), SHAPES)
def test_what_is_stored_comes_back(data: st.DataObject, shape: tuple[int, ...]) -> None:
    dense = data.draw(arrays.arrays(np.int8, shape, elements=st.sampled_from([0, 0, 0, 1, -5, 127])))
    values, sparsity = stored(dense)
    found = sparse.densify(values, sparsity, shape)
    assert found.dtype == np.int8
    assert np.array_equal(found, dense)


@given(SHAPES, st.randoms(use_true_random=False))
def test_dimensions_may_be_stored_in_any_order(shape: tuple[int, ...], random: Any) -> None:
    dense = np.arange(np.prod(shape)).reshape(shape)
    order = random.sample(range(len(shape)), len(shape))
    sparsity = Sparsity(order=tuple(order), blocks=(), levels=tuple(whole(shape[d]) for d in order))
    assert np.array_equal(sparse.densify(dense.transpose(order).ravel(), sparsity, shape), dense)


def test_blocks_go_to_their_place() -> None:
    """A 4x8 matrix in blocks of 1x4, of which three hold something."""
    dense = np.zeros((4, 8), np.float32)
    dense[0, 4:], dense[2, :4], dense[3, 4:] = [1, 2, 3, 4], [5, 6, 0, 8], [9, 10, 11, 12]
    held = dense.reshape(4, 2, 4).any(-1)
    _, level = rows_of(held)
    sparsity = Sparsity(order=(0, 1, 2), blocks=(1,), levels=(whole(4), level, whole(4)))
    assert np.array_equal(sparse.densify(dense.reshape(4, 2, 4)[held].ravel(), sparsity, (4, 8)), dense)


@pytest.mark.parametrize(
    ("segments", "indices", "order", "count"),
    [
        ([0, 1, 2, 3], [0, 1, 9], (0, 1), 3),
        ([0, 1, 2, 3], [0, 1, -1], (0, 1), 3),
        ([0, 2, 1, 3], [0, 1, 2], (0, 1), 3),
        ([-1, 1, 2, 3], [0, 1, 2], (0, 1), 3),
        ([0, 1, 2, 9], [0, 1, 2], (0, 1), 3),
        ([0, 1], [0, 1, 2], (0, 1), 3),
        ([], [], (0, 1), 3),
        ([0, 1, 2, 3], [0, 1, 2], (0, 0), 3),
        ([0, 1, 2, 3], [0, 1, 2], (0,), 3),
        ([0, 1, 2, 3], [0, 1, 2], (0, 1), 2),
        ([0, 1, 2, 3], [0, 1, 2], (0, 1), 9),
        ([0, 1, 2, 2**31 - 1], [0, 1, 2], (0, 1), 3),
    ],
)
def test_damage_is_refused(segments: list[int], indices: list[int], order: tuple[int, ...], count: int) -> None:
    level = Level(size=0, segments=np.array(segments, np.int32), indices=np.array(indices, np.int32))
    sparsity = Sparsity(order=order, blocks=(), levels=(whole(3), level))
    with pytest.raises(ModelError, match=r"sparse constant of shape \[3, 3\]"):
        sparse.densify(np.ones(count, np.float32), sparsity, (3, 3))


@pytest.mark.parametrize(("size", "shape"), [(2**31 - 1, (2**31 - 1, 2**31 - 1)), (2**31 - 1, (3, 3))])
def test_a_few_bytes_that_claim_the_world_take_no_memory(size: int, shape: tuple[int, ...]) -> None:
    sparsity = Sparsity(order=(0, 1), blocks=(), levels=(whole(size), whole(size)))
    with pytest.raises(ModelError, match="can't be read"):
        sparse.densify(np.ones(1, np.int8), sparsity, shape)
