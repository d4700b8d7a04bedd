"""Several machines that train one model together: processes here, each with its own store and its own TF_CONFIG."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("tensorflow")
import joint
from joint import ALONE, AT_ONCE, EPOCHS, KEY, addresses, config, task_over
from quarters import SAMPLES, compressed, files, folder_of, trained

from edgebuild.calibration.errors import Failure
from edgebuild.pipeline.compress import links, meeting, steps, tf_config
from edgebuild.pipeline.compress.settings import Finetune, Prune
from edgebuild.pipeline.compress.team import Team
from edgebuild.pipeline.compress.tf_config import Place
from edgebuild.pipeline.errors import ConfigError, PeerError, exit_code
from edgebuild.pipeline.execution import engine, workers
from edgebuild.pipeline.execution.run_task import Answer, Headway, Ready
from edgebuild.pipeline.execution.workers import Limits
from edgebuild.pipeline.stages import turn
from edgebuild.pipeline.storage import progress
from edgebuild.pipeline.storage.store import Store

PATIENCE_S = 30.0  # Longer than any of this takes.
ROUNDING = 1e-4  # Sums in another order, in steps that build on each other. Measured: 4e-6 of the loss.


@pytest.fixture(autouse=True)
def _in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits in vain fails."""
    monkeypatch.setattr(meeting, "MEET_S", PATIENCE_S)


# What TF_CONFIG says


def test_a_place_is_read() -> None:
    place = tf_config.parse(config(("a.lan:9000", "[fe80::1]:9001"), 1))
    assert (place.leads, place.reached_at(0), place.reached_at(1)) == (False, ("a.lan", 9000), ("fe80::1", 9001))
    assert tf_config.parse(config(TWO, 1).replace('"index": 1', '"index": "1"')).index == 1, "as TensorFlow takes it"


TWO = ("a:1", "b:2")
REFUSED: Mapping[str, tuple[str, str]] = {
    "nothing": ("", "TF_CONFIG, which is not set"),
    "no JSON": ("{cluster", "it is no JSON: Expecting"),
    "a list": ("[]", "it has no `cluster`"),
    "no task": ('{"cluster": {"worker": ["a:1", "b:2"]}}', "it has no `task`"),
    "no workers": ('{"cluster": {}}', "`cluster` has no `worker`"),
    "a kind that is none": (config(TWO, 0).replace('"worker", "index"', '["x"], "index"'), "tasks of kind ['x']"),
    "one worker": (config(TWO[:1], 0), "two workers or more"),
    "an index too high": (config(TWO, 2), "task.index is 2, and workers are numbered 0 to 1"),
    "an index below": (config(TWO, -1), "task.index is -1"),
    "no index": (config(TWO, index=True), "task.index is True"),
    "a word for an index": (config(TWO, 0).replace('"index": 0', '"index": "-1"'), "task.index is '-1'"),
    "no port": (config(("a:1", "b"), 0), "'b' is no address"),
    "a port too high": (config(("a:1", "b:65536"), 0), "'b:65536' is no address"),
    "a chief": (config(TWO, 0).replace('"type": "worker"', '"type": "chief"'), "tasks of kind chief"),
    "twice the same": (config(("a:1", "a:1"), 0), "the same address"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_says_no_place_is_refused(case: str) -> None:
    text, wanted = REFUSED[case]
    with pytest.raises(ConfigError) as told:
        tf_config.parse(text)
    assert wanted in str(told.value)
    assert "TF_CONFIG=" in told.value.action


# How workers meet


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What each gives, or the failure it ends in; all run side by side."""
    found: list[Any] = [None] * len(calls)

    def call(number: int) -> None:
        try:
            found[number] = calls[number]()
        except Failure as e:
            found[number] = e

    threads = [threading.Thread(target=call, args=(number,), daemon=True) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE_S)
    return found


def places(count: int, host: str = "127.0.0.1") -> list[Place]:
    where = addresses(count, host)
    return [Place(addresses=where, index=index) for index in range(count)]


def met(place: Place, act: Callable[[Team], Any], work: str = "prune") -> Callable[[], Any]:
    """What a worker does that meets the others, and acts."""

    def call() -> Any:
        with meeting.meet(place, work) as found:
            return act(Team(place=place, links=found))

    return call


def test_all_get_what_worker_0_has() -> None:
    def twice(team: Team) -> tuple[bytes, bytes]:
        mine = str(team.place.index).encode()
        found = team.broadcast(mine * 2_000_000), team.broadcast(mine)
        team.barrier()
        return found

    assert at_once(*(met(place, twice) for place in places(3))) == [(b"0" * 2_000_000, b"0")] * 3


def has_ipv6() -> bool:
    """Whether this machine can talk to itself by it."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return socket.has_dualstack_ipv6()


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_workers_meet_by_ipv6() -> None:
    assert at_once(*(met(place, len) for place in places(2, "[::1]"))) == [2, 2]


def test_a_worker_that_takes_its_time_gets_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data that nobody reads is taken for a host that is gone, here after a second."""
    keep, sent = links.keep, b"0" * 8_000_000

    def keep_a_second(link: socket.socket) -> None:
        keep(link)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000)

    monkeypatch.setattr(links, "keep", keep_a_second)

    def leads(team: Team) -> bytes:
        return team.broadcast(sent)

    def busy(team: Team) -> bytes:
        time.sleep(3)
        return team.broadcast(b"")

    first, second = places(2)
    assert at_once(met(first, leads), met(second, busy)) == [sent, sent]


def test_who_is_about_something_else_is_told() -> None:
    first, second = places(2)
    found = at_once(met(first, len), met(second, len, "cluster"))
    assert [failure.what.split(": ")[-1] for failure in found] == [
        f"worker {index} is about to train something else" for index in (1, 0)
    ]
    assert {exit_code(failure) for failure in found} == {2}, "a configuration is to be mended, no network"


@pytest.mark.parametrize("index", [0, 1])
def test_a_worker_that_never_comes_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    monkeypatch.setattr(meeting, "MEET_S", 0.2)
    with pytest.raises(PeerError, match=rf"worker {1 - index}.* did not come within 0.2 s") as told:
        met(places(2)[index], len)()
    assert exit_code(told.value) == 8
    assert "its store holds this step already" in told.value.cause


def framed(said: bytes) -> bytes:
    return len(said).to_bytes(8, "big") + said


def hello(**changes: Any) -> bytes:
    """What worker 1 of 2 says, changed."""
    return framed(json.dumps({"worker": 1, "workers": 2, "work": "prune"} | changes).encode())


STRANGE = (
    b"GET / HTTP/1.1\r\n\r\n",
    bytes(8),
    framed(b"[]"),
    framed(b"[" * 4000),
    hello(worker=0),
    hello(worker=2),
    hello(worker=-1),
    hello(worker="1"),
    hello(worker=True),
    hello(work=None),
    hello(more=1),
)


def is_closed(link: socket.socket) -> bool:
    """Whether the other end closes it without an answer, what was said read or not."""
    try:
        return not link.recv(1)
    except ConnectionResetError:
        return True


def knocked(place: Place) -> socket.socket:
    """A connection to worker 0, as soon as it listens."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        with suppress(ConnectionRefusedError):
            return socket.create_connection(place.reached_at(0), timeout=PATIENCE_S)
    raise AssertionError("nobody listens")


def test_who_knocks_and_is_no_worker_is_left_alone() -> None:
    first, second = places(2)

    def strangers() -> None:
        for said in STRANGE:
            with knocked(first) as knock:
                knock.sendall(said)
                assert is_closed(knock)

    def late() -> Any:
        strangers()
        return met(second, len)()

    assert at_once(met(first, len), late) == [2, 2]


def test_a_second_machine_of_an_index_is_told_and_keeps_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    second_is_there, twin_is_told = threading.Event(), threading.Event()

    def hear(text: str, **_: Any) -> None:
        if text == "waiting for worker 2":
            second_is_there.set()

    monkeypatch.setattr(meeting, "headway", SimpleNamespace(say=hear))
    first, second, third = places(3)
    twin = replace(second, addresses=(first.addresses[0], *addresses(1), third.addresses[2]))

    def comes_twice() -> Any:
        assert second_is_there.wait(PATIENCE_S)
        try:
            return met(twin, len)()
        finally:
            twin_is_told.set()

    def comes_last() -> Any:
        assert twin_is_told.wait(PATIENCE_S)
        return met(third, len)()

    *others, told = at_once(met(first, len), met(second, len), comes_last, comes_twice)
    assert others == [3, 3, 3]
    assert "another machine is worker 1 already" in told.what


def test_a_worker_that_went_away_is_named() -> None:
    gone = threading.Event()

    def stays(team: Team) -> None:
        assert gone.wait(PATIENCE_S)
        team.require_all()

    def goes() -> None:
        met(second, len)()
        gone.set()

    first, second = places(2)
    found = at_once(met(first, stays), goes)
    assert "worker 1 went away" in found[0].what
    first, second = places(2)
    found = at_once(met(first, len), met(second, lambda team: team.broadcast(b"")))
    assert "worker 0 went away" in found[1].what


@pytest.mark.parametrize("index", [0, 1])
def test_a_port_that_is_taken_is_told(index: int) -> None:
    place = places(2)[index]
    with socket.create_server(("", place.reached_at(index)[1])), pytest.raises(PeerError, match="can't listen on port"):
        met(place, len)()


def test_a_worker_that_is_not_at_its_address_is_told() -> None:
    first, second = places(2)
    wrong = replace(first, addresses=(first.addresses[0], *addresses(1)))
    found = at_once(met(wrong, len), met(second, len))
    assert ["worker 1 can't be reached at" in failure.what for failure in found] == [True, True]


def test_an_end_is_seen_and_silence_is_taken_for_one() -> None:
    first, second = socket.socketpair()
    with first, second:
        assert links.ended({1: first}) == []
        second.sendall(b"unread")
        assert links.ended({1: first}) == []
        second.close()
        assert links.ended({1: first}, PATIENCE_S) == [1]
    with socket.socket() as link:
        links.keep(link)
        assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert link.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 40_000


# The engine


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(trained(), tmp_path_factory.mktemp("project"))


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("it began")


def test_a_build_that_does_not_know_its_machines_begins_nothing(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(tf_config.VARIABLE, raising=False)
    monkeypatch.setattr(workers, "start", never)
    with pytest.raises(ConfigError, match="which is not set"):
        engine.execute({KEY: task_over(project)}, [KEY], Store(tmp_path), jobs=1, on_event=never)
    monkeypatch.setenv(tf_config.VARIABLE, config(TWO, 1))
    with pytest.raises(ConfigError, match="--scheduler do not go together"):
        engine.execute({KEY: task_over(project)}, [KEY], Store(tmp_path), jobs=1, on_event=never, runner=never)


def test_machines_take_no_turns_with_each_other(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_over(project)
    for index in (0, 1):
        monkeypatch.setenv(tf_config.VARIABLE, config(TWO, index))
        assert turn(task) == f"{KEY}.{index}"
    untrained = Prune(finetune=Finetune(epochs=0, strategy="multi_worker"))
    assert turn(replace(task, parameters=task.parameters.model_copy(update={"technique": untrained}))) == KEY


def test_machines_come_to_their_common_tasks_in_one_order(project: Path, tmp_path: Path) -> None:
    first = task_over(project)
    second, other = replace(first, key="b" * 64), replace(first, key="c" * 64, stage="convert")
    missing = {task.key: task for task in (other, first, second)}
    work = engine.Work(store=Store(tmp_path), goals=(), found={}, missing=missing, limits=Limits(), tell=lambda _: None)
    run = engine._Run(work, jobs=3)
    assert [run._is_next(task) for task in missing.values()] == [True, True, False]
    del run._waiting[first.key]
    run._workers.append(workers.Worker("tensorflow", None, None, None, alone=True, task=first))  # type: ignore[arg-type]
    assert not run._is_next(second)
    run._workers[0].task = None
    assert run._is_next(second)


def test_no_other_process_hears_of_the_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tf_config.VARIABLE, config(TWO, 1))
    for alone in (False, True):
        worker = workers.start("light", tmp_path, alone=alone)
        try:
            assert isinstance(worker.connection.recv(), Ready)  # Before that, it may still be about to begin.
            environment = Path(f"/proc/{worker.process.pid}/environ").read_bytes()
        finally:
            worker.close()
        assert (tf_config.VARIABLE.encode() in environment) == alone


@pytest.mark.parametrize("alone", [True, False])
def test_a_process_that_waited_in_vain_for_another_machine_is_told(
    project: Path, tmp_path: Path, *, alone: bool
) -> None:
    worker = workers.start("light", tmp_path, alone=alone)
    try:
        worker.task = task_over(project)
        os.kill(worker.process.pid, signal.SIGALRM)
        answers = (worker.take_answer()[1] for _ in ("ready", "ended"))  # It may be ready before.
        failure = next(answer.failure for answer in answers if isinstance(answer, Answer))
    finally:
        worker.close()
    assert isinstance(failure, PeerError) == alone
    assert failure is not None
    assert exit_code(failure) == (8 if alone else 3)


def test_waiting_for_machines_is_not_the_stages_time(project: Path, tmp_path: Path) -> None:
    none = Limits(stage_s=0.0)
    worker = workers.start("light", tmp_path, alone=True)
    try:
        assert isinstance(worker.connection.recv(), Ready)
        ours, told = Pipe()
        its_own, worker.connection = worker.connection, ours
        worker.task = task_over(project)
        for said in (Ready(), Headway(text="waiting for worker 1", waits=True)):
            told.send(said)
            worker.take_answer()
        worker.hold_to(none)
        assert worker.is_alive
        before = worker.started
        told.send(Headway(text="all workers are there"))
        worker.take_answer()
        assert worker.started > before, "the time that it waited counts"
        worker.hold_to(none)
        worker.process.wait(PATIENCE_S)
        its_own.close()
        told.close()
    finally:
        worker.close()


# Training


def started(what: str, *given: Any, **variables: str) -> subprocess.Popen[str]:
    """A process that does something of `joint`."""
    return subprocess.Popen(
        [sys.executable, joint.__file__, what, json.dumps(given)],
        env=os.environ | {"TF_ENABLE_ONEDNN_OPTS": "0", "TF_USE_LEGACY_KERAS": "1"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def stores(project: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Store]:
    """Two workers' own stores, after both have built."""
    roots, where = [tmp_path_factory.mktemp(f"worker-{index}") for index in (0, 1)], addresses(2)
    processes = [
        started("build", str(root), str(project), TF_CONFIG=config(where, index)) for index, root in enumerate(roots)
    ]
    for process, (_, stderr) in [(process, process.communicate()) for process in processes]:
        assert process.returncode == 0, stderr
    return [Store(root) for root in roots]


def test_two_workers_learn_as_one_process_does(project: Path, stores: list[Store], tmp_path: Path) -> None:
    compressed(project, Prune(sparsity=0.7, finetune=ALONE), tmp_path / "alone")
    wanted, found = (
        json.loads((folder / steps.STEP).read_bytes()) for folder in (tmp_path / "alone", stores[0].place(KEY))
    )
    assert "trained on 2 workers together" in found["notes"]
    for name in ("loss", "validation_loss"):
        curves = [[epoch[name] for epoch in record["history"]] for record in (wanted, found)]
        assert curves[1] == pytest.approx(curves[0], rel=ROUNDING)
    assert found["history"] != wanted["history"], "one process trained it"


def test_both_workers_end_in_the_same_bytes(stores: list[Store]) -> None:
    first, second = (files(store.place(KEY)) for store in stores)
    assert first == second


def test_workers_that_are_killed_go_on_from_the_checkpoint_of_worker_0(
    project: Path, stores: list[Store], tmp_path: Path
) -> None:
    roots = [Store(tmp_path / "0"), Store(tmp_path / "1")]
    killed = [(0, AT_ONCE), (1, 0), (2, 2), (0, 0)]
    stdout, stderr = started("rounds", str(project), [str(store.root) for store in roots], killed).communicate()
    ended = [json.loads(line) for line in stdout.splitlines()]
    left = EPOCHS - 1 - 2
    gone = '"PeerError: finetune: strategy: multi_worker: worker 0 went away"'
    steps_left = left * (int(SAMPLES * (1 - ALONE.validation)) // ALONE.batch)
    alarmed = [[-signal.SIGALRM, ""], [-signal.SIGKILL, ""]]
    wanted = [*alarmed, [-signal.SIGKILL, ""], [0, gone], *[[-signal.SIGKILL, ""]] * 2, *[[0, str(steps_left)]] * 2]
    assert ended == wanted, stderr
    for store in roots:
        assert files(store.place(KEY)) == files(stores[0].place(KEY))
        assert not progress.place(store, KEY).exists(), "the entry is made"
