"""Training that was killed goes on from its last checkpoint, and ends in the bytes of one undisturbed."""

from __future__ import annotations

import io
import logging
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow")
from quarters import (
    SAMPLES,
    files,
    folder_of,
    inputs_of,
    trained,
)

from edgebuild.pipeline.compress import checkpoint, steps, trainer
from edgebuild.pipeline.compress.settings import Compression, Finetune, Prune
from edgebuild.pipeline.execution import run_task
from edgebuild.pipeline.storage import progress
from edgebuild.pipeline.storage.sessions import session
from edgebuild.pipeline.storage.store import Store
from edgebuild.pipeline.task import Task
from edgebuild.pipeline.user_code import source_at

KEY = "89ab" * 16
EPOCHS = 4
TUNED = Finetune(epochs=EPOCHS, early_stop=EPOCHS, validation=0.2, learn_from="model", batch=32)
RESUMED = Prune(sparsity=0.7, finetune=TUNED)
STEPS = int(SAMPLES * 0.8) // 32  # An epoch.


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(trained(), tmp_path_factory.mktemp("project"))


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
    script = f"import test_compress_resumed as t; t.doomed({str(root)!r}, {str(folder)!r}, {moment!r}, {calls})"
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


def lacking_last(whole: bytes) -> bytes:
    """A checkpoint without the last variable, whole otherwise."""
    with np.load(io.BytesIO(whole)) as archive:
        found = {name: archive[name] for name in archive.files}
    del found[max(name for name in found if name.startswith("variable:"))]
    made = io.BytesIO()
    np.savez(made, **found)
    return made.getvalue()


@pytest.mark.usefixtures("often")
def test_a_damaged_or_foreign_checkpoint_is_told_of_and_not_used(
    project: Path, tmp_path: Path, counted: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "progress"
    wanted = resumed(folder, project, tmp_path / "first")
    whole = (folder / checkpoint.FILE).read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + b"?" + whole[middle + 1 :]
    for number, damaged in enumerate((whole[:middle], flipped, lacking_last(whole), b"", b"no archive")):
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


def test_short_training_writes_no_checkpoint(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "EVERY_S", math.inf)  # However slow this machine is.
    resumed(tmp_path / "progress", project, tmp_path / "out")
    assert not (tmp_path / "progress").exists()


def test_a_stray_file_beside_what_is_unfinished_is_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    progress.describe(store, KEY, "prune")
    (progress.place(store, KEY) / checkpoint.FILE).write_bytes(b"something")
    (tmp_path / "progress" / "note.txt").write_text("stray")
    assert [one.key for one in progress.unfinished(store)] == [KEY]
    assert progress.abandoned(store, 0.0) == [progress.place(store, KEY)]
