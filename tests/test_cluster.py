"""A build on a real Dask cluster: the same bytes as here, whatever happens to its workers."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cluster_stages
import pytest
import servers
import stand_ins
import yaml
from conftest import Build, Ended, edgebuild

pytest.importorskip("distributed", reason="the extra `distributed` is not installed")

from edgebuild.calibration.errors import DataError
from edgebuild.pipeline import cli, demo, stages
from edgebuild.pipeline.errors import ConfigError, CrashError, InternalError, SchedulerError, exit_code
from edgebuild.pipeline.execution import cluster, cluster_worker
from edgebuild.pipeline.execution.cluster_worker import Job
from edgebuild.pipeline.execution.engine import Event, Outcome, execute
from edgebuild.pipeline.execution.run_task import Answer
from edgebuild.pipeline.execution.workers import Limits
from edgebuild.pipeline.storage.digests import digest_tree
from edgebuild.pipeline.storage.location import CACHE_VARIABLE
from edgebuild.pipeline.storage.shared_store import SharedStore, _filesystem
from edgebuild.pipeline.storage.store import Store
from edgebuild.pipeline.task import Source, Task, key
from edgebuild.targets.errors import ToolMissingError

ARTIFACTS = [f"{target}/model.tflite" for target in ("cpu", "gpu", "edgetpu", "mcu")]


@pytest.fixture(autouse=True)
def stand_in_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, stage in cluster_stages.STAGES.items():
        monkeypatch.setitem(stages.STAGES, name, stage)


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    with servers.s3() as environment:
        yield environment


@pytest.fixture(scope="module")
def ticket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While this file is there, the next conversion takes its Dask worker down."""
    return tmp_path_factory.mktemp("ticket") / "ticket"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, s3: dict[str, str], ticket: Path) -> Iterator[str]:
    """Two worker processes, with a cache folder and a home of their own."""
    folder = tmp_path_factory.mktemp("cluster")
    variables = s3 | {"XDG_CACHE_HOME": str(folder / "mirror"), cluster_stages.LOSE_WORKER: str(ticket)}
    with servers.cluster(folder, variables) as found:
        yield found


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def shared(tmp_path: Path, s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> SharedStore:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    return SharedStore(root=tmp_path / "mirror", url=f"s3://edgebuild/{tmp_path.name}")


def task(stage: str, text: str = "", *, data: Path | None = None, **inputs: Task) -> Task:
    made = Task(
        stage=stage,
        parameters=stand_ins.Text(text=text),
        inputs={name: needed.key for name, needed in inputs.items()},
        sources={"data": Source(path=data, digest=digest_tree(data))} if data else {},
        title=f"{stage} {text}".strip(),
    )
    return replace(made, key=key(stages.STAGES[stage], made))


def run(address: str, store: Store, *tasks: Task, events: list[Event] | None = None, **options: Any) -> Outcome:
    heard = events if events is not None else []
    with cluster.runner(address) as runner:
        goals = [task.key for task in tasks]
        return execute({t.key: t for t in tasks}, goals, store, jobs=1, on_event=heard.append, runner=runner, **options)


def text(outcome: Outcome, made: Task) -> str:
    return (outcome.results[made.key] / "text").read_text()


def processes(address: str) -> set[int]:
    """The Dask workers' own."""
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        return set(client.run(os.getpid).values())


# Builds


def build(folder: Path, out: Path, address: str, cache: object, **variables: str) -> Ended:
    return edgebuild("-o", out, "--scheduler", address, cwd=folder, cache=cache, **variables)  # type: ignore[arg-type]


def same_bytes(left: Path, right: Path) -> bool:
    return all((left / name).read_bytes() == (right / name).read_bytes() for name in ARTIFACTS)


def test_a_build_on_a_cluster_gives_the_bytes_of_one_here(digits: Build, address: str, tmp_path: Path) -> None:
    ended = build(digits.folder, tmp_path / "out", address, tmp_path / "cache")
    assert ended.code == 0, ended.stderr
    assert same_bytes(tmp_path / "out", digits.out)
    told = {match[1] for match in re.finditer(r"^  \+ (.*) [\d.]+ s$", ended.stderr, re.MULTILINE)}
    assert {"ingest digits.h5", "calibrate", "convert float16", "package mcu"} <= told
    again = build(digits.folder, tmp_path / "out", address, tmp_path / "cache")
    assert again.code == 0
    assert " + " not in again.stderr, "all was in the store"


def test_a_worker_killed_in_the_middle_changes_no_byte(
    digits: Build, address: str, ticket: Path, tmp_path: Path
) -> None:
    before = processes(address)
    ticket.touch()
    ended = build(digits.folder, tmp_path / "out", address, tmp_path / "cache")
    assert ended.code == 0, ended.stderr
    assert not ticket.exists(), "a conversion took its worker down"
    assert before - processes(address), "a worker was lost"
    assert same_bytes(tmp_path / "out", digits.out)


def test_machines_that_share_a_bucket_alone_build_the_same(
    digits: Build, address: str, s3: dict[str, str], tmp_path: Path
) -> None:
    """Data comes from a function of the user's, whose module and the one it imports travel too."""
    project = tmp_path / "project"
    demo.lay_out(project)
    (project / "mine.py").write_text("import more\ndef data():\n    return more.load()\n")
    (project / "more.py").write_text(
        "import numpy as np\ndef load():\n    return {'image': np.load("
        + repr(str(project / "calibration.npz"))
        + ")['image']}\n"
    )
    config = yaml.safe_load((project / "edgebuild.yaml").read_text())
    config["data"]["calibration"] = "mine:data"
    (project / "edgebuild.yaml").write_text(yaml.safe_dump(config))
    variables = s3 | {"XDG_CACHE_HOME": str(tmp_path / "client")}
    ended = build(project, tmp_path / "out", address, "s3://edgebuild/whole", **variables)
    assert ended.code == 0, ended.stderr
    assert same_bytes(tmp_path / "out", digits.out)


# What a cluster does with single tasks


def test_a_task_gets_what_its_inputs_made(address: str, store: Store) -> None:
    first, second = task("write", "a"), task("write", "b")
    third = task("write", "c", x=first, y=second)
    events: list[Event] = []
    assert text(run(address, store, first, second, third, events=events), third) == "abc"
    assert {event.state for event in events} == {"started", "done"}
    ends = [event.task.key for event in events if event.state == "done"]
    assert sorted(ends) == sorted([first.key, second.key, third.key])
    assert ends[-1] == third.key


def test_what_is_stored_is_not_run_again(address: str, store: Store) -> None:
    made = task("process_id")
    first = text(run(address, store, made), made)
    events: list[Event] = []
    assert text(run(address, store, made, events=events), made) == first
    assert [event.state for event in events] == ["cached"]


def test_how_far_a_task_has_come_is_heard_while_it_runs(address: str, store: Store, tmp_path: Path) -> None:
    made = task("say_until_heard", str(tmp_path / "heard"))

    def hear(event: Event) -> None:
        if event.state == "headway" and event.headway == "half way":
            (tmp_path / "heard").touch()

    with cluster.runner(address) as runner:
        outcome = execute({made.key: made}, [made.key], store, jobs=1, on_event=hear, runner=runner)
    assert text(outcome, made) == "heard"


def test_processes_stay_warm_between_builds(address: str, store: Store) -> None:
    made = [task("process_id", str(index)) for index in range(6)]
    found = {text(run(address, store, *made[:3]), one) for one in made[:3]}
    found |= {text(run(address, store, *made[3:]), one) for one in made[3:]}
    assert len(found) <= 2, "one for each Dask worker"


@pytest.mark.parametrize(("stage", "name"), [("segfault", "SIGSEGV"), ("killed", "SIGKILL")])
def test_a_crash_takes_down_its_task_by_name_and_no_dask_worker(
    address: str, store: Store, stage: str, name: str
) -> None:
    before = processes(address)
    crashing = task(stage)
    needing = task("write", "b", x=crashing)
    other = task("write", "a")
    events: list[Event] = []
    outcome = run(address, store, crashing, needing, other, events=events)
    failure = outcome.failures[crashing.key]
    assert isinstance(failure, CrashError)
    assert name in failure.what
    assert stage in failure.what
    assert outcome.failures[needing.key] is failure
    assert [(e.task.stage, e.state) for e in events if e.state in ("failed", "skipped")] == [
        (stage, "failed"),
        ("write", "skipped"),
    ]
    assert text(outcome, other) == "a"
    assert processes(address) == before


def test_a_failure_comes_back_as_it_was_raised_and_is_never_kept(address: str, store: Store) -> None:
    refusing = task("refuse")
    for _ in range(2):
        events: list[Event] = []
        failure = run(address, store, refusing, events=events).failures[refusing.key]
        assert isinstance(failure, DataError)
        assert (failure.what, failure.cause, failure.action) == ("refused", "because", "do otherwise")
        assert "DataError" in events[-1].trace
    assert store.find(refusing.key) is None


def test_a_fault_of_ours_is_told_as_one(address: str, store: Store) -> None:
    broken = task("broken")
    failure = run(address, store, broken).failures[broken.key]
    assert isinstance(failure, InternalError)
    assert "ZeroDivisionError: a fault of ours" in failure.cause


def test_a_task_that_takes_too_long_is_ended(address: str, store: Store) -> None:
    slow = task("slow", "60")
    failure = run(address, store, slow, limits=Limits(stage_s=0.5)).failures[slow.key]
    assert isinstance(failure, CrashError)
    assert "0.5 s" in str(failure)


def test_a_task_whose_worker_is_lost_runs_again_and_what_was_finished_does_not(
    address: str, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "ticket").touch()
    log = tmp_path / "log"
    finished = task("write_and_log", f"{log}|a")
    losing = task("lose_worker_once", str(tmp_path / "ticket"), x=finished)
    outcome = run(address, store, finished, losing)
    assert text(outcome, losing) == "made"
    assert log.read_text() == "ran\n"


def test_a_task_that_takes_every_worker_down_is_given_up(address: str, store: Store) -> None:
    deadly = task("lose_worker")
    failure = run(address, store, deadly).failures[deadly.key]
    assert isinstance(failure, CrashError)
    assert "every Dask worker" in failure.what


# Machines that share nothing but a bucket


def test_sources_travel_and_are_read_where_they_arrive(address: str, shared: SharedStore, tmp_path: Path) -> None:
    data = tmp_path / "data.txt"
    data.write_text("samples")
    reading = task("where", data=data)
    place, content = text(run(address, shared, reading), reading).splitlines()
    assert content == "samples"
    assert not place.startswith(str(tmp_path)), "not where it lies on this machine"
    assert Path(place).name == "data.txt"


def test_a_failure_names_the_users_file_and_not_its_copy(address: str, shared: SharedStore, tmp_path: Path) -> None:
    data = tmp_path / "data.txt"
    data.write_bytes(b"\xff")
    failure = run(address, shared, made := task("where", data=data)).failures[made.key]
    assert "UnicodeDecodeError" in failure.cause
    answer = Answer(failure=DataError(f"{tmp_path}/copy/data.txt is no text"), seconds=0)
    copied = replace(made, sources={"data": replace(made.sources["data"], path=tmp_path / "copy" / "data.txt")})
    told = cluster_worker._in_the_users_words(answer, made, copied).failure
    assert told is not None
    assert told.what == f"{data} is no text"


def test_a_source_that_changed_since_the_plan_is_not_sent(address: str, shared: SharedStore, tmp_path: Path) -> None:
    data = tmp_path / "data.txt"
    data.write_text("before")
    made = task("where", data=data)
    data.write_text("after")
    with pytest.raises(DataError, match="changed"):
        run(address, shared, made)


def test_a_result_comes_back_from_workers_that_share_no_folder(address: str, shared: SharedStore) -> None:
    first = task("write", "a")
    second = task("write", "b", x=first)
    outcome = run(address, shared, first, second)
    assert text(outcome, second) == "ab"
    assert outcome.results[second.key].is_relative_to(shared.root)


def test_a_result_that_was_damaged_in_the_bucket_is_named_and_made_again(
    address: str, shared: SharedStore, tmp_path: Path
) -> None:
    first = task("write", "a")
    second = task("write", "b", x=first)
    run(address, shared, first, second)
    blob = shared._blob(hashlib.sha256(b"ab").hexdigest())
    _filesystem(shared.url).pipe_file(blob, b"a")
    events: list[Event] = []
    outcome = run(address, replace(shared, root=tmp_path / "another"), first, second, events=events)
    assert [(e.task.key, e.state) for e in events if e.state in ("cached", "damaged", "done")] == [
        (first.key, "cached"),
        (second.key, "damaged"),
        (second.key, "done"),
    ]
    assert text(outcome, second) == "ab"
    assert _filesystem(shared.url).cat_file(blob) == b"ab"


# What can't work


def test_a_worker_that_does_not_see_the_files_says_so(address: str, store: Store, tmp_path: Path) -> None:
    data = tmp_path / "data.txt"
    data.write_text("samples")
    made = task("where", data=data)
    data.unlink()
    failure = run(address, store, made).failures[made.key]
    assert isinstance(failure, ConfigError)
    assert str(data) in failure.what
    assert "s3://" in failure.action


def test_a_worker_that_does_not_see_the_store_says_so(tmp_path: Path) -> None:
    elsewhere = Store(tmp_path, scratch=tmp_path / "not" / "here")
    job = Job(task=task("write"), store=elsewhere, limits=Limits(), topic="", tools={})
    with pytest.raises(ConfigError, match="does not see"):
        cluster_worker._require_in_sight(job, "tcp://there:1")


def test_a_worker_with_other_versions_makes_nothing(address: str, store: Store) -> None:
    made = replace(task("write", "a"), key="0" * 64)
    failure = run(address, store, made).failures[made.key]
    assert isinstance(failure, ToolMissingError)
    assert "tcp://127.0.0.1" in failure.what
    assert store.find(made.key) is None


def test_another_version_is_named_with_both_numbers() -> None:
    made = replace(task("write"), key="0" * 64)
    job = Job(task=made, store=Store(Path()), limits=Limits(), topic="", tools={"click": "1.0"})
    with pytest.raises(ToolMissingError) as caught:
        cluster_worker._require_same_tools(job, "tcp://there:1")
    assert re.search(r"click 8\S* there, 1.0 here", caught.value.cause)


def test_a_scheduler_that_is_not_there_ends_with_8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    demo.lay_out(tmp_path)
    monkeypatch.setattr(cluster, "CONNECT_S", 1.0)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    config, out = str(tmp_path / "edgebuild.yaml"), tmp_path / "build"
    address = f"tcp://127.0.0.1:{servers.free_port()}"
    assert cli.run(["-c", config, "-o", str(out), "--scheduler", address]) == 8
    told = capsys.readouterr().err
    assert f"no Dask scheduler answers at {address}" in told
    assert "  cause: " in told
    assert "  do: " in told
    assert "Traceback" not in told
    assert not out.exists()


def test_a_listener_that_is_no_scheduler_is_told_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(SchedulerError, match="no Dask scheduler") as caught, cluster.runner(address):
            pytest.fail("nothing answered")
    assert exit_code(caught.value) == 8


def test_what_is_no_address_is_a_fault_of_the_command_line() -> None:
    with pytest.raises(ConfigError, match="no address"), cluster.runner("ftp://nowhere:1"):
        pytest.fail("there is no such protocol")


def test_jobs_and_scheduler_do_not_go_together(tmp_path: Path, run: Callable[..., Ended]) -> None:
    demo.lay_out(tmp_path)
    ended = run("-j", "2", "--scheduler", "tcp://127.0.0.1:1", cwd=tmp_path)
    assert ended.code == 2
    assert "--jobs" in ended.stderr


def test_a_scheduler_without_workers_is_not_waited_for_forever(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "NO_WORKER_S", 1.0)
    with servers.cluster(tmp_path, workers=0) as address, pytest.raises(SchedulerError, match="no workers"):
        run(address, store, task("write"))


def test_a_scheduler_that_goes_away_ends_the_build(tmp_path: Path, store: Store) -> None:
    def stop(event: Event) -> None:
        if event.state == "started":
            ended.__exit__(None, None, None)

    ended = servers.cluster(tmp_path, workers=1)
    slow = task("slow", "60")
    with cluster.runner(ended.__enter__()) as runner, pytest.raises(SchedulerError, match="went away"):
        execute({slow.key: slow}, [slow.key], store, jobs=1, on_event=stop, runner=runner)


def test_dask_logs_nothing_that_we_say_ourselves(tmp_path: Path) -> None:
    """Its client has a level of its own, and tells of a lost scheduler with a traceback."""
    code = (
        "import logging\n"
        "from edgebuild.pipeline.errors import ConfigError\n"
        "from edgebuild.pipeline.execution import cluster\n"
        "try:\n    cluster._connect('http://nowhere')\n"
        "except ConfigError:\n    pass\n"
        "print(*(logging.getLogger(name).level for name in ('distributed', 'distributed.client')))\n"
    )
    command = [sys.executable, "-c", code]  # Levels are set once a process.
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout == f"{logging.CRITICAL} {logging.CRITICAL}\n"


def test_without_dask_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ToolMissingError) as caught, cluster.runner("tcp://127.0.0.1:1"):
        pytest.fail("there is no Dask")
    assert "pip install" in caught.value.action
    assert exit_code(caught.value) == 9


def test_no_scheduler_needs_no_dask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with cluster.runner(None, jobs=2) as runner:
        assert runner is None
