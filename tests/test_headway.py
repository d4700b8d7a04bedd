"""How far a long task has come: said, gathered, and shown as often as anybody reads."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from edgebuild.pipeline import headway
from edgebuild.pipeline.console import Narrator
from edgebuild.pipeline.execution.engine import Event
from edgebuild.pipeline.task import Task

TASK = Task(stage="compress", parameters=None, title="prune 50 %", key="key")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still unless it is put forward."""
    made = SimpleNamespace(now=0.0)
    stopped = SimpleNamespace(monotonic=lambda: made.now)
    monkeypatch.setattr("edgebuild.pipeline.headway.time", stopped)
    monkeypatch.setattr("edgebuild.pipeline.console.time", stopped)
    return made


@pytest.fixture
def heard(clock: SimpleNamespace) -> Iterator[list[str]]:  # noqa: ARG001 - it is stopped for whoever listens
    log, found = logging.getLogger("edgebuild.headway"), list[str]()
    before = log.level, log.propagate, list(log.handlers)
    headway.listen(lambda text, _: found.append(text))
    yield found
    level, log.propagate, log.handlers = before
    log.setLevel(level)


def test_what_is_said_within_something_names_it(heard: list[str], clock: SimpleNamespace) -> None:
    with headway.within("trial 2 of 4"):
        headway.say("epoch 1 of 3")
    clock.now += headway.EVERY_S
    headway.say("epoch 1 of 3")
    assert heard == ["trial 2 of 4, epoch 1 of 3", "epoch 1 of 3"]


def test_what_is_said_too_often_is_left_out(heard: list[str], clock: SimpleNamespace) -> None:
    for number in range(10):
        clock.now = number * headway.EVERY_S / 4
        headway.say(f"epoch {number}")
    assert heard == ["epoch 0", "epoch 4", "epoch 8"]


def test_when_waiting_begins_and_ends_is_never_left_out(clock: SimpleNamespace, heard: list[str]) -> None:  # noqa: ARG001
    for text, waits in (("begun", False), ("waiting", True), ("still", True), ("all are there", False), ("on", False)):
        headway.say(text, waits=waits)
    assert heard == ["begun", "waiting", "all are there"]


def test_nobody_has_to_listen(caplog: pytest.LogCaptureFixture) -> None:
    headway.say("epoch 1 of 3")
    assert not caplog.records


def test_what_is_no_terminal_shows_a_line_a_minute_at_most(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    narrator = Narrator()
    narrator.on_event(Event(state="started", task=TASK))
    for second in range(150):
        clock.now = float(second)
        narrator.on_event(Event(state="headway", task=TASK, headway=f"epoch {second} of 150"))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["  . prune 50 %: epoch 60 of 150", "  . prune 50 %: epoch 120 of 150"]


def test_whom_it_waits_for_is_shown_at_once_and_once(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    narrator = Narrator()
    clock.now = 0.0
    for text in ("waiting for workers 1, 2", "waiting for workers 1, 2", "waiting for worker 2"):
        narrator.on_event(Event(state="headway", task=TASK, headway=text, waits=True))
    narrator.on_event(Event(state="headway", task=TASK, headway="all workers are there"))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["  . prune 50 %: waiting for workers 1, 2", "  . prune 50 %: waiting for worker 2"]
