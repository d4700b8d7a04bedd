"""A flatbuffer made ready for program storage: smaller, aligned, and the same model bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import projects
import pytest
from ai_edge_litert import schema_py_generated as schema
from flatbuffers_made import model, operator, packed, tensor
from numpy.typing import NDArray

from edgebuild.export.errors import ModelError
from edgebuild.export.flatbuffer import Flatbuffer, Subgraph, read
from edgebuild.export.interpreter import Interpreter
from edgebuild.export.object_tree import unpack
from edgebuild.export.strip import ready, with_names_of
from edgebuild.targets.microcontroller import tflm

# The most bytes they have once they are ready.
FIXTURES = {
    "ad01_toycar/ad01_fp32": 1_065_824,
    "ad01_toycar/ad01_int8": 274_544,
    "coral/keras_lstm_mnist_ptq": 12_832,
    "coral/mobilenet_v1_0.25_128_quant": 489_152,
    "kws/ref_dynrange": 37_088,
    "kws/ref_int8": 42_736,
    "resnet8_cifar10/pretrainedResnet": 314_416,
    "resnet8_cifar10/pretrainedResnet_quant": 91_792,
    "str_ww/ref_int8": 72_752,
}
IN_TFLM = ("ad01_toycar/ad01_fp32", "ad01_toycar/ad01_int8", "kws/ref_int8", "str_ww/ref_int8")
NOT_RUN = (  # An answer of noise that is the same everywhere, and operators of an accelerator's, would prove nothing.
    "coral/deeplabv3_mnv2_dm05_pascal_quant",
    "coral/deeplabv3_mnv2_dm05_pascal_quant_edgetpu",
    "coral/keras_lstm_mnist_ptq_edgetpu",
    "coral/mobilenet_v1_0.25_128_quant_edgetpu",
)
ALIGNMENT = 16
needs_tflm = pytest.mark.skipif(find_spec("tflite_micro") is None, reason="the optional wheel tflite-micro is not here")


def fixture(name: str) -> bytes:
    return projects.shared(f"{name}.tflite").read_bytes()


def rows(described: Flatbuffer, count: int = 2) -> list[dict[str, NDArray[Any]]]:
    """Inputs of noise, in the model's own types."""
    dice = np.random.default_rng(0)
    return [
        {
            name: dice.integers(0, 127, made.shape).astype(made.dtype)
            if "int" in made.dtype
            else dice.normal(size=made.shape).astype(made.dtype)
            for name, made in described.inputs.items()
        }
        for _ in range(count)
    ]


def same(ours: Sequence[dict[str, NDArray[Any]]], theirs: Sequence[dict[str, NDArray[Any]]]) -> bool:
    assert any(array.any() for row in ours for array in row.values()), "a silent model would prove nothing"
    pairs = zip(ours, theirs, strict=True)
    return all(row.keys() == other.keys() and all((row[n] == other[n]).all() for n in row) for row, other in pairs)


@pytest.mark.parametrize(("name", "size"), FIXTURES.items(), ids=[Path(name).name for name in FIXTURES])
def test_a_ready_model_is_smaller_and_gives_the_same_on_tflite_runtime(name: str, size: int) -> None:
    whole = fixture(name)
    made = ready(whole)
    assert len(made) <= size < len(whole)
    before, after = Interpreter(whole), Interpreter(made)
    given = rows(before.flatbuffer)
    assert same([before.run(row) for row in given], [after.run(row) for row in given])


@needs_tflm
@pytest.mark.parametrize("name", IN_TFLM, ids=[Path(name).name for name in IN_TFLM])
def test_a_ready_model_gives_the_same_in_tflm(name: str) -> None:
    whole = fixture(name)
    made, described = ready(whole), read(whole)
    given = rows(described)
    before, after = ([row for some in tflm.outputs(data, read(data), given) for row in some] for data in (whole, made))
    assert same(before, after)
    assert read(made).inputs.keys() == described.inputs.keys()


def bare(graph: Subgraph) -> tuple[Any, ...]:
    """All that a record says, values as bytes."""
    values = [None if made.data is None else made.data.tobytes() for made in graph.tensors]
    tensors = [replace(made, data=None, sparsity=None) for made in graph.tensors]
    return tensors, values, graph.operators, graph.inputs, graph.outputs, graph.name


def buffer_starts(data: bytes) -> list[int]:
    """Where the content of each buffer lies in the file."""
    whole = schema.Model.GetRootAs(data, 0)
    buffers = [whole.Buffers(index) for index in range(whole.BuffersLength())]
    return [found._tab.Vector(found._tab.Offset(4)) for found in buffers if found.DataLength()]


@pytest.mark.parametrize("name", [*FIXTURES, *NOT_RUN], ids=lambda name: Path(name).name)
def test_a_ready_model_has_what_it_had_at_the_same_indices_and_its_data_aligned(name: str) -> None:
    whole = fixture(name)
    made = ready(whole)
    before, after = read(whole), read(made)
    named = with_names_of(after, before)
    assert [bare(graph) for graph in named.subgraphs] == [bare(graph) for graph in before.subgraphs]
    for ours, theirs in ((after.inputs, before.inputs), (after.outputs, before.outputs)):
        assert {key: end.index for key, end in ours.items()} == {key: end.index for key, end in theirs.items()}
    starts = buffer_starts(made)
    assert starts or name in NOT_RUN, "an accelerator's weights lie in its operators' options"
    assert all(start % ALIGNMENT == 0 for start in starts)
    assert len(made) <= len(whole) + ALIGNMENT * len(starts)
    assert ready(made) == made


def described() -> Any:
    """Of everything that can go, something: names, ranges, metadata, a code and a buffer that nothing uses."""
    tensors = [tensor("in"), tensor("w", (4,), buffer=1), tensor("middle"), tensor("out")]
    operators = [operator([0, 1], [2], code=2), operator([2], [3], code=1)]
    made = model(tensors, operators, outputs=[3], kinds=("MUL", "RELU", "ADD"), contents=[bytes(16), b"unused" * 9])
    made.description, made.subgraphs[0].name = "made by hand", "main"
    tensors[0].quantization = schema.QuantizationParametersT()
    tensors[0].quantization.min, tensors[0].quantization.max = [0.0], [1.0]
    tensors[2].quantization = schema.QuantizationParametersT()
    tensors[2].quantization.scale, tensors[2].quantization.zeroPoint = [0.5], [3]
    tensors[2].quantization.max = [1.0]
    return made


def with_metadata(made: Any, name: str, content: bytes) -> Any:
    entry, buffer = schema.MetadataT(), schema.BufferT()
    buffer.data = list(content)
    made.buffers.append(buffer)
    entry.name, entry.buffer = name, len(made.buffers) - 1
    made.metadata = [*(made.metadata or []), entry]
    return made


def with_signature(made: Any, name: str) -> Any:
    signature, (first, last) = schema.SignatureDefT(), (schema.TensorMapT(), schema.TensorMapT())
    first.name, first.tensorIndex = f"{name}_in", 0
    last.name, last.tensorIndex = f"{name}_out", 3
    signature.signatureKey, signature.inputs, signature.outputs = "serving_default", [first], [last]
    made.signatureDefs = [signature]
    return made


def test_nothing_that_only_people_and_converters_read_is_left() -> None:
    made = unpack(ready(packed(with_metadata(described(), "CONVERSION_METADATA", b"x" * 40))))
    assert (made.description, made.subgraphs[0].name, made.metadata or []) == (None, None, [])
    assert [found.name for found in made.subgraphs[0].tensors] == [b"in", None, None, b"out"]
    first, _, middle, _ = made.subgraphs[0].tensors
    assert first.quantization is None, "ranges alone say nothing to a runtime"
    assert (middle.quantization.scale, middle.quantization.zeroPoint) == ([0.5], [3])
    assert (middle.quantization.min, middle.quantization.max) == (None, None)
    assert len(made.buffers) == 2


def test_ends_that_a_signature_names_lose_their_own_names() -> None:
    whole = packed(with_signature(described(), "served"))
    made = unpack(ready(whole))
    assert [found.name for found in made.subgraphs[0].tensors] == [None] * 4
    assert list(read(ready(whole)).inputs) == ["served_in"]


def test_operator_codes_that_nothing_uses_go_and_the_others_keep_their_order() -> None:
    made = ready(packed(described()))
    assert [code.builtinCode for code in unpack(made).operatorCodes] == [
        schema.BuiltinOperator.RELU,
        schema.BuiltinOperator.ADD,
    ]
    assert [found.kind for found in read(made).main.operators] == ["ADD", "RELU"]


@pytest.mark.parametrize(
    ("kind", "old", "new", "wanted"),
    [
        ("RELU", 19, 0, (19, 19)),
        ("RELU", 0, 19, (19, 19)),
        ("RELU", 19, 19, (19, 19)),
        ("GELU", 127, 150, (127, 150)),
        ("GELU", 0, 150, (127, 150)),
    ],
)
def test_a_builtin_stands_in_the_old_and_in_the_new_field(
    kind: str, old: int, new: int, wanted: tuple[int, int]
) -> None:
    made = model([tensor("in"), tensor("out")], [operator([0], [1])], outputs=[1], kinds=[kind])
    made.operatorCodes[0].deprecatedBuiltinCode, made.operatorCodes[0].builtinCode = old, new
    [code] = unpack(ready(packed(made))).operatorCodes
    assert (code.deprecatedBuiltinCode, code.builtinCode) == wanted
    assert read(ready(packed(made))).main.operators[0].kind == kind


def test_the_plan_of_an_arena_made_before_stays() -> None:
    plan = np.array([1, 0, 4, 0, -1, 16, 0], np.int32).tobytes()
    made = unpack(ready(packed(with_metadata(described(), "OfflineMemoryAllocation", plan))))
    [entry] = made.metadata
    assert entry.name == b"OfflineMemoryAllocation"
    assert bytes(made.buffers[entry.buffer].data) == plan


def test_buffers_keep_their_numbers_where_metadata_names_them() -> None:
    whole = packed(with_metadata(described(), "COMPRESSION_METADATA", b"tables are in buffer 2"))
    made = unpack(ready(whole))
    assert bytes(made.buffers[2].data) == b"unused" * 9
    assert [entry.name for entry in made.metadata] == [b"COMPRESSION_METADATA"]


def test_names_put_back_stop_where_tensors_were_added() -> None:
    named = read(packed(described()))
    more = described()
    more.subgraphs[0].tensors.append(tensor("added"))
    found = with_names_of(read(ready(packed(more))), named)
    assert [made.name for made in found.main.tensors] == ["in", "w", "middle", "out", ""]
    assert found.outputs["out"] is found.main.tensors[3]
    assert (found.description, found.main.name) == ("made by hand", "main")


def test_names_of_a_model_with_more_tensors_are_refused() -> None:
    more = described()
    more.subgraphs[0].tensors.append(tensor("added"))
    with pytest.raises(ValueError, match="longer"):
        with_names_of(read(packed(described())), read(packed(more)))


def hostile() -> list[tuple[str, bytes]]:
    whole, negative, absent = packed(described()), described(), described()
    for code in negative.operatorCodes:
        code.builtinCode = code.deprecatedBuiltinCode = -3
    absent.subgraphs[0].operators[0].inputs = [0, 99]
    return [
        ("nothing", b""),
        ("another file", b"PK\x03\x04" * 64),
        ("half of it", whole[: len(whole) // 2]),
        ("a negative code", packed(negative)),
        ("a tensor that is not there", packed(absent)),
        ("metadata in no buffer", packed(with_metadata(described(), "OfflineMemoryAllocation", b"x"))[:-64]),
    ]


@pytest.mark.parametrize("data", [data for _, data in hostile()], ids=[name for name, _ in hostile()])
def test_what_is_damaged_is_refused_in_words(data: bytes) -> None:
    with pytest.raises(ModelError) as refused:
        ready(data)
    assert refused.value.action


def test_whatever_byte_is_wrong_it_is_refused_or_stays_a_model_that_is_ready() -> None:
    whole, dice = packed(with_signature(described(), "served")), np.random.default_rng(0)
    ended = set()
    for _ in range(400):
        broken = bytearray(whole)
        broken[int(dice.integers(len(broken)))] = int(dice.integers(256))
        try:
            made = ready(bytes(broken))
            ended.add("ready" if ready(made) == made else "restless")
        except ModelError:
            ended.add("refused")
    assert ended == {"ready", "refused"}
