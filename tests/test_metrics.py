"""Metrics against values worked out by hand, and against the definition where there is a slower one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from edgebuild.calibration.errors import DataError
from edgebuild.pipeline.metrics import METRICS, score
from edgebuild.pipeline.settings import METRICS as CONFIGURABLE

SCORES = [
    [0.1, 0.7, 0.0, 0.1, 0.05, 0.05],
    [0.3, 0.2, 0.1, 0.1, 0.2, 0.1],
    [0.0, 0.01, 0.1, 0.2, 0.29, 0.4],
    [0.5, 0.14, 0.13, 0.12, 0.05, 0.06],
]
# Ranked first, third, last and last of six.
CLASSES = [1, 4, 0, 4]
ROUNDING = 1e-12  # Relative, of a few float64 operations in another order.


def of(metric: str, outputs: ArrayLike, labels: ArrayLike) -> float:
    return score(metric, {"out": np.asarray(outputs, np.float32)}, np.asarray(labels))


def test_metrics_are_those_a_configuration_may_name() -> None:
    assert set(METRICS) == set(CONFIGURABLE)


def test_top1_counts_labels_ranked_first() -> None:
    assert of("top1", SCORES, CLASSES) == 0.25


def test_top5_counts_labels_among_the_five_largest() -> None:
    assert of("top5", SCORES, CLASSES) == 0.5


def test_ties_go_to_the_lower_class_as_argmax_does() -> None:
    assert of("top1", [[0.5, 0.5], [0.5, 0.5]], [0, 1]) == 0.5


@pytest.mark.parametrize("metric", ["top1", "top5"])
@pytest.mark.parametrize("dtype", ["int64", "uint8", "float32"])
def test_one_hot_labels_and_class_indices_give_the_same(metric: str, dtype: str) -> None:
    one_hot = np.eye(6, dtype=dtype)[CLASSES]
    assert of(metric, SCORES, one_hot) == of(metric, SCORES, CLASSES)


def test_class_indices_may_stand_in_a_column_and_be_floats() -> None:
    assert of("top1", SCORES, [[1.0], [4.0], [0.0], [4.0]]) == 0.25


@pytest.mark.parametrize(
    ("labels", "claim"),
    [
        ([1, 4, 0, 6], "whole numbers 0 to 5"),
        ([1, 4, 0, -1], "whole numbers 0 to 5"),
        ([1, 4, 0, 0.5], "whole numbers 0 to 5"),
        (np.zeros((4, 3)), "labels have shape [4, 3]"),
        ([1, 4, 0], "3 labels for 4 samples"),
    ],
)
def test_top1_refuses_labels_that_are_no_classes(labels: ArrayLike, claim: str) -> None:
    with pytest.raises(DataError) as caught:
        of("top1", SCORES, labels)
    assert claim in caught.value.what


def test_the_first_label_that_is_no_class_is_named_with_its_row() -> None:
    with pytest.raises(DataError) as caught:
        of("top1", SCORES, [1, 4, 9, -1])
    assert caught.value.cause == "the one in row 2 is 9, and 2 of 4 are wrong"


@pytest.mark.parametrize("outputs", [np.ones((4, 2, 3)), np.ones(4), np.ones((4, 1))])
def test_top1_refuses_outputs_without_classes(outputs: NDArray[Any]) -> None:
    with pytest.raises(DataError, match=r"top-k needs outputs \[N, classes\]"):
        of("top1", outputs, np.zeros((4, 1)))


def test_mse_and_mae_are_means_over_all_values() -> None:
    outputs, labels = [[1.0, 2.0], [3.0, 4.0]], [[1.0, 0.0], [0.0, 4.5]]
    assert of("mse", outputs, labels) == (0 + 4 + 9 + 0.25) / 4
    assert of("mae", outputs, labels) == (0 + 2 + 3 + 0.5) / 4


def test_mse_of_integer_labels_does_not_wrap() -> None:
    labels = np.array([[255, 0]], np.uint8)
    assert of("mse", [[0.0, 255.0]], labels) == 255.0**2


@pytest.mark.parametrize("metric", ["mse", "mae"])
def test_errors_refuse_labels_of_another_shape(metric: str) -> None:
    with pytest.raises(DataError, match=r"labels have shape \[2\], the outputs \[2, 2\]"):
        of(metric, [[1.0, 2.0], [3.0, 4.0]], [1.0, 2.0])


def test_auc_of_a_known_ranking() -> None:
    # Of the four pairs, 0.35 < 0.4 alone is in the wrong order.
    assert of("auc", [0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]) == 0.75


def test_auc_takes_the_last_column_of_outputs_and_labels() -> None:
    outputs = [[0.9, 0.1], [0.6, 0.4], [0.65, 0.35], [0.2, 0.8]]
    assert of("auc", outputs, [0, 0, 1, 1]) == of("auc", outputs, [[1, 0], [1, 0], [0, 1], [0, 1]]) == 0.75


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40))
def test_auc_is_the_share_of_pairs_in_the_right_order(samples: list[tuple[int, bool]]) -> None:
    scores = [float(value) for value, _ in samples]
    truth = [label for _, label in samples]
    pairs = [(p, n) for p, yes in zip(scores, truth, strict=True) if yes for n in unlike(scores, truth)]
    if not pairs:
        with pytest.raises(DataError, match="both kinds"):
            of("auc", scores, truth)
        return
    wanted = sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs)
    assert math.isclose(of("auc", scores, truth), wanted, rel_tol=ROUNDING, abs_tol=ROUNDING)


def unlike(scores: list[float], truth: list[bool]) -> list[float]:
    return [value for value, yes in zip(scores, truth, strict=True) if not yes]


@given(st.lists(st.integers(-100, 100), min_size=4, max_size=30, unique=True))
def test_auc_depends_on_the_order_of_scores_alone(scores: list[int]) -> None:
    truth = [index % 2 for index in range(len(scores))]
    assert of("auc", scores, truth) == of("auc", [value**3 for value in scores], truth)


@pytest.mark.parametrize("labels", [[0, 1, 2, 1], [0.2, 0.9, 0.1, 0.8], [-1, 1, -1, 1]])
def test_auc_refuses_labels_other_than_0_and_1(labels: ArrayLike) -> None:
    with pytest.raises(DataError, match="labels 0 and 1"):
        of("auc", [0.1, 0.4, 0.35, 0.8], labels)


def test_of_several_outputs_the_metric_takes_the_one_it_names() -> None:
    outputs = {"other": np.zeros((3, 9), np.float32), "classes": np.eye(3, dtype=np.float32)}
    assert score("top1", outputs, np.arange(3), "classes") == 1.0
    for unnamed in ("", "nowhere"):
        with pytest.raises(DataError) as caught:
            score("top1", outputs, np.arange(3), unnamed)
        assert "other, classes" in caught.value.cause


def test_top5_of_five_classes_says_nothing() -> None:
    with pytest.raises(DataError, match="always 1"):
        score("top5", {"y": np.eye(5, dtype=np.float32)}, np.arange(5))


# The user's own function


def own(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> str:
    (folder / f"{name}.py").write_text(f"import numpy as np\n\n{text}\n")
    monkeypatch.syspath_prepend(str(folder))
    return f"{name}:judge"


def test_own_function_sees_every_output_and_the_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "def judge(outputs, labels): return outputs['a'].sum() + 10 * outputs['b'].sum() + 100 * labels.sum()"
    reference = own(tmp_path, monkeypatch, "judge_all", text)
    outputs = {"a": np.array([[1.0]], np.float32), "b": np.array([[2.0]], np.float32)}
    found = score(reference, outputs, np.array([3]))
    assert found == 321.0
    assert type(found) is float


@pytest.mark.parametrize(
    ("text", "claim"),
    [
        ("def judge(outputs, labels): raise KeyError('logits')", "KeyError: 'logits'"),
        ("def judge(outputs, labels): return outputs", "TypeError"),
        ("def judge(outputs, labels): return None", "TypeError"),
        ("def judge(outputs): return 1.0", "TypeError"),
        ("def judge(outputs, labels): return float('nan')", "gives nan"),
        ("def judge(outputs, labels): return float('inf')", "gives inf"),
        ("", "AttributeError"),
        ("def judge(:", "SyntaxError"),
    ],
)
def test_own_functions_that_give_no_number_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, text: str, claim: str
) -> None:
    reference = own(tmp_path, monkeypatch, f"judge_{request.node.callspec.indices['text']}", text)
    with pytest.raises(DataError) as caught:
        of(reference, SCORES, CLASSES)
    assert caught.value.what.startswith(f"the metric {reference} ")
    assert claim in str(caught.value)


def test_a_module_that_is_not_there_is_refused() -> None:
    with pytest.raises(DataError, match="the metric no_such_module:judge failed"):
        of("no_such_module:judge", SCORES, CLASSES)
