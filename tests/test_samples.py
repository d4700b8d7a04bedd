"""Representative data: what is loaded, what is refused and why, and how it finds the model's inputs."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from edgebuild.calibration.checks import InputSpec, check, labels, match
from edgebuild.calibration.errors import DataError
from edgebuild.calibration.samples import Arrays, call, choose, load

IMAGE = InputSpec(name="image", shape=(2, 3), dtype="float32")
SCALAR = InputSpec(name="scale", shape=(), dtype="float32")
IMAGES = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
FLOAT32_MAX = float(np.finfo(np.float32).max)


class Trap:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def trapped(path: Path) -> NDArray[Any]:
    return np.array([Trap(path)], dtype=object)


def module(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(f"import numpy as np\n\n{text}\n")
    monkeypatch.syspath_prepend(str(folder))


def spec(name: str = "x", shape: tuple[int, ...] = (), dtype: str = "float32") -> InputSpec:
    return InputSpec(name=name, shape=shape, dtype=dtype)


# Loading files


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_gives_its_numeric_arrays_by_name(tmp_path: Path, save: Any) -> None:
    path = tmp_path / "data.npz"
    save(path, image=IMAGES, labels=np.arange(4), flag=np.array([True, False]))
    loaded = load(path)
    assert set(loaded) == {"image", "labels", "flag"}
    np.testing.assert_array_equal(loaded["image"], IMAGES)
    assert loaded["image"].dtype == np.float32


def test_folder_gives_each_npy_by_its_stem(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", IMAGES)
    np.save(tmp_path / "labels.npy", np.arange(4))
    (tmp_path / "README.md").write_text("not an array")
    loaded = load(tmp_path)
    assert set(loaded) == {"image", "labels"}
    np.testing.assert_array_equal(loaded["labels"], np.arange(4))


def test_pickled_arrays_of_an_npz_are_left_out_and_run_nothing(tmp_path: Path) -> None:
    path, made = tmp_path / "data.npz", tmp_path / "made-by-unpickling"
    np.savez(path, trap=trapped(made), image=IMAGES)
    assert set(load(path)) == {"image"}
    assert not made.exists()


def test_pickled_arrays_of_a_folder_are_left_out_and_run_nothing(tmp_path: Path) -> None:
    folder, made = tmp_path / "data", tmp_path / "made-by-unpickling"
    folder.mkdir()
    np.save(folder / "trap.npy", trapped(made), allow_pickle=True)
    np.save(folder / "image.npy", IMAGES)
    assert set(load(folder)) == {"image"}
    assert not made.exists()


def test_the_trap_would_have_sprung(tmp_path: Path) -> None:
    path, made = tmp_path / "trap.npy", tmp_path / "made-by-unpickling"
    np.save(path, trapped(made), allow_pickle=True)
    np.load(path, allow_pickle=True)
    assert made.is_dir()


def test_text_and_complex_arrays_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, image=IMAGES, names=np.array(["cat", "dog"]), raw=np.array([b"a"]), wave=np.array([1j]))
    assert set(load(path)) == {"image"}


def test_members_that_are_no_arrays_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, image=IMAGES)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("README.txt", "how this was recorded")
    assert set(load(path)) == {"image"}


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive at all", b"\x80\x04N."])
def test_what_is_no_npz_inside_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"data\.npz can't be read as \.npz") as caught:
        load(path)
    assert caught.value.cause
    assert caught.value.action == "write it again with numpy.savez"


def test_an_npy_that_is_called_npz_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", IMAGES)
    path = (tmp_path / "data.npy").rename(tmp_path / "data.npz")
    with pytest.raises(DataError) as caught:
        load(path)
    assert "one array" in caught.value.cause


def test_a_missing_npz_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't be read"):
        load(tmp_path / "absent.npz")


@pytest.mark.parametrize("content", [b"", b"no array at all", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', (("])
def test_a_broken_npy_in_a_folder_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "image.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"image\.npy can't be read as \.npy"):
        load(tmp_path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_archives_load_or_are_refused_but_never_crash(tmp_path: Path, save: Any) -> None:
    path = tmp_path / "data.npz"
    save(path, image=IMAGES, labels=np.arange(4))
    whole, refused = path.read_bytes(), 0
    for seed in range(400):
        path.write_bytes(damaged(whole, np.random.default_rng(seed)))
        try:
            load(path)
        except DataError:
            refused += 1
    assert refused > 100  # Most damage shows; what hits padding does not.


def damaged(whole: bytes, chance: np.random.Generator) -> bytes:
    if chance.random() < 0.3:
        return whole[: chance.integers(len(whole))]
    changed = np.frombuffer(whole, np.uint8).copy()
    count = chance.choice([1, 2, 8])
    changed[chance.integers(len(changed), size=count)] = chance.integers(256, size=count)
    return changed.tobytes()


@pytest.mark.parametrize("name", ["data.csv", "data", "data.npy"])
def test_other_paths_are_no_data(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"1,2,3")
    with pytest.raises(DataError, match="is no data edgebuild reads") as caught:
        load(tmp_path / name)
    assert "package.module:function" in caught.value.cause


# Calling the user's function


def test_function_may_return_whole_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "def give(): return {'image': np.ones((4, 2, 3)), 'labels': [0, 1, 2, 3]}"
    module(tmp_path, monkeypatch, "whole_arrays", text)
    given_arrays = call("whole_arrays:give")
    assert {name: array.shape for name, array in given_arrays.items()} == {"image": (4, 2, 3), "labels": (4,)}


def test_function_may_yield_batches_which_are_joined_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "def give():\n    for i in range(3):\n        yield {'x': np.full((i + 1, 2), i)}"
    module(tmp_path, monkeypatch, "batches", text)
    assert call("batches:give")["x"][:, 0].tolist() == [0, 1, 1, 2, 2, 2]


def test_function_may_live_in_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recordings").mkdir()
    (tmp_path / "recordings" / "__init__.py").touch()
    module(tmp_path / "recordings", monkeypatch, "speech", "def give(): return {'x': np.ones(2)}")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert call("recordings.speech:give")["x"].tolist() == [1, 1]


def test_what_a_function_gives_beside_numbers_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "def give(): return {'x': np.ones(2), 'files': ['a.wav', 'b.wav'], 'extra': [None, None]}"
    module(tmp_path, monkeypatch, "beside_numbers", text)
    assert set(call("beside_numbers:give")) == {"x"}


@pytest.mark.parametrize(
    ("text", "claim"),
    [
        ("give = 5", "is not a function"),
        ("def give(): raise KeyError('no microphone')", "KeyError: 'no microphone'"),
        ("def give():\n    yield {'x': np.ones((1, 2))}\n    raise OSError('disc gone')", "OSError: disc gone"),
        ("def give(): pass", "give failed"),
        ("def give(needed): pass", "TypeError"),
        ("def give(): return []", "dicts that all hold the same arrays"),
        ("def give(): return [np.ones(2)]", "dicts that all hold the same arrays"),
        ("def give(): return [{'x': np.ones(2)}, {'y': np.ones(2)}]", "dicts that all hold the same arrays"),
        ("def give(): return [{'x': np.ones((2, 3))}, {'x': np.ones((2, 4))}]", "batches can't be joined"),
        ("def give(): return {'x': [[1, 2], [3]]}", "'x' is no array"),
        ("def give(): return {'x': 3.0}", "'x' is no array"),
        ("def give(: pass", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("import no_such_package", "no_such_package"),
        ("", "there is no function"),
    ],
)
def test_functions_that_give_no_data_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, text: str, claim: str
) -> None:
    name = f"broken_{request.node.callspec.indices['text']}"
    module(tmp_path, monkeypatch, name, text)
    with pytest.raises(DataError) as caught:
        call(f"{name}:give")
    assert claim in str(caught.value)
    assert name in caught.value.what


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(DataError, match="there is no function no_such_module:give") as caught:
        call("no_such_module:give")
    assert "beside edgebuild.yaml" in caught.value.action


# Choosing rows


def test_choose_keeps_all_where_there_are_no_more() -> None:
    arrays: Arrays = {"x": np.arange(5)}
    assert choose(arrays, None) is arrays
    assert choose(arrays, 5) is arrays
    assert choose(arrays, 9) is arrays


def test_choose_takes_every_class_of_sorted_data_alike() -> None:
    classes = np.repeat(np.arange(10), 50)
    chosen = choose({"x": classes * 2, "labels": classes}, 100)
    assert np.bincount(chosen["labels"]).tolist() == [10] * 10
    np.testing.assert_array_equal(chosen["x"], chosen["labels"] * 2)


@given(rows=st.integers(1, 500), count=st.integers(1, 500))
def test_choose_gives_distinct_rows_in_order_and_evenly_apart(rows: int, count: int) -> None:
    chosen = choose({"x": np.arange(rows)}, count)["x"]
    assert len(chosen) == min(rows, count)
    steps = np.diff(chosen)
    assert (steps > 0).all()
    assert len(steps) == 0 or steps.max() - steps.min() <= 1


def test_choose_spans_the_data() -> None:
    chosen = choose({"x": np.arange(100)}, 7)["x"]
    assert (chosen[0], chosen[-1]) == (0, 99)


# Doubting


@pytest.mark.parametrize(("value", "word"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_check_names_source_array_and_first_bad_index(value: float, word: str, dtype: str) -> None:
    images = np.zeros((4, 2, 3), dtype)
    images[1, 0, 2] = images[3, 1, 1] = value
    with pytest.raises(DataError) as caught:
        check({"image": images}, "calibration.npz")
    assert caught.value.what == f"calibration.npz: array 'image' holds {word} at index [1, 0, 2]"
    assert caught.value.cause.startswith("2 of 24 values")


def test_check_passes_sound_data_of_every_kind() -> None:
    check({"f": np.ones(3), "i": np.ones(3, np.int64), "b": np.ones(3, bool)}, "calibration.npz")


@pytest.mark.parametrize(
    ("arrays", "claim"),
    [
        ({}, "holds no numeric array"),
        ({"x": np.zeros((0, 2))}, "array 'x' is empty"),
        ({"x": np.array(3.0)}, "array 'x' is empty"),
        ({"x": np.zeros(3), "labels": np.zeros(4)}, "'x' 3, 'labels' 4"),
    ],
)
def test_check_refuses_missing_and_unequal_samples(arrays: Arrays, claim: str) -> None:
    with pytest.raises(DataError) as caught:
        check(arrays, "calibration.npz")
    assert caught.value.what.startswith("calibration.npz")
    assert claim in caught.value.what


# Matching


def test_match_goes_by_name_where_the_file_has_another_order() -> None:
    left, right = np.full((3, 2), 1.0, np.float32), np.full((3, 2), 2.0, np.float32)
    inputs = [spec("left", (2,)), spec("right", (2,))]
    matched = match({"right": right, "labels": np.zeros(3), "left": left}, inputs, "data.npz")
    assert list(matched) == ["left", "right"]
    np.testing.assert_array_equal(matched["left"], left)
    np.testing.assert_array_equal(matched["right"], right)


@given(names=st.permutations(["a", "b", "c", "labels"]))
def test_match_does_not_depend_on_the_order_of_arrays(names: list[str]) -> None:
    values = {"a": 1.0, "b": 2.0, "c": 3.0, "labels": 4.0}
    matched = match({name: np.full(2, values[name]) for name in names}, [spec(n) for n in "cab"], "data.npz")
    assert {name: array.tolist() for name, array in matched.items()} == {"c": [3, 3], "a": [1, 1], "b": [2, 2]}


def test_a_single_input_takes_the_single_array_whatever_its_name() -> None:
    matched = match({"whatever": IMAGES, "labels": np.zeros(4)}, [IMAGE], "data.npz")
    np.testing.assert_array_equal(matched["image"], IMAGES)


def test_a_single_input_among_several_arrays_goes_by_name() -> None:
    matched = match({"other": IMAGES + 1, "image": IMAGES}, [IMAGE], "data.npz")
    np.testing.assert_array_equal(matched["image"], IMAGES)


@pytest.mark.parametrize("there", [("front", "back"), ("front",), ()])
def test_a_missing_name_lists_what_there_is(there: tuple[str, ...]) -> None:
    inputs = [IMAGE, SCALAR]
    with pytest.raises(DataError, match=r"data\.npz holds no array for the model's input 'image'") as caught:
        match(dict.fromkeys(there, IMAGES), inputs, "data.npz")
    assert all(repr(name) in caught.value.cause for name in there)
    assert there or "no input at all" in caught.value.cause
    assert "[N, 2, 3]" in caught.value.action


@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        ((2, 3), "the batch dimension is missing"),
        ((4, 6), "the axes are flattened or in another order"),
        ((4, 3, 2), "the axes are flattened or in another order"),
        ((4, 2, 4), ""),
    ],
)
def test_a_wrong_shape_comes_with_a_hint(shape: tuple[int, ...], hint: str) -> None:
    with pytest.raises(DataError) as caught:
        match({"image": np.zeros(shape)}, [IMAGE], "data.npz")
    assert caught.value.what == f"data.npz: array 'image' has shape {list(shape)}, the model's input takes [N, 2, 3]"
    assert caught.value.cause == hint or (hint and caught.value.cause.endswith(hint))


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.array([0.1, -2.5]), "float32"),
        (np.array([1e-300]), "float32"),
        (np.array([0, 255], np.uint8), "float32"),
        (np.array([True, False]), "float32"),
        (np.array([-7, 2**31 - 1]), "int32"),
        (np.array([3.0, -4.0]), "int32"),
        (np.array([0, 255]), "uint8"),
    ],
)
def test_casts_that_keep_values_are_made(values: NDArray[Any], dtype: str) -> None:
    cast = match({"x": values}, [spec(dtype=dtype)], "data.npz")["x"]
    assert cast.dtype == dtype
    np.testing.assert_array_equal(cast, values.astype(np.float32) if dtype == "float32" else values)


@pytest.mark.parametrize(
    ("values", "dtype", "first"),
    [
        (np.array([1.0, 0.5]), "int32", "0.5 at index [1]"),
        (np.array([1.0, 1e300]), "float32", "1e+300 at index [1]"),
        (np.array([2**40, 1]), "int32", f"{2**40} at index [0]"),
        (np.array([0, 2**24 + 1]), "float32", f"{2**24 + 1} at index [1]"),
        (np.array([1.0, 1e300]), "int32", "1e+300 at index [1]"),
        (np.array([256]), "uint8", "256 at index [0]"),
        (np.array([2**63 - 1]), "float32", f"{2**63 - 1} at index [0]"),
        # As many bits on both sides, so the way back wraps to the value that was.
        (np.array([3, -1], np.int8), "uint8", "-1 at index [1]"),
        (np.array([200], np.uint8), "int8", "200 at index [0]"),
        (np.array([2**32 - 1], np.uint32), "int32", f"{2**32 - 1} at index [0]"),
        (np.array([2**64 - 1], np.uint64), "int64", f"{2**64 - 1} at index [0]"),
    ],
)
def test_casts_that_would_change_a_value_name_it(values: NDArray[Any], dtype: str, first: str) -> None:
    with pytest.raises(DataError) as caught:
        match({"x": values}, [spec(dtype=dtype)], "data.npz")
    assert caught.value.what.endswith(f"is {values.dtype} and does not fit the input's {dtype}")
    assert caught.value.cause == f"the first value that would change is {first}"


@given(npst.arrays(np.float64, st.integers(1, 20), elements=st.floats(-FLOAT32_MAX, FLOAT32_MAX)))
def test_float64_within_float32s_range_always_fits(values: NDArray[np.float64]) -> None:
    cast = match({"x": values}, [spec()], "data.npz")["x"]
    np.testing.assert_array_equal(cast, values.astype(np.float32))


@given(
    values=st.sampled_from(["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64"]).flatmap(
        lambda dtype: npst.arrays(dtype, st.integers(1, 5))
    ),
    dtype=st.sampled_from(["int8", "uint8", "int16", "uint16", "int32", "uint32"]),
)
def test_integers_are_cast_exactly_or_refused(values: NDArray[Any], dtype: str) -> None:
    limits = np.iinfo(dtype)
    fits = all(limits.min <= int(value) <= limits.max for value in values)
    try:
        cast = match({"x": values}, [spec(dtype=dtype)], "data.npz")["x"]
    except DataError:
        assert not fits
    else:
        assert fits
        assert cast.tolist() == values.tolist()


# Labels


def test_labels_are_given_as_they_are() -> None:
    wanted = np.arange(4)
    assert labels({"x": IMAGES, "labels": wanted}, "data.npz") is wanted


def test_missing_labels_say_what_is_there() -> None:
    with pytest.raises(DataError, match="holds no array 'labels'") as caught:
        labels({"y": IMAGES, "x": IMAGES}, "data.npz")
    assert caught.value.cause == "it holds x, y"


def test_labels_that_are_text_are_refused_and_not_left_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros(2), labels=np.array(["yes", "no"]))
    with pytest.raises(DataError, match=r"data\.npz: `labels` holds no numbers"):
        load(tmp_path / "data.npz")


def test_an_array_that_may_be_the_labels_is_named() -> None:
    for refused in (lambda given: match(given, [IMAGE], "data.npz"), lambda given: labels(given, "data.npz")):
        with pytest.raises(DataError) as caught:
            refused({"x": IMAGES, "y": np.arange(4)})
        assert caught.value.action.endswith("; if 'y' holds the labels, name it 'labels'")
