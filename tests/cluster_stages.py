"""Stages for the cluster's tests. Every process of a test's cluster registers them as it starts."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import stand_ins
from stand_ins import Text

from edgebuild.calibration.errors import DataError
from edgebuild.pipeline import headway, stages
from edgebuild.pipeline.task import Stage

LOSE_WORKER: str = (
    "TEST_LOSE_WORKER"  # Names a file: while it is there, the next conversion takes its Dask worker down.
)


def where(_: Text, inputs: Mapping[str, Path], out: Path) -> None:
    """Write where the source lies, and what it says."""
    (out / "text").write_text(f"{inputs['data']}\n{inputs['data'].read_text()}")


def write_and_log(parameters: Text, _: Mapping[str, Path], out: Path) -> None:
    """Note in a file beside the store that this ran, then write."""
    log, text = parameters.text.split("|")
    with Path(log).open("a") as file:
        file.write("ran\n")
    (out / "text").write_text(text)


def say_until_heard(parameters: Text, _: Mapping[str, Path], out: Path) -> None:
    """Tell how far this has come, and end when whoever hears it makes the file of that name."""
    headway.say("half way")
    given_up = time.monotonic() + 60
    while not Path(parameters.text).exists():
        if time.monotonic() > given_up:
            raise DataError("nobody heard it")
        time.sleep(0.01)
    (out / "text").write_text("heard")


def lose_worker_once(parameters: Text, _: Mapping[str, Path], out: Path) -> None:
    """Kill the Dask worker above while the file of that name is there; write otherwise."""
    _lose_worker(Path(parameters.text))
    (out / "text").write_text("made")


def lose_worker(_: Text, __: Mapping[str, Path], ___: Path) -> None:
    """Kill the Dask worker above, whoever that is."""
    os.kill(os.getppid(), signal.SIGKILL)


STAND_INS = {
    name: getattr(stand_ins, name) for name in ("write", "process_id", "segfault", "killed", "refuse", "broken", "slow")
} | {f.__name__: f for f in (where, write_and_log, say_until_heard, lose_worker_once, lose_worker)}
STAGES = {
    name: Stage(name=name, version=1, function=function, worker="light", tools=())
    for name, function in STAND_INS.items()
}


def register() -> None:
    """Add the stand-ins, and let `convert` lose its worker where a test asks for it."""
    stages.STAGES.update(STAGES)
    original = stages.STAGES["convert"]

    def convert(parameters: Any, inputs: Mapping[str, Path], out: Path) -> None:
        if LOSE_WORKER in os.environ:
            _lose_worker(Path(os.environ[LOSE_WORKER]))
        original.function(parameters, inputs, out)

    stages.STAGES["convert"] = Stage(
        name=original.name, version=original.version, function=convert, worker=original.worker, tools=original.tools
    )


def _lose_worker(ticket: Path) -> None:
    try:
        ticket.unlink()
    except FileNotFoundError:
        return
    os.kill(os.getppid(), signal.SIGKILL)
