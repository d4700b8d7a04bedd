"""The converter's private road gives what its public road gives, and damage is told from rounding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from edgebuild.calibration.checks import InputSpec
from edgebuild.export import agreement, convert, weights
from edgebuild.export.errors import ModelError
from edgebuild.export.flatbuffer import read
from edgebuild.export.formats import IoType
from edgebuild.export.interpreter import Interpreter
from edgebuild.pipeline import stages
from edgebuild.pipeline.arrays import save_arrays
from edgebuild.pipeline.gates import AGREEMENT_LIMITS

Samples = Mapping[str, NDArray[Any]]


@pytest.fixture(scope="module")
def source() -> Any:
    """Two inputs, two outputs, convolution and dense layers wide enough to be quantized per channel."""
    import tf_keras as keras

    keras.utils.set_random_seed(7)
    image = keras.Input((12, 12, 3), name="image")
    context = keras.Input((8,), name="context")
    x = keras.layers.Conv2D(16, 3, activation="relu")(image)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Concatenate()([x, context])
    x = keras.layers.Dense(64, activation="relu")(x)
    x = keras.layers.Dense(64, activation="relu")(x)
    kind = keras.layers.Dense(10, activation="softmax", name="kind")(x)
    size = keras.layers.Dense(1, name="size")(x)
    return keras.Model([image, context], [kind, size])


@pytest.fixture(scope="module")
def samples() -> Samples:
    generator = np.random.default_rng(3)
    return {
        "image": generator.normal(size=(60, 12, 12, 3)).astype(np.float32),
        "context": generator.normal(size=(60, 8)).astype(np.float32),
    }


@pytest.fixture(scope="module")
def frozen(source: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frozen")
    inputs = [
        InputSpec(name="image", shape=(12, 12, 3), dtype="float32"),
        InputSpec(name="context", shape=(8,), dtype="float32"),
    ]
    convert.freeze(source, inputs, ["kind", "size"], folder)
    return folder


@pytest.fixture(scope="module")
def reference(source: Any, samples: Samples) -> dict[str, NDArray[Any]]:
    outputs = source([samples["image"], samples["context"]], training=False)
    return {name: output.numpy() for name, output in zip(("kind", "size"), outputs, strict=True)}


@pytest.mark.parametrize("io_type", ["float32", "int8", "uint8"])
def test_one_calibration_gives_the_public_converters_outputs(frozen: Path, samples: Samples, io_type: IoType) -> None:
    ours = convert.quantize(convert.calibrate(frozen, samples), io_type)
    public = convert.quantize_publicly(frozen, samples, "int8", io_type)
    got, wanted = Interpreter(ours).predict(samples), Interpreter(public).predict(samples)
    for name in ("kind", "size"):
        np.testing.assert_array_equal(got[name], wanted[name])
    assert {tensor.dtype for tensor in read(ours).inputs.values()} == {io_type}


def test_the_public_converter_takes_over_where_the_private_road_is_closed(
    frozen: Path, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: object, **__: object) -> bytes:
        raise ModelError("closed")

    monkeypatch.setattr(convert, "quantize", closed)
    monkeypatch.setattr("edgebuild.pipeline.stages.flatbuffers._frozen", lambda _: frozen)
    (tmp_path / "calibrated.tflite").write_bytes(b"")
    save_arrays(tmp_path / "samples.npz", samples)
    inputs = {"model": frozen, "calibrated": tmp_path, "samples": tmp_path}
    stages.convert(stages.ConvertParameters(precision="int8", io="int8"), inputs, tmp_path)
    assert "public converter" in (tmp_path / "route.json").read_text()
    assert (tmp_path / "model.tflite").read_bytes() == convert.quantize_publicly(frozen, samples, "int8", "int8")


def test_a_dense_layer_has_one_scale_where_it_must_and_agrees_all_the_same(
    frozen: Path, samples: Samples, reference: Samples
) -> None:
    calibrated = convert.calibrate(frozen, samples)
    for made, scales in (
        (convert.quantize(calibrated, "int8"), {64, 10}),
        (convert.quantize(calibrated, "int8", dense_per_tensor=True), {1}),
        (convert.quantize_publicly(frozen, samples, "int8", "int8", dense_per_tensor=True), {1}),
    ):
        model = read(made).main
        kernels = [model.tensors[op.inputs[1]] for op in model.operators if op.kind == "FULLY_CONNECTED"]
        assert {len(kernel.quantization.scale) for kernel in kernels if kernel.quantization} >= scales
        assert max(len(kernel.quantization.scale) for kernel in kernels if kernel.quantization) == max(scales)
        found = agreement.compare(reference, Interpreter(made).predict(samples))
        assert found.relative_rmse <= AGREEMENT_LIMITS["int8"]


@pytest.mark.parametrize("chances", [("half", "half", "whole"), ("half",) * 6], ids=["in the end", "never"])
def test_what_the_quantizer_left_in_float_by_chance_is_asked_for_again(
    frozen: Path, samples: Samples, chances: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flatbuffer in float32 stands for one that the quantizer did by halves."""
    calibrated = convert.calibrate(frozen, samples)
    made = {"half": convert.to_float(frozen, "float32"), "whole": convert.quantize(calibrated, "int8")}
    left = iter(chances)
    monkeypatch.setattr(convert, "_quantized", lambda *_, **__: made[next(left)])
    assert convert.quantize(calibrated, "int8") == made[chances[-1]]
    assert next(left, None) is None


@pytest.mark.parametrize("precision", ["float32", "float16", "dynamic"])
def test_float_formats_agree_with_the_source(
    frozen: Path, samples: Samples, reference: Samples, precision: Any
) -> None:
    model = convert.to_float(frozen, precision)
    found = agreement.compare(reference, Interpreter(model).predict(samples))
    assert found.relative_rmse <= AGREEMENT_LIMITS[precision]


def test_int16x8_agrees_better_than_int8(frozen: Path, samples: Samples, reference: Samples) -> None:
    wide = convert.quantize_publicly(frozen, samples, "int16x8", "float32")
    narrow = convert.quantize(convert.calibrate(frozen, samples), "float32")
    errors = [agreement.compare(reference, Interpreter(m).predict(samples)).relative_rmse for m in (wide, narrow)]
    assert errors[0] < errors[1] < AGREEMENT_LIMITS["int8"]


@pytest.fixture(scope="module")
def pruned(source: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network with nine of ten weights of each kernel zero."""
    from tf_keras.models import clone_model

    model, folder = clone_model(source), tmp_path_factory.mktemp("pruned")
    smallest = [
        np.abs(w) < np.quantile(np.abs(w), 0.9) if w.ndim > 1 else np.zeros(w.shape, bool) for w in source.get_weights()
    ]
    model.set_weights([np.where(mask, 0, w) for mask, w in zip(smallest, source.get_weights(), strict=True)])
    inputs = [
        InputSpec(name="image", shape=(12, 12, 3), dtype="float32"),
        InputSpec(name="context", shape=(8,), dtype="float32"),
    ]
    convert.freeze(model, inputs, ["kind", "size"], folder)
    return folder


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_zeros_that_are_not_stored_change_the_file_and_no_output(
    pruned: Path, samples: Samples, precision: Any
) -> None:
    quantized = precision == "int8"
    model = (
        convert.quantize(convert.calibrate(pruned, samples), "uint8")
        if quantized
        else convert.to_float(pruned, precision)
    )
    sparse = convert.sparsify(model)
    assert len(sparse) < 0.9 * len(model)
    whole, packed = read(model), read(sparse)
    assert [w.zeros for w in weights.measure(whole)] == [w.zeros for w in weights.measure(packed)]
    assert [w.entropy_bytes for w in weights.measure(whole)] == [w.entropy_bytes for w in weights.measure(packed)]
    wanted, found = Interpreter(model).predict(samples), Interpreter(sparse).predict(samples)
    assert all(np.array_equal(wanted[name], found[name]) for name in ("kind", "size"))


def stock_dynamic(frozen: Path) -> bytes:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(str(frozen))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return bytes(converter.convert())


def stamp(model: bytes, kind: int, version: int) -> bytes:
    """Write another version number over an operator, as a careless tool would."""
    parsed = schema.ModelT.InitFromPackedBuf(model, 0)
    for code in parsed.operatorCodes:
        if code.builtinCode == kind:
            code.version = version
    builder = flatbuffers.Builder(len(model))
    builder.Finish(parsed.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def test_dynamic_range_loads_on_the_runtime_that_ships_where_the_stock_one_does_not(frozen: Path) -> None:
    with pytest.raises(ModelError, match="does not take the model") as caught:
        Interpreter(stock_dynamic(frozen))
    assert "FULLY_CONNECTED" in caught.value.cause
    Interpreter(convert.to_float(frozen, "dynamic"))


def test_a_restamped_operator_loads_and_is_caught_by_its_numbers(
    frozen: Path, samples: Samples, reference: Samples
) -> None:
    restamped = stamp(stock_dynamic(frozen), schema.BuiltinOperator.FULLY_CONNECTED, 9)
    found = agreement.compare(reference, Interpreter(restamped).predict(samples))
    assert found.relative_rmse > AGREEMENT_LIMITS["dynamic"]


def test_a_layer_the_converter_refuses_is_a_model_error(tmp_path: Path) -> None:
    import tensorflow as tf

    module = tf.Module()
    call = tf.function(lambda x: {"y": tf.linalg.svd(x, compute_uv=False)})
    signature = call.get_concrete_function(tf.TensorSpec((1, 4, 4), tf.float32, name="x"))
    tf.saved_model.save(module, str(tmp_path), signatures=signature)
    (tmp_path / "names.json").write_text('{"inputs": {"x": "x"}, "outputs": {"y": "y"}}')
    with pytest.raises(ModelError, match="converter refuses") as caught:
        convert.to_float(tmp_path, "float32")
    assert "Svd" in caught.value.cause


@pytest.mark.parametrize(
    "names", [("in-put", "my input"), ("a/b", "a.b"), ("größe", "input:0"), ("file", "1"), ("x", "<b>y</b>")]
)
def test_names_of_inputs_and_outputs_are_the_models_own_whatever_they_hold(
    names: tuple[str, str], tmp_path: Path
) -> None:
    import tf_keras as keras

    inputs = [keras.Input((3,)), keras.Input((3,))]
    model = keras.Model(inputs, [keras.layers.Add()(inputs), keras.layers.Subtract()(inputs)])
    specs = [InputSpec(name=name, shape=(3,), dtype="float32") for name in names]
    convert.freeze(model, specs, ["the sum", "a-b"], tmp_path)
    generator = np.random.default_rng(1)
    samples = {name: generator.normal(size=(20, 3)).astype(np.float32) for name in names}
    for made in (
        convert.to_float(tmp_path, "float32"),
        convert.quantize(convert.calibrate(tmp_path, samples), "float32"),
        convert.sparsify(convert.to_float(tmp_path, "float32")),
    ):
        outputs = Interpreter(made).predict(samples)
        step = 0.1  # An int8 step of a sum of two normal values.
        np.testing.assert_allclose(outputs["the sum"], samples[names[0]] + samples[names[1]], atol=step)
        np.testing.assert_allclose(outputs["a-b"], samples[names[0]] - samples[names[1]], atol=step)
