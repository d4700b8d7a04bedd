"""`edgebuild verify`: what is not as the manifest says is found and named, and what is passes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Build, Ended, edgebuild, listing

from edgebuild.pipeline import demo, publish, verification
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.storage.digests import digest_file
from edgebuild.pipeline.storage.store import ENTRY, Store

Run = Callable[..., Ended]


@pytest.fixture
def out(digits: Build, tmp_path: Path) -> Path:
    """A build's folder of the test's own."""
    return Path(shutil.copytree(digits.out, tmp_path / "build"))


def found(out: Path) -> list[str]:
    verified = verification.verify(out)
    assert verified.exit_code == (3 if verified.failures else 0)
    assert all(failure.action for failure in verified.failures)
    return [failure.what for failure in verified.failures]


def rewrite(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_bytes())
    change(content)
    path.write_text(json.dumps(content))


# By digest


def test_a_build_is_what_its_manifest_says(digits: Build, run: Run) -> None:
    ended = run("verify", "build", cwd=digits.folder)
    assert ended.code == 0, ended.stderr
    assert ended.stdout == "build: 14 files match the manifest\n"
    assert ended.stderr == ""


def test_needs_neither_the_configuration_nor_the_model(out: Path) -> None:
    assert listing(out.parent) == [f"build/{path}" for path in listing(out)]
    assert found(out) == []


@pytest.mark.parametrize("path", ["cpu/model.tflite", "gpu/placement.json", "mcu/model.cc"])
def test_one_changed_bit_is_found(out: Path, path: str) -> None:
    content = bytearray((out / path).read_bytes())
    content[len(content) // 2] ^= 1
    (out / path).write_bytes(content)
    assert found(out) == [f"{path} has changed since the build"]


def test_a_missing_file_is_found(out: Path) -> None:
    (out / "mcu/model.h").unlink()
    assert found(out) == ["mcu/model.h is missing"]


def test_a_missing_target_is_found_file_by_file(out: Path) -> None:
    shutil.rmtree(out / "gpu")
    assert found(out) == ["gpu/model.tflite is missing", "gpu/placement.json is missing"]


def test_a_file_of_no_build_is_found_where_artifacts_lie_and_is_the_users_own_beside_them(out: Path) -> None:
    (out / "junit.xml").write_text("a report that the user keeps here")
    (out / "cpu/model_v2.tflite").write_bytes(b"TFL3")
    (out / "npu").mkdir()
    (out / "npu/model.tflite").symlink_to("nowhere")
    (out / "gpu/more").symlink_to(out.parent, target_is_directory=True)
    assert found(out) == [
        "cpu/model_v2.tflite is not of this build",
        "gpu/more is not of this build",
        "npu/model.tflite is not of this build",
    ]


def test_everything_that_is_wrong_is_told_at_once(out: Path, run: Run) -> None:
    (out / "cpu/model.tflite").write_bytes(b"another")
    (out / "mcu/model.h").unlink()
    (out / "gpu/extra").touch()
    ended = run("verify", "build", cwd=out.parent)
    assert ended.code == 3
    for words in ("cpu/model.tflite has changed", "mcu/model.h is missing", "gpu/extra is not of this build"):
        assert f"mismatch: {words}" in ended.stderr
    assert ended.stdout == "build: 3 things do not match\n"


def test_a_manifest_that_was_made_to_fit_disagrees_with_report_and_statement(out: Path) -> None:
    (out / "cpu/model.tflite").write_bytes(b"another")
    digest = digest_file(out / "cpu/model.tflite")
    rewrite(out / "manifest.json", lambda content: content["outputs"].update({"cpu/model.tflite": digest}))
    assert found(out) == [
        "report.json describes another cpu/model.tflite than the manifest",
        "provenance.intoto.json states other digests than the manifest",
    ]


def test_a_report_of_another_build_is_found(out: Path) -> None:
    rewrite(out / "report.json", lambda content: content["targets"].pop("gpu"))
    assert found(out) == [
        "report.json does not describe gpu/model.tflite",
        "report.json does not describe gpu/placement.json",
    ]
    (out / "report.json").write_text("{")
    assert found(out) == ["report.json is missing, or is no report"]


def test_a_statement_that_is_none_is_found(out: Path) -> None:
    (out / "provenance.intoto.json").write_text("[]")
    assert found(out) == ["provenance.intoto.json is missing, or is no statement"]


@pytest.mark.parametrize("digest", ["0" * 64, None, ["0" * 64], {}])
def test_a_statement_that_says_more_or_something_else_is_found(out: Path, digest: object) -> None:
    again = {"name": "cpu/model.tflite", "digest": {"sha256": digest}}
    rewrite(out / "provenance.intoto.json", lambda content: content["subject"].insert(0, again))
    assert found(out) == ["provenance.intoto.json states other digests than the manifest"]


@pytest.mark.parametrize("path", ["../outside", "/etc/hostname"])
def test_a_manifest_never_leads_out_of_its_folder(out: Path, path: str) -> None:
    rewrite(out / "manifest.json", lambda content: content["outputs"].update({path: "0" * 64}))
    with pytest.raises(ConfigError, match="outside the folder"):
        verification.verify(out)


def test_a_build_that_made_nothing_proves_nothing(out: Path) -> None:
    rewrite(out / "manifest.json", lambda content: content["outputs"].clear())
    with pytest.raises(ConfigError, match="made no artifact"):
        verification.verify(out)


def test_a_folder_without_a_manifest_is_a_usage_error(tmp_path: Path, run: Run) -> None:
    for name in (".", "nowhere"):
        ended = run("verify", name, cwd=tmp_path)
        assert ended.code == 2
        assert "there is no manifest" in ended.stderr


def test_a_build_that_was_cut_short_is_told_as_one(out: Path) -> None:
    (out / "manifest.json").unlink()
    (out / publish._CLAIM).write_text("[]")
    with pytest.raises(ConfigError, match="unfinished") as caught:
        verification.verify(out)
    assert "build again" in caught.value.action


# By building again


GPU = "gpu/model.tflite"


@pytest.fixture(scope="module")
def gpu(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The demo built for one target, and a store that holds nothing else."""
    folder = tmp_path_factory.mktemp("gpu")
    demo.lay_out(folder / "demo")
    ended = edgebuild("-t", "gpu", "--seed", "7", cwd=folder / "demo", cache=folder / "cache")
    assert ended.code == 0, ended.stderr
    return folder / "demo", folder / "cache"


@pytest.fixture
def copied(gpu: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The same, to spoil."""
    for source in gpu:
        shutil.copytree(source, tmp_path / source.name)
    return tmp_path / "demo", tmp_path / "cache"


def key_of(folder: Path, title: str) -> str:
    stages = json.loads((folder / "build/manifest.json").read_bytes())["stages"]
    (key,) = (key for key, stage in stages.items() if stage["title"] == title)
    return str(key)


def test_a_rebuild_of_the_recorded_configuration_gives_the_same_bytes(gpu: tuple[Path, Path], tmp_path: Path) -> None:
    folder, cache = gpu
    (tmp_path / "tmp").mkdir()
    ended = edgebuild("verify", "build", "--rebuild", cwd=folder, cache=cache, TMPDIR=str(tmp_path / "tmp"))
    assert ended.code == 0, ended.stderr
    assert ended.stdout == "build: 2 files match the manifest and a rebuild\n"
    assert "since the build" not in ended.stderr, "the seed of the command line is in the record"
    assert "+ convert float16" in ended.stderr, "nothing came from the store"
    assert not list((tmp_path / "tmp").iterdir()), "the temporary store is gone"


def test_a_rebuild_finds_a_poisoned_entry_and_all_that_was_made_from_it(copied: tuple[Path, Path]) -> None:
    """A consistent forgery: the entry's own listing agrees with its files, and the build that used it is whole."""
    folder, cache = copied
    store, titles = Store(cache), ("convert float16", "verify float16", "package gpu")
    keys = [key_of(folder, title) for title in titles]
    model = store.place(keys[0]) / "model.tflite"
    model.write_bytes(model.read_bytes() + bytes(16))  # A flatbuffer's reader never looks behind its end.
    rewrite(store.place(keys[0]) / ENTRY, lambda entry: entry["files"].update({"model.tflite": digest_file(model)}))
    for key in keys[1:]:
        shutil.rmtree(store.place(key))
    assert edgebuild("-t", "gpu", "--seed", "7", cwd=folder, cache=cache).code == 0
    assert edgebuild("verify", "build", cwd=folder, cache=cache).code == 0, "digests alone can't tell"

    ended = edgebuild("verify", "build", "--rebuild", cwd=folder, cache=cache)
    assert ended.code == 3
    assert f"mismatch: {GPU}: a rebuild gives other bytes" in ended.stderr
    assert "'convert float16' made it; the first stage that gives other files is 'convert float16'" in ended.stderr
    poisoned, *others = ended.stderr.split("mismatch: the store's entry of ")[1:]
    assert poisoned.startswith("'convert float16' is not what the stage makes")
    assert f"key {keys[0]}: model.tflite differ\n" in poisoned
    assert f"remove the folder {store.place(keys[0])}" in poisoned
    assert all("made from 'convert float16'" in other for other in others)
    assert "'package gpu'" in {other.partition(" is not")[0] for other in others}


def test_inputs_that_changed_are_said_before_what_differs(copied: tuple[Path, Path]) -> None:
    folder, cache = copied
    (folder / "digits.h5").write_bytes(b"no model any more")
    ended = edgebuild("verify", "build", "--rebuild", cwd=folder, cache=cache)
    assert ended.code == 3
    assert ended.stderr.index("since the build: digits.h5 changed") < ended.stderr.index("error: ")
    assert "not a readable HDF5 file" in ended.stderr


def test_a_rebuild_needs_the_configurations_folder(gpu: tuple[Path, Path], tmp_path: Path) -> None:
    folder, cache = gpu
    shutil.copytree(folder / "build", tmp_path / "shipped")
    ended = edgebuild("verify", "shipped", "--rebuild", cwd=tmp_path, cache=cache)
    assert ended.code == 2
    assert "edgebuild.yaml" in ended.stderr
    assert "--config" in ended.stderr
