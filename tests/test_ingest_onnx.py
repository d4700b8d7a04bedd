"""ONNX models become tf_keras models that compute what onnxruntime computes, under their own names."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import Ended
from onnx_models import cnn, model, node, one, saved
from projects import shared

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest import apart, float_model, load, parity
from edgebuild.pipeline.ingest.onnx import model as onnx_model
from edgebuild.pipeline.ingest.source import Options, Reading

PRUNABLE_SHARE = 0.95
FIXTURES = {
    "mnist_cntk": ("Input3", (0, 2, 3, 1)),
    "face_slim320": ("input", (0, 2, 3, 1)),
    "st_mobilenet_v2_035_128": ("input_1", (0, 2, 3, 1)),
    "st_yamnet_256_64x96": ("input_1", ()),
    "kws_tf2onnx": ("input_1", ()),
    "lenet5_tf2onnx": ("image", ()),
}


def turned(array: Any, axes: tuple[int, ...]) -> Any:
    return array.transpose(axes) if axes else array


def outputs(reading: Reading, arrays: list[Any]) -> list[Any]:
    given = [turned(array, port.axes) for array, port in zip(arrays, reading.inputs, strict=True)]
    return parity.outputs(reading.model, given)


@pytest.mark.parametrize("name", FIXTURES)
def test_computes_the_stored_outputs_with_weights_that_can_be_pruned(name: str) -> None:
    reading = load.read(shared(f"onnx/{name}.onnx"))
    with np.load(shared(f"onnx/{name}_io.npz")) as stored:
        arrays = [stored[f"in_{i}"] for i in range(len(reading.inputs))]
        wanted = [turned(stored[f"out_{i}"], port.axes) for i, port in enumerate(reading.outputs)]
    assert parity.relative_error(wanted, outputs(reading, arrays)) <= parity.MAX_RELATIVE_ERROR
    assert [(port.name, port.axes) for port in reading.inputs] == [FIXTURES[name]]
    assert reading.batched
    layers = [layer for layer in reading.model.layers if any(k in type(layer).__name__ for k in ("Conv", "Dense"))]
    assert sum(layer.count_params() for layer in layers) >= PRUNABLE_SHARE * reading.model.count_params()


def test_layers_have_the_names_of_nodes_and_the_batch_is_free(tmp_path: Path) -> None:
    reading = load.read(saved(cnn(), tmp_path))
    assert {"stem_conv", "depthwise", "head"} <= {layer.name for layer in reading.model.layers}
    assert reading.model.inputs[0].shape == (None, 8, 8, 3)
    assert reading.notes == ()


def test_the_users_layout_is_kept_in_the_description(tmp_path: Path) -> None:
    load.ingest(saved(cnn(), tmp_path), tmp_path)
    described = float_model.describe(tmp_path)
    assert described.source_format == "ONNX"
    assert described.source_inputs[0].shape == (3, 8, 8)
    assert described.inputs[0].shape == (8, 8, 3)


def test_a_sample_is_a_whole_input_where_there_is_no_batch(tmp_path: Path) -> None:
    reading = load.read(saved(one("Softmax", [3, 4], axis=0), tmp_path))
    values = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    wanted = np.exp(values) / np.exp(values).sum(0)
    assert not reading.batched
    np.testing.assert_allclose(outputs(reading, [values])[0], turned(wanted, reading.outputs[0].axes), rtol=1e-5)


def test_what_onnx2tf_does_wrong_is_converted_another_way_and_noted(tmp_path: Path) -> None:
    made = one("Conv", [1, 2, 9, 9], np.ones((3, 2, 3, 3), np.float32), dilations=[2, 2], strides=[2, 2])
    reading = load.read(saved(made, tmp_path))
    assert reading.notes == ("converted another way than usual: operator by operator",)


def test_refuses_by_the_node_at_which_values_part(tmp_path: Path) -> None:
    made = model(
        [node("Relu", ["x"], ["r"]), node("RandomUniformLike", ["r"], ["n"], name="noise"), node("Neg", ["n"], ["y"])],
        {"x": [1, 4]},
        ["y"],
    )
    with pytest.raises(ModelError, match="no way of converting") as refused:
        load.read(saved(made, tmp_path))
    parted, *reasons = refused.value.cause.split("; ")
    assert "they part at node 'noise' (RandomUniformLike)" in parted
    assert len({reason.rpartition(": ")[2] for reason in reasons}) == len(reasons)


def test_says_a_reason_once_with_all_the_ways_it_holds_for(tmp_path: Path) -> None:
    made = model([node("Unique", ["x"], ["y"], axis=0, name="rows")], {"x": [2, 3]}, ["y"])
    with pytest.raises(ModelError, match="no way of converting") as refused:
        load.read(saved(made, tmp_path))
    assert refused.value.cause.count("edgebuild has no rule for it") == 1
    assert "operator by operator and operator by operator, constants unfolded: " in refused.value.cause


def test_refuses_by_the_node_whose_values_decide_sizes(tmp_path: Path) -> None:
    made = model([node("Relu", ["x"], ["r"]), node("Unique", ["r"], ["y"], name="distinct")], {"x": [1, 9]}, ["y"])
    with pytest.raises(ModelError, match=r"node 'distinct' \(Unique\) gives another size"):
        load.read(saved(made, tmp_path))


def test_refuses_what_onnxruntime_refuses(tmp_path: Path) -> None:
    made = model([node("Reshape", ["x", "shape"], ["y"])], {"x": [1, 4]}, ["y"], {"shape": np.asarray([3, 3])})
    with pytest.raises(ModelError, match="onnxruntime can't run"):
        load.read(saved(made, tmp_path))


def test_a_way_that_takes_its_process_down_is_passed_over(tmp_path: Path) -> None:
    asked: list[dict[str, str]] = []

    def dies(folder: Path) -> None:
        asked.append(json.loads((folder / "request.json").read_bytes())["failed"])
        if len(asked) == 1:
            (folder / "way").write_text("onnx2tf")
            raise ModelError("it died", cause="by SIGSEGV")
        refused = {"what": "none is left", "cause": "", "action": ""}
        (folder / "answer.json").write_text(json.dumps({"refused": refused}))

    with pytest.raises(ModelError, match="none is left"):
        onnx_model.read(saved(cnn(), tmp_path), Options(), dies)
    assert asked == [{}, {"onnx2tf": "by SIGSEGV"}]


def test_a_child_that_ends_badly_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the process that tries") as refused:
        apart.run("edgebuild.pipeline.ingest.no_such_module", tmp_path, "tries")
    assert "exit status 1" in refused.value.cause


@pytest.mark.parametrize(
    "code", ["import socket; socket.create_connection(('127.0.0.1', 9))", "import os; os.system('true')"]
)
def test_a_confined_child_reaches_neither_network_nor_programs(code: str) -> None:
    program = f"from edgebuild.pipeline.ingest import apart; apart.confine(); {code}"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "PermissionError: a converter asked for" in ended.stderr


def test_builds_with_data_in_the_sources_layout_and_says_what_the_artifact_takes(
    tmp_path: Path, run: Callable[..., Ended]
) -> None:
    with np.load(shared("mnist/mnist_20k_2k.npz")) as data:
        images = {split: data[f"x_{split}"][:, None].astype(np.float32) for split in ("train", "test")}
        np.savez(tmp_path / "calibration.npz", Input3=images["train"][:200])
        np.savez(tmp_path / "evaluation.npz", Input3=images["test"], labels=data["y_test"])
    config = {
        "model": str(shared("onnx/mnist_cntk.onnx")),
        "data": {"calibration": "calibration.npz", "evaluation": "evaluation.npz"},
        "metric": "top1",
        "targets": {"cpu": {"precision": "float32"}, "edgetpu": {}},
    }
    (tmp_path / "edgebuild.yaml").write_text(yaml.safe_dump(config))
    ended = run("build", "--json", cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    report = ended.report
    (given,) = report["model"]["inputs"]
    assert given == {
        "name": "Input3",
        "dtype": "float32",
        "source_shape": [1, 1, 28, 28],
        "shape": [1, 28, 28, 1],
        "layout": [0, 2, 3, 1],
    }
    assert "input Input3 of the artifacts is [1, 28, 28, 1]" in ended.stderr
    assert "transposed by" in (tmp_path / "build" / "report.html").read_text()
    accuracy = {name: target["metric"]["target"] for name, target in report["targets"].items()}
    assert accuracy["cpu"] == report["targets"]["cpu"]["metric"]["float"] == pytest.approx(0.984)
    assert accuracy["edgetpu"] == pytest.approx(0.984, abs=0.01)
