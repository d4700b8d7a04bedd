"""Weights as indices into tables: kept where flash falls, RAM holds and TFLM gives the same bit for bit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from flatbuffers_made import model, operator, packed, tensor
from numpy.typing import NDArray
from pydantic import TypeAdapter

from edgebuild.export.flatbuffer import read
from edgebuild.export.strip import ready
from edgebuild.targets.microcontroller import code_size, lut, target, tflm
from edgebuild.targets.microcontroller.lut import DECODE, Lut, compress, decoder_bytes
from edgebuild.targets.microcontroller.lut_choice import gaining
from edgebuild.targets.microcontroller.operators import CUSTOM_METHOD

needs_tflm = pytest.mark.skipif(find_spec("tflite_micro") is None, reason="the optional wheel tflite-micro is not here")
SCALE = 0.05
OPTIONS = {
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "QUANTIZE": "QuantizeOptions",
    "TRANSPOSE_CONV": "TransposeConvOptions",
}


def quantized(made: Any, scales: Sequence[float] = (SCALE,), axis: int = 0) -> Any:
    made.quantization = schema.QuantizationParametersT()
    made.quantization.scale, made.quantization.zeroPoint = list(scales), [0] * len(scales)
    made.quantization.quantizedDimension = axis
    return made


class Layers:
    """A model of int8 layers in a row; their weights take few values, other ones for each scale."""

    def __init__(self, *shape: int, kind: str = "INT8") -> None:
        self._dice = np.random.default_rng(0)
        self._tensors, self._operators = [tensor("in", shape, kind=kind)], list[Any]()
        self._kinds, self._contents = list[str](), list[bytes]()
        self._last = 0
        if kind == "INT8":
            quantized(self._tensors[0])

    def quantize(self) -> Layers:
        return self._layer("QUANTIZE", [self._last], self._shape)

    def dense(self, units: int, values: int, *, axis: int | None = None) -> Layers:
        weights = self._weights((units, self._shape[-1]), values, axis)
        return self._layer("FULLY_CONNECTED", [self._last, weights], (1, units))

    def conv(self, filters: int, values: int) -> Layers:
        weights = self._weights((filters, 3, 3, self._shape[-1]), values, 0)
        return self._layer("CONV_2D", [self._last, weights], (*self._shape[:-1], filters))

    def depthwise(self, values: int) -> Layers:
        return self._layer(
            "DEPTHWISE_CONV_2D", [self._last, self._weights((1, 5, 5, self._shape[-1]), values, 3)], self._shape
        )

    def transposed(self, filters: int, values: int) -> Layers:
        shape = (*self._shape[:-1], filters)
        size = self._constant(tensor("size", (4,), kind="INT32"), np.asarray(shape, "<i4"))
        weights = self._weights((filters, 3, 3, self._shape[-1]), values, 0)
        return self._layer("TRANSPOSE_CONV", [size, weights, self._last], shape)

    def tree(self) -> Any:
        return model(self._tensors, self._operators, outputs=[self._last], kinds=self._kinds, contents=self._contents)

    def data(self) -> bytes:
        return packed(self.tree())

    @property
    def _shape(self) -> tuple[int, ...]:
        return tuple(self._tensors[self._last].shape)

    def _weights(self, shape: tuple[int, ...], values: int, axis: int | None) -> int:
        channels = 1 if axis is None else shape[axis]
        tables = [self._dice.choice(np.arange(-127, 128), values, replace=False) for _ in range(channels)]
        rows = np.stack([self._dice.permutation(np.resize(table, np.prod(shape) // channels)) for table in tables])
        where = axis or 0
        cut = [channels, *(size for place, size in enumerate(shape) if place != where)] if axis is not None else shape
        weights = np.moveaxis(rows.reshape(cut), 0, where) if axis is not None else rows.reshape(cut)
        scales = self._dice.uniform(0.005, 0.02, channels) / np.sqrt(np.prod(shape) / shape[where])
        return self._constant(quantized(tensor("w", shape, kind="INT8"), scales, where), weights.astype(np.int8))

    def _constant(self, made: Any, values: NDArray[Any]) -> int:
        self._contents.append(values.tobytes())
        made.buffer = len(self._contents)
        self._tensors.append(made)
        return len(self._tensors) - 1

    def _layer(self, kind: str, inputs: list[int], shape: Sequence[int]) -> Layers:
        self._tensors.append(quantized(tensor(kind.lower(), shape, kind="INT8")))
        self._last = len(self._tensors) - 1
        made = operator(inputs, [self._last], code=len(self._operators))
        name = OPTIONS[kind]
        if name:
            made.builtinOptionsType = getattr(schema.BuiltinOptions, name)
            made.builtinOptions = getattr(schema, f"{name}T")()
            for field in ("strideH", "strideW", "dilationHFactor", "dilationWFactor", "depthMultiplier"):
                if hasattr(made.builtinOptions, field):
                    setattr(made.builtinOptions, field, 1)
        self._operators.append(made)
        self._kinds.append(kind)
        return self


def given(data: bytes, count: int = 4) -> list[dict[str, NDArray[Any]]]:
    """Inputs other than those that compression tries."""
    dice = np.random.default_rng(99)
    ends = read(data).inputs.items()
    return [{name: dice.integers(-128, 128, end.shape).astype(np.int8) for name, end in ends} for _ in range(count)]


def outputs(data: bytes, rows: Sequence[dict[str, NDArray[Any]]]) -> list[bytes]:
    found = [row for some in tflm.outputs(data, read(data), rows) for row in some]
    assert any(len(np.unique(array)) > 1 for row in found for array in row.values()), "silence would prove nothing"
    return [array.tobytes() for row in found for array in row.values()]


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder without code: any byte that is saved is a gain."""
    monkeypatch.setattr(lut, "decoder_bytes", lambda _: 0)


@pytest.fixture(scope="module")
def dense() -> tuple[bytes, bytes, Lut]:
    """A dense layer of 64 KiB that takes four values, and what became of it."""
    whole = Layers(1, 1024).dense(64, 4).data()
    return whole, *compress(whole)


@needs_tflm
def test_few_values_in_many_weights_pay_for_the_decoder_and_are_kept(dense: tuple[bytes, bytes, Lut]) -> None:
    whole, made, record = dense
    assert (record.applied, record.bit_equal) == (True, True)
    assert record.flash_after_bytes == len(made)
    assert record.net_flash_bytes == len(made) + decoder_bytes() - len(ready(whole)) < 0
    assert record.arena_before_bytes is not None
    assert record.arena_after_bytes is not None
    assert record.arena_after_bytes > record.arena_before_bytes + 64 * 1024, "weights are unpacked into the arena"
    assert outputs(made, given(whole)) == outputs(whole, given(whole))


@needs_tflm
def test_the_compressed_model_is_read_again_and_placed_with_its_decoder(dense: tuple[bytes, bytes, Lut]) -> None:
    whole, made, _ = dense
    found = read(made)
    assert [(entry.kind, entry.is_custom) for entry in found.main.operators] == [
        (DECODE, True),
        ("FULLY_CONNECTED", False),
    ]
    assert found.inputs.keys() == read(whole).inputs.keys()
    assert all(found.main.tensors[i].quantization is None for i in found.main.operators[0].inputs)
    assert not target.place(found).unmapped
    assert CUSTOM_METHOD[DECODE] == "AddDecode"
    assert ready(made) == made


@needs_tflm
def test_a_compressed_model_is_not_compressed_again(dense: tuple[bytes, bytes, Lut]) -> None:
    assert gaining(read(dense[1])) == []


@needs_tflm
def test_the_record_goes_through_json(dense: tuple[bytes, bytes, Lut]) -> None:
    assert TypeAdapter(Lut).validate_json(json.dumps(asdict(dense[2]))) == dense[2]


@needs_tflm
@pytest.mark.usefixtures("free")
def test_indices_are_as_narrow_as_the_values_allow() -> None:
    layers, wanted = Layers(1, 64), {1: 1, 2: 1, 3: 2, 4: 2, 5: 3, 16: 4, 17: 5, 33: 6, 65: 7, 128: 7}
    for values in wanted:
        layers.dense(64, values)
    whole = layers.data()
    made, record = compress(whole)
    assert {entry.values: entry.bits for entry in record.tensors} == wanted
    assert all(entry.after_bytes == 16 + entry.values + 512 * entry.bits for entry in record.tensors)
    assert record.applied
    assert outputs(made, given(whole)) == outputs(whole, given(whole))


def per_channel() -> bytes:
    return Layers(1, 8, 8, 24).conv(32, 3).depthwise(2).transposed(16, 3).data()


@needs_tflm
@pytest.mark.usefixtures("free")
def test_tables_follow_the_axis_of_the_scales() -> None:
    whole = per_channel()
    made, record = compress(whole)
    axes = {entry.kind: entry.axis for entry in record.tensors}
    assert axes == {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "TRANSPOSE_CONV": 0}
    assert record.applied
    assert outputs(made, given(whole)) == outputs(whole, given(whole))


@needs_tflm
@pytest.mark.usefixtures("free")
def test_what_tflm_answers_otherwise_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """One table for weights of many scales: TFLM takes it, and gives other numbers."""
    whole = Layers(1, 8, 8, 8).conv(16, 4).data()
    [entry] = gaining(read(whole))
    values = len(np.unique(read(whole).main.tensors[entry.tensor].values()))
    wrong = replace(entry, axis=None, values=values, bits=(values - 1).bit_length())
    monkeypatch.setattr(lut, "gaining", lambda _: [wrong])
    made, record = compress(whole)
    assert made == whole
    assert (record.applied, record.bit_equal, record.samples) == (False, False, 16)
    assert "same outputs" in record.why


@needs_tflm
def test_what_saves_less_than_the_decoder_takes_is_told_and_not_done() -> None:
    whole = Layers(1, 64).dense(64, 4).data()
    made, record = compress(whole)
    assert made == whole
    assert (record.applied, record.bit_equal, len(record.tensors)) == (False, None, 1)
    assert record.flash_after_bytes is not None
    assert record.net_flash_bytes == record.flash_after_bytes + decoder_bytes() - record.flash_before_bytes > 0
    assert f"{record.net_flash_bytes:,}" in record.why
    assert record.arena_after_bytes is not None


@needs_tflm
@pytest.mark.usefixtures("free")
def test_weights_of_too_many_values_are_left() -> None:
    whole = Layers(1, 64).dense(64, 200).data()
    made, record = compress(whole)
    assert made == whole
    assert (record.applied, record.tensors, record.flash_after_bytes, record.net_flash_bytes) == (False, (), None, None)
    assert "so few values" in record.why


SMALL_AND_LARGE = Layers(1, 32).dense(64, 4).dense(512, 4).data()


@needs_tflm
@pytest.mark.usefixtures("free")
def test_the_hungriest_operators_keep_their_weights_where_ram_is_short() -> None:
    made, record = compress(SMALL_AND_LARGE, ram_bytes=16 * 1024)
    assert (record.applied, [entry.operator for entry in record.tensors]) == (True, [0])
    assert [found.kind for found in read(made).main.operators] == [DECODE, "FULLY_CONNECTED", "FULLY_CONNECTED"]
    assert record.arena_after_bytes is not None
    assert record.arena_after_bytes <= 16 * 1024


@needs_tflm
@pytest.mark.usefixtures("free")
def test_where_ram_holds_none_the_record_says_what_all_would_take() -> None:
    made, record = compress(SMALL_AND_LARGE, ram_bytes=2 * 1024)
    assert made == SMALL_AND_LARGE
    assert (record.applied, record.bit_equal, len(record.tensors)) == (False, None, 2)
    assert "of 2,048" in record.why
    assert record.net_flash_bytes is not None
    assert record.net_flash_bytes < 0


@needs_tflm
def test_a_model_of_old_operator_codes_is_compressed_like_any_other(dense: tuple[bytes, bytes, Lut]) -> None:
    old = Layers(1, 1024).dense(64, 4).tree()
    for code in old.operatorCodes:
        code.builtinCode = 0
    assert compress(packed(old)) == dense[1:]


@needs_tflm
@pytest.mark.usefixtures("free")
def test_inputs_that_no_noise_fits_are_held_to_the_samples_alone() -> None:
    whole = Layers(1, 64, kind="FLOAT32").quantize().dense(64, 4).data()
    made, unproven = compress(whole)
    assert (made, unproven.applied, unproven.samples) == (whole, False, 0)
    row = {"in": np.linspace(-3, 3, 64, dtype=np.float32)[None]}
    made, proven = compress(whole, [row])
    assert (proven.applied, proven.bit_equal, proven.samples) == (True, True, 1)
    assert made != whole


def test_the_decoders_code_is_that_of_the_core_it_runs_on() -> None:
    known = {core: decoder_bytes(core) for core in code_size.measurement().cores}
    assert all(15_000 < size < 25_000 for size in known.values())
    assert decoder_bytes("a core that nobody measured") == decoder_bytes() == max(known.values())


def test_weights_whose_buffer_others_share_are_left() -> None:
    made = Layers(1, 64).dense(64, 4).dense(64, 4).tree()
    assert len(gaining(read(packed(made)))) == 2
    first, second = (found for found in made.subgraphs[0].tensors if found.name == "w")
    second.buffer = first.buffer
    assert gaining(read(packed(made))) == []


def test_weights_that_are_an_output_too_are_left() -> None:
    made = Layers(1, 64).dense(64, 4).tree()
    made.subgraphs[0].outputs.append(1)
    assert gaining(read(packed(made))) == []


@pytest.mark.parametrize(("scales", "axis"), [((SCALE,), 3), ((SCALE,) * 7, 0), ((SCALE,) * 3, 1)])
def test_scales_that_tables_can_not_follow_are_left(scales: Sequence[float], axis: int) -> None:
    made = Layers(1, 8, 8, 16).conv(32, 2).tree()
    assert len(gaining(read(packed(made)))) == 1
    quantized(made.subgraphs[0].tensors[1], scales, axis)
    assert gaining(read(packed(made))) == []


@needs_tflm
def test_a_model_that_tflm_refuses_stays_with_its_words() -> None:
    made = model([tensor("in"), tensor("out")], [operator([0], [1])], outputs=[1], kinds=["GELU"])
    whole = packed(made)
    same, record = compress(whole)
    assert (same, record.applied, record.arena_before_bytes) == (whole, False, None)
    assert "GELU" in record.why


@needs_tflm
def test_what_the_compressor_refuses_it_says() -> None:
    whole = ready(Layers(1, 64).dense(64, 16).data())
    _, why = tflm.child("edgebuild.targets.microcontroller.lut_child", model=b"[[1, 2, null]]\n" + whole)
    assert "index_bitwidth too small" in why


@needs_tflm
def test_garbage_costs_a_child_and_nothing_else() -> None:
    made, why = tflm.child("edgebuild.targets.microcontroller.lut_child", model=b"[[1, 2, null]]\n" + b"TFL3" * 64)
    assert (made, bool(why)) == (b"", True)


def test_without_the_wheel_the_model_stays_and_the_fix_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tflm, "installed", lambda: False)
    whole = Layers(1, 64).dense(64, 4).data()
    made, record = compress(whole)
    assert made == whole
    assert (record.applied, record.arena_before_bytes, record.bit_equal) == (False, None, None)
    assert "pip install 'edgebuild[mcu]'" in record.why
