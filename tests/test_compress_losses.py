"""What fine-tuning minimizes: each loss against its formula, and labels that fit or are refused."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

tf = pytest.importorskip("tensorflow")
import tf_keras  # noqa: E402 - behind TensorFlow

from edgebuild.calibration.errors import DataError  # noqa: E402
from edgebuild.pipeline.compress import batches, losses  # noqa: E402
from edgebuild.pipeline.compress.batches import Data  # noqa: E402
from edgebuild.pipeline.compress.settings import Finetune  # noqa: E402

ROUNDING = 1e-5  # float32, means of a few hundred terms.
DRAW = np.random.default_rng(0)
LOGITS = DRAW.normal(size=(50, 5)).astype(np.float32)
SHARES = (1 / (1 + np.exp(-LOGITS))).astype(np.float32)
CLASSES = DRAW.integers(0, 5, 50)
ONE_HOT = np.eye(5, dtype=np.float32)[CLASSES]


def softmax(logits: NDArray[Any]) -> NDArray[np.float32]:
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    found: NDArray[np.float32] = (raised / raised.sum(-1, keepdims=True)).astype(np.float32)
    return found


def by(outputs: NDArray[Any], labels: NDArray[Any], kind: Any = "auto") -> float:
    """The loss of outputs against labels."""
    found = losses.to_labels(0, outputs, labels, kind)
    return float(found([], [tf.constant(outputs)], tf.constant(labels)))


def likelihood(shares: NDArray[Any]) -> float:
    return float(-np.log(shares[np.arange(50), CLASSES]).mean())


# Labels


@pytest.mark.parametrize("labels", [CLASSES, CLASSES[:, None], CLASSES.astype(np.float32), CLASSES.astype(np.uint8)])
@pytest.mark.parametrize(("outputs", "shares"), [(softmax(LOGITS), softmax(LOGITS)), (LOGITS, softmax(LOGITS))])
def test_class_numbers_are_held_to_their_likelihood(outputs: Any, shares: Any, labels: Any) -> None:
    assert by(outputs, labels) == pytest.approx(likelihood(shares), rel=ROUNDING)


@pytest.mark.parametrize("outputs", [softmax(LOGITS), LOGITS, SHARES])
def test_one_hot_labels_say_the_same_as_class_numbers(outputs: Any) -> None:
    assert by(outputs, ONE_HOT) == pytest.approx(by(outputs, CLASSES), rel=ROUNDING)
    assert by(outputs, ONE_HOT.astype(np.int64)) == pytest.approx(by(outputs, CLASSES), rel=ROUNDING)


def test_a_probability_a_class_is_held_to_each() -> None:
    wanted = -(ONE_HOT * np.log(SHARES) + (1 - ONE_HOT) * np.log(1 - SHARES)).sum(-1).mean()
    assert by(SHARES, CLASSES) == pytest.approx(float(wanted), rel=ROUNDING)


@pytest.mark.parametrize("labels", [CLASSES % 2, (CLASSES % 2)[:, None].astype(np.float32)])
def test_a_single_probability_is_held_to_yes_and_no(labels: Any) -> None:
    right = (CLASSES % 2)[:, None]
    wanted = -(right * np.log(SHARES[:, :1]) + (1 - right) * np.log(1 - SHARES[:, :1])).mean()
    assert by(SHARES[:, :1], labels) == pytest.approx(float(wanted), rel=ROUNDING)
    assert by(LOGITS[:, :1], labels, "crossentropy") == pytest.approx(float(wanted), rel=ROUNDING)


def test_a_single_output_that_may_be_a_logit_or_a_value_is_asked_about() -> None:
    with pytest.raises(DataError, match="labels are 0 and 1, and the output goes beyond") as told:
        by(LOGITS[:, :1], CLASSES % 2)
    assert "loss: crossentropy" in told.value.action
    assert by(LOGITS[:, :1], CLASSES % 2, "mse") > 0


def test_classes_of_many_places_are_held_each() -> None:
    shares = softmax(DRAW.normal(size=(3, 4, 4, 5)))
    labels = DRAW.integers(0, 5, (3, 4, 4))
    wanted = -np.log(np.take_along_axis(shares, labels[..., None], -1)).mean()
    assert by(shares, labels) == pytest.approx(float(wanted), rel=ROUNDING)


@pytest.mark.parametrize("labels", [LOGITS + 1, (LOGITS + 1)[:, :, None]])
def test_values_are_held_to_values(labels: Any) -> None:
    assert by(LOGITS, labels) == pytest.approx(1.0, rel=ROUNDING)
    assert by(LOGITS, labels + 1, "mae") == pytest.approx(2.0, rel=ROUNDING)
    assert by(LOGITS[:, :1], CLASSES.astype(np.int64)) == pytest.approx(
        float(np.square(LOGITS[:, 0] - CLASSES).mean()), rel=ROUNDING
    )


@pytest.mark.parametrize(
    ("outputs", "labels", "said"),
    [
        (softmax(LOGITS), CLASSES + 1, "whole numbers 0 to 4"),
        (softmax(LOGITS), CLASSES - 1, "whole numbers 0 to 4"),
        (LOGITS, LOGITS[:, :3], r"labels have shape \[50, 3\], the output \[50, 5\]"),
        (LOGITS.reshape(5, 2, 5, 5), LOGITS.reshape(5, 5, 5, 2), r"labels have shape \[5, 5, 5, 2\]"),
        (LOGITS, CLASSES + 0.5, "labels are not whole numbers\nthe one in row 0 is .*5; the output gives 5 values"),
        (softmax(LOGITS), np.r_[CLASSES[:-1], 7], "0 to 4\nthe one in row 49 is 7"),
    ],
)
def test_labels_that_do_not_fit_are_refused(outputs: Any, labels: Any, said: str) -> None:
    with pytest.raises(DataError) as caught:
        by(outputs, labels)
    assert re.search(said, str(caught.value))


@pytest.mark.parametrize("kind", ["kl", "crossentropy"])
def test_a_divergence_from_values_is_refused_and_from_classes_is_their_likelihood(kind: Any) -> None:
    with pytest.raises(DataError, match="classes, or shares of them from 0 to 1"):
        by(LOGITS, LOGITS * 9, kind)
    assert by(softmax(LOGITS), ONE_HOT, kind) == pytest.approx(by(softmax(LOGITS), CLASSES), rel=ROUNDING)


def test_a_gradient_flows_to_the_least_likely_class() -> None:
    shares = tf.Variable(softmax(LOGITS * 9))
    with tf.GradientTape() as tape:
        found = losses.to_labels(0, shares.numpy(), CLASSES, "auto")([], [shares], tf.constant(CLASSES))
    assert np.isfinite(tape.gradient(found, shares).numpy()).all()


# The uncompressed model


def teacher(*ends: Any) -> Any:
    given = tf_keras.layers.Input((4,))
    return tf_keras.Model(given, [end(given) for end in ends])


GIVEN = DRAW.normal(size=(40, 4)).astype(np.float32)


def test_a_model_is_held_to_each_output_in_its_own_kind_and_unit() -> None:
    tf_keras.utils.set_random_seed(1)
    dense = tf_keras.layers.Dense
    model = teacher(dense(3, activation="softmax"), dense(2))
    found = losses.to_model(model, [GIVEN], "auto")
    shares, values = (output.numpy() for output in model(GIVEN))
    assert found.kinds == ("kl", "mse")
    other = softmax(DRAW.normal(size=(40, 3)))
    got = found([tf.constant(GIVEN)], [tf.constant(other), tf.constant(values + 1)], None)
    divergence = (shares * (np.log(shares) - np.log(other))).sum(-1).mean()
    assert float(got) == pytest.approx(float(divergence + 1 / values.var()), rel=1e-4)
    nothing = found([tf.constant(GIVEN)], [tf.constant(shares), tf.constant(values)], None)
    assert float(nothing) == pytest.approx(0, abs=1e-6)


def test_crossentropy_of_a_model_is_its_divergence() -> None:
    model = teacher(tf_keras.layers.Dense(3, activation="softmax"))
    assert losses.to_model(model, [GIVEN], "crossentropy").kinds == ("kl",)


@pytest.mark.parametrize("kind", ["kl", "crossentropy"])
def test_a_divergence_of_values_is_refused(kind: Any) -> None:
    with pytest.raises(DataError, match=f"loss: {kind} needs outputs that are distributions"):
        losses.to_model(teacher(tf_keras.layers.Dense(3)), [GIVEN], kind)


def test_an_output_that_never_moves_has_the_unit_one() -> None:
    still = teacher(tf_keras.layers.Dense(2, kernel_initializer="zeros"))
    assert losses.to_model(still, [GIVEN], "mse").units == (1.0,)


def test_answers_of_a_fixed_batch_are_those_of_a_free_one() -> None:
    given = tf_keras.layers.Input((4,), batch_size=8)
    fixed = tf_keras.Model(given, tf_keras.layers.Dense(2, kernel_initializer="ones")(given))
    (found,) = losses.answers(fixed, [GIVEN[:20]])
    assert np.allclose(found, GIVEN[:16].sum(1, keepdims=True))


# Batches


def data(count: int = 20) -> Data:
    """Row i holds i everywhere."""
    rows = np.arange(count)
    return Data(inputs=(rows[:, None].repeat(3, 1).astype(np.float32), rows[:, None]), labels=rows)


def test_an_epoch_sees_each_sample_once_in_an_order_of_its_own() -> None:
    orders = []
    for epoch in range(2):
        seen = list(batches.shuffled(data(), 5, 0.0, np.random.default_rng((0, epoch))))
        assert {len(batch) for batch in seen} == {5}
        orders.append([int(label) for batch in seen if batch.labels is not None for label in batch.labels])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(20))
    assert orders[0] != orders[1]


def test_mixup_blends_values_and_leaves_whole_numbers() -> None:
    (batch,) = batches.shuffled(data(), 20, 0.5, np.random.default_rng(1))
    assert batch.labels is not None
    assert np.array_equal(batch.inputs[1][:, 0], batch.labels)
    blended = batch.inputs[0][:, 0] != batch.labels
    assert 0 < blended.sum() < 20, "about half"
    assert (batch.inputs[0] == batch.inputs[0][:, :1]).all(), "one share a sample"
    assert batch.inputs[0].min() >= 0
    assert batch.inputs[0].max() <= 19


def test_samples_held_back_are_not_trained_on() -> None:
    used, held = batches.split(data(), Finetune(early_stop=1, validation=0.2), 0)
    assert held is not None
    assert used.labels is not None
    assert held.labels is not None
    assert len(held) == 4
    assert sorted([*used.labels, *held.labels]) == list(range(20))
    assert batches.split(data(), Finetune(), 0)[1] is None


@pytest.mark.parametrize(("fixed", "last"), [(None, [18, 19]), (6, [18, 19, 18, 19, 18, 19])])
def test_every_sample_is_measured_once(fixed: int | None, last: list[int]) -> None:
    found = list(batches.in_turn(data(), 6, fixed))
    assert [count for _, count in found] == [6, 6, 6, 2]
    assert found[-1][0].labels is not None
    assert list(found[-1][0].labels) == last


def test_a_single_sample_can_not_be_held_back_and_trained_on() -> None:
    used, _ = batches.split(data(1), Finetune(early_stop=1), 0)
    with pytest.raises(DataError, match="early_stop holds all samples back"):
        batches.size(None, used, Finetune())
