"""Files that no converter writes: each ends in words, soon, and without more memory than the file is worth."""

from __future__ import annotations

import resource
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import flatbuffers
import projects
import pytest
from ai_edge_litert import schema_py_generated as schema
from flatbuffers_made import chain, model, operator, packed, tensor

from edgebuild.export import object_tree, signature, verify
from edgebuild.export.errors import ModelError
from edgebuild.export.flatbuffer import MOST_KIND_BYTES, read
from edgebuild.export.surgery import Surgeon

HUGE = struct.pack("<I", 2**31 - 1)
LIMIT_BYTES: Final = 512 * 2**20
LIMIT_S: Final = 20  # Of the processor, whoever else uses it.
CHILD: Final = """
import sys
from pathlib import Path
from edgebuild.export import errors, flatbuffer, object_tree
module, name = sys.argv[1].split(".")
try:
    getattr(globals()[module], name)(Path(sys.argv[2]).read_bytes())
except errors.ModelError as e:
    print(e.what, e.cause)
"""


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S))


def refused_in_bounds(function: str, data: bytes, folder: Path) -> str:
    """What a function says of a file, in a process that has little time and memory."""
    (folder / "m.tflite").write_bytes(data)
    command = [sys.executable, "-c", CHILD, function, str(folder / "m.tflite")]
    ended = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def cause(data: bytes) -> str:
    with pytest.raises(ModelError) as refused:
        read(data)
    assert refused.value.action
    return refused.value.cause


def overwritten(data: bytes, at: int, content: bytes) -> bytes:
    return data[:at] + content + data[at + len(content) :]


def vector(data: bytes, *path: str) -> int:
    """Where the length of a vector stands that accessors lead to, through the first element of each before it."""
    table: Any = schema.Model.GetRootAs(data, 0)
    for name in path[:-1]:
        table = getattr(table, name)(0)
    tab = table._tab
    slot = {"Subgraphs": 2, "Tensors": 0, "Operators": 3, "Shape": 0, "Name": 3, "Inputs": 1}[path[-1]]
    return int(tab.Vector(tab.Offset(4 + 2 * slot))) - 4


# Offsets and lengths


@pytest.mark.parametrize(
    "path",
    [
        ("Subgraphs",),
        ("Subgraphs", "Tensors"),
        ("Subgraphs", "Operators"),
        ("Subgraphs", "Tensors", "Shape"),
        ("Subgraphs", "Tensors", "Name"),
        ("Subgraphs", "Operators", "Inputs"),
    ],
)
def test_a_vector_longer_than_the_file_is_refused_before_anything_loops_over_it(path: tuple[str, ...]) -> None:
    whole = chain(2)
    assert "of 2,147,483,647 in" in cause(overwritten(whole, vector(whole, *path), HUGE))


def test_a_table_that_is_its_own_vtable_is_refused() -> None:
    whole = chain(1)
    root = struct.unpack_from("<I", whole)[0]
    assert "describes no table" in cause(overwritten(whole, root, struct.pack("<i", 0)))


@pytest.mark.parametrize("distance", [-(2**31), 2**31 - 1, -100_000, 100_000])
def test_a_vtable_outside_the_file_is_refused(distance: int) -> None:
    whole = chain(1)
    root = struct.unpack_from("<I", whole)[0]
    assert "reaches out of the file" in cause(overwritten(whole, root, struct.pack("<i", distance)))


def test_an_offset_to_itself_is_refused() -> None:
    whole = chain(1)
    assert "leads to itself" in cause(overwritten(whole, vector(whole, "Subgraphs") + 4, bytes(4)))


def test_a_field_outside_its_table_is_refused() -> None:
    whole = chain(1)
    root = struct.unpack_from("<I", whole)[0]
    vtable = root - struct.unpack_from("<i", whole, root)[0]
    assert "lies outside it" in cause(overwritten(whole, vtable + 4, b"\xff\x7f"))


def test_what_many_offsets_share_is_not_read_again_and_again() -> None:
    """10,000 tensors, each with the same shape of 10,000 dimensions: 10^8 numbers out of 80 kB."""
    builder = flatbuffers.Builder(1024)
    schema.TensorStartShapeVector(builder, 10_000)
    for _ in range(10_000):
        builder.PrependInt32(1)
    shape = builder.EndVector()
    schema.TensorStart(builder)
    schema.TensorAddShape(builder, shape)
    one = schema.TensorEnd(builder)
    schema.SubGraphStartTensorsVector(builder, 10_000)
    for _ in range(10_000):
        builder.PrependUOffsetTRelative(one)
    tensors = builder.EndVector()
    schema.SubGraphStart(builder)
    schema.SubGraphAddTensors(builder, tensors)
    graph = schema.SubGraphEnd(builder)
    schema.ModelStartSubgraphsVector(builder, 1)
    builder.PrependUOffsetTRelative(graph)
    graphs = builder.EndVector()
    schema.ModelStart(builder)
    schema.ModelAddSubgraphs(builder, graphs)
    builder.Finish(schema.ModelEnd(builder), b"TFL3")
    assert "lie over each other" in cause(bytes(builder.Output()))


def test_every_vector_among_an_operators_options_is_verified() -> None:
    """The generated records tell: what is None before it is read, is behind an offset."""
    behind = {
        (number, slot)
        for name, number in vars(schema.BuiltinOptions).items()
        if isinstance(number, int) and number
        for slot, value in enumerate(vars(getattr(schema, f"{name}T")()).values())
        if value is None
    }
    union = verify.LAYOUT["Operator"][4]
    assert isinstance(union, verify.Union)
    assert behind == {(number, slot) for number, kind in union.kinds.items() for slot in verify.LAYOUT[kind]}
    assert all(getattr(schema.BuiltinOptions, kind) == number for number, kind in union.kinds.items())


@pytest.mark.parametrize("name", sorted(verify.LAYOUT.keys() - {verify.NUMBERS_ONLY}))
def test_the_layout_is_the_schemas(name: str) -> None:
    """Slots hold what the generated records say: nothing yet, where there is an offset."""
    fields = list(vars(getattr(schema, f"{name}T")()).values())
    slots = {"SignatureDef": {0: 0, 1: 1, 2: 2}}.get(name, {slot: slot for slot in verify.LAYOUT[name]})
    assert all(fields[slots[slot]] is None for slot in verify.LAYOUT[name])


# What the parts mean


def test_names_that_are_no_text_are_read_as_far_as_they_go() -> None:
    found = read(packed(model([tensor(b"a\xff\xfeb"), tensor("out")], [operator([0], [1])], outputs=[1])))
    assert found.main.tensors[0].name == "a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}b"


@pytest.mark.parametrize(
    ("operators", "words"),
    [
        (
            [operator([1], [2]), operator([0], [1])],
            "operator 0 (RELU) reads tensor 1 (b), which operator 1 (RELU) makes",
        ),
        (
            [operator([2], [1]), operator([1], [2])],
            "operator 0 (RELU) reads tensor 2 (c), which operator 1 (RELU) makes",
        ),
        ([operator([2], [2])], "operator 0 (RELU) reads tensor 2 (c), which operator 0 (RELU) makes"),
        ([operator([1], [2])], "operator 0 (RELU) reads tensor 1 (b), which nothing makes"),
        ([operator([0], [2]), operator([0], [2])], "operator 1 (RELU) makes tensor 2 (c), as operator 0 (RELU) does"),
        ([operator([0], [0]), operator([0], [2])], "operator 0 (RELU) makes tensor 0 (a), which is an input"),
        ([operator([0], [3]), operator([0], [2])], "operator 0 (RELU) makes tensor 3 (d), which is a constant"),
        ([operator([0], [1])], "its output is tensor 2 (c), which nothing makes"),
    ],
)
def test_operators_that_cannot_run_one_after_the_other_are_refused(operators: list[Any], words: str) -> None:
    tensors = [tensor("a"), tensor("b"), tensor("c"), tensor("d", (4,), buffer=1)]
    assert words in cause(packed(model(tensors, operators, outputs=[2], contents=[bytes(16)])))


def test_what_is_there_without_being_made_may_be_read() -> None:
    """A state, an empty tensor (where RESHAPE goes, for a scalar), and an input that is absent."""
    state, empty = tensor("state"), tensor("empty", (0,))
    state.isVariable = True
    tensors = [tensor("in"), state, empty, tensor("out")]
    found = read(packed(model(tensors, [operator([0, 1, 2, -1], [3])], outputs=[3])))
    assert found.main.operators[0].inputs == (0, 1, 2, -1)


@pytest.mark.parametrize(
    ("shape", "kind", "words"),
    [
        ((5,), "FLOAT32", "holds 16 bytes; float32 [5] takes 20"),
        ((-4,), "FLOAT32", "has the shape [-4]"),
        ((1,) * 10_000, "FLOAT32", "has 10,000 dimensions"),
        ((2**31 - 1,) * 3, "INT8", "holds 16 bytes; int8 [2147483647, 2147483647, 2147483647] takes 9,9"),
        ((33,), "INT4", "takes 17"),
    ],
)
def test_a_constant_that_does_not_fill_its_shape_is_refused(shape: tuple[int, ...], kind: str, words: str) -> None:
    tensors = [tensor("in"), tensor("w", shape, buffer=1, kind=kind), tensor("out")]
    assert words in cause(packed(model(tensors, [operator([0, 1], [2])], outputs=[2], contents=[bytes(16)])))


def test_sizes_beyond_any_machine_are_counted_and_not_wrapped() -> None:
    found = read(packed(model([tensor("in", (2**31 - 1,) * 4), tensor("out")], [operator([0], [1])], outputs=[1])))
    assert found.main.tensors[0].elements == (2**31 - 1) ** 4


def test_sparse_constants_claim_no_more_than_a_file_is_worth() -> None:
    claimed = tensor("w", (2**14, 2**13), buffer=1, kind="INT8")
    level, rest = schema.DimensionMetadataT(), schema.DimensionMetadataT()
    level.denseSize, rest.denseSize = 2**14, 2**13
    claimed.sparsity = schema.SparsityParametersT()
    claimed.sparsity.traversalOrder, claimed.sparsity.dimMetadata = [0, 1], [level, rest]
    tensors = [tensor("in"), claimed, tensor("out")]
    whole = packed(model(tensors, [operator([0, 1], [2])], outputs=[2], contents=[bytes(16)]))
    assert "claim 134,217,728 elements" in cause(whole)


@pytest.mark.parametrize(
    ("order", "blocks", "count", "words"),
    [
        ([0, 1], [], 3, "3 sparse levels in an order of 2, for 2 dimensions and 0 blocks"),
        ([0, 1, 2], [], 3, "3 sparse levels in an order of 3, for 2 dimensions and 0 blocks"),
        ([0, 0], [], 2, "the sparse order [0, 0], which is no permutation"),
        ([1, 2], [], 2, "the sparse order [1, 2], which is no permutation"),
        (range(33), [0] * 31, 33, "33 sparse levels; 32 are the most"),
    ],
)
def test_sparse_levels_are_the_tensors_own(order: Sequence[int], blocks: list[int], count: int, words: str) -> None:
    level, sparse = schema.DimensionMetadataT(), tensor("w", (4, 4), buffer=1)
    level.denseSize = 4
    sparse.sparsity = schema.SparsityParametersT()
    sparse.sparsity.traversalOrder, sparse.sparsity.blockMap = list(order), blocks
    sparse.sparsity.dimMetadata = [level] * count
    tensors = [tensor("in"), sparse, tensor("out")]
    assert f"tensor 1 (w) has {words}" in cause(
        packed(model(tensors, [operator([0, 1], [2])], outputs=[2], contents=[bytes(64)]))
    )


@pytest.mark.parametrize("signature_shape", [[-1], [-1] * 100_000, [1, -2]])
def test_a_shape_signature_is_as_long_as_its_shape(signature_shape: list[int]) -> None:
    told = tensor("in")
    told.shapeSignature = signature_shape
    words = cause(packed(model([told, tensor("out")], [operator([0], [1])], outputs=[1])))
    assert "tensor 0 (in) of 2 dimensions has the shape signature [" in words
    assert len(words) < 200


def test_an_input_is_given_once() -> None:
    made = model([tensor("in"), tensor("out")], [operator([0], [1])], inputs=[0, 0], outputs=[1])
    assert cause(packed(made)) == "tensor 0 (in) is its input more than once"


def with_custom_code(name: str, count: int) -> bytes:
    made = model([tensor()], [operator([], [])] * count, kinds=["CUSTOM"], outputs=[0])
    made.operatorCodes[0].customCode = name
    return packed(made)


def test_the_name_of_a_custom_operator_is_read_once_and_is_no_book(tmp_path: Path) -> None:
    longest = read(with_custom_code("x" * MOST_KIND_BYTES, 2)).main.operators
    assert longest[0].kind is longest[1].kind
    words = refused_in_bounds("flatbuffer.read", with_custom_code("x" * 500_000, 5_000), tmp_path)
    assert "has 500,000 bytes; 1,024 are the most" in words


def test_a_name_that_every_operator_would_repeat_is_refused() -> None:
    """2.5 GB of JSON out of 700 kB."""
    tensors = [tensor("x" * 500_000), *(tensor(f"t{i}") for i in range(5_000))]
    made = model(tensors, [operator([0], [i + 1]) for i in range(5_000)], outputs=[1])
    assert "operators repeat come to 2,5" in cause(packed(made))


# Constants elsewhere


def behind(offset: int, size: int) -> bytes:
    made = model([tensor("in"), tensor("w", (4,), buffer=1), tensor("out")], [operator([0, 1], [2])], outputs=[2])
    buffer = schema.BufferT()
    buffer.offset, buffer.size = offset, size
    made.buffers.append(buffer)
    return packed(made)


def test_constants_behind_the_flatbuffer_are_read() -> None:
    """As in files above 2 GB."""
    start = len(behind(2**20, 16))
    found = read(behind(start, 16) + struct.pack("<4f", 1, 2, 3, 4))
    assert found.main.tensors[1].values().tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(("offset", "size"), [(2**20, 16), (2**63, 16), (16, 2**63), (2**64 - 1, 2**64 - 1)])
def test_constants_behind_the_end_of_the_file_are_refused(offset: int, size: int) -> None:
    assert "tensor 1 (w) lies at byte" in cause(behind(offset, size))


def test_constants_in_another_file_are_refused() -> None:
    elsewhere = tensor("w", (4,))
    elsewhere.externalBuffer = 1
    assert "one file" in cause(packed(model([tensor("in"), elsewhere], [], outputs=[0])))


@pytest.mark.parametrize("name", ["kws/ref_int8.tflite", "coral/deeplabv3_mnv2_dm05_pascal_quant.tflite"])
def test_what_is_not_shared_is_far_below_the_limit(name: str) -> None:
    """The limit on what is read twice leaves every real file room: the parts come to less than the file, once."""
    whole = projects.shared(name).read_bytes()
    walk = verify._Walk(whole)
    walk.table("Model", walk.target(0))
    assert walk._left_bytes > len(whole)


# What only surgery follows


class Shared:
    """A record that many offsets lead to: it is packed once."""

    def __init__(self, made: Any) -> None:
        self._made, self._at = made, 0

    def Pack(self, builder: Any) -> int:  # noqa: N802 - the generated records' name
        self._at = self._at or self._made.Pack(builder)
        return self._at


def relu() -> Any:
    return model([tensor("in"), tensor("out")], [operator([0], [1])], outputs=[1])


def with_metadata() -> Any:
    """All entries with one name: 10 GB out of 400 kB."""
    made, entry = relu(), schema.MetadataT()
    entry.name = "x" * 200_000
    made.metadata = [Shared(entry)] * 50_000
    return made


def with_custom_options() -> Any:
    made, shared = relu(), operator([], [])
    shared.customOptions = bytes(400_000)
    made.subgraphs[0].operators += [Shared(shared)] * 5_000
    return made


def with_ranges() -> Any:
    made, shared = relu(), tensor()
    shared.quantization = schema.QuantizationParametersT()
    shared.quantization.min = [0.0] * 100_000
    made.subgraphs[0].tensors += [Shared(shared)] * 5_000
    return made


def with_variants() -> Any:
    made, shared = relu(), schema.VariantSubTypeT()
    shared.shape = [1] * 5_000
    made.subgraphs[0].tensors[0].variantTensors = [Shared(shared)] * 5_000
    return made


def with_buffers() -> Any:
    made, shared = relu(), schema.BufferT()
    shared.data = bytes(100_000)
    made.buffers += [Shared(shared)] * 5_000
    return made


@pytest.mark.parametrize("make", [with_metadata, with_custom_options, with_ranges, with_variants, with_buffers])
def test_what_many_offsets_share_is_not_unpacked_again_and_again(make: Callable[[], Any], tmp_path: Path) -> None:
    whole = packed(make())
    read(whole)  # It follows none of these.
    assert "lie over each other" in refused_in_bounds("object_tree.unpack", whole, tmp_path)


def unpacking_fails(data: bytes) -> str:
    read(data)
    with pytest.raises(ModelError) as refused:
        object_tree.unpack(data)
    return refused.value.cause


def test_a_buffer_that_nothing_uses_lies_in_the_file_too() -> None:
    made, buffer = relu(), schema.BufferT()
    buffer.offset, buffer.size = 2**20, 16
    made.buffers.append(buffer)
    assert "buffer 1 lies at byte 1,048,576" in unpacking_fails(packed(made))


def test_what_lies_behind_the_flatbuffer_comes_to_no_more_than_the_file_is_worth() -> None:
    made, buffer = relu(), schema.BufferT()
    buffer.offset, buffer.size = 2, 100_000
    made.buffers += [Shared(buffer)] * 100
    assert "more than twice the file's size" in unpacking_fails(packed(made) + bytes(100_000))


def test_surgery_follows_no_number_to_what_is_not_there() -> None:
    entry, made = schema.MetadataT(), relu()
    entry.buffer, made.metadata = 7, [entry]
    assert "names a buffer that does not exist" in unpacking_fails(packed(made))
    made = relu()
    made.subgraphs[0].operators[0].intermediates = [99]
    assert "names a tensor that does not exist" in unpacking_fails(packed(made))


def array_accessor(field: str) -> str:
    return f"{field[0].upper()}{field[1:]}AsNumpy"


def element_bytes(name: str, field: str) -> int:
    """Of a vector of numbers, by the schema's own accessor."""
    made, table = getattr(schema, f"{name}T")(), getattr(schema, name)
    setattr(made, field, [1])
    builder = flatbuffers.Builder(64)
    builder.Finish(made.Pack(builder))
    return int(getattr(table.GetRootAs(bytes(builder.Output())), array_accessor(field))().itemsize)


@pytest.mark.parametrize("name", sorted(object_tree.LAYOUT.keys() - {verify.NUMBERS_ONLY}))
def test_all_that_is_unpacked_is_verified(name: str) -> None:
    """By the generated records: what is None before it is read, is behind an offset."""
    fields = enumerate(vars(getattr(schema, f"{name}T")()).items())
    behind = {slot: field for slot, (field, value) in fields if value is None}
    layout = object_tree.LAYOUT[name]
    assert behind.keys() == layout.keys()
    vectors = {slot: kind for slot, kind in layout.items() if isinstance(kind, verify.Vector)}
    assert all(kind.is_read for kind in vectors.values())
    for slot, kind in vectors.items():
        is_text = not hasattr(getattr(schema, name), array_accessor(behind[slot]))
        assert kind.width == (1 if is_text else element_bytes(name, behind[slot]))


@pytest.mark.parametrize(
    ("union", "table", "slot"),
    [("BuiltinOptions2", "Operator", 12), ("QuantizationDetails", "QuantizationParameters", 5)],
)
def test_every_kind_that_holds_a_vector_is_unpacked_as_such(union: str, table: str, slot: int) -> None:
    kinds = {
        number: name for name, number in vars(getattr(schema, union)).items() if isinstance(number, int) and number
    }
    field = object_tree.LAYOUT[table][slot]
    assert isinstance(field, verify.Union)
    assert field.kinds == {n: name for n, name in kinds.items() if None in vars(getattr(schema, f"{name}T")()).values()}


def test_buffers_are_aligned_wherever_a_model_is_packed_again() -> None:
    """16 bytes, as the schema demands: also where only names are changed."""
    tensors = [tensor("in"), tensor("w", (4,), buffer=1), tensor("out")]
    whole = packed(model(tensors, [operator([0, 1], [2])], outputs=[2], contents=[bytes(range(16))]))
    for again in (signature.rename(whole, {}, {}), Surgeon(whole).data()):
        assert again.index(bytes(range(16))) % 16 == 0
