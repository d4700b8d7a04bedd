"""Ethos-U by Arm's own compiler: its figures held to its files, its refusals, and what it leaves to the CPU."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import flatbuffers_made as made
import pytest
from projects import shared
from pydantic import TypeAdapter

from edgebuild.export import flatbuffer, object_tree, strip
from edgebuild.export.errors import ModelError
from edgebuild.targets.errors import ToolMissingError, UnknownTargetError
from edgebuild.targets.microcontroller import ethos_u, vela, vela_summary
from edgebuild.targets.microcontroller.npu import Npu

needs_vela = pytest.mark.skipif(not vela.installed(), reason="the optional wheel ethos-u-vela is not here")

KWS = "kws/ref_int8.tflite"
RESNET = "resnet8_cifar10/pretrainedResnet_quant.tflite"
INT8 = (KWS, RESNET, "ad01_toycar/ad01_int8.tflite", "str_ww/ref_int8.tflite", "coral/keras_lstm_mnist_ptq.tflite")
CALL = ("CUSTOM", "ethos-u")  # A model's own operator, with the name of the NPU's.
U55 = Npu(accelerator="ethos-u55-128", system_config="Ethos_U55_High_End_Embedded", memory_mode="Shared_Sram")


@dataclass(frozen=True)
class Ran:
    """One run of Vela: our record of it, and its own files."""

    record: ethos_u.EthosU
    summary: dict[str, str]
    layers: list[dict[str, str]]
    file_bytes: int


def ran(npu: Npu, data: bytes, folder: Path) -> Ran:
    said = vela._run(npu, data, folder)
    record = vela._record(npu, flatbuffer.read(data), data, said, folder)
    (summary,) = read_csv(folder / f"model_summary_{npu.system_config}.csv")
    return Ran(record, summary, read_csv(folder / "model_per-layer.csv"), (folder / "model_vela.tflite").stat().st_size)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ran]:
    return {name: ran(U55, shared(name).read_bytes(), tmp_path_factory.mktemp("vela")) for name in INT8}


def then(kind: str, tensor: str) -> bytes:
    """The keyword model with one operator more behind its last one, that gives a tensor of the same shape and type."""
    tree, twin = (object_tree.unpack(shared(KWS).read_bytes()) for _ in range(2))
    (code,) = made.model([], [], kinds=(kind,)).operatorCodes
    graph, (last,) = tree.subgraphs[0], twin.subgraphs[0].outputs
    extra = twin.subgraphs[0].tensors[last]
    extra.name = tensor
    code.customCode = CALL[1] if kind == CALL[0] else None
    tree.operatorCodes.append(code)
    graph.tensors.append(extra)
    graph.operators.append(made.operator([last], [len(graph.tensors) - 1], code=len(tree.operatorCodes) - 1))
    graph.outputs, tree.signatureDefs = [len(graph.tensors) - 1], None
    return object_tree.pack(tree, 2**17)


@needs_vela
@pytest.mark.parametrize("name", INT8)
def test_every_figure_is_that_of_the_summary(runs: dict[str, Ran], name: str) -> None:
    row, found = runs[name].summary, runs[name].record.summary
    assert asdict(found.cycles) == {
        "total": int(row["cycles_total"]),
        "npu": int(row["cycles_npu"]),
        "sram": int(row["cycles_sram_access"]),
        "dram": int(row["cycles_dram_access"]),
        "on_chip_flash": int(row["cycles_on_chip_flash_access"]),
        "off_chip_flash": int(row["cycles_off_chip_flash_access"]),
    }
    assert found.clock_hz == float(row["core_clock"]) == 500e6
    assert found.cycles.total / found.clock_hz == pytest.approx(float(row["inference_time"]))
    assert (found.sram_kib, found.dram_kib) == (float(row["sram_memory_used"]), float(row["dram_memory_used"]))
    assert found.on_chip_flash_kib == float(row["on_chip_flash_memory_used"])
    assert found.off_chip_flash_kib == float(row["off_chip_flash_memory_used"])
    assert (found.macs, found.original_weight_bytes) == (int(row["nn_macs"]), int(row["total_original_weights"]))
    assert found.encoded_weight_bytes == int(row["total_npu_encoded_weights"])
    assert found.arena_area == row["feature_map_storage_area"] == "SRAM"


@needs_vela
@pytest.mark.parametrize("name", INT8)
def test_the_file_holds_what_the_summary_says(runs: dict[str, Ran], name: str) -> None:
    record, output = runs[name].record, runs[name].record.output
    assert output.constants_bytes == record.summary.off_chip_flash_kib * 1024
    assert output.arena_bytes == record.summary.sram_kib * 1024
    assert output.file_bytes == runs[name].file_bytes > output.constants_bytes + output.commands_bytes > 0
    assert (output.calls, record.cpu_operators, record.on_cpu) == (1, 0, ())
    assert record.npu_operators == int(runs[name].summary["passes_before_fusing"])


def plain(layer: vela_summary.Layer) -> dict[str, str]:
    """The columns of a layer's row."""
    return {
        "Original Operator": layer.origin,
        "NNG Operator": layer.operator,
        "Target": layer.target,
        "Staging Usage": str(layer.staging_bytes),
        "Op Cycles": str(layer.cycles.total),
        "NPU": str(layer.cycles.npu),
        "SRAM AC": str(layer.cycles.sram),
        "DRAM AC": str(layer.cycles.dram),
        "OnFlash AC": str(layer.cycles.on_chip_flash),
        "OffFlash AC": str(layer.cycles.off_chip_flash),
        "MAC Count": str(layer.macs),
        "Name": layer.name,
    }


@needs_vela
@pytest.mark.parametrize("name", INT8)
def test_layers_are_rows_of_the_table(runs: dict[str, Ran], name: str) -> None:
    rows, layers = runs[name].layers, runs[name].record.layers
    cycles = sorted((int(row["Op Cycles"]) for row in rows), reverse=True)
    assert len(layers) == min(len(rows), vela_summary.MOST_LAYERS)
    assert sum(layer.cycles.total for layer in layers) == sum(cycles[: len(layers)])
    assert sum(cycles) == runs[name].record.summary.cycles.total
    waiting = iter(rows)
    for layer in layers:  # In the table's order, with nothing that is not in it.
        row = next(row for row in waiting if {key: row[key] for key in plain(layer)} == plain(layer))
        assert layer.share == (pytest.approx(float(row["Network% (cycles)"]) / 100) if layer.cycles.total else 0)


@needs_vela
def test_a_table_of_very_many_layers_says_what_it_leaves_out(runs: dict[str, Ran]) -> None:
    ran = runs["coral/keras_lstm_mnist_ptq.tflite"]
    left_out = sum(layer.share for layer in vela_summary.layers(as_csv(ran.layers))) - sum(
        layer.share for layer in ran.record.layers
    )
    number = len(ran.layers) - vela_summary.MOST_LAYERS
    assert number > 0
    assert ran.record.notes == (
        f"{number} of {len(ran.layers)} layers are not listed; they take {left_out:.1%} of the cycles",
    )
    assert runs[KWS].record.notes == ()


def as_csv(rows: list[dict[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@needs_vela
def test_known_models_take_what_was_once_measured(runs: dict[str, Ran]) -> None:
    kws, resnet = runs[KWS].record, runs[RESNET].record
    assert (kws.summary.cycles.total, resnet.summary.cycles.total) == (89_900, 201_747)
    assert (kws.summary.sram_kib, kws.summary.off_chip_flash_kib) == (21.671875, 30.375)
    assert resnet.summary.off_chip_flash_kib == 77.390625


@needs_vela
def test_record_goes_through_json_and_back(runs: dict[str, Ran]) -> None:
    record = runs[KWS].record
    assert TypeAdapter(ethos_u.EthosU).validate_json(json.dumps(asdict(record))) == record


@needs_vela
def test_only_the_file_comes_out_and_nothing_else_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    private = private_folders(tmp_path, monkeypatch)
    record = vela.compile_model(U55, shared(KWS).read_bytes(), tmp_path / "out")
    (file,) = (tmp_path / "out").iterdir()
    assert (file.name, file.stat().st_size) == ("model_vela.tflite", record.output.file_bytes)
    assert not list(private.iterdir())


def private_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "private"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@needs_vela
def test_a_float_model_stays_on_the_cpu_and_is_no_failure(tmp_path: Path) -> None:
    data = shared("ad01_toycar/ad01_fp32.tflite").read_bytes()
    record, model = vela.compile_model(U55, data, tmp_path), flatbuffer.read(data)
    placed = ethos_u.placement(record, model)
    assert (placed.mapped, placed.operators, placed.subgraphs) == (0, 10, 0)
    assert (placed.accelerator, placed.fallback, placed.evidence) == ("ethos-u", "tflite-micro", "predicted")
    assert [each.kind for each in placed.unmapped] == [operator.kind for operator in model.main.operators]
    assert all("unsupported DataType Float32" in each.reason for each in placed.unmapped)
    assert all("int8" in each.suggestion for each in placed.unmapped)
    assert (record.cpu_operators, record.npu_operators) == (10, 0)
    assert record.notes == (ethos_u.UNPRICED,)
    assert ethos_u.arena(record, model).evidence == "unavailable"


@needs_vela
@pytest.mark.parametrize(
    ("kind", "tensor", "fallback", "reason"),
    [
        ("L2_NORMALIZATION", "extra", "tflite-micro", "Unsupported opType"),
        ("L2_NORMALIZATION", "", "tflite-micro", "Unsupported opType"),
        ("SIGN", "extra", "", "Unsupported opType; TFLite Micro has no SIGN"),
        ("CUSTOM", "extra", "tflite-micro", "Unsupported opType"),
    ],
)
def test_an_operator_for_the_cpu_is_named_with_its_reason(
    kind: str, tensor: str, fallback: str, reason: str, tmp_path: Path
) -> None:
    data = then(kind, tensor)
    record = vela.compile_model(U55, data, tmp_path)
    placed = ethos_u.placement(record, flatbuffer.read(data))
    assert (placed.operators, placed.mapped, placed.subgraphs, placed.fallback) == (14, 13, 1, fallback)
    (left,) = placed.unmapped
    assert (left.operator, left.kind, left.tensor, left.reason) == (13, kind.replace(*CALL), tensor, reason)
    assert record.cpu_operators == 1


@needs_vela
def test_what_is_told_of_a_stripped_model_goes_by_the_names_it_had(tmp_path: Path) -> None:
    whole = then("L2_NORMALIZATION", "extra")
    named, stripped = flatbuffer.read(whole), strip.ready(whole)
    record = vela.compile_model(U55, stripped, tmp_path, named)
    assert [(each.kind, each.tensor) for each in record.on_cpu] == [("L2_NORMALIZATION", "extra")]
    placed = ethos_u.placement(record, flatbuffer.read(stripped))
    assert placed.mapped == placed.operators - 1
    names = tuple(tensor.name for tensor in named.main.tensors)
    assert all(layer.name.startswith(names) for layer in record.layers)  # Vela's own add to a name.
    assert not any("t0." in each.reason for each in record.on_cpu)


@needs_vela
@pytest.mark.parametrize("fault", ["nothing", "garbage", "cut"])
def test_what_can_not_be_read_is_a_failure_that_leaves_nothing(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"nothing": b"", "garbage": b"TFL3" * 64, "cut": shared(KWS).read_bytes()[:5000]}[fault]
    (tmp_path / "out").mkdir()
    private = private_folders(tmp_path, monkeypatch)
    with pytest.raises(ModelError):
        vela.compile_model(U55, data, tmp_path / "out")
    assert not [*(tmp_path / "out").iterdir(), *private.iterdir()]


@needs_vela
def test_a_model_that_crashes_vela_ends_its_child_alone(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="did not compile") as caught:
        vela._run(U55, shared(KWS).read_bytes()[:5000], tmp_path)
    assert "crashed (SIGSEGV): Failed to load TfLite model" in caught.value.cause


@needs_vela
def test_a_model_that_vela_refuses_is_a_failure_in_its_words(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="did not compile") as caught:
        vela._run(U55, b"no model at all", tmp_path)
    assert caught.value.cause == "RuntimeError: Compilation failed: No networks defined via GraphAPI"


@needs_vela
def test_a_compiler_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vela, "TIMEOUT_S", 0.01)
    private = private_folders(tmp_path, monkeypatch)
    with pytest.raises(ModelError, match="did not compile") as caught:
        vela.compile_model(U55, shared(KWS).read_bytes(), tmp_path)
    assert "did not finish within" in caught.value.cause
    assert not list(private.iterdir())


@needs_vela
def test_a_compiler_that_writes_nothing_is_a_failure(tmp_path: Path) -> None:
    data = shared(KWS).read_bytes()
    with pytest.raises(ModelError, match=r"did not write model_vela\.tflite"):
        vela._record(U55, flatbuffer.read(data), data, "", tmp_path)


def test_a_wheel_that_can_not_be_imported_is_a_missing_tool() -> None:
    failure = vela._failed(U55, "Traceback\nImportError: regor.so: cannot open shared object file\n", 1)
    assert isinstance(failure, ToolMissingError)
    assert "regor.so" in failure.cause


def test_missing_wheel_is_a_missing_tool_with_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vela, "DISTRIBUTION", "no-such-distribution")
    monkeypatch.setattr(vela, "installed", lambda: False)
    for missing in (vela.version, lambda: vela.compile_model(U55, b"", tmp_path)):
        with pytest.raises(ToolMissingError) as caught:
            missing()
        assert caught.value.action == "pip install 'edgebuild[ethosu]'"


@pytest.mark.parametrize("text", ["", "a,b\n", "cycles_total\nmany\n", "Target,Op Cycles\nGPU,1\n"])
def test_tables_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(ModelError, match="not of the form"):
        vela_summary.summary(text)
    with pytest.raises(ModelError, match="not of the form"):
        vela_summary.counts(text)


def test_a_layer_of_another_form_is_refused() -> None:
    with pytest.raises(ModelError, match="table of layers"):
        vela_summary.layers("Target,Op Cycles\nGPU,1\n")


def test_names_of_the_model_do_not_pass_for_the_counts() -> None:
    said = (
        "CPU operators = 9 (100.0%)\nNPU operators = 9 (0.0%)\n\nCPU operators = 1 (2.5%)\nNPU operators = 39 (97.5%)\n"
    )
    assert vela_summary.counts(said) == (1, 39)


@needs_vela
@pytest.mark.parametrize(
    ("npu", "arena_area", "where"),
    [
        (
            Npu(accelerator="ethos-u55-128", system_config="Ethos_U55_Deep_Embedded", memory_mode="Sram_Only"),
            "SRAM",
            "too",
        ),
        (
            Npu(accelerator="ethos-u65-256", system_config="Ethos_U65_High_End", memory_mode="Dedicated_Sram_256KB"),
            "DRAM",
            "as the NPU's cache",
        ),
    ],
)
def test_the_arena_lies_where_the_memory_mode_keeps_it(npu: Npu, arena_area: str, where: str, tmp_path: Path) -> None:
    record = vela.compile_model(npu, shared(RESNET).read_bytes(), tmp_path)
    used, output = record.summary, record.output
    assert used.arena_area == arena_area
    if arena_area == "DRAM":
        assert output.arena_bytes == used.dram_kib * 1024 - output.constants_bytes
    else:
        assert (output.arena_bytes, output.constants_bytes) == (used.sram_kib * 1024, used.on_chip_flash_kib * 1024)
    made = flatbuffer.read_file(tmp_path / vela.MODEL)
    own = ethos_u.BASE_BYTES + ethos_u.TENSOR_BYTES * len(made.main.tensors)
    found = ethos_u.arena(record, made)
    assert found.value == output.arena_bytes + own + ethos_u.OPERATOR_BYTES * len(made.main.operators)
    assert found.evidence == "predicted"
    assert where in found.note


@needs_vela
def test_sram_is_the_arena_and_the_model_where_the_mode_keeps_it_there(runs: dict[str, Ran]) -> None:
    ran = runs[KWS]
    summary = ran.record.summary
    assert ethos_u.sram_bytes(ran.record) == round(summary.sram_kib * 1024)
    kept = replace(ran.record, summary=replace(summary, on_chip_flash_kib=30.0))
    assert ethos_u.sram_bytes(kept) == round(summary.sram_kib * 1024) + ran.file_bytes


@needs_vela
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[System_Config.Mine]\naxi0_port=Sram\n", "Memory_Mode.Shared not found"),
        ("[System_Config.Mine]\ncore_clock=fast\n", "could not convert"),
        (None, "is no file"),
    ],
)
def test_a_configuration_of_ones_own_is_velas_to_check(text: str | None, says: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "mine.ini").write_text(text)
    npu = replace(U55, config=str(tmp_path / "mine.ini"), system_config="Mine", memory_mode="Shared")
    with pytest.raises(UnknownTargetError) as caught:
        vela.compile_model(npu, shared(KWS).read_bytes(), tmp_path)
    assert says in str(caught.value)
    assert not (tmp_path / "model_vela.tflite").exists()
