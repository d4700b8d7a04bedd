"""Fine-tuning: what it keeps, what it goes on from after a kill, and where its gradients are computed."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import planned
import pytest
from numpy.typing import NDArray

tf = pytest.importorskip("tensorflow")
import tf_keras  # noqa: E402 - behind TensorFlow

from edgebuild.calibration.errors import DataError  # noqa: E402
from edgebuild.export.errors import ModelError  # noqa: E402
from edgebuild.pipeline import stages  # noqa: E402
from edgebuild.pipeline.compress import batches, checkpoint, finetune, gradients, losses, steps, trainer  # noqa: E402
from edgebuild.pipeline.compress.batches import Data  # noqa: E402
from edgebuild.pipeline.compress.settings import Cluster, Compression, Finetune, Prune, Qat  # noqa: E402
from edgebuild.pipeline.execution import run_task  # noqa: E402
from edgebuild.pipeline.ingest import float_model  # noqa: E402
from edgebuild.pipeline.ingest.source import Port, Reading  # noqa: E402
from edgebuild.pipeline.storage import progress  # noqa: E402
from edgebuild.pipeline.storage.sessions import session  # noqa: E402
from edgebuild.pipeline.storage.store import Store  # noqa: E402
from edgebuild.pipeline.task import Task  # noqa: E402
from edgebuild.pipeline.user_code import source_at  # noqa: E402

CLASSES = 4
SAMPLES = 320
KEY = "89ab" * 16
EPOCHS = 4
ROUNDING = 1e-3  # Sums in another order, over a hundred steps that build on each other.
HALF_TOLERANCE = 0.05  # bfloat16 holds 8 bits: 0.4 % a product, over a hundred steps.
FLOAT16_TOLERANCE = 0.05  # 11 bits, and here and there an activation on the other side of zero.


def network(batch: int | None = None) -> Any:
    """Two convolutions, a depthwise one between them, and a softmax."""
    tf_keras.utils.set_random_seed(5)
    layers = tf_keras.layers
    return tf_keras.Sequential(
        [
            layers.Input((8, 8, 2), batch_size=batch, name="image"),
            layers.Conv2D(8, 3, padding="same", activation="relu", name="first"),
            layers.DepthwiseConv2D(3, padding="same", name="depthwise"),
            layers.Conv2D(8, 1, strides=2, activation="relu", name="second"),
            layers.Flatten(),
            layers.Dense(CLASSES, activation="softmax", name="classes"),
        ]
    )


def samples(count: int = SAMPLES) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images of which one quarter is brighter, and which."""
    draw = np.random.default_rng(7)
    labels = draw.integers(0, CLASSES, count)
    images = draw.normal(size=(count, 8, 8, 2)).astype(np.float32)
    for row, label in enumerate(labels):
        top, left = 4 * (label // 2), 4 * (label % 2)
        images[row, top : top + 4, left : left + 4] += 0.7
    return images, labels


def trained(batch: int | None = None) -> Any:
    """The network after it has learned most of that."""
    model = network(batch)
    images, labels = samples()
    settings = Finetune(epochs=6, learning_rate=5e-3, batch=32)
    finetune.tune(model, Data(inputs=(images,), labels=labels), by_labels(model), settings, 0, free)
    return model


def free(*_: int) -> Mapping[str, Any]:
    """Nothing is kept."""
    return {}


def by_labels(model: Any) -> losses.ToLabels:
    images, labels = samples()
    return losses.to_labels(0, losses.answers(model, [images])[0], labels, "auto")


def accuracy(model: Any) -> float:
    images, labels = samples()
    found = losses.answers(model, [images])[0].argmax(1)
    return float((found == labels[: len(found)]).mean())


def folder_of(model: Any, folder: Path, *, labelled: bool = True, count: int = SAMPLES, batched: bool = True) -> Path:
    """A float model and samples, as stages leave them."""
    images, labels = samples(count)
    (folder / "model").mkdir(parents=True)
    (folder / "samples").mkdir()
    port = model.inputs[0].name
    reading = Reading(model=model, inputs=(Port(name=port),), outputs=(Port(name="classes"),), batched=batched)
    float_model.save(reading, "keras", folder / "model")
    named = {port: images}
    stages.save_arrays(folder / "samples" / "samples.npz", {**named, "labels": labels} if labelled else named)
    return folder


def inputs_of(folder: Path) -> dict[str, Path]:
    return {"model": folder / "model", "source": folder / "model", "samples": folder / "samples"}


def compressed(folder: Path, technique: Any, out: Path, **changes: Any) -> dict[str, bytes]:
    """The files of a step over a folder, by name."""
    out.mkdir(parents=True)
    steps.apply(Compression(technique=technique, output="", seed=3, **changes), inputs_of(folder), out)
    return files(out)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(trained(), tmp_path_factory.mktemp("project"))


# What it does


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


def test_a_loss_that_is_no_number_ends_it() -> None:
    model = tf_keras.Sequential([tf_keras.layers.Input((3,)), tf_keras.layers.Dense(1)])
    data = Data(inputs=(np.ones((64, 3), np.float32),), labels=np.ones((64, 1), np.float32))
    squares = losses.ToLabels(output=0, kind="mse", form="logits", numbers=False)
    wild = Finetune(epochs=3, learning_rate=1e6, optimizer="sgd", batch=4)
    with pytest.raises(DataError, match=r"diverged: its loss is (nan|inf) in epoch 1"):
        finetune.tune(model, data, squares, wild, 0, free)


# Going on after a kill

TUNED = Finetune(epochs=EPOCHS, early_stop=EPOCHS, validation=0.2, learn_from="model", batch=32)
RESUMED = Prune(sparsity=0.7, finetune=TUNED)
STEPS = int(SAMPLES * 0.8) // 32  # An epoch.


def task_over(folder: Path) -> Task:
    sources = {name: source_at(path) for name, path in inputs_of(folder).items()}
    parameters = Compression(technique=RESUMED, output="", seed=3)
    return Task(stage="compress", parameters=parameters, sources=sources, seed=3, title="prune", key=KEY)


def doomed(root: str, folder: str, moment: str, calls: int) -> None:
    """Run the task, with a checkpoint each epoch, until this process is killed. A process of its own calls it."""
    owner, name = {
        "before a step": (trainer.Trainer, "train"),
        "after an epoch": (checkpoint.Checkpoint, "save"),
        "in the middle of writing": (os, "fsync"),
    }[moment]
    original, left = getattr(owner, name), [calls]

    def watched(*given: Any) -> Any:
        left[0] -= 1
        if moment == "after an epoch":
            original(*given)
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*given) if moment != "after an epoch" else None

    setattr(owner, name, watched)
    checkpoint.EVERY_S = 0.0  # type: ignore[misc]
    run_task.run_task(task_over(Path(folder)), Store(Path(root)))


def killed(root: Path, folder: Path, moment: str, calls: int) -> None:
    """A process that is killed there, as by `kill -9`."""
    script = f"import test_compress_finetune as t; t.doomed({str(root)!r}, {str(folder)!r}, {moment!r}, {calls})"
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One more entry for each step of training."""
    taken, train = [], trainer.Trainer.train

    def step(*given: Any) -> float:
        taken.append(1)
        return train(*given)

    monkeypatch.setattr(trainer.Trainer, "train", step)
    return taken


def test_training_killed_again_and_again_ends_in_the_bytes_of_one_undisturbed(
    project: Path, tmp_path: Path, counted: list[int]
) -> None:
    store, undisturbed = Store(tmp_path / "store"), Store(tmp_path / "undisturbed")
    left = progress.place(store, KEY) / checkpoint.FILE
    killed(store.root, project, "after an epoch", 1)  # Masks still grow, over the first half.
    first = left.read_bytes()
    killed(store.root, project, "before a step", STEPS - 2)
    assert left.read_bytes() == first, "an epoch that was cut short left something"
    killed(store.root, project, "in the middle of writing", 3)  # Masks are settled, and made no more.
    assert left.read_bytes() != first
    with session(store, ()) as opened:  # It sweeps, as each build does that starts.
        run_task.run_task(task_over(project), opened)
    assert len(counted) == STEPS, "it did not go on after three of four epochs"
    run_task.run_task(task_over(project), undisturbed)
    assert len(counted) == STEPS + EPOCHS * STEPS
    assert files(store.place(KEY)) == files(undisturbed.place(KEY))
    assert not progress.place(store, KEY).exists(), "the entry is made"


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint each epoch."""
    monkeypatch.setattr(checkpoint, "EVERY_S", 0.0)


def resumed(folder: Path, project: Path, out: Path, technique: Any = RESUMED) -> dict[str, bytes]:
    """A step that goes on from what lies in `folder`, if it can."""
    out.mkdir()
    inputs = {**inputs_of(project), "progress": folder}
    steps.apply(Compression(technique=technique, output="", seed=3), inputs, out)
    return files(out)


@pytest.mark.usefixtures("often")
def test_a_damaged_or_foreign_checkpoint_is_told_of_and_not_used(
    project: Path, tmp_path: Path, counted: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "progress"
    wanted = resumed(folder, project, tmp_path / "first")
    whole = (folder / checkpoint.FILE).read_bytes()
    middle = len(whole) // 2
    for number, damaged in enumerate((whole[:middle], whole[:middle] + b"?" + whole[middle + 1 :], b"", b"no archive")):
        (folder / checkpoint.FILE).write_bytes(damaged)
        caplog.clear()
        counted.clear()
        with caplog.at_level(logging.WARNING):
            assert resumed(folder, project, tmp_path / f"damaged-{number}") == wanted
        assert len(counted) == EPOCHS * STEPS
        assert "is not used" in caplog.text
    other = RESUMED.model_copy(update={"finetune": TUNED.model_copy(update={"learning_rate": 2e-3})})
    caplog.clear()
    counted.clear()
    with caplog.at_level(logging.WARNING):
        resumed(folder, project, tmp_path / "foreign", other)
    assert len(counted) == EPOCHS * STEPS
    assert "it is another training's" in caplog.text


@pytest.mark.usefixtures("often")
def test_training_that_ended_is_not_done_again(project: Path, tmp_path: Path, counted: list[int]) -> None:
    folder = tmp_path / "progress"
    wanted = resumed(folder, project, tmp_path / "first")
    counted.clear()
    assert resumed(folder, project, tmp_path / "second") == wanted
    assert not counted


def test_short_training_writes_no_checkpoint(project: Path, tmp_path: Path) -> None:
    resumed(tmp_path / "progress", project, tmp_path / "out")
    assert not (tmp_path / "progress").exists()


# Where gradients are computed


def by_itself(model: Any, **settings: Any) -> list[float]:
    """The losses of a training by labels."""
    images, labels = samples()
    tuned = Finetune(epochs=4, batch=31, learning_rate=5e-3, **settings)
    history = finetune.tune(model, Data(inputs=(images,), labels=labels), by_labels(model), tuned, 0, free)
    return [epoch.loss for epoch in history]


def test_half_precision_learns_the_same_and_leaves_float32() -> None:
    whole, half = network(), network()
    wanted, found = by_itself(whole), by_itself(half, mixed_precision=True)
    assert found != wanted, "it computed in float32"
    assert found == pytest.approx(wanted, abs=HALF_TOLERANCE)
    assert {weight.dtype for weight in half.get_weights()} == {np.dtype(np.float32)}
    assert {layer.dtype_policy.name for layer in half.layers} == {"float32"}


def test_half_precision_keeps_what_pruning_made(project: Path, tmp_path: Path) -> None:
    tuned = Finetune(epochs=2, batch=32, mixed_precision=True)
    compressed(project, Prune(sparsity=0.5, finetune=tuned), tmp_path / "out")
    record = json.loads((tmp_path / "out" / steps.STEP).read_text())
    assert {k["zeros"] / k["weights"] for k in record["kernels"] if k["layer"] != "depthwise"} == {0.5}
    assert "bfloat16" not in (tmp_path / "out" / "architecture.json").read_text()
    assert any("bfloat16 trains slower" in note for note in record["notes"])


def test_half_precision_trains_a_model_that_learns_to_be_rounded(project: Path, tmp_path: Path) -> None:
    found = {
        mixed: compressed(project, Qat(finetune=Finetune(epochs=2, mixed_precision=mixed)), tmp_path / f"{mixed}")
        for mixed in (False, True)
    }
    assert found[True]["architecture.json"] == found[False]["architecture.json"]
    assert accuracy(float_model.rebuild(tmp_path / "True")) > 0.8


def test_one_device_is_told_where_several_were_asked_for() -> None:
    assert list(gradients.doubts(Finetune())) == []
    assert "found one device" in "".join(gradients.doubts(Finetune(strategy="mirrored")))


def test_layers_that_give_outputs_and_those_around_others_stay_whole() -> None:
    layers = tf_keras.layers
    given = layers.Input((4, 6))
    inner = layers.Bidirectional(layers.LSTM(3, return_sequences=True), name="around")(
        layers.Dense(6, name="in")(given)
    )
    model = tf_keras.Model(given, layers.Dense(2, activation="softmax", name="out")(layers.Dropout(0.1)(inner)))
    made = gradients.copy(model, "bfloat16")
    policies = {layer.name: layer.dtype_policy.name for layer in made.layers}
    assert (policies["in"], policies["around"], policies["out"]) == ("mixed_bfloat16", "float32", "float32")
    draw = np.random.default_rng(0).normal(size=(5, 4, 6)).astype(np.float32)
    assert np.allclose(made(draw), model(draw), atol=HALF_TOLERANCE)


def test_float16_scales_its_loss_and_leaves_out_a_step_that_overflows() -> None:
    scale = gradients._Scale()
    step = tf.function(scale.settled)
    assert bool(step([tf.constant([1.0, 2.0])]))
    assert float(scale.value) == gradients._FIRST_SCALE
    assert not bool(step([tf.constant([1.0, np.inf])]))
    assert float(scale.value) == gradients._FIRST_SCALE / 2
    for _ in range(gradients._DOUBLES_AFTER):
        step([tf.constant([1.0])])
    assert float(scale.value) == gradients._FIRST_SCALE


def test_float16_learns_from_losses_too_small_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (images, labels) = network(), samples(32)
    squares = losses.ToLabels(output=0, kind="mse", form="distribution", numbers=False)
    data = Data(inputs=(images,), labels=np.eye(CLASSES, dtype=np.float32)[labels])

    def tiny(*given: Any) -> Any:
        return 1e-7 * squares(*given)

    def of(found: gradients.Gradients) -> dict[str, NDArray[np.float32]]:
        return {variable.name: gradient.numpy() for gradient, variable in found(*found.parts(data))[1]}

    def in_float16(scale: float) -> dict[str, NDArray[np.float32]]:
        monkeypatch.setattr(gradients, "_FIRST_SCALE", scale)
        return of(gradients._Copied(model, tiny, tf.distribute.get_strategy(), "float16"))  # type: ignore[arg-type]

    wanted = of(gradients._Own(model, tiny))  # type: ignore[arg-type]
    assert not in_float16(1.0)["first/kernel:0"].any(), "they do not vanish, so that nothing is shown"
    for name, gradient in in_float16(2.0**30).items():
        assert np.abs(gradient - wanted[name]).max() <= FLOAT16_TOLERANCE * np.abs(wanted[name]).max(), name


def on_two_devices() -> None:
    """Print what trainings on one and on two logical processors end in. A process of its own calls it."""
    devices = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)
    images, labels = samples()
    teacher = trained()
    for mixed, taught in CASES:
        for strategy in ("one", "mirrored"):
            model = network()
            settings = Finetune(epochs=4, batch=31, learning_rate=5e-3, strategy=strategy, mixed_precision=mixed)
            loss = losses.to_model(teacher, [images], "auto") if taught else by_labels(model)
            history = finetune.tune(model, Data(inputs=(images,), labels=labels), loss, settings, 0, free)
            sums = [float(np.abs(weights).sum()) for weights in model.get_weights()]
            print(json.dumps([epoch.loss for epoch in history] + sums))  # noqa: T201 - to its parent


CASES = [(False, False), (False, True), (True, False)]


@pytest.fixture(scope="module")
def devices() -> list[list[float]]:
    ended = subprocess.run(
        [sys.executable, "-c", "import test_compress_finetune as t; t.on_two_devices()"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


@pytest.mark.parametrize(("mixed", "taught"), CASES)
def test_two_devices_learn_as_one_does(devices: list[list[float]], mixed: bool, taught: bool) -> None:  # noqa: FBT001 - a row
    place = 2 * CASES.index((mixed, taught))
    one, two = devices[place : place + 2]
    assert one != two, "it ran on one device"
    assert two == pytest.approx(one, rel=HALF_TOLERANCE if mixed else ROUNDING)


def test_a_fixed_batch_is_not_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: ["a", "b"] if kind == "CPU" else [])
    with pytest.raises(ModelError, match="can't split the batches"):
        gradients.of(network(batch=6), by_labels(network()), Finetune(strategy="mirrored"))


# Ending early

WATCHED = Finetune(epochs=30, batch=32, early_stop=2, validation=0.2, learning_rate=2e-2)


def test_an_early_stop_keeps_the_best_epoch(project: Path, tmp_path: Path) -> None:
    constant = Prune(sparsity=0.6, schedule="constant", finetune=WATCHED)
    compressed(project, constant, tmp_path / "out", metric="top1")
    history = json.loads((tmp_path / "out" / steps.STEP).read_text())["history"]
    ranks = [(-epoch["validation_metric"], epoch["validation_loss"]) for epoch in history]
    assert len(history) < WATCHED.epochs
    assert ranks.index(min(ranks)) == len(history) - 3, "two epochs after the best were no better"
    images, labels = samples()
    used = batches.split(Data(inputs=(images,), labels=labels), WATCHED, 3)[1]
    assert used is not None
    assert used.labels is not None
    (outputs,) = losses.answers(float_model.rebuild(tmp_path / "out"), used.inputs)
    assert (outputs.argmax(1) == used.labels).mean() == -min(ranks)[0]


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
    with pytest.raises(DataError, match="early_stop can't watch auc on 64 training samples held back"):
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
