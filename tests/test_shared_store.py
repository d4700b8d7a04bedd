"""The store at a URL, in memory and on S3: what another machine finds there is whole, or it is not there."""

from __future__ import annotations

import hashlib
import json
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import servers

pytest.importorskip("fsspec", reason="the extra `distributed` is not installed")
pytest.importorskip("s3fs", reason="the extra `distributed` is not installed")

from edgebuild.pipeline.errors import ConfigError, StoreError, exit_code
from edgebuild.pipeline.storage import shared_store
from edgebuild.pipeline.storage.digests import digest_file
from edgebuild.pipeline.storage.location import CACHE_VARIABLE
from edgebuild.pipeline.storage.sessions import session
from edgebuild.pipeline.storage.shared_store import SharedStore, default_store
from edgebuild.pipeline.storage.store import ENTRY, Store
from edgebuild.targets.errors import ToolMissingError

KEY = "0123" * 16
OTHER_KEY = "4567" * 16


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, str]]:
    with servers.s3() as environment:
        yield environment


@pytest.fixture(params=["memory", "s3"])
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "s3":
        for name, value in request.getfixturevalue("bucket").items():
            monkeypatch.setenv(name, value)
    return f"{request.param}://edgebuild/{uuid.uuid4().hex}"


@pytest.fixture
def machine(url: str, tmp_path: Path) -> Callable[[str], SharedStore]:
    """A machine by name, with a mirror of its own."""
    return lambda name: SharedStore(root=tmp_path / name, url=url)


Machine = Callable[[str], SharedStore]


def write(store: Store, key: str = KEY, content: str = "made") -> Path:
    with store.writing(key, "a test's entry") as folder:
        (folder / "model.tflite").write_text(content)
        (folder / "files").mkdir()
        (folder / "files" / "model.cc").write_text(content * 2)
    return store.place(key)


def there(store: SharedStore) -> Any:
    return shared_store._filesystem(store.url)


def blob(store: SharedStore, content: str) -> str:
    return store._blob(hashlib.sha256(content.encode()).hexdigest())


def put(store: SharedStore, listing: object, key: str = KEY) -> None:
    there(store).pipe_file(store._marker(key), json.dumps(listing).encode())


def listing(store: SharedStore, key: str = KEY) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(there(store).cat_file(store._marker(key)))
    return found


def test_an_entry_is_found_by_another_machine_with_its_files(machine: Machine) -> None:
    assert machine("second").find(KEY) is None
    write(machine("first"))
    place = machine("second").find(KEY)
    assert place is not None
    assert place.is_relative_to(machine("second").root)
    assert (place / "files" / "model.cc").read_text() == "mademade"
    assert Store(machine("second").root).state(KEY) == "whole", "the mirror is a store by itself"


def test_an_entry_is_not_there_before_its_listing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = machine("first"), machine("second")

    def break_off(*_: object, **__: object) -> None:
        assert second.find(KEY) is None
        raise ConnectionResetError("the cable")

    with monkeypatch.context() as patched:
        patched.setattr(there(first), "pipe_file", break_off)
        with pytest.raises(StoreError, match="can't be used") as caught:
            write(first)
    assert "the cable" in caught.value.cause
    assert there(first).exists(blob(first, "made")), "contents had gone up"
    assert second.state(KEY) == "missing"


def test_an_upload_that_broke_off_is_made_up_for(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    first = machine("first")
    with monkeypatch.context() as patched:
        patched.setattr(there(first), "put_file", lambda *_, **__: 1 / 0)
        with pytest.raises(StoreError):
            write(first)
    assert first.find(KEY) is not None, "the mirror holds it"
    assert machine("second").find(KEY) is not None


def test_an_error_inside_the_block_leaves_nothing_anywhere(machine: Machine) -> None:
    def stage() -> None:
        with machine("first").writing(KEY, "never"):
            raise ValueError("of the stage")

    with pytest.raises(ValueError, match="of the stage"):
        stage()
    assert machine("first").state(KEY) == machine("second").state(KEY) == "missing"


def truncate(store: SharedStore) -> None:
    there(store).pipe_file(blob(store, "made"), b"mad")


def replace_contents(store: SharedStore) -> None:
    there(store).pipe_file(blob(store, "mademade"), b"something else")


def lose_contents(store: SharedStore) -> None:
    there(store).rm_file(blob(store, "made"))


def lie_about_the_key(store: SharedStore) -> None:
    put(store, listing(store) | {"key": OTHER_KEY})


def leave_the_folder(store: SharedStore) -> None:
    found = listing(store)
    put(store, found | {"files": {"../../stray": found["files"]["model.tflite"]}})


def name_an_absolute_path(store: SharedStore) -> None:
    put(store, listing(store) | {"files": {"/tmp/stray": "0" * 64}})  # noqa: S108 - never written


def name_its_own_listing(store: SharedStore) -> None:
    put(store, listing(store) | {"files": {ENTRY: "0" * 64}})


def omit_the_description(store: SharedStore) -> None:
    put(store, {name: value for name, value in listing(store).items() if name != "description"})


def give_no_digest(store: SharedStore) -> None:
    put(store, listing(store) | {"files": {"model.tflite": "../../etc"}})


def write_text(text: bytes) -> Callable[[SharedStore], None]:
    return lambda store: there(store).pipe_file(store._marker(KEY), text)


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        replace_contents,
        lose_contents,
        lie_about_the_key,
        leave_the_folder,
        name_an_absolute_path,
        name_its_own_listing,
        give_no_digest,
        omit_the_description,
        *map(write_text, [b"", b"{", b"null", b"[]", b'{"key": 1, "files": []}']),
    ],
)
def test_a_damaged_or_foreign_entry_is_named_retracted_and_made_again(
    machine: Machine, damage: Callable[[SharedStore], None], tmp_path: Path
) -> None:
    write(machine("first"))
    damage(machine("first"))
    assert machine("second").faults(KEY)
    assert machine("second").state(KEY) == "missing", "for everyone from here on"
    assert not list(machine("second").root.rglob("model.*"))
    assert not list(tmp_path.rglob("stray*"))
    write(machine("second"))
    place = machine("third").find(KEY)
    assert place is not None
    assert (place / "model.tflite").read_text() == "made"


def test_a_fault_names_the_file(machine: Machine) -> None:
    write(machine("first"))
    truncate(machine("first"))
    assert machine("second").faults(KEY) == ("model.tflite has changed",)


def test_a_damaged_mirror_is_mended_from_the_shared_store(machine: Machine) -> None:
    (write(machine("first")) / "model.tflite").write_text("scratched")
    assert machine("first").find(KEY) is not None
    assert (machine("first").place(KEY) / "model.tflite").read_text() == "made"


def test_what_others_made_differently_is_what_holds(machine: Machine) -> None:
    write(machine("first"), content="mine")
    there(machine("first")).rm_file(machine("first")._marker(KEY))
    write(machine("second"), content="theirs")
    assert machine("first").find(KEY) is not None
    assert (machine("first").place(KEY) / "model.tflite").read_text() == "theirs"


def test_what_is_whole_here_and_there_is_not_downloaded_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(machine("first"))
    monkeypatch.setattr(there(machine("first")), "get_file", lambda *_, **__: pytest.fail("nothing to fetch"))
    assert machine("first").find(KEY) is not None


def test_a_session_writes_and_finds_through_the_url(machine: Machine) -> None:
    with session(machine("first"), [KEY]) as opened:
        assert isinstance(opened, SharedStore)
        write(opened)
    assert machine("second").find(KEY) is not None


def test_keys_do_not_mix_and_equal_contents_lie_there_once(machine: Machine) -> None:
    write(machine("first"), KEY, "one")
    write(machine("first"), OTHER_KEY, "one")
    assert len(there(machine("first")).find(f"{machine('first').url}/blobs")) == 2
    assert machine("second").find(KEY) is not None
    assert machine("second").find(OTHER_KEY) is not None


def test_a_bucket_that_is_not_there_says_so(
    bucket: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match="s3://nobodys/x can't be used") as caught:
        write(SharedStore(root=tmp_path, url="s3://nobodys/x"))
    assert CACHE_VARIABLE in caught.value.action


# Where the variable leads


def test_the_variable_names_a_folder_or_a_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert default_store() == Store(tmp_path)
    monkeypatch.setenv(CACHE_VARIABLE, f"file://{tmp_path}")
    assert default_store() == Store(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(CACHE_VARIABLE, "memory://shared")
    found = default_store()
    assert isinstance(found, SharedStore)
    assert found.url == "memory://shared"
    assert found.root.is_relative_to(tmp_path)
    monkeypatch.setenv(CACHE_VARIABLE, "memory://other")
    assert default_store().root != found.root


@pytest.mark.parametrize("url", ["sftp://host/folder", "http://host/folder", "nonsense://x"])
def test_what_is_no_object_store_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, url)
    with pytest.raises(ConfigError, match="no object store"):
        default_store()


def test_without_the_package_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, "memory://x")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(ToolMissingError) as caught:
        default_store()
    assert "pip install" in caught.value.action
    assert exit_code(caught.value) == 9


def test_a_digest_in_the_listing_is_that_of_the_file(machine: Machine) -> None:
    place = write(machine("first"))
    assert listing(machine("first"))["files"]["model.tflite"] == digest_file(place / "model.tflite")
