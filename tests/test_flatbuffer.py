"""Reading .tflite files: real ones in full, damaged ones without a crash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import projects
import pytest
from numpy.typing import NDArray

from edgebuild.export.errors import ModelError
from edgebuild.export.flatbuffer import Flatbuffer, Tensor, read, read_file

KWS = "kws/ref_int8.tflite"
LSTM = "coral/keras_lstm_mnist_ptq.tflite"
COMPILED = "coral/keras_lstm_mnist_ptq_edgetpu.tflite"
RESNET = "resnet8_cifar10/pretrainedResnet_quant.tflite"
FLOAT = "resnet8_cifar10/pretrainedResnet.tflite"
WAKE_WORD = "str_ww/ref_int8.tflite"


def model(name: str) -> Flatbuffer:
    return read(projects.shared(name).read_bytes())


def runtime(name: str) -> Any:
    from tflite_runtime.interpreter import Interpreter

    interpreter = Interpreter(str(projects.shared(name)))
    interpreter.allocate_tensors()
    return interpreter


def real_values(tensor: Tensor) -> NDArray[np.float64]:
    """scale * (q - zero_point), along the axis where there is one scale a channel."""
    values = tensor.values().astype(np.float64)
    if tensor.quantization is None:
        return values
    shape = [1] * values.ndim
    if len(tensor.quantization.scale) > 1:
        shape[tensor.quantization.axis] = -1
    scale, zero_point = (
        np.array(part).reshape(shape) for part in (tensor.quantization.scale, tensor.quantization.zero_point)
    )
    return np.asarray(scale * (values - zero_point))


# Real files


def test_inputs_and_outputs_go_by_their_signature_names() -> None:
    found = model(LSTM)
    assert {name: tensor.name for name, tensor in found.inputs.items()} == {"x": "serving_default_x:0"}
    assert {name: tensor.name for name, tensor in found.outputs.items()} == {"output_0": "StatefulPartitionedCall:0"}


def test_without_a_signature_tensors_names_are_the_names() -> None:
    found = model(COMPILED)
    assert list(found.inputs) == ["serving_default_x:0"]
    assert list(found.outputs) == ["StatefulPartitionedCall:0"]


def test_a_tensor_tells_type_shape_and_what_is_dynamic() -> None:
    tensor = model(KWS).inputs["input_1"]
    assert (tensor.dtype, tensor.shape, tensor.shape_signature) == ("int8", (1, 49, 10, 1), (-1, 49, 10, 1))
    assert tensor.elements == 490
    assert not tensor.is_constant


def test_operators_come_in_order_with_versions() -> None:
    operators = [(op.kind, op.version) for op in model(KWS).main.operators]
    pairs = [("DEPTHWISE_CONV_2D", 3), ("CONV_2D", 3)]
    head = [("AVERAGE_POOL_2D", 2), ("RESHAPE", 1), ("FULLY_CONNECTED", 4), ("SOFTMAX", 2)]
    assert operators == [("CONV_2D", 3), *pairs * 4, *head]


def test_options_have_the_schemas_names_and_enumerations_are_words() -> None:
    operators = model(KWS).main.operators
    first, pool, softmax = (operators[i].options for i in (0, 9, 12))
    assert (first["padding"], first["fusedActivationFunction"]) == ("SAME", "RELU")
    assert (first["strideH"], first["strideW"]) == (2, 2)
    assert (pool["padding"], pool["filterHeight"], pool["filterWidth"]) == ("VALID", 25, 5)
    assert softmax == {"beta": 1.0}


def test_a_compiled_model_is_one_custom_operator_by_its_own_name() -> None:
    (operator,) = model(COMPILED).main.operators
    assert (operator.kind, operator.is_custom) == ("edgetpu-custom-op", True)


def test_absent_inputs_are_minus_one_and_are_no_tensors() -> None:
    found = model(LSTM)
    lstm = next(op for op in found.main.operators if op.kind == "UNIDIRECTIONAL_SEQUENCE_LSTM")
    absent = lstm.inputs.count(-1)
    assert absent
    assert len(list(found.operator_tensors(lstm))) == len(lstm.inputs) - absent + len(lstm.outputs)


def test_quantization_is_per_tensor_or_per_channel_along_its_axis() -> None:
    found = model(KWS)
    activation = found.inputs["input_1"].quantization
    assert activation is not None
    assert (len(activation.scale), activation.zero_point) == (1, (83,))
    assert activation.scale[0] == pytest.approx(0.5847029)
    axes = {}
    for operator in found.main.operators[:2]:
        filters = found.main.tensors[operator.inputs[1]]
        assert filters.quantization is not None
        assert len(filters.quantization.scale) == len(filters.quantization.zero_point) == 64
        assert filters.shape[filters.quantization.axis] == 64
        axes[operator.kind] = filters.quantization.axis
    assert axes == {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3}


def test_a_float_model_has_no_quantization() -> None:
    assert all(tensor.quantization is None for tensor in model(FLOAT).main.tensors)


@pytest.mark.parametrize("name", [KWS, RESNET, FLOAT, WAKE_WORD])
def test_constants_hold_the_values_that_tflite_runtime_reads(name: str) -> None:
    interpreter, constants = runtime(name), [tensor for tensor in model(name).main.tensors if tensor.is_constant]
    assert len(constants) > 10
    for tensor in constants:
        np.testing.assert_array_equal(tensor.values(), interpreter.get_tensor(tensor.index), strict=True)


@pytest.mark.parametrize("name", [KWS, RESNET])
def test_dequantized_weights_are_those_that_tflite_runtime_describes(name: str) -> None:
    interpreter = runtime(name)
    details = {entry["index"]: entry for entry in interpreter.get_tensor_details()}
    for tensor in model(name).weights:
        parameters = details[tensor.index]["quantization_parameters"]
        stored = interpreter.get_tensor(tensor.index).astype(np.float64)
        channels_last = np.moveaxis(stored, parameters["quantized_dimension"], -1)
        wanted = (channels_last - parameters["zero_points"]) * parameters["scales"].astype(np.float64)
        np.testing.assert_array_equal(np.moveaxis(real_values(tensor), parameters["quantized_dimension"], -1), wanted)


def test_weights_are_learned_numbers_not_shapes() -> None:
    found = model(KWS)
    shapes = [tensor for tensor in found.main.tensors if tensor.is_constant and tensor not in found.weights]
    assert [tensor.dtype for tensor in shapes] == ["int32"]  # Where RESHAPE goes.
    assert sum(tensor.elements for tensor in found.weights) == 22_604  # Weights and biases; batch norms are folded.


def test_an_activation_has_no_values() -> None:
    with pytest.raises(ModelError, match="is not a constant"):
        model(KWS).inputs["input_1"].values()


@pytest.mark.parametrize(("dtype", "shape"), [("int8", (2, 2)), ("float32", (3,)), ("int4", (4,)), ("string", (4,))])
def test_bytes_that_do_not_fill_the_shape_are_refused(dtype: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=f"tensor 7 \\(w\\) holds 6 bytes, no {dtype}"):
        constant(dtype, shape, b"\0" * 6).values()


@pytest.mark.parametrize("shape", [(-1,), (2, -3), (-2, -3)])
def test_a_constant_of_unknown_size_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match="holds 6 bytes"):
        constant("int8", shape, b"\0" * 6).values()


def constant(dtype: str, shape: tuple[int, ...], content: bytes) -> Tensor:
    return Tensor(
        index=7,
        name="w",
        dtype=dtype,
        shape=shape,
        shape_signature=shape,
        quantization=None,
        is_variable=False,
        data=np.frombuffer(content, np.uint8),
    )


# Damaged files


@pytest.mark.parametrize("content", [b"", b"TFL3", b"\0" * 64, b"\x89HDF\r\n\x1a\n" + b"\0" * 64])
def test_other_files_are_told_from_tflite(content: bytes) -> None:
    with pytest.raises(ModelError, match="not a TFLite flatbuffer"):
        read(content)


def test_a_header_alone_is_damaged() -> None:
    with pytest.raises(ModelError, match="is damaged"):
        read(b"\xff\xff\xff\x7fTFL3" + b"\0" * 64)


def test_a_model_without_subgraphs_is_damaged() -> None:
    with pytest.raises(ModelError) as caught:
        read(b"\x10\0\0\0TFL3" + b"\0\0\0\0\x04\0\x04\0" + b"\x04\0\0\0")  # A table that has no field.
    assert "no subgraph" in caught.value.cause


@pytest.mark.timeout(60)  # 300 files of 14 to 100 kB at some 10 ms each; an endless one is the fault to find.
@pytest.mark.parametrize("name", [LSTM, KWS, RESNET])
def test_damaged_files_are_read_or_refused_but_never_crash(name: str) -> None:
    whole, outcomes = projects.shared(name).read_bytes(), {True: 0, False: 0}
    for seed in range(100):
        outcomes[survives(damaged(whole, np.random.default_rng(seed)))] += 1
    assert min(outcomes.values()) > 10  # Damage to weights shows in nothing, damage to offsets in a refusal.


def survives(data: bytes) -> bool:
    try:
        found = read(data)
    except ModelError:
        return False
    for tensor in found.main.tensors:
        if tensor.is_constant:
            try:
                tensor.values()
            except ModelError:
                continue
    return True


def damaged(whole: bytes, chance: np.random.Generator) -> bytes:
    """Flipped bits, a file cut short, a piece of it copied elsewhere, or an offset that points far away."""
    changed = np.frombuffer(whole, np.uint8).copy()
    size, start, other = len(changed), *chance.integers(len(changed), size=2)
    match chance.integers(4):
        case 0:
            changed[chance.integers(size, size=16)] ^= 1 << chance.integers(8, dtype=np.uint8)
        case 1:
            return whole[:start]
        case 2:
            length = min(chance.integers(1, 4096), size - start, size - other)
            changed[start : start + length] = changed[other : other + length].copy()
        case _:
            aligned = start // 4 * 4
            changed[aligned : aligned + 4] = chance.choice([0, 0x7F, 0x80, 0xFF], size=4)[: size - aligned]
    return changed.tobytes()


def test_a_file_that_is_not_there_is_refused_by_its_path(tmp_path: Path) -> None:
    for path, cause in ((tmp_path / "missing.tflite", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ModelError, match="can't be read") as refused:
            read_file(path)
        assert str(path) in refused.value.what
        assert cause in refused.value.cause
