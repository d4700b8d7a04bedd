"""Edits of a float model before export: what each mends, and that the model computes the same after it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import flatbuffers
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from ai_edge_litert import schema_py_generated as schema
from graphs import lifted
from projects import shared
from tf_keras import layers

from edgebuild.export import agreement, flatbuffer
from edgebuild.export.errors import ModelError
from edgebuild.export.interpreter import Interpreter
from edgebuild.export.surgery import Surgeon
from edgebuild.pipeline import check, config, page, planner, stages
from edgebuild.pipeline.arrays import load_arrays, save_arrays
from edgebuild.pipeline.build import build
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.fitting import edits, fixing, reforming, reforms
from edgebuild.pipeline.fitting.edits import EDITS, Edit
from edgebuild.pipeline.fitting.records import Fix, Share, Taken
from edgebuild.pipeline.ingest import float_model
from edgebuild.pipeline.ingest.source import plain
from edgebuild.pipeline.plan import Plan
from edgebuild.pipeline.storage.store import Store
from edgebuild.targets.edgetpu import target as edgetpu
from edgebuild.targets.gpu import target as gpu
from edgebuild.targets.placement import Placement
from edgebuild.targets.rules import Node

Function = Callable[[Any], Any]
TARGETS = {"edgetpu": edgetpu, "gpu": gpu}
IMAGE = (8, 8, 4)
ROWS = (6, 8)
IMAGES = tf.TensorSpec((None, *IMAGE))
GELU = np.sqrt(2 / np.pi)
random = np.random.default_rng(5)


def kernel(*shape: int) -> Any:
    return tf.constant(random.normal(size=shape) / np.sqrt(shape[0]), tf.float32)


def behind(function: Function, *, pooled: bool = False) -> Function:
    """What a function makes of a convolution's result, so that something is mapped before it.

    A pool of one pixel between them keeps what multiplies and adds from being folded into the convolution.
    """
    weights = kernel(3, 3, 4, 4)

    def call(x: Any) -> Any:
        y = tf.nn.conv2d(x, weights, 1, "SAME")
        return function(tf.nn.max_pool2d(y, 1, 1, "SAME") if pooled else y)

    return call


PADS = [[0, 0], [1, 2], [0, 1], [0, 0]]
# By edit: a function that needs it. Those that come in through Keras's own layers are below.
FUNCTIONS: dict[str, Function] = {
    "hard_swish": lambda x: x * tf.nn.relu6(x + 3) / 6,
    "hard_sigmoid": lambda x: tf.clip_by_value(x / 6 + 0.5, 0, 1),
    "tanh_gelu": lambda x: 0.5 * x * (1 + tf.tanh(GELU * (x + 0.044715 * x**3))),
    "gelu_by_tanh": lambda x: x * 0.5 * (1 + tf.math.erf(x / np.sqrt(2))),
    "relu6": lambda x: tf.minimum(tf.maximum(x, 0), 6),
    "absolute": tf.abs,
    "square": tf.square,
    "depth_mean": lambda x: tf.reduce_mean(x[..., :3], -1, keepdims=True),
    "pad_with_value": lambda x: tf.pad(x, PADS, constant_values=1.5),
    "mirror_pad": lambda x: tf.pad(x, PADS, "REFLECT"),
    "gather_as_slice": lambda x: tf.gather(x, tf.constant([2, 3, 4], tf.int64), axis=1),
    "unpack_as_slices": lambda x: tf.add(*tf.unstack(x, axis=1)[2:4]),
    "stride_as_pool": lambda x: x[:, 1::2, ::3],
    "depth_to_space": lambda x: tf.nn.depth_to_space(x, 2),
    "fused_hard_swish": lambda x: x * tf.clip_by_value(x / 6 + 0.5, 0, 1),
    "fused_gelu": lambda x: x * (0.5 + 0.5 * tf.math.erf(x * np.sqrt(0.5))),
    "fused_relu6": lambda x: tf.maximum(tf.minimum(x, 6), 0),
    "fused_leaky_relu": lambda x: tf.maximum(0.2 * x, x),
    "slice_then_reshape": lambda x: x[..., 1:3, -2, 0:3],
    "slice_for_gather": lambda x: tf.gather(x, 3, axis=2),
    "int32_indices": lambda x: tf.gather(x, tf.constant([0, 3, 5], tf.int64), axis=1),
    "slices_for_unpack": lambda x: tf.unstack(x, axis=2)[-1],
    "symmetric_pad": lambda x: tf.pad(x, PADS, "SYMMETRIC"),
}
# By edit of flatbuffers: a function whose flatbuffer needs it.
REFORMED: dict[str, Function] = {
    "separate_activation": lambda x: tf.nn.relu6(tf.nn.max_pool2d(x, 2, 2, "VALID")),
    "separate_activation, of means": lambda x: tf.nn.relu(tf.nn.avg_pool2d(x, 3, 2, "SAME")),
    "nearest_from_one": lambda x: tf.image.resize(tf.reduce_mean(x, [1, 2], keepdims=True), (8, 8)),
}


def of_layers(shape: tuple[int, ...], *parts: Any) -> Any:
    """A chain of Keras's layers with weights that leave none of them without effect."""
    tf_keras.utils.set_random_seed(2)
    made = tf_keras.Sequential([tf_keras.Input(shape, name="x"), *parts])
    made.set_weights([random.normal(scale=0.4, size=weight.shape) for weight in made.get_weights()])
    return made


# By edit: a model of Keras's own layers that needs it.
MODELS: dict[str, Callable[[], Any]] = {
    "layer_normalization": lambda: of_layers(ROWS, layers.LayerNormalization()),
    "dense_as_convolution": lambda: of_layers(ROWS, layers.Dense(5, activation="relu")),
    "leaky_relu": lambda: of_layers(IMAGE, layers.Conv2D(4, 3), layers.LeakyReLU(0.1)),
    "gelu_by_tanh": lambda: of_layers(IMAGE, layers.Conv2D(4, 3, activation="gelu")),
}


def of_function(function: Function) -> Any:
    return lifted(behind(function, pooled=True), IMAGES)


CASES: dict[str, Callable[[], Any]] = {
    **{name: partial(of_function, function) for name, function in FUNCTIONS.items()},
    **{f"{name}, of layers": made for name, made in MODELS.items()},
}


class Entry:
    """A float model and samples as stages hand them on, and what stages make of them."""

    def __init__(self, model: Any, folder: Path) -> None:
        self.folder = folder
        float_model.save(plain(model), "test", self.new("model"))
        [name] = model.input_names
        shape = (20, *model.input_shape[1:])
        save_arrays(self.new("samples") / "samples.npz", {name: 2 * random.normal(size=shape).astype(np.float32)})

    def new(self, name: str) -> Path:
        (self.folder / name).mkdir()
        return self.folder / name

    def fixed(self, *names: str) -> list[dict[str, Any]]:
        """The record of a fix, whose float model is `fixed` from then on."""
        inputs = {"model": self.folder / "model", "samples": self.folder / "samples"}
        stages.fix(stages.EditParameters(edits=names), inputs, self.new("fixed"))
        found: list[dict[str, Any]] = json.loads((self.folder / "fixed/fix.json").read_text())
        return found

    def outputs(self, model: str) -> dict[str, Any]:
        out = self.new(f"{model}-outputs")
        stages.reference(stages.Nothing(), {"model": self.folder / model, "samples": self.folder / "samples"}, out)
        return load_arrays(out / "outputs.npz")

    def converted(self, model: str, target: ModuleType = edgetpu) -> bytes:
        inputs = {"model": self.folder / model, "samples": self.folder / "samples"}
        if target is edgetpu:
            stages.calibrate(stages.Nothing(), inputs, self.new(f"{model}-calibrated"))
            inputs["calibrated"] = self.folder / f"{model}-calibrated"
        parameters = stages.ConvertParameters(precision="int8" if target is edgetpu else "float32", io="int8")
        out = self.new(f"{model}-converted")
        stages.convert(parameters, inputs, out)
        return (out / "model.tflite").read_bytes()

    def placed(self, model: str, target: ModuleType = edgetpu) -> Placement:
        found: Placement = target.place(flatbuffer.read(self.converted(model, target)))
        return found

    @property
    def samples(self) -> dict[str, Any]:
        return load_arrays(self.folder / "samples/samples.npz")


def test_every_edit_of_the_table_has_a_case() -> None:
    of_models = {case.partition(",")[0] for case in CASES}
    of_flatbuffers = {case.partition(",")[0] for case in REFORMED} | {"fixed_batch", "squeeze_as_reshape"}
    assert of_models == set(edits.of_models([edit.name for edit in EDITS]))
    assert of_flatbuffers == set(edits.of_flatbuffers([edit.name for edit in EDITS]))
    assert len({edit.name for edit in EDITS}) == len(EDITS)


@pytest.mark.parametrize("case", CASES)
def test_an_edit_finds_what_it_mends_and_changes_no_numbers(case: str, tmp_path: Path) -> None:
    edit, entry = edits.BY_NAME[case.partition(",")[0]], Entry(CASES[case](), tmp_path)
    [record] = entry.fixed(edit.name)
    assert (record["edit"], record["refused"]) == (edit.name, "")
    found = agreement.compare(entry.outputs("model"), entry.outputs("fixed"))
    assert found.relative_rmse == pytest.approx(record["relative_rmse"])
    assert found.relative_rmse <= (1e-6 if edit.automatic else edit.max_error)


@pytest.mark.parametrize("target", TARGETS)
def test_what_a_target_refuses_it_takes_after_the_edits(target: str, tmp_path: Path) -> None:
    """All in one model, an output each: what one edit misses, the others do not hide."""
    needed = {edit.name: edit.mends[0] for edit in EDITS if edit.target == target and edit.mends}
    functions = [behind(FUNCTIONS[name]) for name in needed if name in FUNCTIONS and needed[name] != "GELU"]
    entry = Entry(lifted(lambda x: [function(x) for function in functions], IMAGES), tmp_path)
    before = entry.placed("model", TARGETS[target])
    mended = {row.kind for row in before.unmapped if edits.mending(target, row.kind, row.reason)}
    assert mended == {needed[name] for name in needed if name in FUNCTIONS} - {"GELU"}
    entry.fixed(*edits.chosen(target, ["auto"]))
    assert entry.placed("fixed", TARGETS[target]).mapped_share == 1.0
    assert before.mapped_share < 0.8


@pytest.mark.parametrize("case", REFORMED)
def test_an_edit_of_a_flatbuffer_gives_an_operator_a_form_that_is_taken(case: str, tmp_path: Path) -> None:
    entry, name = Entry(lifted(behind(REFORMED[case]), IMAGES), tmp_path), case.partition(",")[0]
    data = entry.converted("model")
    edited, [taken] = reforming.reform(data, edits.chosen("edgetpu", ["auto"]), entry.samples)
    assert (taken.edit, taken.refused, taken.relative_rmse) == (name, "", 0.0)
    [before], after = edgetpu.place(flatbuffer.read(data)).unmapped, edgetpu.place(flatbuffer.read(edited))
    assert edits.mending("edgetpu", before.kind, before.reason) is edits.BY_NAME[name]
    assert after.mapped_share == 1.0
    assert Interpreter(edited).predict(entry.samples).keys() == Interpreter(data).predict(entry.samples).keys()


def test_the_published_segmentation_model_is_mapped_but_for_its_tail() -> None:
    data = shared("coral/deeplabv3_mnv2_dm05_pascal_quant.tflite").read_bytes()
    pixels = random.uniform(-1, 1, (1, 513, 513, 3)).astype(np.float32)
    names = edits.of_flatbuffers(edits.chosen("edgetpu", ["auto"]))
    edited, [taken] = reforming.reform(data, names, {"MobilenetV2/MobilenetV2/input": pixels})
    assert (taken.edit, taken.layers, taken.refused) == ("nearest_from_one", ("ResizeBilinear",), "")
    before, after = (edgetpu.place(flatbuffer.read(file)) for file in (data, edited))
    assert (before.mapped, after.mapped, after.operators) == (64, 70, 72)


def changed(data: bytes, change: Callable[[Any], None]) -> bytes:
    """The flatbuffer after something was done to its object tree."""
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    change(model)
    builder = flatbuffers.Builder(len(data))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def open_batch(model: Any) -> None:
    for tensor in model.subgraphs[0].tensors:
        if tensor.shape is not None and list(tensor.shape[:1]) == [1]:
            tensor.shapeSignature = [-1, *tensor.shape[1:]]


def squeeze(model: Any) -> None:
    """As older converters write a reshape that drops axes."""
    codes = [code.builtinCode for code in model.operatorCodes]
    place = codes.index(schema.BuiltinOperator.RESHAPE)
    code = model.operatorCodes[place]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.SQUEEZE
    for operator in model.subgraphs[0].operators:
        if operator.opcodeIndex == place:
            operator.inputs = operator.inputs[:1]
            operator.builtinOptionsType, operator.builtinOptions = (
                schema.BuiltinOptions.SqueezeOptions,
                schema.SqueezeOptionsT(),
            )
            operator.builtinOptions.squeezeDims = [2]


@pytest.mark.parametrize(
    ("name", "change", "function"),
    [("fixed_batch", open_batch, tf.nn.relu), ("squeeze_as_reshape", squeeze, lambda x: tf.squeeze(x[:, :, :1], 2))],
)
def test_an_old_converters_flatbuffer_is_brought_into_form(
    name: str, change: Callable[[Any], None], function: Function, tmp_path: Path
) -> None:
    entry = Entry(lifted(behind(function), IMAGES), tmp_path)
    data = changed(entry.converted("model"), change)
    before = flatbuffer.read(data)
    is_open = any(-1 in tensor.shape_signature for tensor in before.main.tensors)
    mending = {edits.mending("edgetpu", row.kind, row.reason) for row in edgetpu.place(before).unmapped}
    assert is_open or mending == {edits.BY_NAME[name]}
    edited, [taken] = reforming.reform(data, [name], entry.samples)
    assert taken.refused == ""
    tensors = flatbuffer.read(edited).main.tensors
    assert all(tensor.shape_signature == tensor.shape for tensor in tensors)
    assert edgetpu.place(flatbuffer.read(edited)).mapped_share == 1.0


def test_an_edit_of_a_flatbuffer_that_changes_a_bit_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_activation(node: Node, surgeon: Surgeon) -> bool:
        found = node.kind == "MAX_POOL_2D"
        if found:
            surgeon.split_activation(node.operator.index, "RELU6", 2)
        return found

    wrong = replace(edits.BY_NAME["separate_activation"], reform=reforms.each(other_activation))
    monkeypatch.setitem(edits.BY_NAME, "separate_activation", wrong)
    entry = Entry(of_layers(IMAGE, layers.MaxPooling2D(), layers.ReLU()), tmp_path)
    samples = {name: 10 * array for name, array in entry.samples.items()}
    save_arrays(tmp_path / "samples/samples.npz", samples)
    data = entry.converted("model")
    edited, [taken] = reforming.reform(data, ["separate_activation"], samples)
    assert edited == data
    assert "differs" in taken.refused


def test_a_spelling_that_the_converter_does_not_know_becomes_one_that_it_knows(tmp_path: Path) -> None:
    entry = Entry(CASES["fused_gelu"](), tmp_path)
    with pytest.raises(ModelError, match="refuses the model for float32"):
        entry.placed("model", gpu)
    entry.fixed(*edits.chosen("gpu", ["auto"]))
    assert entry.placed("fixed", gpu).mapped_share == 1.0


@pytest.mark.parametrize(
    "before",
    [
        (layers.Conv2D(4, 3, activation="relu"),),
        (layers.Conv2D(4, 3), layers.ReLU(6.0), layers.MaxPooling2D()),
    ],
)
def test_a_leaky_relu_of_what_is_never_negative_is_left_out(before: Any, tmp_path: Path) -> None:
    entry = Entry(of_layers(IMAGE, *before, layers.LeakyReLU(0.1), layers.Conv2D(4, 1)), tmp_path)
    [taken] = entry.fixed("leaky_relu")
    assert (taken["refused"], taken["relative_rmse"]) == ("", 0.0)
    kinds = {operator.kind for operator in flatbuffer.read(entry.converted("fixed")).main.operators}
    assert kinds <= {"CONV_2D", "MAX_POOL_2D", "RELU6"}


@pytest.mark.parametrize("before", [(layers.ReLU(negative_slope=0.3),), (layers.Activation("tanh"),), ()])
def test_a_leaky_relu_of_what_may_be_negative_stays(before: Any, tmp_path: Path) -> None:
    entry = Entry(of_layers(IMAGE, layers.Conv2D(4, 3), *before, layers.LeakyReLU(0.1)), tmp_path)
    entry.fixed("leaky_relu")
    assert "PRELU" in {operator.kind for operator in flatbuffer.read(entry.converted("fixed")).main.operators}


def test_a_model_that_needs_no_edit_stays_the_same_bytes(tmp_path: Path) -> None:
    entry = Entry(of_layers(IMAGE, layers.Conv2D(4, 3), layers.ReLU()), tmp_path)
    assert entry.fixed(*edits.chosen("edgetpu", ["auto"])) == []
    for name in ("architecture.json", "weights.npz", "description.json"):
        assert (tmp_path / "fixed" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


def test_an_edit_that_changes_numbers_is_not_taken_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = replace(edits.BY_NAME["gelu_by_tanh"], max_error=1e-6)
    monkeypatch.setitem(edits.BY_NAME, "gelu_by_tanh", strict)
    entry = Entry(MODELS["gelu_by_tanh"](), tmp_path)
    [record] = entry.fixed("gelu_by_tanh", "relu6")
    assert "more than 1e-06 (relative RMSE)" in record["refused"]
    assert (tmp_path / "fixed/weights.npz").read_bytes() == (tmp_path / "model/weights.npz").read_bytes()


def test_edits_build_on_each_other_and_leave_nothing_unmapped(tmp_path: Path) -> None:
    """A block of a transformer: rows of features, normalized, through a hidden layer with GELU."""
    parts = layers.LayerNormalization(), layers.Dense(16, activation="gelu"), layers.Dense(8)
    entry = Entry(of_layers(ROWS, *parts), tmp_path)
    records = entry.fixed(*edits.chosen("edgetpu", ["auto", "gelu_by_tanh"]))
    assert [record["edit"] for record in records] == ["gelu_by_tanh", "layer_normalization", "dense_as_convolution"]
    assert len(records[-1]["layers"]) == 2
    assert entry.placed("model").mapped == 0
    assert entry.placed("fixed").mapped_share == 1.0


def test_a_layer_that_is_called_twice_stays_one_layer(tmp_path: Path) -> None:
    x = tf_keras.Input(IMAGE, name="x")
    twice = layers.Conv2D(4, 3, padding="same", activation="relu")
    y = layers.LeakyReLU(0.1)(twice(layers.LeakyReLU(0.3)(twice(x))))
    entry = Entry(tf_keras.Model(x, y), tmp_path)
    [record] = entry.fixed("leaky_relu")
    assert len(record["layers"]) == 2
    fixed = float_model.describe(tmp_path / "fixed")
    assert [layer.kind for layer in fixed.layers].count("Conv2D") == 1


def test_names_of_inputs_and_outputs_and_their_order_stay(tmp_path: Path) -> None:
    a, b = tf_keras.Input(IMAGE, name="b"), tf_keras.Input((4,), name="a")
    ends = [layers.LeakyReLU(0.1, name="z")(a), layers.Dense(2, name="y")(b)]
    float_model.save(plain(tf_keras.Model([a, b], ends)), "test", tmp_path)
    samples = {"b": random.normal(size=(3, *IMAGE)), "a": random.normal(size=(3, 4))}
    out = tmp_path / "out"
    out.mkdir()
    fixing.fix(tmp_path, out, ("leaky_relu",), {name: array.astype(np.float32) for name, array in samples.items()})
    before, after = float_model.describe(tmp_path), float_model.describe(out)
    assert (after.inputs, after.outputs, after.output_shapes) == (before.inputs, before.outputs, before.output_shapes)


def test_a_function_is_known_by_its_values_however_it_is_spelled(tmp_path: Path) -> None:
    spellings: list[Function] = [
        lambda x: x * tf.nn.relu6(3 + x) * (1 / 6),
        lambda x: (tf.nn.relu6(x + 3) / 6) * x,
        lambda x: x * tf.minimum(tf.maximum(x + 3, 0), 6) / 6,
        lambda x: -x * tf.maximum(tf.minimum(-x / 6 - 0.5, 0), -1) * 1.0,
    ]
    for number, spelled in enumerate(spellings):
        folder = tmp_path / str(number)
        folder.mkdir()
        entry = Entry(lifted(behind(spelled), IMAGES), folder)
        assert [record["edit"] for record in entry.fixed("hard_swish")] == ["hard_swish"]


@pytest.mark.parametrize(
    "near",
    [
        lambda x: x * tf.nn.relu6(x + 3) * 0.17,
        lambda x: tf.maximum(x, 0),
        lambda x: 0.5 * x,
        lambda x: tf.cast(tf.maximum(tf.argmax(x, -1, tf.int32) * 3 + 1, 0), tf.float32),
    ],
)
def test_what_is_nearly_such_a_function_is_left_alone(near: Function, tmp_path: Path) -> None:
    entry = Entry(lifted(behind(near), IMAGES), tmp_path)
    assert entry.fixed("hard_swish", "leaky_relu", "relu6") == []


# Settings, plan, report


def project(folder: Path, targets: str, model: Path | str = "m.h5") -> config.Project:
    text = f"model: {model}\ndata: {{calibration: d.npz, evaluation: d.npz}}\nmetric: mse\ntargets: {targets}\n"
    (folder / config.NAME).write_text(text)
    return config.load(folder / config.NAME)


def stand_ins(folder: Path) -> Path:
    for name in ("m.h5", "d.npz"):
        (folder / name).write_bytes(b"never read")
    return folder


def stages_of(made: Plan) -> list[str]:
    return sorted(task.stage for task in made.tasks.values())


def test_without_a_fix_the_plan_has_the_tasks_and_keys_that_it_had(tmp_path: Path) -> None:
    stand_ins(tmp_path)
    plain_, none = (planner.make(project(tmp_path, f"{{edgetpu: {{{text}}}}}")) for text in ("", "fix: none"))
    assert plain_.tasks == none.tasks
    assert "fix" not in stages_of(plain_)


def test_what_is_made_without_edits_is_there_to_compare_and_does_not_ship(tmp_path: Path) -> None:
    stand_ins(tmp_path)
    made = planner.make(project(tmp_path, "{edgetpu: {fix: auto}}"))
    assert sorted(made.tasks[key].title for key in made.for_comparison) == [
        "calibrate",
        "convert int8 with int8 in and out, dense per tensor",
    ]
    assert not planner.make(project(tmp_path, "{edgetpu: {}}")).for_comparison


def test_targets_that_ask_for_the_same_edits_share_them(tmp_path: Path) -> None:
    stand_ins(tmp_path)
    made = planner.make(project(tmp_path, "{edgetpu: {fix: auto}, gpu: {fix: auto}}"))
    assert stages_of(made).count("fix") == 2, "the two have other edits"
    steps = "compress: [{prune: {sparsity: 0.5}}]\n"
    (tmp_path / config.NAME).write_text((tmp_path / config.NAME).read_text() + steps)
    compressed = planner.make(config.load(tmp_path / config.NAME), ["edgetpu"])
    fixed = [task for task in compressed.tasks.values() if task.stage == "fix"]
    assert len(fixed) == 2, "one of the source, one of the compressed model"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{cpu: {fix: auto}}", "cpu.fix: only gpu and edgetpu take it"),
        ("{edgetpu: {fix: [hard_swosh]}}", "did you mean hard_swish"),
        ("{gpu: {fix: [mirror_pad]}}", "did you mean symmetric_pad"),
    ],
)
def test_settings_that_name_no_edit_are_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        project(stand_ins(tmp_path), text)


def test_of_a_flatbuffer_that_is_given_the_form_alone_is_edited(tmp_path: Path) -> None:
    stand_ins(tmp_path)
    made = planner.make(project(tmp_path, "{edgetpu: {fix: auto}}", shared("kws/ref_int8.tflite")))
    assert stages_of(made) == ["adopt", "package", "reform", "samples", "verify"]
    with pytest.raises(ConfigError) as e:
        planner.make(
            project(tmp_path, "{gpu: {fix: auto, precision: float32}}", shared("ad01_toycar/ad01_fp32.tflite"))
        )
    assert "leave fix out" in e.value.cause


def test_auto_takes_no_edit_that_changes_numbers() -> None:
    exact: set[Edit] = {edits.BY_NAME[name] for target in TARGETS for name in edits.chosen(target, ["auto"])}
    assert all(edit.automatic and edit.max_error == 1e-4 for edit in exact)
    assert "gelu_by_tanh" in edits.chosen("edgetpu", ["gelu_by_tanh"])


def test_a_build_shows_the_share_before_and_after_and_cuts_what_is_left(tmp_path: Path) -> None:
    x = tf_keras.Input((16, 16, 3), name="x")
    y = layers.LeakyReLU(0.1)(layers.Conv2D(8, 3, strides=2, padding="same")(x))
    y = layers.Conv2D(4, 1)(y * tf.nn.relu6(y + 3.0) * (1 / 6))
    tf_keras.Model(x, tf.argmax(y, -1)).save(tmp_path / "m.h5")
    samples = random.normal(size=(24, 16, 16, 3)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=samples, labels=np.zeros((24, 8, 8)))
    found = build(
        project(tmp_path, "{edgetpu: {fix: auto, cut: auto, min_mapped: 1.0}}"),
        tmp_path / "build",
        store=Store(tmp_path / "store"),
    )
    assert found.exit_code == 0, found.report
    target = found.report.targets["edgetpu"]
    assert target.fix is not None
    assert target.cut is not None
    assert [taken.edit for taken in target.fix.edits] == ["hard_swish", "leaky_relu"]
    assert (str(target.fix.before), str(target.fix.after)) == ("1/5", "6/7")
    assert (target.placement.mapped, target.placement.operators) == (6, 6)
    line = "edits: hard_swish (1 place); leaky_relu (1 place): 1/5 operators mapped before, 6/7 after, as predicted"
    assert str(target.fix) == line
    assert line in page.render(found.report)
    assert {task.stage for task in found.plan.tasks.values() if "edits" in task.title} >= {"calibrate", "convert"}


def test_a_model_without_anything_to_edit_is_built_as_it_is(tmp_path: Path) -> None:
    x = tf_keras.Input((8, 8, 3), name="x")
    tf_keras.Model(x, layers.Conv2D(4, 3, activation="relu")(x)).save(tmp_path / "m.h5")
    samples = random.normal(size=(8, 8, 8, 3)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=samples, labels=np.zeros((8, 6, 6, 4)))
    given = project(tmp_path, "{edgetpu: {fix: auto}}")
    for _ in range(2):
        found = build(given, tmp_path / "build", store=Store(tmp_path / "store"))
        assert found.exit_code == 0, found.report.failures
        assert str(found.report.targets["edgetpu"].fix) == "fix found nothing to edit"


@pytest.mark.parametrize(("after", "doubts"), [((6, 8), False), ((3, 5), True), ((4, 9), True)])
def test_edits_that_map_no_more_are_told_of(after: tuple[int, int], doubts: bool) -> None:  # noqa: FBT001 - a case
    edit = Taken(edit="relu6", why="", source="", layers=("a",), relative_rmse=0.0)
    mapped, operators = after
    found = Fix(edits=(edit,), before=Share(mapped=3, operators=5), after=Share(mapped=mapped, operators=operators))
    assert bool(found.doubt) == doubts
    assert not replace(found, edits=()).doubt


def test_check_says_what_a_fix_would_mend(tmp_path: Path) -> None:
    entry = Entry(MODELS["leaky_relu"](), tmp_path)
    entry.placed("model")
    found = check.check(tmp_path / "model-converted/model.tflite", ["edgetpu"])
    suggestions = {row.kind: row.suggestion for row in found.targets["edgetpu"].rows}
    assert suggestions["LEAKY_RELU"].endswith("fix: auto does this")
    assert suggestions["CONV_2D"] == ""
