"""An ONNX file is looked at as data: what is damaged, too large, open or reaches outside is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_models import cnn, model, node, one, saved, weights

from edgebuild.export.errors import ModelError
from edgebuild.pipeline import source_task
from edgebuild.pipeline.ingest.onnx import check as onnx_check
from edgebuild.pipeline.ingest.source import Options


def look(made: Any, folder: Path, **shapes: tuple[int, ...]) -> onnx_check.Source:
    return onnx_check.look(saved(made, folder), shapes)


def external(location: str, data: bytes = b"") -> Any:
    """A model whose weights lie in a file, of that length."""
    made = one("Add", [1, 4], weights(1, 4))
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    if data:
        tensor.external_data.add(key="length", value=str(len(data)))
    return made


def test_an_open_first_axis_is_a_batch_of_one(tmp_path: Path) -> None:
    (image,) = look(cnn("N"), tmp_path).inputs
    assert (image.shape, image.batched) == ((1, 3, 8, 8), True)


def test_another_open_axis_is_named_with_the_option_that_fixes_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"input 'image' is open at axis 2") as refused:
        look(cnn("N", "S"), tmp_path)
    assert "--set 'model.input_shapes.image=[1, 3, N, N]'" in refused.value.action
    assert "--input-shape 'image=1,3,N,N'" in refused.value.action


def test_a_given_shape_fixes_open_axes(tmp_path: Path) -> None:
    (image,) = look(cnn("N", "S"), tmp_path, image=(1, 3, 8, 8)).inputs
    assert image.shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [({"image": (1, 4, 8, 8)}, "can't have the shape"), ({"picture": (1,)}, "has no input 'picture'")],
)
def test_a_given_shape_must_fit(tmp_path: Path, shapes: dict[str, tuple[int, ...]], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        look(cnn("N", "S"), tmp_path, **shapes)


def test_a_first_axis_of_more_than_one_is_no_batch(tmp_path: Path) -> None:
    (x,) = look(one("Relu", [3, 4]), tmp_path).inputs
    assert not x.batched


def test_constants_listed_as_inputs_are_none(tmp_path: Path) -> None:
    made = cnn()
    made.graph.input.extend([helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3, 3, 3])])
    assert [entry.name for entry in look(made, tmp_path).inputs] == ["image"]


def test_nodes_are_put_in_order(tmp_path: Path) -> None:
    made = model([node("Relu", ["a"], ["y"]), node("Neg", ["x"], ["a"])], {"x": [1, 4]}, ["y"])
    assert [found.op_type for found in look(made, tmp_path).model.graph.node] == ["Neg", "Relu"]


def test_refuses_a_circle(tmp_path: Path) -> None:
    made = model([node("Add", ["x", "b"], ["a"]), node("Neg", ["a"], ["b"])], {"x": [1, 4]}, ["b"])
    with pytest.raises(ModelError, match="node 'a_node' needs its own result"):
        look(made, tmp_path)


def test_refuses_a_value_that_nothing_makes(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'y_node' takes 'lost', which nothing makes"):
        look(model([node("Add", ["x", "lost"], ["y"])], {"x": [1, 4]}, ["y"]), tmp_path)


def test_refuses_operators_of_somebodys_own_by_name(tmp_path: Path) -> None:
    made = model([node("Fast", ["x"], ["y"], domain="com.example")], {"x": [1, 4]}, ["y"])
    with pytest.raises(ModelError, match=r"com\.example\.Fast"):
        look(made, tmp_path)


def _larger(made: Any) -> None:
    made.graph.initializer[0].dims[:] = [2**40]


def _negative(made: Any) -> None:
    made.graph.initializer[0].dims[:] = [-1, 4]


def _typeless(made: Any) -> None:
    made.graph.initializer[0].data_type = 999


@pytest.mark.parametrize("damage", [_larger, _negative, _typeless])
def test_refuses_tensors_that_are_not_what_they_say(tmp_path: Path, damage: Callable[[Any], None]) -> None:
    made = one("Add", [1, 4], weights(1, 4))
    damage(made)
    with pytest.raises(ModelError, match="tensor 'c0' is damaged"):
        look(made, tmp_path)


def test_refuses_an_input_larger_than_any_memory(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="more than"):
        look(one("Relu", [1, 2**40]), tmp_path)


def test_refuses_text(tmp_path: Path) -> None:
    made = one("Identity", [1, 4])
    made.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    with pytest.raises(ModelError, match="no tensor of numbers"):
        look(made, tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"not a model", cnn().SerializeToString()[:-40]])
def test_refuses_what_is_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError):
        onnx_check.look(path, {})


def test_reads_data_that_lies_beside_the_model(tmp_path: Path) -> None:
    values = weights(1, 4)
    (tmp_path / "model.data").write_bytes(values.tobytes())
    found = look(external("model.data", values.tobytes()), tmp_path).model.graph.initializer[0]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(found), values)


def test_data_beside_the_model_counts_for_the_key(tmp_path: Path) -> None:
    (tmp_path / "model.data").write_bytes(weights(1, 4).tobytes())
    path = saved(external("model.data"), tmp_path)
    before = source_task.model_task(path, Options())
    (tmp_path / "model.data").write_bytes(weights(1, 4, seed=8).tobytes())
    assert set(before.sources) == {"model", "model data model.data"}
    assert source_task.model_task(path, Options()).key != before.key


@pytest.mark.parametrize("location", ["/etc/passwd", "../model.data", "a/../../model.data", "", "link"])
def test_refuses_data_outside_the_models_folder(tmp_path: Path, location: str) -> None:
    (tmp_path / "model.data").write_bytes(bytes(16))
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "model.data")
    with pytest.raises(ModelError, match="outside the model's folder"):
        look(external(location), folder)


@pytest.mark.parametrize("size", [0, 15])
def test_refuses_data_that_is_too_short(tmp_path: Path, size: int) -> None:
    (tmp_path / "model.data").write_bytes(bytes(size))
    with pytest.raises(ModelError, match="damaged"):
        look(external("model.data"), tmp_path)
