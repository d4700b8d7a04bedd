"""How far two sets of outputs lie apart, on outputs whose distance is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from edgebuild.export.agreement import Agreement, compare
from edgebuild.export.errors import ModelError

SEED = 0
ROUNDING = 1e-6  # Relative, of float32 values.
SAMPLING = 0.02  # Of statistics over 100,000 normal values: six standard errors of a root mean square.


def normal(*shape: int, seed: int = SEED) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def one(reference: NDArray[Any], candidate: NDArray[Any]) -> Agreement:
    return compare({"out": reference}, {"out": candidate})


def test_identical_outputs_agree_fully() -> None:
    outputs = normal(20, 10)
    found = one(outputs, outputs.copy())
    assert (found.max_abs, found.relative_rmse, found.top1, found.n) == (0.0, 0.0, 1.0, 20)
    assert math.isclose(found.cosine, 1.0, rel_tol=ROUNDING)


def test_an_offset_is_found_in_units_of_the_output_and_of_its_spread() -> None:
    outputs = normal(200, 500)
    found = one(outputs, outputs + np.float32(0.5))
    assert math.isclose(found.max_abs, 0.5, rel_tol=ROUNDING)
    assert math.isclose(found.relative_rmse, 0.5, rel_tol=SAMPLING)
    assert found.top1 == 1.0
    assert found.cosine < 1.0


def test_a_large_constant_in_the_outputs_does_not_hide_an_error() -> None:
    outputs = normal(200, 500)
    plain = one(outputs, outputs * np.float32(1.1)).relative_rmse
    lifted = one(outputs + np.float32(1000), outputs * np.float32(1.1) + np.float32(1000)).relative_rmse
    assert math.isclose(plain, 0.1, rel_tol=SAMPLING)
    assert math.isclose(lifted, plain, rel_tol=SAMPLING)


def test_unrelated_outputs_of_one_spread_differ_by_the_root_of_two() -> None:
    found = one(normal(200, 500, seed=1), normal(200, 500, seed=2))
    assert math.isclose(found.relative_rmse, math.sqrt(2), rel_tol=SAMPLING)
    assert abs(found.cosine) < SAMPLING


def test_the_mean_in_place_of_every_output_differs_by_one() -> None:
    outputs = normal(200, 500)
    assert math.isclose(one(outputs, np.full_like(outputs, outputs.mean())).relative_rmse, 1.0, rel_tol=ROUNDING)


def test_opposite_outputs_have_cosine_minus_one() -> None:
    outputs = normal(20, 10)
    assert math.isclose(one(outputs, -outputs).cosine, -1.0, rel_tol=ROUNDING)


def test_top1_is_the_share_of_samples_with_the_same_class() -> None:
    reference = np.eye(4, dtype=np.float32)
    candidate = np.eye(4, dtype=np.float32)[[0, 1, 2, 0]]
    assert one(reference, candidate).top1 == 0.75


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 2, 3)])
def test_top1_is_none_without_classes(shape: tuple[int, ...]) -> None:
    assert one(normal(*shape), normal(*shape)).top1 is None


def test_constant_outputs_are_measured_against_their_size() -> None:
    found = one(np.full((5, 3), 2.0, np.float32), np.full((5, 3), 2.5, np.float32))
    assert found.relative_rmse == 0.25
    assert math.isclose(found.cosine, 1.0, rel_tol=ROUNDING)


def test_a_constant_that_no_binary_fraction_holds_has_no_spread() -> None:
    constant = np.full((300, 7), 0.1, np.float32)
    assert one(constant, constant * np.float32(1.5)).relative_rmse == pytest.approx(0.5, rel=ROUNDING)


def test_two_zero_outputs_agree_and_one_does_not() -> None:
    zeros, ones = np.zeros((4, 3), np.float32), np.ones((4, 3), np.float32)
    both = one(zeros, zeros)
    assert (both.cosine, both.relative_rmse, both.max_abs) == (1.0, 0.0, 0.0)
    assert one(zeros, ones).cosine == one(ones, zeros).cosine == 0.0
    assert one(zeros, ones).relative_rmse == one(ones, zeros).relative_rmse == 1.0


def test_of_several_outputs_the_worst_counts_each_by_its_own_measure() -> None:
    good, far, turned = normal(50, 4), normal(50, 4, seed=1), np.eye(4, dtype=np.float32)
    reference = {"good": good, "far": far, "turned": np.tile(turned, (13, 1))[:50]}
    candidate = {"good": good, "far": far + np.float32(9), "turned": np.roll(reference["turned"], 1, axis=1)}
    found = compare(reference, candidate)
    parts = [one(reference[name], candidate[name]) for name in reference]
    assert found.max_abs == max(part.max_abs for part in parts) == pytest.approx(9, rel=ROUNDING)
    assert found.relative_rmse == max(part.relative_rmse for part in parts)
    assert found.cosine == min(part.cosine for part in parts) == 0.0
    assert found.top1 == 0.0


def test_outputs_without_classes_do_not_count_for_top1() -> None:
    classes, mask = normal(5, 4), normal(5, 2, 2)
    assert compare({"mask": mask, "classes": classes}, {"mask": mask, "classes": classes}).top1 == 1.0


def test_outputs_go_by_name_not_by_order() -> None:
    a, b = normal(5, 4, seed=1), normal(5, 4, seed=2)
    assert compare({"a": a, "b": b}, {"b": b, "a": a}).max_abs == 0.0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_candidate_that_is_not_finite_is_refused(value: float) -> None:
    broken = normal(5, 4)
    broken[3, 2] = value
    with pytest.raises(ModelError, match="'out' holds NaN or infinity where the float model's does not"):
        one(normal(5, 4), broken)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_float_model_that_is_not_finite_is_refused_whichever_output_it_is(value: float) -> None:
    good, broken = normal(5, 4), normal(5, 4)
    broken[0, 0] = value
    with pytest.raises(ModelError, match="'second' of the float model holds NaN or infinity"):
        compare({"first": good, "second": broken}, {"first": good, "second": good})


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ModelError, match=r"'out' has shape \[5, 4, 1\], the float model's \[5, 4\]"):
        one(normal(5, 4), normal(5, 4, 1))


def test_other_names_are_refused() -> None:
    with pytest.raises(ModelError, match=r"the outputs are \['b'\], the float model's are \['a'\]"):
        compare({"a": normal(5, 4)}, {"b": normal(5, 4)})


@given(npst.arrays(np.float32, (2, 3, 4), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_every_finite_pair_has_a_finite_distance(pair: NDArray[np.float32]) -> None:
    found = one(pair[0], pair[1])
    assert found.max_abs >= 0.0
    assert math.isfinite(found.max_abs)
    assert -1.0 <= found.cosine <= 1.0
    assert found.relative_rmse >= 0.0
    assert not math.isnan(found.relative_rmse)
    assert (found.relative_rmse == 0.0) == (found.max_abs == 0.0)
