"""Models that never become firmware, each with its operator, its layer, what to change, and an exit code of its own."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import flatbuffers_made as made
import numpy as np
import pytest
import tflm_words
from ai_edge_litert import schema_py_generated as schema
from tflm_words import Said

from edgebuild.calibration.errors import Failure
from edgebuild.export.errors import ModelError
from edgebuild.export.flatbuffer import Flatbuffer, read, read_file
from edgebuild.pipeline.errors import exit_code
from edgebuild.targets.errors import PlacementError
from edgebuild.targets.microcontroller import refusal
from edgebuild.targets.microcontroller.operators import BUILTIN_METHOD
from edgebuild.targets.microcontroller.rules import INSTEAD, TABLE

FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures"
needs_tflm = pytest.mark.skipif(find_spec("tflite_micro") is None, reason="the optional wheel tflite-micro is not here")


def fixture(name: str) -> Flatbuffer:
    path = FIXTURES / name
    if not path.exists():
        pytest.skip(f"the shared model {name} is not here")
    return read_file(path)


def chain(kinds: list[str], types: list[str]) -> Flatbuffer:
    """Operators in a row, over tensors of these types."""
    tensors = [made.tensor(f"layer{i};fused", kind=dtype) for i, dtype in enumerate(types)]
    operators = [made.operator([i], [i + 1], code=i) for i in range(len(kinds))]
    return read(made.packed(made.model(tensors, operators, outputs=[len(kinds)], kinds=kinds)))


def refused(model: Flatbuffer) -> Failure:
    with pytest.raises(Failure) as caught:
        refusal.require_runnable(model)
    return caught.value


@pytest.mark.parametrize(
    "name",
    [
        "kws/ref_int8.tflite",
        "resnet8_cifar10/pretrainedResnet_quant.tflite",
        "ad01_toycar/ad01_int8.tflite",
        "str_ww/ref_int8.tflite",
        "coral/keras_lstm_mnist_ptq.tflite",
    ],
)
def test_int8_models_are_runnable(name: str) -> None:
    refusal.require_runnable(fixture(name))
    assert refusal.findings(fixture(name)) == ()


@pytest.mark.parametrize("kind", ["GELU", "TILE"])
def test_a_missing_operator_is_named_with_its_layer_the_others_and_a_replacement(kind: str) -> None:
    why = refused(chain(["RELU", kind, "RELU", "POW"], ["INT8"] * 5))
    assert isinstance(why, PlacementError)
    assert exit_code(why) == 7
    assert why.what == f"TFLite Micro has no {kind}: operator 1 ({kind}, layer layer2), and so operator 3 (POW)"
    assert INSTEAD[kind] in why.action


def test_a_missing_operator_of_a_branch_is_found() -> None:
    whole = made.model([made.tensor(kind="INT8")] * 2, [made.operator([0], [1])], outputs=[1], kinds=("RELU", "GELU"))
    branch = schema.SubGraphT()
    branch.tensors, branch.operators = [made.tensor(kind="INT8")] * 2, [made.operator([0], [1], code=1)]
    branch.inputs, branch.outputs = [0], [1]
    whole.subgraphs.append(branch)
    assert "operator 0 of subgraph 1 (GELU, layer t)" in refused(read(made.packed(whole))).what


def test_every_replacement_is_an_operator_that_tflm_has() -> None:
    assert not set(INSTEAD) & set(BUILTIN_METHOD)
    named = {word for words in INSTEAD.values() for word in words.split() if word.isupper()}
    assert named <= set(BUILTIN_METHOD)


def test_a_dynamic_range_model_is_refused_as_a_model_with_its_first_layer() -> None:
    why = refused(fixture("kws/ref_dynrange.tflite"))
    assert isinstance(why, ModelError)
    assert exit_code(why) == 3
    assert "operator 0 (CONV_2D, layer functional_1/activation/Relu) has hybrid weights" in why.what
    assert "precision: int8" in why.action
    assert "calibration data" in why.action


def test_a_float_model_is_refused_as_a_model_and_found_in_a_check() -> None:
    model = fixture("ad01_toycar/ad01_fp32.tflite")
    why = refused(model)
    assert exit_code(why) == 3
    assert "operator 0 (FULLY_CONNECTED, layer functional_1/activation/Relu) computes in float32" in why.what
    assert "precision: int8" in why.action
    (finding,) = refusal.findings(model)
    assert "6 (FULLY_CONNECTED) and 3 more" in finding.what
    assert finding.action == why.action


def test_floats_at_a_models_ends_are_no_arithmetic() -> None:
    ends = chain(["QUANTIZE", "RELU", "DEQUANTIZE"], ["FLOAT32", "INT8", "INT8", "FLOAT32"])
    refusal.require_runnable(ends)
    assert refusal.findings(ends) == ()


def test_floats_between_integers_are_named_where_they_are_computed_with() -> None:
    why = refused(chain(["DEQUANTIZE", "CEIL", "QUANTIZE"], ["INT8", "FLOAT32", "FLOAT32", "INT8"]))
    assert isinstance(why, ModelError)
    assert why.what == "operator 1 (CEIL, layer layer2) computes in float32, and so operator 2 (QUANTIZE)"


@pytest.mark.parametrize(
    ("kind", "dtype", "does"), [("SOFTMAX", "UINT8", "quantize to int8"), ("CEIL", "INT8", "replace it")]
)
def test_types_that_a_kernel_lacks_are_refused_as_operators(kind: str, dtype: str, does: str) -> None:
    why = refused(chain([kind], [dtype, dtype]))
    assert isinstance(why, PlacementError)
    assert dtype.lower() in why.cause
    assert does in why.action


@pytest.fixture(scope="module")
def said() -> Iterator[Said]:
    with tflm_words.listening() as said:
        yield said


def alone(kind: str, dtype: str = "INT8", *, inputs: int = 1) -> bytes:
    """A model of one operator, its tensors quantized as TFLM wants them where they are."""
    quantization = schema.QuantizationParametersT()
    quantization.scale, quantization.zeroPoint = [0.05], [0]
    tensors = [made.tensor(f"t{i}", kind=dtype) for i in range(inputs + 1)]
    for tensor in tensors:
        tensor.quantization = None if dtype == "FLOAT32" else quantization
    operator = made.operator(range(inputs), [inputs])
    return made.packed(made.model(tensors, [operator], inputs=range(inputs), outputs=[inputs], kinds=(kind,)))


@needs_tflm
def test_tflm_registers_the_operators_of_the_table_and_no_other(said: Said) -> None:
    every = set(vars(schema.BuiltinOperator)) - {"CUSTOM", "PLACEHOLDER_FOR_GREATER_OP_CODES"}
    kinds = sorted(kind for kind in every if kind.isupper())
    assert len(kinds) > 200
    assert {kind for kind in kinds if "Didn't find op" not in said(alone(kind))} == set(BUILTIN_METHOD)


# Operators whose one option is their type.
PLAIN = {
    1: "ABS CEIL COS ELU EXP FLOOR HARD_SWISH LOG NEG RELU RELU6 ROUND RSQRT SIN SQRT SQUARE ZEROS_LIKE",
    2: "ADD_N MAXIMUM MINIMUM SQUARED_DIFFERENCE",
}


@needs_tflm
@pytest.mark.parametrize(
    ("inputs", "kind"), [(count, kind) for count, kinds in PLAIN.items() for kind in kinds.split()]
)
def test_the_table_promises_a_type_exactly_where_tflm_computes_in_it(inputs: int, kind: str, said: Said) -> None:
    for dtype in ("FLOAT32", "INT8", "INT16", "UINT8", "INT32"):
        model = alone(kind, dtype, inputs=inputs)
        heard = said(model, [np.ones((1, 4), dtype.lower())] * inputs)  # Some refuse negative numbers.
        assert (not TABLE.refused(read(model))) == heard.endswith("ran"), f"{kind} in {dtype}: {heard}"
