"""`sparsity: auto` and `clusters: auto`: the scan, the search, and what it leaves as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
import tf_keras  # noqa: E402 - behind TensorFlow

from edgebuild.calibration.errors import DataError  # noqa: E402
from edgebuild.pipeline.compress import automatic, cluster, kernels, losses, prune  # noqa: E402
from edgebuild.pipeline.compress.batches import Data  # noqa: E402
from edgebuild.pipeline.compress.scan import Scan  # noqa: E402
from edgebuild.pipeline.compress.settings import Cluster, Finetune, Prune  # noqa: E402
from edgebuild.pipeline.compress.watch import Watch  # noqa: E402
from edgebuild.pipeline.compress.work import Training, Work  # noqa: E402

SCAN = Scan(levels=(0.2, 0.5, 0.9), costs={"a": (0.0, 0.1, 5.0), "b": (1.0, 0.05, 2.0), "c": (0.01, 0.02, 0.03)})
CLASSES, FEATURES = 4, 16


def classifier(*, labelled: bool, batch: int | None = None) -> Work:
    """Classes by the largest of the first four features: the kernels' other weights are next to nothing."""
    tf_keras.utils.set_random_seed(0)
    draw = np.random.default_rng(0)
    given = tf_keras.layers.Input((FEATURES,), batch_size=batch)
    hidden = tf_keras.layers.Dense(FEATURES, name="hidden")(given)
    model = tf_keras.Model(given, tf_keras.layers.Dense(CLASSES, activation="softmax", name="scores")(hidden))
    noise = [draw.normal(0, 1e-3, weight.shape) for weight in model.get_weights()]
    model.set_weights([n + 3 * np.eye(*n.shape) if n.ndim == 2 else n for n in noise])
    teacher = tf_keras.models.clone_model(model)
    teacher.set_weights(model.get_weights())
    inputs = draw.normal(size=(400, FEATURES)).astype(np.float32)
    labels = inputs[:, :CLASSES].argmax(1) if labelled else None
    watch = Watch(metric="top1", higher_is_better=True, output="", names=("scores",)) if labelled else None
    loss = losses.to_model(teacher, [inputs], "auto")
    return Work(
        model=model,
        kernels={f"{kernel.layer}/{kernel.name}": kernel for kernel in kernels.kernels(model)},
        structures={},
        training=Training(data=Data(inputs=(inputs,), labels=labels), teacher=teacher, loss=loss, watch=watch),
        finetune=Finetune(epochs=1, batch=40),
        seed=0,
        notes=[],
    )


@pytest.mark.parametrize(
    ("tolerance", "chosen"),
    [
        (0.0, {"a": 0.2}),
        (0.02, {"a": 0.2, "c": 0.5}),
        (0.1, {"a": 0.5, "c": 0.9}),
        (1.0, {"a": 0.5, "b": 0.5, "c": 0.9}),
    ],
)
def test_a_tolerance_gives_each_kernel_the_harshest_level_below_which_none_costs_more(
    tolerance: float, chosen: dict[str, float]
) -> None:
    assert SCAN.within(tolerance) == chosen


def test_tolerances_run_from_the_least_cost_to_the_largest() -> None:
    found = SCAN.tolerances()
    assert [found[0], found[-1]] == pytest.approx([0.01, 5.0])
    assert found == sorted(found)


@pytest.mark.parametrize("labelled", [True, False])
def test_finds_most_of_what_can_go(*, labelled: bool) -> None:
    work = classifier(labelled=labelled)
    prune.apply(Prune(sparsity="auto", max_drop=0.01, finetune=work.finetune), work)
    assert work.search is not None
    assert work.search.chosen == work.search.scan.within(max_kept(work))
    assert work.search.chosen["hidden/kernel"] >= 0.85
    assert (work.kernels["hidden/kernel"].value == 0).mean() >= 0.85
    assert any("did not learn from" in note for note in work.notes)


def test_judges_every_sample_where_the_batch_is_fixed() -> None:
    work = classifier(labelled=True, batch=7)
    assert work.training is not None
    prune.apply(Prune(sparsity="auto", max_drop=0.01, finetune=Finetune(epochs=0)), work)
    assert work.search is not None
    assert work.search.held == 160
    assert work.search.held % 7, "whole batches leave none over, so that nothing is shown"


def max_kept(work: Work) -> float:
    """The largest tolerance that was tried and held."""
    assert work.search is not None
    return max(trial.tolerance for trial in work.search.trials if trial.drop <= work.search.max_drop)


def test_finds_few_clusters() -> None:
    work = classifier(labelled=True)
    cluster.apply(Cluster(clusters="auto", max_drop=0.01, finetune=work.finetune), work)
    assert work.search is not None
    assert min(work.search.chosen.values()) <= 16


def test_leaves_all_as_it_is_where_nothing_may_be_lost() -> None:
    work = classifier(labelled=True)
    before = work.model.get_weights()
    technique = Prune(sparsity="auto", max_drop=0.01, finetune=Finetune(epochs=0))

    def ruin(_: Any) -> None:
        for kernel in work.kernels.values():
            kernel.variable.assign(tf.zeros_like(kernel.variable))

    found = automatic.search(
        work,
        list(work.kernels),
        prune.LEVELS,
        make=lambda name, level: prune.structure_of(technique, None, np.abs(work.kernels[name].value), level),
        train=ruin,
        max_drop=0.01,
    )
    assert found.chosen == {}
    assert all(np.array_equal(one, two) for one, two in zip(before, work.model.get_weights(), strict=True))
    assert "left as they are" in work.notes[-1]


def test_the_same_seed_finds_the_same() -> None:
    one, two = classifier(labelled=True), classifier(labelled=True)
    for work in (one, two):
        prune.apply(Prune(sparsity="auto", max_drop=0.01, finetune=work.finetune), work)
    assert one.search == two.search
    assert all(np.array_equal(a, b) for a, b in zip(one.model.get_weights(), two.model.get_weights(), strict=True))


def test_needs_labels_or_classes() -> None:
    work = classifier(labelled=False)
    given = tf_keras.layers.Input((FEATURES,))
    assert work.training is not None
    training = replace(work.training, teacher=tf_keras.Model(given, tf_keras.layers.Dense(1)(given)))
    work.training = training
    with pytest.raises(DataError, match="nothing to judge by"):
        prune.apply(Prune(sparsity="auto", max_drop=0.01, finetune=work.finetune), work)
