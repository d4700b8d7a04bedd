"""Which operator runs where: against the published Edge TPU pairs, and rule by rule on hand-built graphs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgebuild.export.flatbuffer import Flatbuffer, Operator, Quantization, Subgraph, Tensor, read
from edgebuild.targets.cpu import target as cpu
from edgebuild.targets.edgetpu import rules as edgetpu_rules
from edgebuild.targets.gpu import rules as gpu_rules
from edgebuild.targets.microcontroller import rules as tflm_rules
from edgebuild.targets.partition import groups, stranded
from edgebuild.targets.placement import to_json
from edgebuild.targets.registry import TARGETS, target
from edgebuild.targets.target import Artifact

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from edgebuild.export.flatbuffer import Option
    from edgebuild.targets.placement import Placement
    from edgebuild.targets.rules import Table

FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures"
IMAGE = (1, 8, 8, 4)


def fixture(name: str) -> Flatbuffer:
    path = FIXTURES / name
    if not path.exists():
        pytest.skip(f"the shared model {name} is not here")
    return read(path.read_bytes())


def tensor(
    shape: tuple[int, ...] = IMAGE,
    dtype: str = "int8",
    *,
    values: Sequence[int] | None = None,
    constant: bool = False,
    signature: tuple[int, ...] | None = None,
    is_variable: bool = False,
) -> Tensor:
    """A tensor; `values` makes it a constant, `constant` one of zeros."""
    data = np.zeros(shape, dtype) if constant else None if values is None else np.asarray(values, dtype).reshape(shape)
    return Tensor(
        index=0,
        name="t",
        dtype=dtype,
        shape=shape,
        shape_signature=signature or shape,
        quantization=Quantization(scale=(1.0,), zero_point=(0,), axis=0) if "int" in dtype else None,
        is_variable=is_variable,
        data=None if data is None else data.reshape(-1).view(np.uint8),
    )


class Graph:
    """Builds a model operator by operator."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.operators: list[Operator] = []

    def add(self, made: Tensor) -> int:
        index = len(self.tensors)
        self.tensors.append(replace(made, index=index, name=f"t{index}"))
        return index

    def op(
        self,
        kind: str,
        inputs: Sequence[int | Tensor],
        output: Tensor,
        *,
        version: int = 1,
        is_custom: bool = False,
        options: Mapping[str, Option] | None = None,
    ) -> int:
        out = self.add(output)
        self.operators.append(
            Operator(
                index=len(self.operators),
                kind=kind,
                version=version,
                is_custom=is_custom,
                inputs=tuple(self.add(i) if isinstance(i, Tensor) else i for i in inputs),
                outputs=(out,),
                options=options or {},
            )
        )
        return out

    def model(self) -> Flatbuffer:
        graph = Subgraph(
            name="main", tensors=tuple(self.tensors), operators=tuple(self.operators), inputs=(), outputs=()
        )
        return Flatbuffer(size_bytes=0, description="", subgraphs=(graph,), inputs={}, outputs={})


def place_one(
    target_name: str,
    kind: str,
    inputs: Sequence[int | Tensor],
    output: Tensor,
    *,
    version: int = 1,
    is_custom: bool = False,
    options: Mapping[str, Option] | None = None,
) -> Placement:
    graph = Graph()
    graph.op(kind, inputs, output, version=version, is_custom=is_custom, options=options)
    return target(target_name).place(graph.model())


def weights(dtype: str = "int8") -> Tensor:
    return tensor((4, 1, 1, 4), dtype, constant=True)


@pytest.mark.parametrize(
    "name", ["mobilenet_v1_0.25_128_quant", "keras_lstm_mnist_ptq", "deeplabv3_mnv2_dm05_pascal_quant"]
)
def test_edgetpu_prediction_equals_the_real_compiler_operator_by_operator(name: str) -> None:
    model, compiled = fixture(f"coral/{name}.tflite"), fixture(f"coral/{name}_edgetpu.tflite")
    left = [(op.kind, compiled.main.tensors[op.outputs[0]].name) for op in compiled.main.operators if not op.is_custom]
    placement = target("edgetpu").place(model)
    assert [(lost.kind, lost.tensor) for lost in placement.unmapped] == left
    assert placement.mapped == len(model.main.operators) - len(left)
    assert placement.evidence == "predicted"
    assert placement.fallback == "cpu"


def test_edgetpu_reads_off_what_its_compiler_made() -> None:
    """In a compiled file one operator stands for all that was mapped, and the rest is settled."""
    compiled = fixture("coral/deeplabv3_mnv2_dm05_pascal_quant_edgetpu.tflite")
    placement = target("edgetpu").place(compiled)
    assert placement.evidence == "measured"
    assert placement.mapped == 1
    assert len(placement.unmapped) == len(compiled.main.operators) - 1
    assert {lost.reason for lost in placement.unmapped} == {"edgetpu_compiler left it on the CPU"}


def test_edgetpu_keeps_operators_before_the_first_mapped_one_on_the_cpu_at_no_further_cost() -> None:
    graph = Graph()
    quantized = graph.op("QUANTIZE", [tensor(dtype="float32")], tensor())
    convolved = graph.op("CONV_2D", [quantized, weights()], tensor())
    graph.op("DEQUANTIZE", [convolved], tensor(dtype="float32"))
    placement = target("edgetpu").place(graph.model())
    assert [lost.kind for lost in placement.unmapped] == ["QUANTIZE", "DEQUANTIZE"]
    assert "ahead of the Edge TPU, at no further cost" in placement.unmapped[0].reason
    assert "ahead" not in placement.unmapped[1].reason
    assert placement.mapped == 1


def test_edgetpu_runs_after_the_cpu_what_reads_an_operator_that_is_refused_later_in_the_graph() -> None:
    """The partitioner lets the CPU go first only where the graph's first operator is the CPU's."""
    graph = Graph()
    convolved = graph.op("CONV_2D", [tensor(), weights()], tensor())
    aside = graph.op("QUANTIZE", [tensor(dtype="float32")], tensor())
    graph.op("ADD", [convolved, aside], tensor())
    placement = target("edgetpu").place(graph.model())
    assert [lost.operator for lost in placement.unmapped] == [1, 2]


def test_edgetpu_loses_descendants_of_a_cpu_operator_but_not_its_siblings() -> None:
    graph = Graph()
    first = graph.op("CONV_2D", [tensor(), weights()], tensor())
    refused = graph.op("LEAKY_RELU", [first], tensor())
    graph.op("RELU", [first], tensor())
    graph.op("RELU", [refused], tensor())
    placement = target("edgetpu").place(graph.model())
    assert [lost.operator for lost in placement.unmapped] == [1, 3]
    assert "1 after it stay on the CPU with it" in placement.unmapped[0].reason
    assert "operator 1 (LEAKY_RELU)" in placement.unmapped[1].reason


def test_edgetpu_takes_one_sample_of_a_batch_of_any_size_and_says_so() -> None:
    """As the compiler does: the sizes in the file are those of one sample, and no operator computes others."""
    graph = Graph()
    batch = graph.add(tensor(signature=(-1, 8, 8, 4)))
    graph.op("RELU", [batch], tensor(signature=(-1, 8, 8, 4)))
    placement = target("edgetpu").place(ended(graph, [batch], []))
    assert placement.mapped == 1
    assert "takes a batch of any size" in placement.findings[0].what
    assert "fix the batch to 1" in placement.findings[0].action


def ended(graph: Graph, inputs: Sequence[int], outputs: Sequence[int]) -> Flatbuffer:
    """The graph with its ends named; the signature calls the n-th input `in<n>`."""
    model = graph.model()
    named = {f"in{place}": model.main.tensors[index] for place, index in enumerate(inputs)}
    main = replace(model.main, inputs=tuple(inputs), outputs=tuple(outputs))
    return replace(model, subgraphs=(main,), inputs=named)


def test_edgetpu_tells_of_floats_at_either_end() -> None:
    graph = Graph()
    given = graph.add(tensor(dtype="float32"))
    convolved = graph.op("CONV_2D", [graph.op("QUANTIZE", [given], tensor()), weights()], tensor())
    taken = graph.op("DEQUANTIZE", [convolved], tensor(dtype="float32"))
    told = target("edgetpu").place(ended(graph, [given], [taken])).findings
    assert ["QUANTIZE at every" in told[0].what, "DEQUANTIZE at every" in told[1].what] == [True, True]
    assert all("targets.edgetpu.io" in finding.action for finding in told)


def test_edgetpu_tells_of_an_int8_image_and_of_no_other_int8_input() -> None:
    for channels, count in ((3, 1), (4, 0)):
        graph = Graph()
        image = graph.add(tensor((1, 8, 8, channels)))
        made = graph.op("RELU", [image], tensor((1, 8, 8, channels)))
        told = target("edgetpu").place(ended(graph, [image], [made])).findings
        assert [finding.what.partition(",")[0] for finding in told] == ["in0 is an int8 image"] * count
        assert all(finding.action.endswith("targets.edgetpu.io: uint8") for finding in told)


def test_edgetpu_tells_of_dense_layers_that_its_compiler_is_older_than() -> None:
    scales = Quantization(scale=(1.0,) * 4, zero_point=(0,) * 4, axis=0)
    graph = Graph()
    graph.op(
        "FULLY_CONNECTED",
        [tensor((1, 4)), replace(tensor((4, 4), constant=True), quantization=scales)],
        tensor((1, 4)),
    )
    told = target("edgetpu").place(graph.model()).findings
    assert "FULLY_CONNECTED (operator 0) have a scale for each channel" in told[0].what


def test_edgetpu_refuses_sizes_other_than_the_batch_that_are_not_known() -> None:
    placement = place_one("edgetpu", "RELU", [tensor(signature=(1, -1, -1, 4))], tensor())
    assert "dynamic tensor size [1, -1, -1, 4]" in placement.unmapped[0].reason


OUTPUT_SHAPE = tensor((4,), "int32", values=[1, 16, 16, 4])
COMPUTED = tensor((4,), "int32")
UNREADABLE = [
    ("GELU", [], 1, "GELU is younger"),
    ("STABLEHLO_ADD", [], 1, "STABLEHLO_ADD is younger"),
    ("FULLY_CONNECTED", [tensor((4, 4), constant=True)], 12, "version 12; the compiler knows 9"),
    ("QUANTIZE", [], 3, "version 3; the compiler knows 2"),
    ("RESHAPE", [COMPUTED], 1, "computed at run time"),
    ("FlexErf", [], 1, "TensorFlow's own operator"),
]


@pytest.mark.parametrize(("kind", "others", "version", "reason"), UNREADABLE)
def test_edgetpu_maps_nothing_of_a_model_that_its_compiler_cannot_read(
    kind: str, others: list[Tensor], version: int, reason: str
) -> None:
    graph = Graph()
    first = graph.op("RELU", [tensor()], tensor())
    graph.op(kind, [first, *others], tensor(), version=version, is_custom=kind.startswith("Flex"))
    placement = target("edgetpu").place(graph.model())
    assert placement.mapped == 0
    assert f"operator 1 ({kind})" in placement.unmapped[0].reason
    assert reason in placement.unmapped[1].reason


AXIS_0 = tensor((1,), "int32", values=[0])
DEPTH = tensor((1,), "int32", values=[-1])
REFUSED = [
    ("ADD", [tensor(dtype="float32")], tensor(), {}, "int8 and uint8 only"),
    ("CONV_2D", [tensor(), weights("float32")], tensor(), {}, "constants of float32"),
    ("CONV_2D", [tensor(), tensor((1, 1, 1, 4))], tensor(), {}, "computed at run time"),
    ("CONV_2D", [tensor(), weights()], tensor(), {"dilationWFactor": 2, "dilationHFactor": 1}, "dilation"),
    ("MAX_POOL_2D", [tensor()], tensor(), {"fusedActivationFunction": "RELU"}, "fused activation RELU"),
    ("ADD", [tensor((2, 8, 8, 4))], tensor((2, 8, 8, 4)), {}, "three innermost"),
    ("CONCATENATION", [tensor(), tensor((1, 8, 8, 1), values=[1] * 64)], tensor(), {}, "no zero padding"),
    ("FULLY_CONNECTED", [tensor((1, 2, 4)), tensor((4, 4), constant=True)], tensor((1, 2, 4)), {}, "one-dimensional"),
    (
        "FULLY_CONNECTED",
        [tensor((1, 4)), tensor((4, 4), constant=True)],
        tensor((1, 4)),
        {"weightsFormat": 1},
        "format",
    ),
    ("MEAN", [tensor(), AXIS_0], tensor((8, 8, 4)), {}, "batch"),
    ("MEAN", [tensor((1, 8, 8, 6)), DEPTH], tensor((1, 8, 8)), {}, "depth of 6"),
    ("MEAN", [tensor(), tensor((1,), "int8")], tensor((1, 8, 8)), {}, "computed at run time"),
    ("PAD", [tensor(), tensor((4, 2), "int32", values=[1, 0, 0, 0, 0, 0, 0, 0])], tensor(), {}, "batch"),
    ("PACK", [tensor((1, 8))], tensor((1, 1, 8)), {"axis": 0}, "batch"),
    ("PRELU", [tensor(), tensor((8, 8, 4), constant=True)], tensor(), {}, "one-dimensional"),
    ("SOFTMAX", [tensor((1, 16_001))], tensor((1, 16_001)), {}, "16,001 elements"),
    ("RESIZE_BILINEAR", [tensor((1, 1, 1, 4))], tensor((1, 8, 8, 4)), {}, "height of 1"),
    ("RESIZE_BILINEAR", [tensor()], tensor((1, 1000, 1000, 2)), {}, "2,000,000 elements"),
    ("SPLIT", [tensor((), "int32", values=[0]), tensor()], tensor(), {}, "splits the batch"),
    ("SQUEEZE", [tensor((5, 1, 4))], tensor((5, 4)), {}, "inner dimensions"),
    ("STRIDED_SLICE", [tensor(), AXIS_0, AXIS_0, tensor((1,), "int32", values=[2])], tensor(), {}, "strides"),
    ("LEAKY_RELU", [tensor()], tensor(), {}, "LEAKY_RELU is not among"),
    ("TRANSPOSE_CONV", [OUTPUT_SHAPE, tensor((1, 2, 2, 4)), tensor()], tensor(), {}, "computed at run time"),
]


@pytest.mark.parametrize(("kind", "inputs", "output", "options", "reason"), REFUSED)
def test_edgetpu_refuses_what_its_documentation_excludes(
    kind: str, inputs: list[Tensor], output: Tensor, options: dict[str, Option], reason: str
) -> None:
    placement = place_one("edgetpu", kind, inputs, output, options=options)
    assert placement.mapped == 0
    assert reason in placement.unmapped[0].reason


ACCEPTED = [
    ("CONCATENATION", [tensor(), tensor((1, 8, 8, 1), constant=True)], tensor(), {}),
    ("MEAN", [tensor(), DEPTH], tensor((1, 8, 8)), {}),
    ("PAD", [tensor(), tensor((4, 2), "int32", values=[0, 0, 1, 1, 1, 1, 0, 0])], tensor(), {}),
    ("PACK", [tensor((1, 8))], tensor((1, 1, 8)), {"axis": 1}),
    ("PRELU", [tensor(), tensor((1, 1, 4), constant=True)], tensor(), {}),
    ("SOFTMAX", [tensor((1, 16_000))], tensor((1, 16_000)), {}),
    ("SPLIT", [tensor((), "int32", values=[3]), tensor()], tensor(), {}),
    ("SQUEEZE", [tensor((1, 1, 4))], tensor((4,)), {}),
    ("STRIDED_SLICE", [tensor(), AXIS_0, AXIS_0, tensor((1,), "int32", values=[1])], tensor(), {}),
    ("TRANSPOSE_CONV", [OUTPUT_SHAPE, tensor((4, 2, 2, 4), constant=True), tensor()], tensor(), {}),
    ("UNIDIRECTIONAL_SEQUENCE_LSTM", [tensor(), tensor((1, 20), "int16", is_variable=True)], tensor(), {}),
]


@pytest.mark.parametrize(("kind", "inputs", "output", "options"), ACCEPTED)
def test_edgetpu_takes_what_its_documentation_allows(
    kind: str, inputs: list[Tensor], output: Tensor, options: dict[str, Option]
) -> None:
    assert place_one("edgetpu", kind, inputs, output, options=options).unmapped == ()


FLOAT = tensor(dtype="float32")
GPU_REFUSED = [
    ("CONV_2D", [tensor(dtype="int16"), weights()], tensor(dtype="int16"), {}, "int16"),
    ("DEPTHWISE_CONV_2D", [FLOAT, weights("float32")], FLOAT, {"depthMultiplier": 2}, "depth multiplier 2"),
    ("SOFTMAX", [FLOAT], FLOAT, {"beta": 2.0}, "beta"),
    ("STRIDED_SLICE", [FLOAT, AXIS_0, AXIS_0, AXIS_0], FLOAT, {"shrinkAxisMask": 1}, "shrinkAxisMask"),
    ("SLICE", [tensor((4, 4), "float32"), AXIS_0, AXIS_0], FLOAT, {}, "2-D"),
    ("ADD", [FLOAT, tensor((8, 4), "float32")], FLOAT, {}, "broadcasts"),
    ("MUL", [tensor((1, 9, 1, 1), "float32"), tensor((1, 1, 1, 9), "float32")], FLOAT, {}, "outer product"),
    ("MEAN", [FLOAT, tensor((1,), "float32")], FLOAT, {}, "2 computed inputs"),
    ("MIRROR_PAD", [FLOAT, tensor((4, 2), "int32", constant=True)], FLOAT, {"mode": 1}, "symmetric"),
    ("CAST", [tensor(dtype="int32")], tensor(dtype="bool"), {}, "casts int32 to bool"),
    ("GATHER_ND", [FLOAT, AXIS_0], FLOAT, {}, "GATHER_ND is not among"),
]


@pytest.mark.parametrize(("kind", "inputs", "output", "options", "reason"), GPU_REFUSED)
def test_gpu_refuses_what_the_delegate_source_excludes(
    kind: str, inputs: list[Tensor], output: Tensor, options: dict[str, Option], reason: str
) -> None:
    placement = place_one("gpu", kind, inputs, output, options=options)
    assert placement.mapped == 0
    assert reason in placement.unmapped[0].reason


def test_gpu_counts_unpacking_of_float16_weights_as_its_own() -> None:
    graph = Graph()
    unpacked = graph.op("DEQUANTIZE", [weights("float16")], tensor((4, 1, 1, 4), "float32"))
    graph.op("CONV_2D", [FLOAT, unpacked], FLOAT)
    placement = target("gpu").place(graph.model())
    assert (placement.mapped, placement.operators) == (2, 2)


def test_gpu_leaves_unpacking_to_the_cpu_where_only_the_cpu_reads_it() -> None:
    graph = Graph()
    graph.op("RELU", [FLOAT], FLOAT)
    unpacked = graph.op("DEQUANTIZE", [weights("float16")], tensor((4, 1, 1, 4), "float32"))
    graph.op("TOPK_V2", [FLOAT, unpacked], FLOAT)
    assert [lost.operator for lost in target("gpu").place(graph.model()).unmapped] == [1, 2]


def test_gpu_takes_only_the_largest_group_of_neighbours() -> None:
    graph = Graph()
    last = graph.op("RELU", [FLOAT], FLOAT)
    last = graph.op("TOPK_V2", [last], FLOAT)
    last = graph.op("RELU", [last], FLOAT)
    graph.op("RELU", [last], FLOAT)
    placement = target("gpu").place(graph.model())
    assert [lost.operator for lost in placement.unmapped] == [0, 1]
    assert "largest group" in placement.unmapped[0].reason


def test_groups_follow_dependencies_and_not_file_order() -> None:
    graph = Graph()
    source = graph.add(FLOAT)
    graph.op("TOPK_V2", [source], FLOAT)
    graph.op("RELU", [source], FLOAT)
    graph.op("RELU", [source], FLOAT)
    assert groups(graph.model().main, {0}) == [[1, 2]]


@pytest.mark.parametrize(("first", "expected"), [("TOPK_V2", [[2, 3]]), ("RELU", [[0, 2], [3]])])
def test_groups_begin_with_the_sort_of_the_operator_that_can_run_first(first: str, expected: list[list[int]]) -> None:
    """What is refused runs ahead of the first call only where the graph begins with it."""
    graph = Graph()
    source = graph.add(FLOAT)
    refused = [index for index, kind in enumerate((first, "TOPK_V2")) if kind == "TOPK_V2"]
    begun, gathered = graph.op(first, [source], FLOAT), graph.op("TOPK_V2", [source], FLOAT)
    graph.op("RELU", [source], FLOAT)
    graph.op("RELU", [begun if first == "TOPK_V2" else gathered], FLOAT)
    assert groups(graph.model().main, refused) == expected


def test_gpu_loses_what_runs_before_float16_weights_are_unpacked() -> None:
    """The partitioner takes the unpacking for the CPU's, and the delegate the larger group, which comes after it."""
    graph = Graph()
    rectified = graph.op("RELU", [FLOAT], FLOAT)
    unpacked = graph.op("DEQUANTIZE", [weights("float16")], tensor((4, 1, 1, 4), "float32"))
    convolved = graph.op("CONV_2D", [rectified, unpacked], FLOAT)
    graph.op("RELU", [convolved], FLOAT)
    assert [lost.operator for lost in target("gpu").place(graph.model()).unmapped] == [0]


def test_a_constant_is_read_once_however_many_operators_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, values = Graph(), Tensor.values
    read: list[int] = []

    def counted(made: Tensor) -> NDArray[Any]:
        read.append(made.index)
        return values(made)

    padding = graph.add(tensor((1, 1, 1, 4), constant=True))
    for _ in range(3):
        graph.op("CONCATENATION", [padding, tensor((1, 1, 1, 4))], tensor((1, 1, 1, 8)))
    monkeypatch.setattr(Tensor, "values", counted)
    target("edgetpu").place(graph.model())
    assert read == [padding]


def test_nothing_is_stranded_where_nothing_is_refused() -> None:
    graph = Graph()
    graph.op("RELU", [FLOAT], FLOAT)
    assert stranded(graph.model().main, ()) == {}


def test_mcu_refuses_hybrids_of_the_real_dynamic_range_model() -> None:
    placement = target("mcu").place(fixture("kws/ref_dynrange.tflite"))
    hybrids = [lost for lost in placement.unmapped if "hybrid" in lost.reason]
    assert {lost.kind for lost in hybrids} == {"CONV_2D"}
    assert placement.fallback == ""


@pytest.mark.parametrize(
    ("kind", "made", "reason"),
    [
        ("GELU", tensor(), "has no GELU"),
        ("SOFTMAX", tensor(dtype="uint8"), "uint8"),
        ("DEQUANTIZE", tensor(dtype="float16"), "float16"),
    ],
)
def test_mcu_refuses_what_tflm_cannot_run(kind: str, made: Tensor, reason: str) -> None:
    placement = place_one("mcu", kind, [made], made)
    assert reason in placement.unmapped[0].reason


@pytest.mark.parametrize("name", ["kws/ref_int8.tflite", "resnet8_cifar10/pretrainedResnet_quant.tflite"])
def test_cpu_and_mcu_take_every_operator_of_the_reference_models(name: str) -> None:
    model = fixture(name)
    assert [target(each).place(model).mapped_share for each in ("cpu", "mcu")] == [1.0, 1.0]


def test_cpu_names_flex_operators_and_versions_the_runtime_lacks() -> None:
    graph = Graph()
    graph.op("FlexErf", [FLOAT], FLOAT, is_custom=True)
    graph.op("FULLY_CONNECTED", [FLOAT], FLOAT, version=12)
    graph.op("STABLEHLO_ADD", [FLOAT], FLOAT)
    graph.op("TFLite_Detection_PostProcess", [FLOAT], FLOAT, is_custom=True)
    reasons = [lost.reason for lost in target("cpu").place(graph.model()).unmapped]
    assert len(reasons) == len(graph.operators) - 1
    assert "Flex delegate" in reasons[0]
    assert "version 12" in reasons[1]
    assert "STABLEHLO_ADD" in reasons[2]


@pytest.mark.parametrize(
    ("name", "custom", "fallback"),
    [
        ("gpu", "edgetpu-custom-op", ""),
        ("gpu", "TFLite_Detection_PostProcess", "cpu"),
        ("edgetpu", "edgetpu-custom-op", "cpu"),
        ("edgetpu", "Unheard", ""),
    ],
)
def test_an_operator_that_tflite_runtime_does_not_know_runs_nowhere(name: str, custom: str, fallback: str) -> None:
    graph = Graph()
    made = graph.op(custom, [tensor()], tensor(), is_custom=True)
    graph.op("SIN", [made], tensor())
    assert target(name).place(graph.model()).fallback == fallback


@pytest.mark.parametrize("name", TARGETS)
def test_custom_operator_cannot_pass_for_a_builtin_by_its_name(name: str) -> None:
    assert place_one(name, "RELU", [FLOAT], FLOAT, is_custom=True).mapped == 0


@pytest.mark.parametrize("table", [cpu.TABLE, edgetpu_rules.TABLE, gpu_rules.TABLE, tflm_rules.TABLE])
def test_tables_name_operators_of_the_schema_only(table: Table) -> None:
    from ai_edge_litert import schema_py_generated as schema

    kinds = {kind for kind in table.rules if not kind.startswith("custom:")}
    assert kinds
    assert kinds <= set(vars(schema.BuiltinOperator))


@pytest.mark.parametrize("name", ["gpu", "edgetpu"])
def test_package_writes_the_placement_beside_the_model(name: str, tmp_path: Path) -> None:
    model = fixture("coral/deeplabv3_mnv2_dm05_pascal_quant.tflite")
    target(name).package(Artifact(data=b"model", flatbuffer=model, vectors=()), tmp_path)
    placement = target(name).place(model)
    text = (tmp_path / "placement.json").read_text(encoding="utf-8")
    assert (tmp_path / "model.tflite").read_bytes() == b"model"
    assert text == to_json(placement)
    assert text.endswith("}\n")
    written = json.loads(text)
    assert list(written) == sorted(written)
    assert (written["mapped"], len(written["unmapped"])) == (placement.mapped, len(placement.unmapped))
