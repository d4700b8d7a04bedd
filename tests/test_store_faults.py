"""The store under real faults: killed writers, builds that want the same entry, full and read-only disks, collections.

Whatever happens, an entry is whole or not there. Mounts are made in a mount namespace of the child's own.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
import stand_ins

from edgebuild.pipeline import stages
from edgebuild.pipeline.errors import StoreError
from edgebuild.pipeline.execution.run_task import run_task
from edgebuild.pipeline.storage import collection, inventory, references
from edgebuild.pipeline.storage.collection import Criteria
from edgebuild.pipeline.storage.sessions import session
from edgebuild.pipeline.storage.store import Store
from edgebuild.pipeline.task import Stage, Task

KEYS = tuple(f"{index:02x}" * 32 for index in range(12))
KEY, OTHER_KEY = KEYS[:2]
KILLS = 30
FORKS = multiprocessing.get_context("forkserver")  # A fork of pytest's own process would copy threads' locks.
FORKS.set_forkserver_preload(["pytest", "edgebuild.pipeline.storage.collection"])
NAMESPACE = ("unshare", "--mount") if os.geteuid() == 0 else ("unshare", "--user", "--map-root-user", "--mount")
COLLECT_ALL = Criteria(max_size_bytes=0)
DEADLINE_S = 60


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


# Children


def start(function: Callable[..., None], *arguments: object) -> ForkServerProcess:
    process = FORKS.Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def ended(process: ForkServerProcess) -> int | None:
    process.join(DEADLINE_S)
    return process.exitcode


def killed(process: ForkServerProcess) -> None:
    process.kill()
    assert ended(process) == -signal.SIGKILL


def in_child(function: Callable[..., None], *arguments: object) -> None:
    """Run a function with its assertions in a process of its own."""
    ours, theirs = FORKS.Pipe(duplex=False)
    process = start(_reporting, theirs, function, arguments)
    theirs.close()
    try:
        assert not (trace := ours.recv()), trace
    finally:
        ended(process)


def _reporting(answer: Connection, function: Callable[..., None], arguments: tuple[object, ...]) -> None:
    trace = ""
    try:
        function(*arguments)
    except BaseException:  # noqa: BLE001 - an assertion is the parent's to raise
        trace = traceback.format_exc()
    answer.send(trace)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def write(store: Store, key: str = KEY, *, size: int = 1000) -> Path:
    with store.writing(key, f"stage {key[:2]}") as folder:
        (folder / "files").mkdir()
        (folder / "files" / "model.tflite").write_bytes(b"x" * size)
        (folder / "figures.json").write_text("{}")
    return store.place(key)


def states(store: Store) -> set[str]:
    return {store.state(key) for key in store.keys()}  # noqa: SIM118 - a store is no mapping


def left_behind(store: Store) -> list[Path]:
    return list((store.root / "staging").iterdir()) + list((store.root / "leases").iterdir())


# Killed writers


def die_before(step: int, *events: str) -> None:
    """Have this process killed just before its `step`-th call among these (`ref:` Python's table of audit events)."""
    steps = iter(range(1, step))

    def watch(event: str, _: tuple[Any, ...]) -> None:
        if event in events and next(steps, None) is None:
            signal.raise_signal(signal.SIGKILL)

    sys.addaudithook(watch)


def build_and_die_at(root: Path, step: int) -> None:
    """One build that makes one entry, killed before its `step`-th call that opens, locks, makes, moves or removes."""
    store = Store(root)
    die_before(step, "open", "fcntl.flock", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.utime")
    with session(store, [KEY]) as opened, opened.turn(KEY):
        write(opened)


@pytest.mark.parametrize("before", ["missing", "damaged"])
def test_a_build_killed_at_any_step_leaves_no_damaged_entry_and_the_next_one_sweeps(store: Store, before: str) -> None:
    outcomes: list[str] = []
    for step in range(1, 500):
        shutil.rmtree(store.root, ignore_errors=True)
        if before == "damaged":
            (write(store) / "figures.json").unlink()
        process = start(build_and_die_at, store.root, step)
        if ended(process) == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        outcomes.append(store.state(KEY))
        with session(store, [KEY]) as opened:
            assert len(left_behind(store)) == 2, "its own scratch folder and lease"
            with opened.turn(KEY):
                if opened.find(KEY) is None:
                    write(opened)
        assert store.state(KEY) == "whole"
        assert not left_behind(store)
    assert len(outcomes) > 20, "the steps of a build"
    assert set(outcomes) == {before, "missing", "whole"}, "killed before, and after, the entry took its place"
    assert outcomes == sorted(outcomes, key=[before, "missing", "whole"].index), "it goes one way"


def write_for_ever(root: Path, ready: Event, first: int) -> None:
    chance = random.Random(first)  # noqa: S311 - moments, not secrets
    with session(Store(root), ()) as opened:
        ready.set()
        while True:
            write(opened, chance.randbytes(32).hex(), size=chance.choice([10, 5000, 2_000_000]))


def test_writers_killed_at_random_moments_leave_whole_entries(store: Store) -> None:
    chance, unfinished = random.Random(1), 0  # noqa: S311
    for kill in range(KILLS):
        ready = FORKS.Event()
        process = start(write_for_ever, store.root, ready, kill)
        assert ready.wait(DEADLINE_S)
        time.sleep(chance.uniform(0, 0.05))
        killed(process)
        unfinished += any((store.root / "staging").glob("*/*"))
        with session(store, ()):
            assert len(left_behind(store)) == 2
        assert not left_behind(store)
    assert unfinished, "not one kill met a writer at work"
    assert states(store) == {"whole"}


# Several builds, one entry


def make_together(root: Path, meeting: Path, others: int) -> None:
    """Run the task; who makes the entry does not finish before all others wait for it."""

    def work(_: stand_ins.Text, __: Mapping[str, Path], out: Path) -> None:
        (meeting / f"made-{os.getpid()}").touch()
        wait_until(lambda: len(list(meeting.glob("waits-*"))) == others)
        (out / "text").write_text("made")

    stages.STAGES["together"] = Stage(name="together", version=1, function=work, worker="light", tools=())
    task = Task(stage="together", parameters=stand_ins.Text(), title="together", key=KEY)
    with session(Store(root), [KEY]) as opened:
        run_task(task, opened, on_wait=lambda _: (meeting / f"waits-{os.getpid()}").touch())
        assert opened.state(KEY) == "whole"


@pytest.mark.parametrize("builds", [2, 5])
def test_builds_that_want_the_same_entry_at_once_make_it_once(store: Store, tmp_path: Path, builds: int) -> None:
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    processes = [start(make_together, store.root, meeting, builds - 1) for _ in range(builds)]
    assert [ended(process) for process in processes] == [0] * builds
    assert len(list(meeting.glob("made-*"))) == 1
    assert store.state(KEY) == "whole"


def hold_turn(root: Path, ready: Event) -> None:
    with session(Store(root), [KEY]) as opened, opened.turn(KEY), opened.writing(KEY, "never") as folder:
        (folder / "half").touch()
        ready.set()
        time.sleep(DEADLINE_S)


def take_turn(root: Path, waits: Event) -> None:
    with session(Store(root), [KEY]) as opened, opened.turn(KEY, on_wait=waits.set):
        write(opened)


def test_the_turn_of_a_killed_build_passes_to_the_one_that_waits(store: Store) -> None:
    ready, waits = FORKS.Event(), FORKS.Event()
    holder = start(hold_turn, store.root, ready)
    assert ready.wait(DEADLINE_S)
    waiter = start(take_turn, store.root, waits)
    assert waits.wait(DEADLINE_S)
    assert store.state(KEY) == "missing"
    killed(holder)
    assert ended(waiter) == 0
    assert store.state(KEY) == "whole"


# Disks that refuse


def mounted(mount: str, function: Callable[[Path], None], root: Path) -> None:
    """Run a function of this module in a mount namespace of its own, over what `mount` mounts."""
    if (
        shutil.which("unshare") is None
        or subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("mount namespaces are not permitted here")
    code = f"import pathlib, test_store_faults as t; t.{function.__name__}(pathlib.Path({str(root)!r}))"
    script = f"{mount} && exec {shlex.join([sys.executable, '-c', code])}"
    run = subprocess.run(
        [*NAMESPACE, "sh", "-c", script],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def refusal(action: Callable[[], object]) -> str:
    """What the store says; any other end is a failure of the test."""
    with pytest.raises(StoreError) as caught:
        action()
    assert caught.value.action
    return str(caught.value)


def big_task(size: int) -> Task:
    def work(_: stand_ins.Text, __: Mapping[str, Path], out: Path) -> None:
        (out / "model.bin").write_bytes(b"x" * size)

    stages.STAGES["big"] = Stage(name="big", version=1, function=work, worker="light", tools=())
    return Task(stage="big", parameters=stand_ins.Text(), title="convert", key=OTHER_KEY)


def open_session(store: Store) -> None:
    with session(store, KEYS * 100):
        pass


def fill_the_disk(root: Path) -> None:
    """On a disk of 256 KiB: a stage, a listing and a lease each meet its end."""
    store = Store(root / "store")
    write(store)
    with session(store, [OTHER_KEY]) as opened:
        assert "No space left" in refusal(lambda: run_task(big_task(1 << 20), opened))
        assert "No space left" in refusal(lambda: fill_and_seal(opened, root / "filler"))
        assert "No space left" in refusal(lambda: run_task(big_task(1), opened))
    assert "No space left" in refusal(lambda: open_session(store))
    assert store.state(KEY) == "whole"
    assert store.state(OTHER_KEY) == "missing"
    (root / "filler").unlink()
    with session(store, [OTHER_KEY]) as opened:
        assert len(left_behind(store)) == 2
        run_task(big_task(1000), opened)
    assert states(store) == {"whole"}
    assert not left_behind(store)


def fill_and_seal(store: Store, filler: Path) -> None:
    with store.writing(OTHER_KEY, "a stage that leaves no room for the entry's listing") as folder:
        (folder / "text").write_text("made")
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"\0" * 4096)


def test_a_full_disk_is_an_error_of_the_store_and_spoils_nothing(tmp_path: Path) -> None:
    mounted(f"mount -t tmpfs -o size=256k none {shlex.quote(str(tmp_path))}", fill_the_disk, tmp_path)


def cap_files(root: Path) -> None:
    store = Store(root)
    write(store)
    with session(store, [OTHER_KEY]) as opened:
        for limit_bytes, size in ((4096, 8192), (50, 1)):  # The stage's own file is too long, then the entry's listing.
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, resource.RLIM_INFINITY))
            assert "File too large" in refusal(partial(run_task, big_task(size), opened))
            assert opened.state(OTHER_KEY) == "missing"
    assert "File too large" in refusal(lambda: open_session(store))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert states(store) == {"whole"}
    with session(store, ()):
        assert len(left_behind(store)) == 2


def test_files_cut_short_by_a_limit_are_errors_of_the_store(store: Store) -> None:
    """A limit on file sizes stands in for a full disk where no disk can be mounted."""
    in_child(cap_files, store.root)


def read_only(root: Path) -> None:
    store = Store(root / "store")
    assert store.find(KEY) == store.place(KEY)
    assert [entry.key for entry in inventory.entries(store)] == [KEY]
    assert inventory.verify(store).exit_code == 0
    assert collection.collect(store, COLLECT_ALL, dry_run=True).removed
    for action in (
        lambda: open_session(store),
        lambda: write(store, OTHER_KEY),
        lambda: run_task(big_task(1), store),
        lambda: collection.collect(store, COLLECT_ALL),
        lambda: references.refer(store, root / "manifest.json"),
    ):
        said = refusal(action)
        assert "Read-only file system" in said
        assert "EDGEBUILD_CACHE" in said
    assert store.find(KEY) is not None


def test_a_read_only_store_is_read_and_says_what_it_refuses(tmp_path: Path) -> None:
    write(Store(tmp_path / "store"))
    folder = shlex.quote(str(tmp_path))
    mounted(f"mount --bind {folder} {folder} && mount -o remount,bind,ro {folder}", read_only, tmp_path)


# A root that vanishes


def test_a_root_that_vanishes_while_an_entry_is_written_is_an_error_of_the_store(store: Store) -> None:
    def vanish() -> None:
        with session(store, [KEY]) as opened, opened.turn(KEY), opened.writing(KEY, "never") as folder:
            (folder / "text").write_text("half")
            shutil.rmtree(store.root)

    assert str(store.root) in refusal(vanish)
    assert store.state(KEY) == "missing"
    take_turn(store.root, FORKS.Event())
    assert store.state(KEY) == "whole"


def test_an_input_that_vanishes_is_an_error_of_the_store(store: Store) -> None:
    write(store)
    task = Task(stage="big", parameters=stand_ins.Text(), inputs={"model": KEY}, title="convert", key=OTHER_KEY)
    with session(store, [KEY, OTHER_KEY]) as opened:
        shutil.rmtree(store.root)
        assert "vanished during the build" in refusal(lambda: run_task(task, opened))


# Collections beside builds


def hold_lease(root: Path, keys: tuple[str, ...], ready: Event, done: Event) -> None:
    with session(Store(root), keys) as opened:
        (opened.scratch or root).joinpath("half").write_bytes(b"x" * 5000)
        ready.set()
        done.wait(DEADLINE_S)


def test_a_collection_spares_the_living_and_buries_the_dead(store: Store) -> None:
    for key in KEYS:
        write(store, key)
    ready, done = FORKS.Event(), FORKS.Event()
    build = start(hold_lease, store.root, KEYS[:5], ready, done)
    assert ready.wait(DEADLINE_S)
    spared = collection.collect(store, Criteria(max_size_bytes=0, older_than_s=-1, unreferenced=True))
    assert set(store.keys()) == set(KEYS[:5])
    assert spared.dead_bytes == 0
    assert any((store.root / "staging").glob("*/half"))
    killed(build)
    after = collection.collect(store, COLLECT_ALL)
    assert after.dead_bytes == 5000
    assert not set(store.keys())
    assert not left_behind(store)


def waits_for_a_lock(process: ForkServerProcess) -> bool:
    """Whether the kernel lists it as a waiter (`ref:` proc_locks(5))."""
    return any(
        fields[1] == "->" and int(fields[5]) == process.pid
        for fields in map(str.split, Path("/proc/locks").read_text().splitlines())
    )


def test_no_build_starts_between_the_look_at_leases_and_the_last_removal(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(store)
    ready, done = FORKS.Event(), FORKS.Event()
    builds: list[ForkServerProcess] = []
    bury = Store.bury

    def start_a_build_first(self: Store, key: str, grave: Path) -> None:
        builds.append(start(hold_lease, store.root, (KEY,), ready, done))
        wait_until(lambda: waits_for_a_lock(builds[0]) or ready.is_set())
        assert not ready.is_set(), "it holds a lease on what is being removed"
        bury(self, key, grave)

    monkeypatch.setattr(Store, "bury", start_a_build_first)
    try:
        assert collection.collect(store, COLLECT_ALL).removed
        assert ready.wait(DEADLINE_S)
    finally:
        done.set()
    assert ended(builds[0]) == 0


def build_again_and_again(root: Path, ready: Event, seed: int) -> None:
    """Builds that each want some of the keys, and find all of them whole until they end."""
    chance = random.Random(seed)  # noqa: S311
    for _ in range(10):
        wanted = chance.sample(KEYS, 6)
        with session(Store(root), wanted) as opened:
            ready.set()
            for key in wanted:
                with opened.turn(key):
                    if opened.find(key) is None:
                        write(opened, key)
            found = {key: opened.state(key) for key in wanted}
            assert set(found.values()) == {"whole"}, json.dumps(found)


def test_collections_and_builds_side_by_side_never_meet(store: Store) -> None:
    write(store, "ff" * 32)
    events = [FORKS.Event() for _ in range(3)]
    builds = [start(build_again_and_again, store.root, ready, seed) for seed, ready in enumerate(events)]
    assert all(ready.wait(DEADLINE_S) for ready in events)
    removed = 0
    while any(build.is_alive() for build in builds):
        removed += len(collection.collect(store, COLLECT_ALL).removed)
    assert [ended(build) for build in builds] == [0, 0, 0]
    assert removed
    assert states(store) <= {"whole"}
    assert not left_behind(store)


def test_a_collection_that_is_killed_leaves_a_whole_store(store: Store) -> None:
    for key in KEYS:
        write(store, key)
    process = start(collect_and_die, store.root)
    assert ended(process) == -signal.SIGKILL
    assert 0 < len(set(store.keys())) < len(KEYS)
    assert states(store) == {"whole"}
    assert collection.collect(store, Criteria(max_size_bytes=1 << 30)).dead_bytes > 0
    assert not left_behind(store)


def collect_and_die(root: Path) -> None:
    die_before(5, "os.rename")
    collection.collect(Store(root), COLLECT_ALL)
