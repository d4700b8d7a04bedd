"""Looking after the store: what is listed, what is collected and never is, what is found damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Build, Ended, edgebuild

from edgebuild.pipeline.console import Narrator
from edgebuild.pipeline.errors import ConfigError, StoreError, exit_code
from edgebuild.pipeline.storage import collection, inventory, progress, references
from edgebuild.pipeline.storage.collection import Criteria
from edgebuild.pipeline.storage.inventory import Entry
from edgebuild.pipeline.storage.location import CACHE_VARIABLE, default_root
from edgebuild.pipeline.storage.sessions import session
from edgebuild.pipeline.storage.store import ENTRY, Store

A, B, C = ("a" * 64, "b" * 64, "c" * 64)
DAY_S = 86400
NOW = 1_000_000_000.0
EVERYTHING = Criteria(max_size_bytes=0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def write(store: Store, key: str, *, size: int = 1000, used_days_ago: float = 0) -> Path:
    with store.writing(key, f"stage {key[0]}") as folder:
        (folder / "files").mkdir()
        (folder / "files" / "model.tflite").write_bytes(b"x" * size)
    entry = store.place(key) / ENTRY
    used_at = entry.stat().st_mtime - used_days_ago * DAY_S
    os.utime(entry, (used_at, used_at))
    return store.place(key)


def publish(store: Store, build: Path, *keys: str) -> Path:
    """Leave in a folder what a build leaves there as far as the store is concerned."""
    build.mkdir(parents=True, exist_ok=True)
    (build / "manifest.json").write_text(json.dumps({"stages": {key: {} for key in keys}}))
    references.refer(store, build / "manifest.json")
    return build / "manifest.json"


def left(store: Store) -> set[str]:
    return set(store.keys())


# What is there


def test_lists_entries_by_use_with_what_they_are_and_weigh(store: Store) -> None:
    write(store, A, used_days_ago=2)
    write(store, B, size=2000)
    found = inventory.entries(store)
    assert [(entry.key, entry.description) for entry in found] == [(B, "stage b"), (A, "stage a")]
    listing_bytes = (store.place(A) / ENTRY).stat().st_size
    assert found[1].size_bytes == 1000 + listing_bytes
    assert found[1].made_at - found[1].used_at == pytest.approx(2 * DAY_S, abs=60)


def test_a_store_that_is_not_there_is_empty_and_stays_away(store: Store) -> None:
    assert inventory.entries(store) == []
    assert inventory.verify(store).exit_code == 0
    assert collection.collect(store, EVERYTHING).freed_bytes == 0
    assert not store.root.exists()


def test_a_file_in_the_stores_place_is_no_empty_store(store: Store) -> None:
    store.root.write_text("mine")
    for look in (inventory.entries, inventory.verify):
        with pytest.raises(StoreError, match="can't be used"):
            look(store)


def test_the_home_of_nobody_is_no_place_for_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, "~nobody-of-that-name/store")
    with pytest.raises(StoreError, match="names no folder"):
        default_root()


def test_an_entry_without_a_listing_is_listed(store: Store) -> None:
    (write(store, A) / ENTRY).write_text("{")
    assert "damaged" in inventory.entries(store)[0].description


def test_a_session_marks_what_it_uses_and_nothing_else(store: Store) -> None:
    for key in (A, B):
        write(store, key, used_days_ago=9)
    before = {entry.key: entry for entry in inventory.entries(store)}
    with session(store, [A, C]):
        during = {entry.key: entry for entry in inventory.entries(store)}
    assert during[A].used_at - before[A].used_at == pytest.approx(9 * DAY_S, abs=60)
    assert (during[A].in_use, during[B].in_use) == (True, False)
    assert during[A].made_at == before[A].made_at
    assert during[B] == before[B]
    assert store.state(A) == "whole"
    assert not any(entry.in_use for entry in inventory.entries(store))


def test_an_unreadable_root_is_an_error_of_the_store(store: Store) -> None:
    store.root.mkdir()
    (store.root / "ab").touch()
    with pytest.raises(StoreError, match="can't be used"):
        inventory.entries(store)


# What is to go


def entry(key: str, *, size: int = 10, used_days_ago: float = 0) -> Entry:
    used_at = NOW - used_days_ago * DAY_S
    return Entry(key=key, description="", size_bytes=size, made_at=used_at, used_at=used_at, in_use=False)


OLD, MIDDLE, NEW = entry(A, used_days_ago=9), entry(B, used_days_ago=5), entry(C, used_days_ago=1)


@pytest.mark.parametrize(
    ("criteria", "in_use", "referenced", "wanted"),
    [
        (Criteria(max_size_bytes=30), "", "", ""),
        (Criteria(max_size_bytes=29), "", "", "a"),
        (Criteria(max_size_bytes=10), "", "", "ab"),
        (Criteria(max_size_bytes=0), "", "", "abc"),
        (Criteria(max_size_bytes=10), "a", "", "bc"),
        (Criteria(max_size_bytes=0), "abc", "", ""),
        (Criteria(older_than_s=6 * DAY_S), "", "", "a"),
        (Criteria(older_than_s=0), "b", "", "ac"),
        (Criteria(unreferenced=True), "", "ac", "b"),
        (Criteria(unreferenced=True), "b", "ac", ""),
        (Criteria(unreferenced=True, max_size_bytes=10), "", "ac", "ab"),
        (Criteria(unreferenced=True, older_than_s=6 * DAY_S), "", "abc", "a"),
        (Criteria(older_than_s=6 * DAY_S, max_size_bytes=20), "", "", "a"),
    ],
)
def test_chooses_by_use_by_reference_and_by_size(criteria: Criteria, in_use: str, referenced: str, wanted: str) -> None:
    keys = {name[0]: name for name in (A, B, C)}
    condemned = collection.chosen(
        [NEW, OLD, MIDDLE],
        criteria,
        in_use={keys[k] for k in in_use},
        referenced={keys[k] for k in referenced},
        now=NOW,
    )
    assert "".join(e.key[0] for e in condemned) == wanted


def test_nothing_to_go_by_is_an_error_that_names_what_there_is() -> None:
    with pytest.raises(ConfigError) as caught:
        Criteria()
    assert exit_code(caught.value) == 2
    assert all(option in caught.value.action for option in ("--max-size", "--older-than", "--unreferenced"))


@pytest.mark.parametrize(
    ("text", "wanted"), [("2GiB", 2 << 30), ("500 MB", 500_000_000), ("1.5kib", 1536), ("0B", 0), ("7TB", 7 * 10**12)]
)
def test_reads_sizes(text: str, wanted: int) -> None:
    assert collection.size(text) == wanted


@pytest.mark.parametrize(("text", "wanted"), [("30d", 2_592_000), ("12h", 43_200), ("90m", 5400), ("2w", 1_209_600)])
def test_reads_ages(text: str, wanted: float) -> None:
    assert collection.age(text) == wanted


@pytest.mark.parametrize("text", ["", "2", "GiB", "-1GiB", "2GiBs", "1e3B", "nanB", "2 G iB", "30d"])
def test_refuses_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="is no size"):
        collection.size(text)


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "30days", "2GiB"])
def test_refuses_what_is_no_age(text: str) -> None:
    with pytest.raises(ConfigError, match="is no age"):
        collection.age(text)


# Collecting


def test_collects_the_least_recently_used_down_to_a_size(store: Store) -> None:
    for key, days in ((A, 1), (B, 9), (C, 5)):
        write(store, key, used_days_ago=days)
    each = inventory.entries(store)[0].size_bytes
    done = collection.collect(store, Criteria(max_size_bytes=each))
    assert [e.key for e in done.removed] == [B, C]
    assert (done.freed_bytes, done.kept_bytes) == (2 * each, each)
    assert left(store) == {A}
    assert store.state(A) == "whole"
    assert not list((store.root / "staging").iterdir())


def test_a_dry_run_says_the_same_and_touches_nothing(store: Store) -> None:
    write(store, A)
    before = sorted(store.root.rglob("*"))
    planned = collection.collect(store, EVERYTHING, dry_run=True)
    assert sorted(store.root.rglob("*")) == before
    done = collection.collect(store, EVERYTHING)
    assert planned == done
    assert left(store) == set()


def test_never_collects_what_a_session_uses_however_asked(store: Store) -> None:
    for key in (A, B):
        write(store, key, used_days_ago=99)
    with session(store, [A]):
        done = collection.collect(store, Criteria(max_size_bytes=0, older_than_s=-1, unreferenced=True))
        assert left(store) == {A}
        assert store.state(A) == "whole"
    assert [e.key for e in done.removed] == [B]
    assert done.kept_bytes == done.in_use_bytes > 0


def test_collects_what_no_build_folder_names(store: Store, tmp_path: Path) -> None:
    for key in (A, B, C):
        write(store, key)
    publish(store, tmp_path / "one" / "build", A)
    deleted = publish(store, tmp_path / "two" / "build", B)
    deleted.unlink()
    collection.collect(store, Criteria(unreferenced=True))
    assert left(store) == {A}


def test_the_manifest_as_it_is_now_decides(store: Store, tmp_path: Path) -> None:
    for key in (A, B):
        write(store, key)
    publish(store, tmp_path / "build", A)
    publish(store, tmp_path / "build", B)
    assert len(list((store.root / "references").iterdir())) == 1
    collection.collect(store, Criteria(unreferenced=True))
    assert left(store) == {B}


def test_references_of_deleted_builds_are_forgotten(store: Store, tmp_path: Path) -> None:
    write(store, A)
    manifest = publish(store, tmp_path / "build", A)
    manifest.unlink()
    collection.collect(store, Criteria(older_than_s=DAY_S))
    assert not list((store.root / "references").iterdir())
    assert left(store) == {A}


@pytest.mark.parametrize("content", ["{", "[]", "3", '{"stages": 3}', "{}"])
def test_a_manifest_that_can_not_be_read_stops_the_collection(store: Store, tmp_path: Path, content: str) -> None:
    write(store, A)
    publish(store, tmp_path / "build", A).write_text(content)
    with pytest.raises(ConfigError, match="what it refers to is unknown"):
        collection.collect(store, Criteria(unreferenced=True))
    assert left(store) == {A}


def test_what_a_killed_build_left_is_counted_and_swept(store: Store) -> None:
    write(store, A)
    scratch = store.root / "staging" / "1-dead"
    scratch.mkdir()
    (scratch / "half").write_bytes(b"x" * 5000)
    done = collection.collect(store, Criteria(max_size_bytes=1 << 30))
    assert done.dead_bytes == done.freed_bytes == 5000
    assert not scratch.exists()
    assert left(store) == {A}


def test_the_progress_of_a_killed_build_is_kept_counted_and_removed_unless_a_build_wants_it(store: Store) -> None:
    for key in (A, B):
        progress.place(store, key).mkdir(parents=True)
        (progress.place(store, key) / "checkpoint.npz").write_bytes(b"x" * 3000)
    with session(store, (B,)):
        assert progress.place(store, A).exists(), "a session's sweep leaves it"
        collection.collect(store, Criteria(older_than_s=60, max_size_bytes=1 << 30))
        assert progress.place(store, A).exists(), "somebody may come back for it"
        assert collection.collect(store, Criteria(max_size_bytes=0), dry_run=True).dead_bytes == 3000
        assert progress.place(store, A).exists()
        done = collection.collect(store, Criteria(max_size_bytes=0))
        assert done.dead_bytes == done.freed_bytes == 3000
        assert not progress.place(store, A).exists()
        assert progress.place(store, B).exists()
    assert collection.collect(store, Criteria(max_size_bytes=0)).dead_bytes == 3000
    assert not progress.place(store, B).exists()


# Checking


def test_a_whole_store_is_whole(store: Store) -> None:
    write(store, A)
    heard: list[tuple[int, int]] = []
    found = inventory.verify(store, on_progress=lambda *progress: heard.append(progress))
    assert (found.entries, found.damaged, found.exit_code) == (1, (), 0)
    assert heard == [(found.checked_bytes, found.checked_bytes)]
    assert found.mb_per_s > 0


@pytest.mark.parametrize("keep", [True, False])
def test_names_what_is_damaged_and_removes_it_unless_told_to_keep_it(store: Store, *, keep: bool) -> None:
    for key in (A, B, C):
        write(store, key)
    model = store.place(A) / "files" / "model.tflite"
    model.write_bytes(b"y" * 1000)
    (store.place(B) / "files" / "model.tflite").unlink()
    (store.place(B) / "stray").touch()
    found = inventory.verify(store, keep=keep)
    faults = {damage.entry.description: damage.faults for damage in found.damaged}
    assert faults == {
        "stage a": ("files/model.tflite has changed",),
        "stage b": ("files/model.tflite is missing", "stray was added"),
    }
    assert found.exit_code == 1
    assert left(store) == ({A, B, C} if keep else {C})
    assert all(damage.removed != keep for damage in found.damaged)


def test_an_entry_that_was_mended_while_it_was_read_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (write(store, A) / "files" / "model.tflite").write_bytes(b"damaged")
    looks = iter([("files/model.tflite has changed",)])
    original = Store.faults

    def then_mended(self: Store, key: str) -> tuple[str, ...] | None:
        first = next(looks, None)
        if first is None:
            return original(self, key)
        write(self, key)
        return first

    monkeypatch.setattr(Store, "faults", then_mended)
    assert inventory.verify(store).damaged == ()
    assert store.state(A) == "whole"


# As commands


def run(store: Store, *arguments: str) -> Ended:
    return edgebuild("cache", *arguments, cwd=store.root.parent, cache=store.root)


def test_ls_shows_short_keys_and_json_full_ones(store: Store) -> None:
    write(store, A, size=2048)
    shown = run(store, "ls")
    assert shown.code == 0
    assert f"{A[:12]} " in shown.stdout
    assert A not in shown.stdout
    assert "stage a" in shown.stdout
    assert "1 entry, 2." in shown.stdout
    listing = json.loads(run(store, "ls", "--json").stdout)
    assert [e["key"] for e in listing["entries"]] == [A]
    assert listing["size_bytes"] == inventory.entries(store)[0].size_bytes


def test_ls_shows_what_stages_that_have_not_ended_left_and_what_it_is(store: Store) -> None:
    write(store, A)
    for key in (A, B, C):
        progress.describe(store, key, f"prune {key[0]}")
    for key in (B, C):
        (progress.place(store, key) / "checkpoint.npz").write_bytes(b"x" * 2048)
    with session(store, [C]):
        shown, listing = run(store, "ls").stdout, json.loads(run(store, "ls", "--json").stdout)
    assert f"{B[:12]}    2.0 KiB     now          unfinished: prune b\n" in shown
    assert "unfinished: prune c (in use)\n" in shown
    assert "prune a" not in shown, "it has left nothing"
    assert "2 unfinished, 4.0 KiB beside them" in shown
    assert [(e["key"], e["in_use"]) for e in sorted(listing["unfinished"], key=str)] == [(B, False), (C, True)]


def test_gc_says_what_it_freed(store: Store) -> None:
    write(store, A)
    assert "would free 1." in run(store, "gc", "--max-size", "0B", "--dry-run").stdout
    assert left(store) == {A}
    ended = run(store, "gc", "--max-size", "0B")
    assert ended.code == 0
    assert "stage a" in ended.stdout
    assert "freed 1." in ended.stdout
    assert left(store) == set()


def test_gc_says_when_running_builds_keep_it_above_the_limit(store: Store) -> None:
    write(store, A)
    with session(store, [A]):
        assert "running builds use" in run(store, "gc", "--max-size", "0B").stdout
    assert left(store) == {A}


def test_gc_without_a_criterion_is_a_usage_error(store: Store) -> None:
    write(store, A)
    ended = run(store, "gc")
    assert ended.code == 2
    assert "--unreferenced" in ended.stderr
    assert left(store) == {A}


def test_verify_ends_with_one_where_something_was_damaged(store: Store) -> None:
    (write(store, A) / "files" / "model.tflite").write_bytes(b"damaged")
    ended = run(store, "verify")
    assert ended.code == 1
    assert f"removed: {A} stage a" in ended.stdout
    assert "files/model.tflite has changed" in ended.stdout
    ended = run(store, "verify")
    assert ended.code == 0
    assert "MB/s" in ended.stdout


def test_a_build_refers_to_what_it_used(digits: Build, cache: Path) -> None:
    from edgebuild.pipeline.storage.references import referenced_keys

    stages = json.loads((digits.out / "manifest.json").read_text())["stages"]
    assert stages
    assert set(stages) <= referenced_keys(Store(cache))


def test_long_reading_tells_how_far_it_is_ever_more_rarely(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, *(second + 0.5 for second in range(1, 20))])
    monkeypatch.setattr("edgebuild.pipeline.console.time", SimpleNamespace(monotonic=lambda: next(clock)))
    narrator = Narrator()
    for second in range(1, 20):
        narrator.on_bytes(second * 10**6, 20 * 10**6)
    told = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
    assert told == ["2", "4", "8", "16"]
