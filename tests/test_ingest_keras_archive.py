"""A .keras archive is data from anywhere: what is broken, hostile or lying is refused, quickly, and never runs."""

from __future__ import annotations

import io
import json
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest import load
from edgebuild.pipeline.ingest.keras import archive as keras_archive
from edgebuild.pipeline.ingest.source import Options

SECONDS = 60.0  # What hangs takes for ever; the slowest of these takes one on an idle machine.
pytestmark = pytest.mark.timeout(SECONDS, func_only=True)
Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("archive") / "whole.keras"
    stack = [keras.Input((4,), name="features"), layers.Dense(3, name="first"), layers.Dense(2, name="second")]
    keras.Sequential(stack).save(path)
    return path


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(path: Path, parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


def with_config(whole: Path, path: Path, change: Change) -> Path:
    parts = members(whole)
    config = json.loads(parts["config.json"])
    change(config)
    return packed(path, parts | {"config.json": json.dumps(config).encode()})


def with_weights(whole: Path, path: Path, change: Callable[[Any], None]) -> Path:
    parts = members(whole)
    buffer = io.BytesIO(parts["model.weights.h5"])
    with h5py.File(buffer, "r+") as file:
        change(file)
    return packed(path, parts | {"model.weights.h5": buffer.getvalue()})


def refusal(path: Path, options: Options | None = None) -> ModelError:
    with pytest.raises(ModelError) as raised:
        load.read(path, options or Options())
    assert str(path) in raised.value.what
    assert raised.value.cause
    assert raised.value.action
    return raised.value


def test_the_archive_all_others_are_made_from_is_read(whole: Path) -> None:
    assert load.read(whole).model.count_params() == 23


def test_refuses_random_bytes(tmp_path: Path) -> None:
    path = tmp_path / "noise.keras"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    assert "no whole .keras archive" in refusal(path).what


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_refuses_truncated_archives(share: float, whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.keras"
    path.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])
    assert "no whole .keras archive" in refusal(path).what


@pytest.mark.parametrize("place", range(40, 4000, 440))
def test_a_flipped_byte_never_gets_through_as_anything_but_a_refusal(place: int, whole: Path, tmp_path: Path) -> None:
    data = bytearray(whole.read_bytes())
    data[place] ^= 0xFF
    path = tmp_path / "flipped.keras"
    path.write_bytes(data)
    refusal(path)


@pytest.mark.parametrize("name", ["config.json", "metadata.json", "model.weights.h5"])
def test_refuses_an_archive_that_lacks_a_member(name: str, whole: Path, tmp_path: Path) -> None:
    parts = members(whole)
    del parts[name]
    assert name in refusal(packed(tmp_path / "less.keras", parts)).cause


@pytest.mark.parametrize(
    "name", ["../evil.py", "/etc/evil", "assets/../../evil", "evil.py", "config.json.bak", "assets\\..\\evil", "a/b/c"]
)
def test_refuses_members_that_keras_does_not_write(name: str, whole: Path, tmp_path: Path) -> None:
    path = packed(tmp_path / "slip.keras", members(whole) | {name: b"evil"})
    assert "which Keras does not write" in refusal(path).cause


def test_refuses_a_member_that_is_a_link(whole: Path, tmp_path: Path) -> None:
    path = packed(tmp_path / "link.keras", members(whole))
    link = zipfile.ZipInfo("assets/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    assert "is a link" in refusal(path).cause


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_refuses_two_members_of_one_name(whole: Path, tmp_path: Path) -> None:
    path = packed(tmp_path / "two.keras", members(whole))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("config.json", "{}")
    assert "two members of one name" in refusal(path).cause


def test_refuses_more_members_than_any_model_has(whole: Path, tmp_path: Path) -> None:
    many = {f"assets/{i}": b"" for i in range(keras_archive._MAX_MEMBERS)}
    assert "members" in refusal(packed(tmp_path / "many.keras", members(whole) | many)).cause


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5", "assets/zeros"])
def test_refuses_a_zip_bomb_before_it_is_unpacked(name: str, whole: Path, tmp_path: Path) -> None:
    bomb = members(whole) | {name: bytes(200 * 2**20)}
    cause = refusal(packed(tmp_path / "bomb.keras", bomb, zipfile.ZIP_DEFLATED)).cause
    assert "209,715,200 bytes" in cause


def test_a_member_that_lies_about_its_size_is_refused(whole: Path, tmp_path: Path) -> None:
    path = packed(tmp_path / "liar.keras", members(whole) | {"config.json": bytes(10**6)}, zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    for size in (place for place in range(len(data)) if data[place : place + 4] == struct.pack("<I", 10**6)):
        data[size : size + 4] = struct.pack("<I", 1000)
    path.write_bytes(data)
    assert "no whole .keras archive" in refusal(path).what


def test_an_archive_that_was_compressed_afterwards_is_read(whole: Path, tmp_path: Path) -> None:
    path = packed(tmp_path / "small.keras", members(whole), zipfile.ZIP_DEFLATED)
    assert load.read(path).model.count_params() == 23


@pytest.mark.parametrize(
    "text", [b"{", b"\xff\xfe", b"[" * 60_000, b'{"a":' * 60_000], ids=["cut", "no text", "[[", "{{"]
)
@pytest.mark.parametrize("name", ["config.json", "metadata.json"])
def test_refuses_damaged_json(name: str, text: bytes, whole: Path, tmp_path: Path) -> None:
    assert name in refusal(packed(tmp_path / "bad.keras", members(whole) | {name: text})).cause


@pytest.mark.parametrize("text", [b"3", b"{}", b'{"keras_version": 3}'])
def test_refuses_metadata_that_names_no_writer(text: bytes, whole: Path, tmp_path: Path) -> None:
    parts = members(whole) | {"metadata.json": text}
    assert "which Keras wrote it" in refusal(packed(tmp_path / "anonymous.keras", parts)).cause


@pytest.mark.parametrize("text", [b"3", b"[]", b"{}", b'"text"', b'{"class_name": "Sequential"}'])
def test_refuses_a_configuration_that_is_no_model(text: bytes, whole: Path, tmp_path: Path) -> None:
    path = packed(tmp_path / "no.keras", members(whole) | {"config.json": text})
    assert "can't be loaded by Keras 3" in refusal(path).what


def dense(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the first dense layer."""
    found: dict[str, Any] = config["config"]["layers"][1]["config"]
    return found


def test_refuses_deep_nesting_before_keras_walks_into_it(whole: Path, tmp_path: Path) -> None:
    def nest(config: dict[str, Any]) -> None:
        inner: dict[str, Any] = {}
        for _ in range(300):
            inner = {"inner": inner}
        dense(config)["kernel_regularizer"] = inner

    assert "nested deeper" in refusal(with_config(whole, tmp_path / "deep.keras", nest)).what


def test_refuses_models_that_multiply(whole: Path, tmp_path: Path) -> None:
    def multiply(config: dict[str, Any]) -> None:
        inner: dict[str, Any] = {"class_name": "ReLU", "module": "keras.layers", "config": {"name": "leaf"}}
        for i in range(24):
            twice = inner | {"inbound_nodes": [{"args": [], "kwargs": {}}] * 2}
            model = {"name": f"m{i}", "layers": [twice]}
            inner = {"class_name": "Functional", "module": "keras.src.models.functional", "config": model}
        config["config"]["layers"].append(inner)

    assert "more than 100,000 layers" in refusal(with_config(whole, tmp_path / "many.keras", multiply)).what


@pytest.mark.parametrize("units", [2**40, 2**31, 2**27])
def test_refuses_huge_layers_before_they_are_allocated(units: int, whole: Path, tmp_path: Path) -> None:
    path = with_config(whole, tmp_path / "huge.keras", lambda config: dense(config).update(units=units))
    refused = refusal(path)
    assert "more weights than the file holds" in refused.what or "can't be loaded" in refused.what


def test_refuses_a_huge_input(whole: Path, tmp_path: Path) -> None:
    def widen(config: dict[str, Any]) -> None:
        config["config"]["layers"] = [config["config"]["layers"][0]]
        config["config"]["layers"][0]["config"]["batch_shape"] = [None, 2**40]
        repeat = {"class_name": "Flatten", "module": "keras.layers", "config": {"name": "flat"}}
        config["config"]["layers"].append(repeat)

    with pytest.raises(ModelError, match="gives a tensor of shape"):
        load.read(with_config(whole, tmp_path / "wide.keras", widen))


@pytest.mark.parametrize(
    ("layer", "word"),
    [
        ({"class_name": "system", "module": "os", "config": {"name": "x"}}, "from os"),
        ({"class_name": "Popen", "module": "subprocess", "config": {"name": "x"}}, "from subprocess"),
        ({"class_name": "get_file", "module": "keras.utils", "config": {"name": "x"}}, "from keras.utils"),
        ({"class_name": "get_file", "module": "keras.src.layers", "config": {"name": "x"}}, "own class get_file"),
        ({"class_name": "function", "module": "builtins", "config": "eval"}, "from builtins"),
        ({"class_name": "load_model", "module": "keras.saving", "config": {}}, "from keras.saving"),
        (
            {"class_name": "Mine", "module": "mine", "registered_name": "pkg>Mine", "config": {"name": "x"}},
            "give --custom mine",
        ),
        ({"class_name": "TFSMLayer", "module": "keras.layers", "config": {"name": "x"}}, "TFSMLayer"),
        (
            {
                "class_name": "StringLookup",
                "module": "keras.layers",
                "config": {"name": "x", "vocabulary": "/etc/passwd"},
            },
            "/etc/passwd",
        ),
        (
            {"class_name": "Dense", "module": "keras.layers", "config": {"activation": {"class_name": "__lambda__"}}},
            "Lambda",
        ),
    ],
)
def test_refuses_configurations_that_name_foreign_code(
    layer: dict[str, Any], word: str, whole: Path, tmp_path: Path
) -> None:
    path = with_config(whole, tmp_path / "named.keras", lambda config: config["config"]["layers"].append(layer))
    assert word in str(refusal(path))


def test_no_option_lets_a_model_name_modules_by_itself(whole: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "danger.py").write_text(f"open({str(trace)!r}, 'w').close()")
    layer = {"class_name": "Mine", "module": "danger", "registered_name": "pkg>Mine", "config": {"name": "x"}}
    path = with_config(whole, tmp_path / "named.keras", lambda config: config["config"]["layers"].append(layer))
    refusal(path, Options(trust_code=True))
    assert not trace.exists()


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "data", (4,))  # noqa: S108 - never opened
    file.create_virtual_dataset("virtual", layout)


HOSTILE_WEIGHTS: dict[str, Callable[[Any], None]] = {
    "an external link": lambda file: file.__setitem__("out", h5py.ExternalLink("/etc/passwd", "/")),
    "a soft link": lambda file: file.__setitem__("soft", h5py.SoftLink("/layers")),
    "external storage": lambda file: file.create_dataset("out", (8,), "u1", external=[("/etc/passwd", 0, 8)]),
    "a virtual dataset": virtual,
    "a size it does not hold": lambda file: file.create_dataset("huge", (2**40,), "f4", chunks=(2**10,)),
}


@pytest.mark.parametrize("change", HOSTILE_WEIGHTS.values(), ids=HOSTILE_WEIGHTS.keys())
def test_refuses_weights_that_reach_outside_or_lie(change: Callable[[Any], None], whole: Path, tmp_path: Path) -> None:
    assert "no honest model file" in refusal(with_weights(whole, tmp_path / "hostile.keras", change)).what


@pytest.mark.parametrize("change", HOSTILE_WEIGHTS.values(), ids=HOSTILE_WEIGHTS.keys())
def test_refuses_h5_files_that_reach_outside_or_lie(change: Callable[[Any], None], whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "hostile.h5"
    keras.models.load_model(whole).save(path)
    with h5py.File(path, "r+") as file:
        change(file)
    assert "no honest model file" in refusal(path).what


def test_groups_in_a_circle_are_walked_once(whole: Path, tmp_path: Path) -> None:
    def circle(file: Any) -> None:
        file["layers"]["again"] = file["/"]

    load.read(with_weights(whole, tmp_path / "circle.keras", circle))


def test_refuses_a_call_whose_arguments_are_none(tmp_path: Path) -> None:
    """Keras 3 believes them until it runs the layer."""
    image = keras.Input((4,), name="image")
    path = tmp_path / "masked.keras"
    keras.Model(image, layers.BatchNormalization(name="normal")(image)).save(path)

    def change(config: dict[str, Any]) -> None:
        config["config"]["layers"][1]["inbound_nodes"][0]["kwargs"]["mask"] = 1

    assert "can't be loaded and run by Keras 3" in refusal(with_config(path, path, change)).what
