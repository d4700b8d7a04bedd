"""What models give for the same samples: a flatbuffer in a child process, a source model through the engine.

Run as `python -m edgebuild.pipeline.comparison.outputs MODEL FOLDER`, this is the child: native code that crashes on
a broken model takes down nothing else.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgebuild.calibration.checks import InputSpec
from edgebuild.calibration.errors import Failure
from edgebuild.export.errors import ModelError
from edgebuild.export.flatbuffer import Flatbuffer
from edgebuild.pipeline.errors import CrashError, InternalError

if TYPE_CHECKING:
    from edgebuild.pipeline.execution.engine import Event
    from edgebuild.pipeline.storage.store import Store
    from edgebuild.pipeline.task import Task

Arrays: TypeAlias = dict[str, NDArray[Any]]

TIMEOUT_S: Final = 600


def of_flatbuffer(path: Path, model: Flatbuffer, samples: Sequence[NDArray[Any]]) -> Arrays:
    """Real outputs `float32 [N, ...]` by name, for real inputs `[N, ...]` in the order of the model's own.

    Raises:
        ModelError: tflite-runtime does not take the model or the samples.
        CrashError: it crashed, or did not end.
    """
    with tempfile.TemporaryDirectory(prefix="edgebuild-") as folder:
        place = Path(folder)
        np.savez(place / "inputs.npz", **{str(i): array for i, array in enumerate(samples)})
        command = [sys.executable, "-m", "edgebuild.pipeline.comparison.outputs", str(path.absolute()), folder]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired as e:
            raise CrashError(
                f"{path.name} did not end within {TIMEOUT_S} s", action="give fewer samples with --data"
            ) from e
        if ended.returncode:
            raise _failure(path, place / "failure.json", ended)
        return _by_position(place / "outputs.npz", tuple(model.outputs))


def of_source(
    source: Path,
    data: Path | Callable[[Sequence[InputSpec]], Arrays],
    store: Store,
    on_event: Callable[[Event], None],
) -> tuple[Arrays, Arrays]:
    """A source model's inputs and outputs, `[N, ...]` by its own names: on a data file, or what `data` makes for it.

    Raises:
        Failure: the model can't be read, or the data do not fit it.
    """
    from edgebuild.pipeline.ingest import float_model, load
    from edgebuild.pipeline.source_task import model_task

    load.source_format(source)
    model = model_task(source)
    ingested = _run({model.key: model}, model.key, store, on_event)[model.key]
    with tempfile.TemporaryDirectory(prefix="edgebuild-") as folder:
        if not isinstance(data, Path):
            arrays, data = data(float_model.describe(ingested).inputs), Path(folder) / "noise.npz"
            np.savez(data, **arrays)
        samples = _samples_task(model.key, data)
        reference = _reference_task(model.key, samples.key)
        results = _run({t.key: t for t in (model, samples, reference)}, reference.key, store, on_event)
        return _load(store.place(samples.key) / "samples.npz"), _load(results[reference.key] / "outputs.npz")


def main(model: str, folder: str) -> int:
    """Run a flatbuffer over `inputs.npz` and leave `outputs.npz`, or `failure.json` and a status other than 0."""
    from edgebuild.export.interpreter import Interpreter

    place = Path(folder)
    try:
        interpreter = Interpreter(Path(model).read_bytes())
        samples = _by_position(place / "inputs.npz", tuple(interpreter.flatbuffer.inputs))
        found = interpreter.predict(samples)
    except Failure as e:
        (place / "failure.json").write_text(json.dumps({"what": e.what, "cause": e.cause, "action": e.action}))
        return 1
    np.savez(place / "outputs.npz", **{str(i): array for i, array in enumerate(found.values())})
    return 0


def _failure(path: Path, told: Path, ended: subprocess.CompletedProcess[str]) -> Failure:
    if told.exists():
        parts = json.loads(told.read_bytes())
        return ModelError(f"{path.name}: {parts['what']}", cause=parts["cause"], action=parts["action"])
    last = next((line for line in reversed(ended.stderr.splitlines()) if line.strip()), "it gave no reason")
    if ended.returncode < 0:
        how = signal.Signals(-ended.returncode).name
        return CrashError(f"{path.name}: tflite-runtime was ended by {how}", cause=last, action="convert it again")
    return InternalError(f"{path.name} could not be run", cause=last, action="report it with the model")


def _by_position(path: Path, names: Sequence[str]) -> Arrays:
    """Arrays that were written by position: numpy.savez can't hold every name a model may use."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[str(i)] for i, name in enumerate(names)}


def _load(path: Path) -> Arrays:
    from edgebuild.pipeline.arrays import load_arrays

    return load_arrays(path)


def _run(tasks: Mapping[str, Task], goal: str, store: Store, on_event: Callable[[Event], None]) -> Mapping[str, Path]:
    from edgebuild.pipeline.execution.engine import execute

    outcome = execute(tasks, [goal], store, jobs=2, on_event=on_event)
    if goal in outcome.failures:
        raise outcome.failures[goal]
    return outcome.results


def _samples_task(model: str, data: Path) -> Task:
    from edgebuild.pipeline import stages
    from edgebuild.pipeline.storage.digests import digest_tree
    from edgebuild.pipeline.task import Source, Task, key

    task = Task(
        stage="samples",
        parameters=stages.SamplesParameters(function="", count=None, labels="left"),
        inputs={"model": model},
        sources={"data": Source(path=data.absolute(), digest=digest_tree(data))},
        title=f"load {data.name}",
    )
    return replace(task, key=key(stages.STAGES["samples"], task))


def _reference_task(model: str, samples: str) -> Task:
    from edgebuild.pipeline import stages
    from edgebuild.pipeline.task import Task, key

    task = Task(
        stage="reference",
        parameters=stages.Nothing(),
        inputs={"model": model, "samples": samples},
        title="run the source model",
    )
    return replace(task, key=key(stages.STAGES["reference"], task))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
