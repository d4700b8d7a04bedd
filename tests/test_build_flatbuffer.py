"""A .tflite file as the model: taken as it is, evaluated and packaged, never converted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from projects import shared

from edgebuild.export import flatbuffer, recognise, strip
from edgebuild.export.formats import IoType, Precision
from edgebuild.pipeline import config, planner
from edgebuild.pipeline.build import build
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.report import NoAgreement
from edgebuild.pipeline.storage.store import Store

REFERENCE = "kws/ref_int8.tflite"
FORMATS: dict[str, tuple[Precision, IoType]] = {
    "kws/ref_int8.tflite": ("int8", "int8"),
    "kws/ref_dynrange.tflite": ("dynamic", "float32"),
    "ad01_toycar/ad01_fp32.tflite": ("float32", "float32"),
    "coral/mobilenet_v1_0.25_128_quant.tflite": ("int8", "uint8"),
}


def project(folder: Path, model: Path, targets: str, gates: str = "{}") -> config.Project:
    """The KWS samples that the fixture's own figures are of, rows 200 to 499."""
    with np.load(shared("kws/kws_a500.npz")) as rows:
        np.savez(folder / "evaluation.npz", x=rows["x"][200:], labels=rows["y"][200:])
    text = f"model: {model}\ndata: {{evaluation: evaluation.npz}}\ntargets: {targets}\ngates: {gates}\n"
    (folder / config.NAME).write_text(text)
    return config.load(folder / config.NAME)


@pytest.mark.parametrize(("name", "wanted"), FORMATS.items())
def test_a_format_is_read_off_the_file(name: str, wanted: tuple[Precision, IoType]) -> None:
    model = flatbuffer.read(shared(name).read_bytes())
    assert (recognise.precision(model), recognise.io_type(model)) == wanted


def test_of_a_given_file_no_dense_layer_is_said_to_have_been_made(tmp_path: Path) -> None:
    made = planner.make(project(tmp_path, shared(REFERENCE), "{edgetpu: {}}"))
    titles = [task.title for task in made.tasks.values()]
    assert "verify int8 with int8 in and out" in titles


def test_a_class_index_as_the_only_result_is_no_float() -> None:
    quantized = flatbuffer.read(shared("kws/ref_int8.tflite").read_bytes())
    image, end = next(iter(quantized.inputs.values())), next(iter(quantized.outputs.values()))
    index = replace(end, dtype="int64", quantization=None)
    tensors = tuple(index if tensor.index == end.index else tensor for tensor in quantized.main.tensors)
    last = replace(quantized.main.operators[-1], inputs=(image.index,), outputs=(end.index,))
    main = replace(quantized.main, tensors=tensors, operators=(last,))
    assert recognise.precision(replace(quantized, subgraphs=(main,))) == "int8"


def test_a_flatbuffer_is_evaluated_and_packaged_byte_for_byte(tmp_path: Path) -> None:
    targets = "{cpu: {}, mcu: {board: cortex-m4}}"
    found = build(
        project(tmp_path, shared(REFERENCE), targets, "{min_metric: 0.85}"),
        tmp_path / "build",
        store=Store(tmp_path / "store"),
    )
    assert found.exit_code == 0
    for name in ("cpu", "mcu"):
        given = shared(REFERENCE).read_bytes()
        assert (found.out / name / "model.tflite").read_bytes() == (given if name == "cpu" else strip.ready(given))
        target = found.report.targets[name]
        assert target.metric.target == pytest.approx(0.887, abs=0.001)  # ref: the fixture's README
        assert target.metric.float is None
        assert isinstance(target.agreement, NoAgreement)
        assert [gate.name for gate in target.gates if gate.verdict != "pass"] == []
    assert (found.out / "mcu" / "model.cc").exists()
    assert found.report.model is not None
    assert found.report.model.source_format == "TFLite flatbuffer"
    assert found.report.model.parameters > 20_000


def test_a_drop_from_an_unknown_float_model_is_inconclusive(tmp_path: Path) -> None:
    found = build(
        project(tmp_path, shared(REFERENCE), "{cpu: {}}", "{max_metric_drop: 0.5}"),
        tmp_path / "build",
        store=Store(tmp_path / "store"),
    )
    [gate] = found.report.targets["cpu"].gates
    assert (gate.verdict, found.exit_code) == ("inconclusive", 4)
    assert "no float model" in gate.note


def test_a_float_flatbuffer_is_the_float_model(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).standard_normal((4, 640)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=samples, labels=samples)
    (tmp_path / config.NAME).write_text(
        f"model: {shared('ad01_toycar/ad01_fp32.tflite')}\ndata: {{evaluation: data.npz}}\nmetric: mse\n"
        "targets: {cpu: {precision: float32}}\ngates: {max_metric_drop: 0.0}\n"
    )
    found = build(config.load(tmp_path / config.NAME), tmp_path / "build", store=Store(tmp_path / "store"))
    metric = found.report.targets["cpu"].metric
    assert (found.exit_code, metric.drop) == (0, 0.0)
    assert metric.float == metric.target


@pytest.mark.parametrize(
    ("targets", "wanted"),
    [("{gpu: {}}", "gpu: precision"), ("{cpu: {precision: float32}}", "cpu: precision float32")],
)
def test_another_format_needs_the_source_model(targets: str, wanted: str, tmp_path: Path) -> None:
    given = project(tmp_path, shared("kws/ref_dynrange.tflite"), targets)
    with pytest.raises(ConfigError) as e:
        build(given, tmp_path / "build", store=Store(tmp_path / "store"))
    assert f"targets.{wanted}" in e.value.cause
    assert "source model" in e.value.action
    assert not (tmp_path / "build").exists()


def test_every_target_that_it_can_not_be_built_for_is_named(tmp_path: Path) -> None:
    given = project(tmp_path, shared("kws/ref_dynrange.tflite"), "{gpu: {}, cpu: {precision: float32}, edgetpu: {}}")
    with pytest.raises(ConfigError, match="for gpu, cpu, edgetpu\n"):
        planner.make(given)


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("signature: main", "signature"),
        ("input_shapes: {x: [1, 4]}", "input shapes"),
        ("signature: main, custom: [mine]", "signature or custom layers"),
    ],
)
def test_it_leaves_no_choice_of_what_a_source_model_leaves_open(said: str, named: str, tmp_path: Path) -> None:
    given = project(tmp_path, shared(REFERENCE), "{cpu: {}}")
    text = (
        (tmp_path / config.NAME).read_text().replace(f"model: {given.model}", f"model: {{path: {given.model}, {said}}}")
    )
    (tmp_path / config.NAME).write_text(text)
    with pytest.raises(ConfigError, match=f"leaves no choice of {named}\n"):
        planner.make(config.load(tmp_path / config.NAME))
