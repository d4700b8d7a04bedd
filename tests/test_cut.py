"""A model cut where its accelerator ends: two files that together are the whole, bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from projects import shared
from tflite_runtime.interpreter import Interpreter as Runtime

from edgebuild.calibration.checks import InputSpec
from edgebuild.export import convert, flatbuffer
from edgebuild.export import cut as cutting
from edgebuild.export.errors import ModelError
from edgebuild.export.formats import IoType
from edgebuild.export.interpreter import Interpreter, encoded
from edgebuild.pipeline import assemble, config, console, page, planner, report
from edgebuild.pipeline.build import BuildResult, build
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.fitting import cutting as fitting
from edgebuild.pipeline.storage.store import Store
from edgebuild.targets.edgetpu import target as edgetpu
from edgebuild.targets.gpu import target as gpu
from edgebuild.targets.placement import Finding

DEEPLAB = "coral/deeplabv3_mnv2_dm05_pascal_quant.tflite"
INPUT = "MobilenetV2/MobilenetV2/input"
IMAGE = (8, 8, 4)
SAMPLES = {"x": np.random.default_rng(0).normal(size=(20, *IMAGE)).astype(np.float32)}


def sunflower() -> NDArray[np.uint8]:
    """A photograph of a plant, stretched to the model's size: of noise, it says background everywhere."""
    raw = shared("coral/sunflower.bmp").read_bytes()  # 24 bits a pixel, bottom row first, blue first.
    start, width, height = (int.from_bytes(raw[at : at + 4], "little") for at in (10, 18, 22))
    row_bytes = (width * 3 + 3) // 4 * 4
    rows = np.frombuffer(raw, np.uint8, row_bytes * height, start).reshape(height, row_bytes)
    pixels = rows[:, : width * 3].reshape(height, width, 3)[::-1, :, ::-1]
    down, across = (np.linspace(0, size - 1, 513).astype(int) for size in (height, width))
    return np.ascontiguousarray(pixels[down][:, across][None])


@pytest.fixture(scope="module")
def deeplab(tmp_path_factory: pytest.TempPathFactory) -> BuildResult:
    """The published segmentation model, cut; its limits are held by both parts together, or by the first alone."""
    folder = tmp_path_factory.mktemp("deeplab")
    pixels = np.concatenate([sunflower(), sunflower()[:, :, ::-1]]).astype(np.float32) / 128 - 1
    np.savez(folder / "evaluation.npz", **{INPUT: pixels, "labels": np.zeros((2, 513, 513))})
    (folder / config.NAME).write_text(
        f"model: {shared(DEEPLAB)}\ndata: {{evaluation: evaluation.npz}}\nmetric: mse\n"
        "targets: {edgetpu: {cut: auto, min_mapped: 1.0, max_size_kib: 700}}\n"
    )
    return build(config.load(folder / config.NAME), folder / "build", store=Store(folder / "store"))


def run(path: Path, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """By the signature, on the runtime alone: nothing of what made the parts judges them."""
    return dict(Runtime(str(path)).get_signature_runner()(**inputs))


def test_two_files_one_after_the_other_are_the_whole(deeplab: BuildResult) -> None:
    image = sunflower()
    whole = Interpreter(shared(DEEPLAB).read_bytes()).run({INPUT: image})
    middle = run(deeplab.out / "edgetpu/model.tflite", {INPUT: image})
    [end] = run(deeplab.out / "edgetpu/host.tflite", middle).values()
    assert 0.2 < (whole["ArgMax"] > 0).mean() < 0.8, "a constant answer would prove nothing"
    assert np.array_equal(end, whole["ArgMax"])


def test_every_operator_stands_in_one_part_and_the_accelerators_part_is_mapped(deeplab: BuildResult) -> None:
    parts = [flatbuffer.read_file(deeplab.out / f"edgetpu/{name}.tflite") for name in ("model", "host")]
    kinds = [[op.kind for op in part.main.operators] for part in parts]
    assert kinds[0] + kinds[1] == [op.kind for op in flatbuffer.read_file(shared(DEEPLAB)).main.operators]
    assert (len(kinds[0]), kinds[1][0], kinds[1][-1]) == (64, "RESIZE_BILINEAR", "ARG_MAX")
    assert edgetpu.place(parts[0]).mapped_share == 1.0
    assert sum(part.size_bytes for part in parts) < 1.02 * shared(DEEPLAB).stat().st_size, "weights are in one part"


def test_the_tensors_that_join_the_parts_are_written_down(deeplab: BuildResult) -> None:
    written = json.loads((deeplab.out / "edgetpu/cut.json").read_text())
    first, second = (flatbuffer.read_file(deeplab.out / f"edgetpu/{name}.tflite") for name in ("model", "host"))
    assert [link["name"] for link in written["links"]] == list(first.outputs) == list(second.inputs)
    for link in written["links"]:
        made, read = first.outputs[link["name"]].quantization, second.inputs[link["name"]].quantization
        assert made == read
        assert made is not None
        assert (link["scale"], link["zero_point"]) == ([*made.scale], [*made.zero_point])


def test_the_report_speaks_of_the_accelerators_part_and_says_what_was_cut_off(deeplab: BuildResult) -> None:
    target = deeplab.report.targets["edgetpu"]
    assert (target.placement.mapped, target.placement.operators) == (64, 64)
    assert target.cut is not None
    assert (target.cut.mapped, target.cut.operators) == (64, 72)
    assert [entry.kind for entry in target.cut.off][-1] == "ARG_MAX"
    assert {"edgetpu/model.tflite", "edgetpu/host.tflite", "edgetpu/cut.json"} <= set(target.files)
    verdicts = {gate.name: (gate.verdict, gate.note) for gate in target.gates}
    assert verdicts["min_mapped"][0] == "pass"
    assert verdicts["max_size_kib"] == ("fail", "model.tflite and host.tflite"), "both parts ship"
    assert report.from_json(report.to_json(deeplab.report)) == deeplab.report


def test_the_cut_is_a_line_in_the_terminal_and_on_the_page(
    deeplab: BuildResult, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = "cut into model.tflite (64 operators on edgetpu), then host.tflite (8 operators on cpu)"
    both = sum((deeplab.out / f"edgetpu/{name}.tflite").stat().st_size for name in ("model", "host"))
    line = f"{parts}, {both:,} B together, joined by 2 tensors"
    console.show_report(deeplab.report, console.Narrator(), on_stdout=False)
    shown, written = capsys.readouterr().err, page.render(deeplab.report)
    assert f"edgetpu: {line}; bit for bit the whole on 2 samples" in shown
    assert line in written
    for text, size in ((shown, f"{both:,}"), (written, f"{both:,} B")):
        assert f"{size}" in text.replace(line, ""), "the table has the size that the gate judges"
        assert "64/64 of 72" in text
    assert "model.tflite and host.tflite on disk" in written


def test_what_is_found_of_a_joint_is_not_told_of_an_input(deeplab: BuildResult) -> None:
    cut = deeplab.report.targets["edgetpu"].cut
    assert cut is not None
    joint = replace(cut.links[0], name="inner", made_by="host_before.tflite", read_by=("model.tflite",))
    told = [
        Finding(name="signed-image", tensor=name, what="an int8 image", action="") for name in ("inner", "innermost")
    ]
    placement = replace(deeplab.report.targets["edgetpu"].placement, findings=tuple(told))
    assert assemble._without_joints(placement, replace(cut, links=(joint,))).findings == (told[1],)
    assert assemble._without_joints(placement, None) == placement


def int8(outputs: Any, tmp_path: Path, io: IoType = "int8") -> bytes:
    """A quantized model of one image, from what a function makes of it."""
    import tensorflow as tf
    import tf_keras

    tf_keras.utils.set_random_seed(3)
    x = tf_keras.Input(IMAGE, name="x")
    ends = tf.nest.flatten(outputs(x))
    names = [f"y{i}" for i in range(len(ends))]
    convert.freeze(tf_keras.Model(x, ends), [InputSpec(name="x", shape=IMAGE, dtype="float32")], names, tmp_path)
    return convert.quantize(convert.calibrate(tmp_path, SAMPLES), io)


def branches(x: Any) -> Any:
    """Two tensors of the accelerator's that the host reads, one of them an output too, and an input it reads itself."""
    import tensorflow as tf
    from tf_keras import layers

    a = layers.Conv2D(4, 3, padding="same")(x)
    b = layers.Conv2D(4, 1)(layers.ReLU()(a))
    return a, tf.argmax(a + b, -1), tf.argmax(b, -1), tf.argmax(x, -1)


def test_several_tensors_may_join_the_parts(tmp_path: Path) -> None:
    data = int8(branches, tmp_path)
    done = fitting.cut(data, edgetpu, SAMPLES, 2)
    assert done.record.why == ""
    assert [part.file for part in done.record.parts] == ["model.tflite", "host.tflite"]
    assert len(done.record.links) == 2
    first, second = (flatbuffer.read(done.files[part.file]) for part in done.record.parts)
    assert "x" in second.inputs, "the host reads the image itself"
    assert "y0" in first.outputs, "the accelerator's own output keeps its name"
    assert {op.kind for op in second.main.operators} == {"ARG_MAX"}
    assert [sorted(given) for given, _ in done.vectors] == [["x"], ["x"]]


def test_floats_are_turned_into_integers_and_back_on_the_host(tmp_path: Path) -> None:
    from tf_keras import layers

    done = fitting.cut(int8(layers.Conv2D(4, 3), tmp_path, "float32"), edgetpu, SAMPLES, 1)
    parts = {part.file: part for part in done.record.parts}
    assert list(parts) == ["host_before.tflite", "model.tflite", "host.tflite"]
    kinds = [[op.kind for op in flatbuffer.read(done.files[file]).main.operators] for file in parts]
    assert kinds == [["QUANTIZE"], ["CONV_2D"], ["DEQUANTIZE"]]
    assert [link.dtype for link in done.record.links] == ["int8", "int8"]
    assert "cut into host_before.tflite (1 operator on cpu), then model.tflite" in str(done.record)


def test_weights_that_are_unpacked_go_with_those_that_read_them(tmp_path: Path) -> None:
    """float16 weights are widened by an operator each, which neither part could read out of the other."""
    import tensorflow as tf
    import tf_keras
    from tf_keras import layers

    x = tf_keras.Input(IMAGE, name="x")
    shared_layer = layers.Conv2D(4, 1)
    outside = tf.cast(tf.argmax(shared_layer(x), -1), tf.float32)
    end = layers.Dense(3)(layers.Flatten()(outside))
    convert.freeze(tf_keras.Model(x, end), [InputSpec(name="x", shape=IMAGE, dtype="float32")], ["y"], tmp_path)
    done = fitting.cut(convert.to_float(tmp_path, "float16"), gpu, SAMPLES, 1)
    assert done.record.why == ""
    assert all(link.dtype != "float16" for link in done.record.links)
    kinds = [[op.kind for op in flatbuffer.read(part).main.operators] for part in done.files.values()]
    assert all("DEQUANTIZE" in of_part for of_part in kinds)


def test_where_there_is_nothing_to_cut_the_model_stays_whole_and_says_so(tmp_path: Path) -> None:
    from tf_keras import layers

    data = int8(layers.Conv2D(4, 3), tmp_path)
    done = fitting.cut(data, edgetpu, SAMPLES, 1)
    assert done.files == {"model.tflite": data}
    assert str(done.record) == "not cut: edgetpu takes all 1 operators"


def test_where_the_accelerators_part_would_be_empty_the_model_stays_whole_and_says_so(tmp_path: Path) -> None:
    import tensorflow as tf

    data = int8(lambda x: tf.argmax(x, -1), tmp_path)
    done = fitting.cut(data, edgetpu, SAMPLES, 1)
    assert done.files == {"model.tflite": data}
    assert done.record.why == "edgetpu takes none of the 1 operators: its part would be empty"


def test_an_operator_that_keeps_the_compiler_from_reading_the_model_is_cut_off(tmp_path: Path) -> None:
    from tf_keras import layers

    data = int8(lambda x: layers.Conv2D(2, 1)(layers.Activation("gelu")(layers.Conv2D(4, 3)(x))), tmp_path)
    assert edgetpu.place(flatbuffer.read(data)).mapped == 0
    done = fitting.cut(data, edgetpu, SAMPLES, 1)
    assert [part.operators for part in done.record.parts] == [1, 2]
    assert edgetpu.place(flatbuffer.read(done.files["model.tflite"])).mapped_share == 1.0


def test_operators_that_are_no_single_part_are_refused(tmp_path: Path) -> None:
    from tf_keras import layers

    data = int8(lambda x: layers.Conv2D(2, 1)(layers.MaxPooling2D()(layers.Conv2D(4, 3)(x))), tmp_path)
    with pytest.raises(ModelError, match="no single part"):
        cutting.cut(data, flatbuffer.read(data), [0, 2])


def test_a_state_that_both_sides_use_is_refused(tmp_path: Path) -> None:
    from tf_keras import layers

    data = int8(lambda x: layers.Conv2D(2, 1)(layers.Conv2D(4, 3)(x)), tmp_path)
    model = flatbuffer.read(data)
    joint = model.main.operators[0].outputs[0]
    tensors = tuple(replace(t, is_variable=t.index == joint) for t in model.main.tensors)
    stateful = replace(model, subgraphs=(replace(model.main, tensors=tensors),))
    with pytest.raises(ModelError, match="a state that both sides of the cut use"):
        cutting.cut(data, stateful, [0])


def test_a_loop_on_the_host_keeps_its_body(tmp_path: Path) -> None:
    import tensorflow as tf
    import tf_keras
    from tf_keras import layers

    def repeated(y: Any) -> Any:
        return tf.while_loop(lambda i, _: i < 3, lambda i, z: (i + 1, z * 0.5 + 1), (0, y))[1]

    x = tf_keras.Input(IMAGE, name="x")
    end = layers.Lambda(repeated)(layers.Conv2D(4, 3)(layers.Conv2D(4, 3)(x)))
    convert.freeze(tf_keras.Model(x, end), [InputSpec(name="x", shape=IMAGE, dtype="float32")], ["y"], tmp_path)
    done = fitting.cut(convert.to_float(tmp_path, "float32"), gpu, SAMPLES, 1)
    assert done.record.why == ""
    subgraphs = {name: len(flatbuffer.read(part).subgraphs) for name, part in done.files.items()}
    assert subgraphs == {"model.tflite": 1, "host.tflite": 3}


def test_parts_that_are_not_the_whole_are_found_out(tmp_path: Path) -> None:
    from tf_keras import layers

    data = int8(lambda x: layers.Conv2D(2, 1)(layers.Conv2D(4, 3)(x)), tmp_path)
    parts = [Interpreter(part.data) for part in cutting.cut(data, flatbuffer.read(data), [0]).in_order]
    main = flatbuffer.read(data).main
    kernel = main.tensors[main.operators[1].inputs[1]].values()
    assert data.count(kernel.tobytes()) == 1
    other = Interpreter(data.replace(kernel.tobytes(), (-kernel).tobytes()))
    rows = list(encoded(other.flatbuffer, SAMPLES))
    assert len(cutting.prove(Interpreter(data), parts, rows)) == len(rows)
    with pytest.raises(ModelError, match="output y0 of sample 0 differs"):
        cutting.prove(other, parts, rows)


def project(folder: Path, targets: str) -> config.Project:
    (folder / config.NAME).write_text(f"model: {shared(DEEPLAB)}\ndata: {{evaluation: e.npz}}\ntargets: {targets}\n")
    (folder / "e.npz").write_bytes(b"never read")
    return config.load(folder / config.NAME)


def test_without_a_cut_the_plan_has_the_tasks_and_keys_that_it_had(tmp_path: Path) -> None:
    plain, none, cut = (
        planner.make(project(tmp_path, f"{{edgetpu: {{{text}}}}}")) for text in ("", "cut: none", "cut: auto")
    )
    assert plain.tasks == none.tasks
    assert {task.stage for task in plain.tasks.values()} == {"adopt", "samples", "verify", "package"}
    assert {task.stage for key, task in cut.tasks.items() if key not in plain.tasks} == {"cut", "package"}


@pytest.mark.parametrize("target", ["cpu", "mcu"])
def test_a_target_without_an_accelerator_has_nothing_to_cut_for(target: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{target}.cut: only gpu and edgetpu take it"):
        project(tmp_path, f"{{{target}: {{cut: auto}}}}")
