"""The engine: what can run runs, side by side, once; a failure costs what needs it and nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import projects
import pytest
import stand_ins

from edgebuild.calibration.errors import DataError
from edgebuild.export.errors import ModelError
from edgebuild.pipeline import stages
from edgebuild.pipeline.errors import CrashError, InternalError, StoreError, exit_code
from edgebuild.pipeline.execution import workers
from edgebuild.pipeline.execution.engine import Event, Outcome, execute, survey
from edgebuild.pipeline.execution.run_task import Answer, Ready, run_task
from edgebuild.pipeline.execution.workers import Limits
from edgebuild.pipeline.storage import progress
from edgebuild.pipeline.storage.digests import digest_tree
from edgebuild.pipeline.storage.store import Store
from edgebuild.pipeline.task import Source, Stage, Task, key

NAMES = (
    "write",
    "process_id",
    "segfault",
    "killed",
    "refuse",
    "broken",
    "full_disk",
    "nothing",
    "malformed",
    "cut_flatbuffer",
    "touch_source",
    "say",
    "slow",
)


@pytest.fixture(autouse=True)
def misbehaving_stages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Register the stand-ins here, and in worker processes through a start-up file."""
    for name in NAMES:
        stage = Stage(name=name, version=1, function=getattr(stand_ins, name), worker="light", tools=())
        monkeypatch.setitem(stages.STAGES, name, stage)
    start_up = tmp_path / "start_up"
    start_up.mkdir()
    (start_up / "sitecustomize.py").write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "if any('edgebuild.pipeline.execution.worker' in argument for argument in sys.orig_argv):\n"
        "    import stand_ins\n"
        "    from edgebuild.pipeline import stages\n"
        "    from edgebuild.pipeline.task import Stage\n"
        f"    for name in {NAMES!r}:\n"
        "        function = getattr(stand_ins, name)\n"
        "        stages.STAGES[name] = Stage(name=name, version=1, function=function, worker='light', tools=())\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(start_up))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def task(stage: str, text: str = "", *, sources: Mapping[str, Path] | None = None, **inputs: Task) -> Task:
    made = Task(
        stage=stage,
        parameters=stand_ins.Text(text=text),
        inputs={name: needed.key for name, needed in inputs.items()},
        sources={name: Source(path=path, digest=digest_tree(path)) for name, path in (sources or {}).items()},
        title=f"{stage} {text}".strip(),
    )
    return replace(made, key=key(stages.STAGES[stage], made))


def run(store: Store, *tasks: Task, jobs: int = 2, events: list[Event] | None = None) -> Outcome:
    heard = events if events is not None else []
    return execute({t.key: t for t in tasks}, [t.key for t in tasks], store, jobs=jobs, on_event=heard.append)


def text(outcome: Outcome, made: Task) -> str:
    return (outcome.results[made.key] / "text").read_text()


def test_a_task_gets_what_its_inputs_made(store: Store) -> None:
    first, second = task("write", "a"), task("write", "b")
    third = task("write", "c", x=first, y=second)
    assert text(run(store, first, second, third), third) == "abc"


def test_what_is_stored_is_not_run_again(store: Store) -> None:
    made = task("process_id")
    first = text(run(store, made), made)
    events: list[Event] = []
    assert text(run(store, made, events=events), made) == first
    assert [event.state for event in events] == ["cached"]


def test_only_what_a_goal_needs_is_looked_up_or_run(store: Store) -> None:
    first = task("write", "a")
    second = task("write", "b", x=first)
    unrelated = task("broken")
    tasks = {t.key: t for t in (first, second, unrelated)}
    execute(tasks, [second.key], store, jobs=1, on_event=lambda _: None)
    found, missing = survey(tasks, [second.key], store)
    assert list(found) == [second.key]
    assert not missing


def test_one_worker_serves_many_tasks(store: Store) -> None:
    chain = [task("process_id", "0")]
    for index in range(1, 4):
        chain.append(task("process_id", str(index), x=chain[-1]))
    outcome = run(store, *chain)
    assert len({text(outcome, made) for made in chain}) == 1


def test_tasks_run_side_by_side_up_to_jobs(store: Store) -> None:
    def overlapping(jobs: int, pause: str) -> int:
        tasks = [task("slow", f"{pause}{index}") for index in range(4)]
        outcome = run(store, *tasks, jobs=jobs)
        spans = [tuple(map(float, text(outcome, made).split())) for made in tasks]
        return max(sum(a <= begin < b for a, b in spans) for begin, _ in spans)

    assert overlapping(1, "0.20") == 1
    assert overlapping(2, "0.21") == 2


@pytest.mark.parametrize(("stage", "name"), [("segfault", "SIGSEGV"), ("killed", "SIGKILL")])
def test_a_crash_takes_down_its_task_by_name_and_nothing_else(store: Store, stage: str, name: str) -> None:
    crashing = task(stage)
    needing = task("write", "b", x=crashing)
    others = [task("write", str(index)) for index in range(3)]
    outcome = run(store, crashing, needing, *others)
    failure = outcome.failures[crashing.key]
    assert isinstance(failure, CrashError)
    assert name in failure.what
    assert stage in failure.what
    assert failure.action
    assert exit_code(failure) == 3
    assert outcome.failures[needing.key] is failure
    assert all(text(outcome, made) == made.parameters.text for made in others)


@pytest.mark.parametrize(("stage", "words"), [("calibrate", "LSTM"), ("convert", "LSTM"), ("verify", "its kernel")])
def test_recurrent_layers_are_blamed_only_where_something_is_converted(stage: str, words: str) -> None:
    cause, action = workers._likely_cause(-signal.SIGSEGV, stage)
    assert words in cause
    assert ("unroll" in action) == (words == "LSTM")


def test_a_failure_is_told_as_it_was_raised_and_never_stored(store: Store) -> None:
    refusing = task("refuse")
    for _ in range(2):
        failure = run(store, refusing).failures[refusing.key]
        assert isinstance(failure, DataError)
        assert (failure.what, failure.cause, failure.action) == ("refused", "because", "do otherwise")
    assert store.find(refusing.key) is None


def test_a_stage_that_fails_leaves_the_progress_that_it_made_and_no_empty_folder(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(stages.STAGES, "refuse", replace(stages.STAGES["refuse"], resumes=True))
    refusing = task("refuse")
    folder = progress.place(store, refusing.key)
    with pytest.raises(DataError):
        run_task(refusing, store)
    assert not folder.exists()
    folder.mkdir()
    (folder / "checkpoint.npz").write_bytes(b"of an earlier build")
    with pytest.raises(DataError):
        run_task(refusing, store)
    assert sorted(file.name for file in folder.iterdir()) == ["checkpoint.npz", "what"]


@pytest.mark.parametrize("left", [True, False])
def test_who_is_ended_in_training_is_told_that_it_goes_on_where_it_does(
    store: Store, monkeypatch: pytest.MonkeyPatch, *, left: bool
) -> None:
    monkeypatch.setitem(stages.STAGES, "killed", replace(stages.STAGES["killed"], resumes=True))
    crashing = task("killed")
    folder = progress.place(store, crashing.key)
    progress.describe(store, crashing.key, "prune 50 %")
    if left:
        (folder / "checkpoint.npz").write_bytes(b"an epoch")
    failure = run(store, crashing).failures[crashing.key]
    assert ("kept as of its last checkpoint" in failure.action) == left
    assert folder.exists() == left


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("E0000 00:00:1 cuda_dnn.cc:8310] Unable to register cuDNN factory\nout of memory\n\n", "out of memory"),
        ("the end\nW computation_placer.cc:177] computation placer already registered. Please check\n", "the end"),
        ("E cuda_executor.cc:1228] INTERNAL: CUDA Runtime error: failed call to cuInit: UNKNOWN ERROR (303)\n", ""),
        ("I cpu_feature_guard.cc:210] This TensorFlow binary is optimized\nTo enable the following instructions", ""),
        ("I oneDNN custom operations are on\n  warnings.warn(\n", ""),
    ],
)
def test_the_last_words_are_not_what_tensorflow_says_at_its_start(log: str, words: str) -> None:
    assert workers.last_words(log) == words


def test_a_fault_of_ours_is_told_as_one(store: Store) -> None:
    broken = task("broken")
    failure = run(store, broken).failures[broken.key]
    assert isinstance(failure, InternalError)
    assert "ZeroDivisionError: a fault of ours" in failure.cause
    assert exit_code(failure) == 1


def test_a_full_disk_is_the_users_to_mend_whatever_raises_it(store: Store) -> None:
    full = task("full_disk")
    failure = run(store, full).failures[full.key]
    assert isinstance(failure, StoreError)
    assert str(store.root) in failure.action
    assert exit_code(failure) == 2


def test_what_a_worker_imports_is_not_the_stages_time(store: Store, tmp_path: Path) -> None:
    start_up, imported = tmp_path / "start_up" / "sitecustomize.py", tmp_path / "imported"
    waits = f"import os, time\nwhile not os.path.exists({str(imported)!r}): time.sleep(0.01)\n"
    start_up.write_text(waits + start_up.read_text())
    store.root.mkdir()
    worker = workers.start("light", store.root)
    worker.give(task("write", "a"), store)
    time.sleep(0.05)
    worker.hold_to(Limits(stage_s=0.01))
    imported.touch()
    try:
        assert isinstance(worker.take_answer()[1], Ready)
        answer = worker.take_answer()[1]
        assert isinstance(answer, Answer)
        assert answer.failure is None
    finally:
        worker.close()


@pytest.mark.parametrize(("stage", "who"), [("compile", "edgetpu_compiler"), ("write", "it")])
def test_who_did_not_end_is_named(store: Store, stage: str, who: str) -> None:
    store.root.mkdir()
    worker = workers.start("light", store.root)
    try:
        worker.task, worker._ready, worker.started = task(stage), True, time.monotonic() - 9
        worker.hold_to(Limits(stage_s=5))
        answer = worker.take_answer()[1]
    finally:
        worker.close()
    assert isinstance(answer, Answer)
    assert answer.failure is not None
    assert answer.failure.cause.startswith(f"{who} did not end within 5 s")


def test_a_task_that_tells_how_far_it_has_come_is_heard_and_goes_on(store: Store) -> None:
    events: list[Event] = []
    made = task("say")
    assert text(run(store, made, events=events), made) == "whole"
    assert [(event.state, event.headway) for event in events] == [
        ("started", ""),
        ("headway", "half way"),
        ("done", ""),
    ]


@pytest.mark.parametrize("stage", ["nothing", "malformed"])
def test_a_stage_that_ends_well_without_a_sound_result_fails(store: Store, stage: str) -> None:
    made = task(stage)
    assert isinstance(run(store, made).failures[made.key], StoreError)
    assert store.find(made.key) is None


def test_a_cut_flatbuffer_never_enters_the_store(store: Store) -> None:
    made = task("cut_flatbuffer", str(projects.shared("kws/ref_int8.tflite")))
    assert isinstance(run(store, made).failures[made.key], ModelError)
    assert store.find(made.key) is None


def test_a_source_that_changes_while_it_is_read_spoils_nothing(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "data"
    source.write_text("original")
    made = task("touch_source", sources={"data": source})
    failure = run(store, made).failures[made.key]
    assert isinstance(failure, DataError)
    assert str(source) in failure.what
    assert store.find(made.key) is None


def test_nothing_half_written_is_left(store: Store) -> None:
    run(store, task("refuse"), task("segfault"), task("write", "a"))  # A process that crashes can't tidy up itself.
    assert not list((store.root / "staging").iterdir())
    assert len(list(store.root.rglob("entry.json"))) == 1


def test_workers_end_with_the_build(store: Store) -> None:
    made = task("process_id")
    pid = int(text(run(store, made), made))
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def test_an_interrupt_ends_the_workers_and_keeps_the_store(tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import test_engine as t, pathlib, stand_ins\n"
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # A background job ignores it.
        "from edgebuild.pipeline.cli import run\n"
        "from edgebuild.pipeline import stages\n"
        "from edgebuild.pipeline.commands import building\n"
        "for n in t.NAMES:\n"
        "    stages.STAGES[n] = t.Stage(name=n, version=1, function=getattr(stand_ins, n), worker='light', tools=())\n"
        f"store = t.Store(pathlib.Path({str(tmp_path / 'store')!r}))\n"
        "def build(**_):\n"
        "    first = t.task('process_id'); t.run(store, first, t.task('slow', '60', x=first), events=Events())\n"
        "class Events(list):\n"
        "    def append(self, event): print(event.state, event.task.stage, flush=True)\n"
        "building.build = build\n"
        "sys.exit(run(['build']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("started slow"):
            break
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == 130, stderr
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    pid = int(next((tmp_path / "store").rglob("text")).read_text())
    assert not Path(f"/proc/{pid}").exists()
