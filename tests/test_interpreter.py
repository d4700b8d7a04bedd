"""Running flatbuffers on tflite-runtime, and the way to and from quantized values."""

from __future__ import annotations

import numpy as np
import projects
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from edgebuild.export.errors import ModelError
from edgebuild.export.flatbuffer import Quantization, Tensor
from edgebuild.export.interpreter import Interpreter, decode, encode, encoded

KWS_TOP1 = 0.887  # Of the reference int8 model on rows 200 to 499, from the fixtures' README, to three places.
ROUNDING = 1e-5  # Of a scale step: x / scale and the way back are float32.
SCALES = st.floats(2.0**-10, 2.0**4, width=32)
TYPES = {"int8": np.int8, "uint8": np.uint8, "int16": np.int16}


def tensor(dtype: str, scale: float | None = None, zero_point: int = 0) -> Tensor:
    return Tensor(
        index=0,
        name="t",
        dtype=dtype,
        shape=(1,),
        shape_signature=(1,),
        quantization=None if scale is None else Quantization(scale=(scale,), zero_point=(zero_point,), axis=0),
        is_variable=False,
        data=None,
    )


def kws(rows: slice) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    data = np.load(projects.shared("kws/kws_a500.npz"))
    return data["x"][rows], data["y"][rows]


def interpreter(name: str = "kws/ref_int8.tflite") -> Interpreter:
    return Interpreter(projects.shared(name).read_bytes())


# Quantized values


@given(
    dtype=st.sampled_from(["int8", "uint8"]),
    scale=SCALES,
    share=npst.arrays(np.float64, 8, elements=st.floats(0, 1)),
    data=st.data(),
)
def test_what_is_in_range_comes_back_within_half_a_step(
    dtype: str, scale: float, share: NDArray[np.float64], data: st.DataObject
) -> None:
    limits = np.iinfo(dtype)
    zero_point = data.draw(st.integers(limits.min, limits.max))
    low, high = (scale * (limit - zero_point) for limit in (limits.min, limits.max))
    values = (low + share * (high - low)).astype(np.float32)
    quantized = tensor(dtype, scale, zero_point)
    back = decode(encode(values, quantized), quantized)
    # Between two steps lies half a step; float32 rounds values of up to 255 steps.
    assert np.abs(back - values).max() <= scale * (0.5 + 255 * ROUNDING)


@given(dtype=st.sampled_from(["int8", "uint8", "int16"]), scale=SCALES, data=st.data())
def test_stored_values_come_back_exactly(dtype: str, scale: float, data: st.DataObject) -> None:
    limits = np.iinfo(dtype)
    zero_point = 0 if dtype == "int16" else data.draw(st.integers(limits.min, limits.max))
    stored = data.draw(npst.arrays(TYPES[dtype], 8))
    quantized = tensor(dtype, scale, zero_point)
    np.testing.assert_array_equal(encode(decode(stored, quantized), quantized), stored, strict=True)


def test_values_beyond_the_range_are_clipped_not_wrapped() -> None:
    quantized = tensor("int8", 0.5, -128)
    assert encode(np.array([-1.0, 0.0, 127.5, 1e6], np.float32), quantized).tolist() == [-128, -128, 127, 127]


def test_real_value_zero_is_the_zero_point() -> None:
    quantized = tensor("uint8", 0.1, 7)
    assert encode(np.zeros(1, np.float32), quantized).tolist() == [7]
    assert decode(np.array([7], np.uint8), quantized).tolist() == [0.0]


@pytest.mark.parametrize("dtype", ["float32", "int32", "bool"])
def test_what_is_not_quantized_passes_as_it_is(dtype: str) -> None:
    values = np.array([0, 1, 1], dtype)
    assert encode(values, tensor(dtype)).tolist() == values.tolist()
    assert decode(values, tensor(dtype)).dtype == np.float32


# Running


def test_kws_reference_reaches_its_known_accuracy() -> None:
    x, y = kws(slice(200, 500))
    outputs = interpreter().predict({"input_1": x})["Identity"]
    assert outputs.shape == (300, 12)
    assert outputs.dtype == np.float32
    assert round(float((outputs.argmax(axis=1) == y).mean()), 3) == KWS_TOP1


def test_predictions_do_not_depend_on_the_other_rows() -> None:
    x, _ = kws(slice(0, 3))
    runner = interpreter()
    together = runner.predict({"input_1": x})["Identity"]
    alone = runner.predict({"input_1": x[2:]})["Identity"]
    np.testing.assert_array_equal(together[2:], alone)


def test_all_samples_are_encoded_as_each_would_be_alone() -> None:
    x, _ = kws(slice(0, 3))
    runner = interpreter()
    inputs = list(encoded(runner.flatbuffer, {"input_1": x}))
    assert [sample["input_1"].shape for sample in inputs] == [(1, *x.shape[1:])] * 3
    for row, sample in enumerate(inputs):
        alone = encode(x[row : row + 1], runner.flatbuffer.inputs["input_1"])
        np.testing.assert_array_equal(sample["input_1"], alone, strict=True)


def test_encoding_leaves_the_samples_as_they_are() -> None:
    values = np.array([0.25, 0.5], np.float32)
    encode(values, tensor("int8", 1.0, 3))
    assert values.tolist() == [0.25, 0.5]


def test_run_takes_and_gives_the_models_own_types() -> None:
    x, _ = kws(slice(0, 1))
    runner = interpreter()
    outputs = runner.run({"input_1": encode(x, runner.flatbuffer.inputs["input_1"])})["Identity"]
    assert (str(outputs.dtype), outputs.shape) == ("int8", (1, 12))
    real = decode(outputs, runner.flatbuffer.outputs["Identity"])
    np.testing.assert_array_equal(real, runner.predict({"input_1": x})["Identity"])


def test_arrays_that_no_input_asks_for_are_ignored() -> None:
    x, y = kws(slice(0, 1))
    assert list(interpreter().predict({"labels": y, "input_1": x})) == ["Identity"]


def test_a_model_for_the_coral_chip_is_refused_with_the_cause() -> None:
    with pytest.raises(ModelError, match=r"tflite-runtime 2\.14\.0 does not take the model") as caught:
        interpreter("coral/keras_lstm_mnist_ptq_edgetpu.tflite")
    assert "unresolved custom op: edgetpu-custom-op" in caught.value.cause
    assert caught.value.action


@pytest.mark.parametrize("shape", [(1, 49, 10), (1, 48, 10, 1), (2, 49, 10, 1)])
def test_an_input_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="can't run the model") as caught:
        interpreter().run({"input_1": np.zeros(shape, np.int8)})
    assert "imension" in caught.value.cause


def test_an_input_of_another_type_is_refused() -> None:
    with pytest.raises(ModelError, match="can't run the model"):
        interpreter().run({"input_1": np.zeros((1, 49, 10, 1), np.float32)})


def test_an_input_that_is_not_given_is_named() -> None:
    runner = interpreter()
    for call in (runner.run, runner.predict):
        with pytest.raises(ModelError, match="input input_1 is not given") as caught:
            call({"other": np.zeros((1, 49, 10, 1), np.int8)})
        assert "other" in caught.value.cause


def test_what_is_no_flatbuffer_is_refused() -> None:
    with pytest.raises(ModelError, match="not a TFLite flatbuffer"):
        Interpreter(b"no model at all, however long it may be")
