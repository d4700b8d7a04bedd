"""The store: what it keeps is whole, what is not whole it does not give."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgebuild.pipeline.errors import StoreError, exit_code
from edgebuild.pipeline.storage.digests import digest_file, digest_tree
from edgebuild.pipeline.storage.location import CACHE_VARIABLE, default_root
from edgebuild.pipeline.storage.store import ENTRY, Store

KEY = "0123" * 16
OTHER_KEY = "4567" * 16
WRITERS = 8


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def write(store: Store, key: str = KEY, content: str = "made") -> Path:
    with store.writing(key, "a test's entry") as folder:
        (folder / "model.tflite").write_text(content)
        (folder / "files").mkdir()
        (folder / "files" / "model.cc").write_text(content * 2)
    return store.place(key)


def staged(store: Store) -> list[Path]:
    return list((store.root / "staging").iterdir())


# Digests


def test_digest_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    # ref: FIPS 180-4, the example of one block.
    wanted = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest_file(path) == digest_tree(path) == wanted


def tree(folder: Path) -> Path:
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")
    (folder / "variables" / "data").write_bytes(b"\0" * 100)
    return folder


def test_digest_of_a_tree_is_independent_of_place_and_times(tmp_path: Path) -> None:
    here, there = tree(tmp_path / "here"), tree(tmp_path / "far" / "away")
    os.utime(there / "saved_model.pb", (1, 1))
    assert digest_tree(here) == digest_tree(there)


def test_digest_of_a_tree_is_independent_of_the_order_files_were_made(tmp_path: Path) -> None:
    for folder, names in (("here", "abc"), ("there", "cab")):
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).write_text(name)
    assert digest_tree(tmp_path / "here") == digest_tree(tmp_path / "there")


def flip_one_byte(folder: Path) -> None:
    (folder / "variables" / "data").write_bytes(b"\0" * 99 + b"\1")


def rename_a_file(folder: Path) -> None:
    (folder / "variables" / "data").rename(folder / "variables" / "weights")


def move_a_file(folder: Path) -> None:
    (folder / "variables" / "data").rename(folder / "data")


def swap_two_files(folder: Path) -> None:
    first, second = folder / "saved_model.pb", folder / "variables" / "data"
    contents = first.read_bytes(), second.read_bytes()
    second.write_bytes(contents[0])
    first.write_bytes(contents[1])


def add_an_empty_file(folder: Path) -> None:
    (folder / "assets").touch()


def remove_a_file(folder: Path) -> None:
    (folder / "saved_model.pb").unlink()


@pytest.mark.parametrize(
    "change", [flip_one_byte, rename_a_file, move_a_file, swap_two_files, add_an_empty_file, remove_a_file]
)
def test_digest_of_a_tree_changes_with_it(tmp_path: Path, change: Callable[[Path], None]) -> None:
    folder = tree(tmp_path / "model")
    before = digest_tree(folder)
    change(folder)
    assert digest_tree(folder) != before


def test_digest_by_pattern_sees_matching_files_alone(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("a = 1")
    before = digest_tree(tmp_path, "*.py")
    (tmp_path / "code.pyc").write_text("compiled")
    assert digest_tree(tmp_path, "*.py") == before
    (tmp_path / "code.py").write_text("a = 2")
    assert digest_tree(tmp_path, "*.py") != before


# Writing


def test_an_entry_is_found_with_its_files_after_the_block(store: Store) -> None:
    assert store.find(KEY) is None
    place = write(store)
    assert store.find(KEY) == place
    assert (place / "files" / "model.cc").read_text() == "mademade"
    assert json.loads((place / ENTRY).read_text())["description"] == "a test's entry"


def test_an_entry_is_not_there_inside_the_block(store: Store) -> None:
    with store.writing(KEY, "a test's entry") as folder:
        (folder / "model.tflite").write_text("half")
        assert store.find(KEY) is None
    assert store.find(KEY) is not None


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_an_error_inside_the_block_leaves_nothing_and_passes(store: Store, error: type[BaseException]) -> None:
    def stage() -> None:
        with store.writing(KEY, "a test's entry") as folder:
            (folder / "model.tflite").write_text("half")
            raise error("of the stage")

    with pytest.raises(error, match="of the stage"):
        stage()
    assert store.find(KEY) is None
    assert not store.place(KEY).exists()
    assert not staged(store)


def test_staging_is_empty_after_a_good_write(store: Store) -> None:
    write(store)
    assert not staged(store)


def test_keys_do_not_mix(store: Store) -> None:
    write(store, KEY, "one")
    write(store, OTHER_KEY, "other")
    assert (store.place(KEY) / "model.tflite").read_text() == "one"
    assert (store.place(OTHER_KEY) / "model.tflite").read_text() == "other"


def test_of_two_writers_the_first_stays_and_the_second_is_content(store: Store) -> None:
    with store.writing(KEY, "slow") as folder:
        (folder / "model.tflite").write_text("slow")
        write(store, content="fast")
    assert (store.place(KEY) / "model.tflite").read_text() == "fast"
    assert store.find(KEY) is not None
    assert not staged(store)


def test_many_writers_of_one_key_leave_one_whole_entry(store: Store) -> None:
    together = threading.Barrier(WRITERS)

    def race(_: int) -> Path | None:
        with store.writing(KEY, "a race") as folder:
            (folder / "model.tflite").write_bytes(b"equal" * 10_000)
            together.wait()
        return store.find(KEY)

    with ThreadPoolExecutor(WRITERS) as pool:
        assert set(pool.map(race, range(WRITERS))) == {store.place(KEY)}
    assert not staged(store)


def test_an_entry_that_arrives_while_it_is_looked_for_is_not_damaged(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, arrived = Path.stat, threading.Event()

    def looked(path: Path, **options: bool) -> os.stat_result:
        try:
            return look(path, **options)
        except FileNotFoundError:
            if path == store.place(KEY) and not arrived.is_set():
                arrived.set()
                write(store)
            raise

    monkeypatch.setattr(Path, "stat", looked)
    assert store.state(KEY) == "missing"
    assert store.state(KEY) == "whole"
    assert arrived.is_set()


def test_a_writer_replaces_a_damaged_entry(store: Store) -> None:
    (write(store) / "model.tflite").write_text("damaged")
    write(store, content="again")
    assert (store.place(KEY) / "model.tflite").read_text() == "again"


# Damage


def truncate(entry: Path) -> None:
    (entry / "model.tflite").write_text("mad")


def flip(entry: Path) -> None:
    (entry / "files" / "model.cc").write_text("mademadf")


def lose(entry: Path) -> None:
    (entry / "model.tflite").unlink()


def add(entry: Path) -> None:
    (entry / "files" / "stray.txt").touch()


def add_a_link(entry: Path) -> None:
    (entry / "stray").symlink_to(entry / "nowhere")


def lose_the_listing(entry: Path) -> None:
    (entry / ENTRY).unlink()


def put_a_folder_in_place_of_a_file(entry: Path) -> None:
    lose(entry)
    (entry / "model.tflite").mkdir()


def listing_of(text: str) -> Callable[[Path], None]:
    def change(entry: Path) -> None:
        (entry / ENTRY).write_text(text)

    return change


def belong_to_another_key(entry: Path) -> None:
    listed = json.loads((entry / ENTRY).read_text())
    (entry / ENTRY).write_text(json.dumps(listed | {"key": OTHER_KEY}))


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip,
        lose,
        add,
        add_a_link,
        lose_the_listing,
        put_a_folder_in_place_of_a_file,
        belong_to_another_key,
        *map(listing_of, ["", "{", "null", "[]", "3", "{}", '{"key": 1, "files": []}', '{"files": null}', "\0\0"]),
    ],
)
def test_a_damaged_entry_is_not_found_and_is_made_again(store: Store, damage: Callable[[Path], None]) -> None:
    damage(write(store))
    assert store.state(KEY) == "damaged"
    assert store.find(KEY) is None
    write(store, content="again")
    assert store.state(KEY) == "whole"
    assert (store.place(KEY) / "model.tflite").read_text() == "again"


def test_a_damaged_entry_leaves_the_others_alone(store: Store) -> None:
    truncate(write(store))
    write(store, OTHER_KEY)
    assert store.find(KEY) is None
    assert store.find(OTHER_KEY) is not None


def test_an_entry_survives_the_moving_of_the_store(store: Store, tmp_path: Path) -> None:
    write(store)
    moved = Store(tmp_path / "moved")
    shutil.move(store.root, moved.root)
    assert moved.find(KEY) == moved.place(KEY)


# A root that can't be used. Permissions would not stop a superuser; a file where a folder must be stops everyone.


@pytest.fixture
def blocked(tmp_path: Path) -> Store:
    (tmp_path / "file").touch()
    return Store(tmp_path / "file" / "store")


def test_writing_to_an_unusable_root_says_so(blocked: Store) -> None:
    with pytest.raises(StoreError) as caught, blocked.writing(KEY, "never"):
        pytest.fail("the block must not run")
    assert str(blocked.root) in caught.value.what
    assert CACHE_VARIABLE in caught.value.action
    assert exit_code(caught.value) == 2


def test_finding_in_an_unusable_root_says_so(blocked: Store) -> None:
    with pytest.raises(StoreError, match="can't be used"):
        blocked.find(KEY)


def test_an_entry_that_can_not_take_its_place_is_an_error_and_leaves_nothing(store: Store) -> None:
    store.root.mkdir()
    (store.root / KEY[:2]).touch()
    with pytest.raises(StoreError, match="can't be used"):
        write(store)
    assert not staged(store)


def test_the_root_is_where_the_variable_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert default_root() == tmp_path
    monkeypatch.setenv(CACHE_VARIABLE, "~/cache")
    assert default_root() == Path.home() / "cache"
    monkeypatch.delenv(CACHE_VARIABLE)
    assert default_root().name == "edgebuild"
