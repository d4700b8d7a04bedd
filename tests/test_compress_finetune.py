"""Fine-tuning: what it wins back, what it keeps, and when it ends."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import planned
import pytest

tf = pytest.importorskip("tensorflow")
import tf_keras  # noqa: E402 - behind TensorFlow
from quarters import (  # noqa: E402
    SAMPLES,
    accuracy,
    by_labels,
    compressed,
    files,
    folder_of,
    free,
    inputs_of,
    network,
    samples,
    trained,
)

from edgebuild.calibration.errors import DataError  # noqa: E402
from edgebuild.export.errors import ModelError  # noqa: E402
from edgebuild.pipeline.compress import batches, finetune, losses, steps, work  # noqa: E402
from edgebuild.pipeline.compress.batches import Data  # noqa: E402
from edgebuild.pipeline.compress.checkpoint import Course, Epoch  # noqa: E402
from edgebuild.pipeline.compress.settings import Cluster, Compression, Finetune, Prune, Qat  # noqa: E402
from edgebuild.pipeline.compress.structure import Structure  # noqa: E402
from edgebuild.pipeline.ingest import float_model  # noqa: E402
from edgebuild.pipeline.task import Task  # noqa: E402

ONCE = Finetune(epochs=1, batch=32)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(trained(), tmp_path_factory.mktemp("project"))


def test_recovers_what_pruning_lost_from_the_model_alone(tmp_path: Path) -> None:
    folder = folder_of(trained(), tmp_path / "project", labelled=False)
    before = accuracy(float_model.rebuild(folder / "model"))
    found = []
    for epochs in (0, 12):
        tuned = Finetune(epochs=epochs, learning_rate=5e-3, batch=32)
        compressed(folder, Prune(sparsity=0.85, finetune=tuned), tmp_path / f"{epochs}")
        found.append(accuracy(float_model.rebuild(tmp_path / f"{epochs}")))
    assert found[0] < before - 0.15, "pruning costs nothing here, so that nothing is to be won back"
    assert found[1] > before - 0.05


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rmsprop"])
def test_every_optimizer_learns_under_the_mask(project: Path, tmp_path: Path, optimizer: Any) -> None:
    tuned = Finetune(epochs=3, optimizer=optimizer, batch=32, learning_rate=2e-3)
    compressed(project, Prune(sparsity=0.75, schedule="constant", finetune=tuned), tmp_path / "out")
    record = json.loads((tmp_path / "out" / steps.STEP).read_text())
    losses_ = [epoch["loss"] for epoch in record["history"]]
    assert losses_[-1] < losses_[0]
    assert {k["zeros"] / k["weights"] for k in record["kernels"] if k["layer"] != "depthwise"} == {0.75}


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(project: Path, tmp_path: Path) -> None:
    technique = Prune(finetune=Finetune(epochs=2, learn_from="model", batch=32))
    once, again = (compressed(project, technique, tmp_path / name) for name in ("once", "again"))
    assert once == again
    (tmp_path / "other").mkdir()
    steps.apply(Compression(technique=technique, output="", seed=4), inputs_of(project), tmp_path / "other")
    assert files(tmp_path / "other")["weights.npz"] != once["weights.npz"]


def test_no_epochs_train_nothing(project: Path, tmp_path: Path) -> None:
    compressed(project, Prune(sparsity=0.5, finetune=Finetune(epochs=0)), tmp_path / "out")
    before, after = float_model.rebuild(project / "model"), float_model.rebuild(tmp_path / "out")
    for one, other in zip(before.get_weights(), after.get_weights(), strict=True):
        assert np.array_equal(other, np.where(other != 0, one, 0)), "a weight that stays has changed"
    assert json.loads((tmp_path / "out" / steps.STEP).read_text())["history"] == []


@pytest.mark.parametrize("technique", [Prune(criterion="taylor", finetune=Finetune(epochs=2)), Cluster()])
def test_a_model_whose_batch_is_fixed_is_trained_in_such_batches(tmp_path: Path, technique: Any) -> None:
    folder = folder_of(trained(batch=6), tmp_path / "project")
    settings = Finetune(epochs=2, early_stop=1, validation=0.05)
    compressed(folder, technique.model_copy(update={"finetune": settings}), tmp_path / "out")
    made = float_model.rebuild(tmp_path / "out")
    assert made.inputs[0].shape[0] == 6
    assert accuracy(made) > 0.6


def test_fewer_samples_than_a_fixed_batch_are_refused(tmp_path: Path) -> None:
    folder = folder_of(network(batch=6), tmp_path / "project", count=5)
    with pytest.raises(DataError, match=r"5 samples to train on.*fix batches of 6"):
        compressed(folder, Prune(finetune=Finetune(epochs=1)), tmp_path / "out")
    with pytest.raises(DataError, match="4 samples for batches of 6"):
        finetune.tune(
            network(batch=6),
            Data(inputs=(samples(6)[0],), labels=samples(6)[1]),
            by_labels(network()),
            Finetune(epochs=1, early_stop=1, validation=0.3),
            0,
            free,
        )


def test_a_model_without_a_batch_axis_is_compressed_but_not_trained(tmp_path: Path) -> None:
    folder = folder_of(network(batch=6), tmp_path / "project", batched=False)
    assert compressed(folder, Prune(finetune=Finetune(epochs=0)), tmp_path / "out")
    with pytest.raises(ModelError, match="can't be trained on samples"):
        compressed(folder, Prune(finetune=Finetune(epochs=1)), tmp_path / "never")


def line() -> tuple[Any, Data, losses.ToLabels]:
    """A model of one sum, samples of it, and how far it is off."""
    model = tf_keras.Sequential([tf_keras.layers.Input((3,)), tf_keras.layers.Dense(1)])
    data = Data(inputs=(np.ones((64, 3), np.float32),), labels=np.ones((64, 1), np.float32))
    return model, data, losses.ToLabels(output=0, kind="mse", form="logits", numbers=False)


def test_a_loss_that_is_no_number_ends_it() -> None:
    model, data, squares = line()
    wild = Finetune(epochs=3, learning_rate=1e6, optimizer="sgd", batch=4)
    with pytest.raises(DataError, match=r"diverged: its loss is (nan|inf) in epoch 1"):
        finetune.tune(model, data, squares, wild, 0, free)


def test_a_loss_that_is_no_number_on_samples_held_back_ends_it() -> None:
    model, data, squares = line()
    tuned = Finetune(epochs=1, batch=4, early_stop=1, validation=0.2)
    held = batches.split(replace(data, labels=np.arange(len(data))), tuned, 0)[1]
    assert held is not None
    assert held.labels is not None
    assert data.labels is not None
    data.labels[held.labels] = np.nan
    with pytest.raises(DataError, match="diverged: its loss is nan on the samples held back in epoch 1"):
        finetune.tune(model, data, squares, tuned, 0, free)


# Ending early

WATCHED = Finetune(epochs=30, batch=32, early_stop=2, validation=0.2, learning_rate=2e-2)


def test_an_early_stop_keeps_the_best_epoch(project: Path, tmp_path: Path) -> None:
    constant = Prune(sparsity=0.6, schedule="constant", finetune=WATCHED)
    compressed(project, constant, tmp_path / "out", metric="top1")
    history = json.loads((tmp_path / "out" / steps.STEP).read_text())["history"]
    ranks = [(-epoch["validation_metric"], epoch["validation_loss"]) for epoch in history]
    assert len(history) < WATCHED.epochs
    assert ranks.index(min(ranks)) == len(history) - 3, "two epochs after the best were no better"
    learned = json.loads((tmp_path / "out" / steps.STEP).read_text())["learned"]
    assert learned == {
        "source": "labels",
        "loss": "crossentropy",
        "rows": SAMPLES * 4 // 5,
        "held": SAMPLES // 5,
        "epochs": len(history),
        "kept": len(history) - 2,
    }
    images, labels = samples()
    used = batches.split(Data(inputs=(images,), labels=labels), WATCHED, 3)[1]
    assert used is not None
    assert used.labels is not None
    (outputs,) = losses.answers(float_model.rebuild(tmp_path / "out"), used.inputs)
    assert (outputs.argmax(1) == used.labels).mean() == -min(ranks)[0]


@pytest.mark.parametrize(("ranks", "kept"), [((2.0, 1.0, 3.0, 1.0), 2), ((math.nan, math.nan), 2), ((), 3)])
def test_the_epoch_is_told_whose_weights_stay(ranks: Sequence[float], kept: int) -> None:
    course = Course()
    for rank in ranks or (0.0, 0.0, 0.0):
        course.history.append(Epoch(loss=0.0, validation_loss=None, validation_metric=None))
        if ranks:  # Nothing is judged where nothing is held back.
            course.judge([rank], [np.array(len(course.history))])
    assert course.kept == kept
    assert not course.best_weights or int(course.best_weights[0]) == kept


def test_without_labels_an_early_stop_watches_the_loss(tmp_path: Path) -> None:
    folder = folder_of(trained(), tmp_path / "project", labelled=False)
    compressed(folder, Prune(finetune=WATCHED), tmp_path / "out", metric="top1")
    history = json.loads((tmp_path / "out" / steps.STEP).read_text())["history"]
    assert {epoch["validation_metric"] for epoch in history} == {None}
    assert all(epoch["validation_loss"] > 0 for epoch in history)


def test_a_users_metric_is_watched_in_its_own_direction(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "watched_by_me.py").write_text(
        "def wrong(outputs, labels):\n    (o,) = outputs.values()\n    return (o.argmax(1) != labels).mean()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    constant = Prune(sparsity=0.6, schedule="constant", finetune=WATCHED)
    mine = compressed(project, constant, tmp_path / "mine", metric="watched_by_me:wrong", higher_is_better=False)
    top1 = compressed(project, constant, tmp_path / "top1", metric="top1")
    assert mine["weights.npz"] == top1["weights.npz"], "one less than the other, watched in the other direction"


def test_no_epoch_before_the_whole_sparsity_is_the_best(project: Path, tmp_path: Path) -> None:
    """The first epochs of a ramp are better than all that follow, since they prune less."""
    tuned = WATCHED.model_copy(update={"epochs": 8, "early_stop": 1})
    compressed(project, Prune(sparsity=0.9, finetune=tuned), tmp_path / "out", metric="top1")
    record = json.loads((tmp_path / "out" / steps.STEP).read_text())
    assert all(k["zeros"] / k["weights"] >= 0.85 for k in record["kernels"] if k["layer"] not in ("depthwise", "first"))
    assert len(record["history"]) > 4


def test_a_metric_that_can_not_be_taken_says_where(project: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="training can't watch auc on 64 samples held back"):
        compressed(project, Prune(finetune=WATCHED), tmp_path / "out", metric="auc")


def test_what_an_early_stop_watches_counts_and_nothing_else_of_the_metric(tmp_path: Path) -> None:
    def compress(early_stop: int | None, metric: Any) -> Task:
        data = {"calibration": "calibration.npz", "evaluation": "evaluation.npz"}
        step = {"prune": {"finetune": {"epochs": 1} | ({"early_stop": early_stop} if early_stop else {})}}
        planned.configure(tmp_path, planned.settings(compress=[step], metric=metric, data=data))
        return next(task for task in planned.planned(tmp_path, "cpu").tasks.values() if task.stage == "compress")

    planned.lay_out(tmp_path)
    mine = {"name": "judge:score", "higher_is_better": False}
    assert compress(None, "top1").key == compress(None, "mse").key == compress(None, mine).key
    assert compress(3, "top1").key != compress(3, "mse").key
    assert (compress(3, "mse").parameters.metric, compress(3, "mse").parameters.higher_is_better) == ("mse", False)
    found = compress(3, mine)
    assert (found.parameters.metric, found.parameters.higher_is_better) == ("judge:score", False)
    assert {"metric", "metric/shapes", "metric/late", "metric/deep"} <= found.sources.keys()
    assert found.python_path == tmp_path


def test_one_step_of_training_prunes_as_much_as_is_said(project: Path, tmp_path: Path) -> None:
    technique = Prune(sparsity=0.5, finetune=Finetune(epochs=1, batch=SAMPLES))
    compressed(project, technique, tmp_path / "out")
    weights = float_model.rebuild(tmp_path / "out").get_layer("second").kernel.numpy()
    assert (weights == 0).mean() == pytest.approx(0.5)


def test_labels_that_are_not_there_are_not_learned_from(tmp_path: Path) -> None:
    folder = folder_of(trained(), tmp_path / "unlabelled", labelled=False)
    with pytest.raises(DataError, match="the samples have none"):
        compressed(folder, Prune(finetune=Finetune(epochs=1, learn_from="labels")), tmp_path / "out")


@pytest.mark.parametrize(("labelled", "source", "loss"), [(True, "labels", "crossentropy"), (False, "model", "kl")])
def test_a_step_says_what_it_learned_from(tmp_path: Path, *, labelled: bool, source: str, loss: str) -> None:
    folder = folder_of(network(), tmp_path / "project", labelled=labelled)
    compressed(folder, Prune(finetune=Finetune(epochs=2, batch=160)), tmp_path / "out")
    learned = json.loads((tmp_path / "out" / steps.STEP).read_text())["learned"]
    assert learned == {"source": source, "loss": loss, "rows": SAMPLES, "held": 0, "epochs": 2, "kept": 2}


@pytest.mark.parametrize(("rows", "told"), [(3, ["only 3 rows to learn from"]), (work.FEW_ROWS, [])])
def test_few_rows_to_learn_from_are_told_of(tmp_path: Path, rows: int, told: list[str]) -> None:
    folder = folder_of(network(), tmp_path / "project", count=rows)
    compressed(folder, Prune(finetune=Finetune(epochs=1)), tmp_path / "out")
    notes = json.loads((tmp_path / "out" / steps.STEP).read_text())["notes"]
    assert [note.partition(":")[0] for note in notes] == told


@pytest.mark.parametrize("technique", [Prune(finetune=ONCE), Cluster(finetune=ONCE), Qat(finetune=ONCE)])
def test_training_keeps_what_the_structures_are_now(
    project: Path, monkeypatch: pytest.MonkeyPatch, technique: Any
) -> None:
    """In the midst of it a worker takes those of worker 0."""
    opened = work.start(Compression(technique=technique, output="", seed=3), inputs_of(project))
    shapes = {name: kernel.value.shape for name, kernel in opened.kernels.items()}
    opened.structures.update({name: Structure(kept=np.ones(shape, bool)) for name, shape in shapes.items()})
    kept: list[str] = []

    def tune(model: Any, *given: Any, structures: dict[str, Structure], **_: Any) -> Course:
        keep = given[-1]
        first, settled, after = keep(0, 100), keep(98, 100), keep(99, 100)
        assert first.keys() == settled.keys()
        assert settled == after, "made anew each step"
        structures.update({name: Structure(kept=np.zeros(shape, bool)) for name, shape in shapes.items()})
        projections = keep(99, 100)
        for variable in model.trainable_variables:
            if variable.name in projections:
                kept.append(variable.name)
                assert not projections[variable.name](variable).numpy().any()
        return Course()

    monkeypatch.setattr(finetune, "tune", tune)
    steps._TECHNIQUES[type(technique)](technique, opened)
    assert len(kept) == len(shapes)


def test_rows_that_are_held_back_are_none_to_learn_from(tmp_path: Path) -> None:
    folder = folder_of(network(), tmp_path / "project", count=work.FEW_ROWS)
    compressed(folder, Prune(finetune=Finetune(epochs=1, early_stop=1, validation=0.25)), tmp_path / "out")
    notes = json.loads((tmp_path / "out" / steps.STEP).read_text())["notes"]
    assert [note.partition(":")[0] for note in notes] == [f"only {work.FEW_ROWS * 3 // 4} rows to learn from"]


def test_what_the_source_froze_is_compressed_and_learns_and_that_is_told(tmp_path: Path) -> None:
    model = network()
    first = next(layer for layer in model.layers if layer.weights)
    first.trainable = False
    folder = folder_of(model, tmp_path / "project")
    compressed(folder, Prune(sparsity=0.5, finetune=Finetune(epochs=1, batch=32)), tmp_path / "out")
    record = json.loads((tmp_path / "out" / steps.STEP).read_text())
    (found,) = [kernel for kernel in record["kernels"] if kernel["layer"] == first.name]
    assert found["zeros"] == found["weights"] // 2
    assert any("source had frozen" in note and first.name in note for note in record["notes"])
    after = float_model.rebuild(tmp_path / "out").get_layer(first.name).get_weights()[0]
    assert (after[after != 0] != first.get_weights()[0][after != 0]).any()


def test_a_kernel_of_one_block_is_left_and_named(project: Path, tmp_path: Path) -> None:
    compressed(project, Prune(block="1x16", finetune=Finetune(epochs=0)), tmp_path / "out")
    notes = json.loads((tmp_path / "out" / steps.STEP).read_text())["notes"]
    assert any(note.startswith("classes/kernel") and "of larger matrices" in note for note in notes)


def test_a_layer_that_is_not_there_is_named(project: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no layer with weights is named secnod") as told:
        compressed(project, Prune(layers={"secnod": 0.3}), tmp_path / "out")
    assert "second" in told.value.cause


def test_a_kernel_that_no_gradient_reaches_is_named(tmp_path: Path) -> None:
    image = tf_keras.layers.Input((8, 8, 2), name="image")
    flat = tf_keras.layers.Flatten()(image)
    deaf = tf.stop_gradient(tf_keras.layers.Dense(4, name="deaf")(flat))
    hears = tf_keras.layers.Dense(4, name="hears")(flat)
    model = tf_keras.Model(image, tf_keras.layers.Dense(4, activation="softmax", name="classes")(deaf + hears))
    compressed(folder_of(model, tmp_path / "project"), Prune(finetune=Finetune(epochs=1)), tmp_path / "out")
    notes = json.loads((tmp_path / "out" / steps.STEP).read_text())["notes"]
    assert "no gradient reaches deaf/kernel: compressed, and not trained" in notes


def test_a_model_that_no_gradient_reaches_is_refused_in_words() -> None:
    given = tf_keras.layers.Input((4,))
    model = tf_keras.Model(given, tf.stop_gradient(tf_keras.layers.Dense(3)(given)))
    inputs = np.ones((8, 4), np.float32)
    loss = losses.to_model(tf_keras.models.clone_model(model), [inputs], "auto")
    with pytest.raises(ModelError, match="can't be trained"):
        finetune.tune(model, Data(inputs=(inputs,), labels=None), loss, Finetune(epochs=1, batch=4), 0, free)
