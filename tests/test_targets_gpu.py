"""The GPU side of placement: what a runtime logs, what follows from it, and what leaves float16.

A stand-in answers for LiteRT, but for the tests marked `gpu_runtime`, which ask the one that EDGEBUILD_LITERT names. No
delegate's library can be had here: calls are read off tflite-runtime's own CPU delegate instead.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import projects
import pytest
from conftest import LITERT, Build, Ended
from test_targets_placement import IMAGE, Graph, place_one, tensor

from edgebuild.export import flatbuffer
from edgebuild.export.errors import ModelError
from edgebuild.export.flatbuffer import Flatbuffer
from edgebuild.export.interpreter import Interpreter
from edgebuild.pipeline import config, doctor
from edgebuild.pipeline.check import check
from edgebuild.pipeline.errors import ConfigError
from edgebuild.targets.errors import PlacementError, ToolMissingError
from edgebuild.targets.gpu import half as gpu_half
from edgebuild.targets.gpu import log as gpu_log
from edgebuild.targets.gpu import observed as gpu_observed
from edgebuild.targets.gpu import oracle as gpu_oracle
from edgebuild.targets.gpu import probe as gpu_probe
from edgebuild.targets.gpu import target as gpu
from edgebuild.targets.gpu.log import Refused
from edgebuild.targets.gpu.oracle import Answer, Oracle

SOFTWARE = (
    "I0000 00:00:1 1 environment.cc:532] Selected adapter: SwiftShader Device (Subzero), arch=swiftshader, "
    "vendor=google, backend=Vulkan, adapterType=CPU / Software"
)
HARDWARE = (
    "I0000 00:00:1 1 environment.cc:532] Selected adapter: Mali-G78, arch=valhall, vendor=arm, backend=Vulkan, "
    "adapterType=Integrated GPU"
)
PART = """ERROR: Following operations are not supported by GPU delegate:
DEQUANTIZE:\x20
GATHER_ND: Operation is not supported.
MUL: Tensor "t4" has bad input dims size: 0.
RESHAPE: Tensor dimensions must be less than 5. transpose
CUSTOM Detect: Operation is not supported.
4 operations will run on the GPU, and the remaining 7 operations will run on the CPU.
INFO: Created TensorFlow Lite XNNPACK delegate for CPU."""
FLOATS = tensor(dtype="float32")
MODEL = "ad01_toycar/ad01_fp32.tflite"


def oracle(*, is_software: bool = True) -> Oracle:
    return Oracle(
        way="litert",
        command=("python",),
        library="",
        runtime="ai-edge-litert 2.3.0",
        adapter="an adapter",
        is_software=is_software,
    )


def answer(**known: Any) -> Answer:
    blank = Answer(whole=False, calls=None, refused=(), on_gpu=None, outputs=(), unread="", failure="")
    return replace(blank, **known)


def branching() -> Flatbuffer:
    """0 NEG feeds 1 GATHER_ND and 3 RELU; 1 feeds 2 ABS; 4 ADD joins 2 and 3, and feeds 5 TANH."""
    graph = Graph()
    negative = graph.op("NEG", [FLOATS], FLOATS)
    gathered = graph.op("GATHER_ND", [negative, tensor((1, 1), "int32", values=[0])], FLOATS)
    absolute = graph.op("ABS", [gathered], FLOATS)
    rectified = graph.op("RELU", [negative], FLOATS)
    joined = graph.op("ADD", [absolute, rectified], FLOATS)
    graph.op("TANH", [joined], FLOATS)
    return graph.model()


def test_reads_adapter_refusals_and_counts_off_a_log() -> None:
    found = gpu_log.parse(f"INFO: something\n{SOFTWARE}\n{PART}\n")
    assert (found.adapter, found.is_software) == ("SwiftShader Device (Subzero), Vulkan", True)
    assert (found.on_gpu, found.on_cpu) == (4, 7)
    assert found.refused == (
        Refused(kind="DEQUANTIZE", why=""),
        Refused(kind="GATHER_ND", why="Operation is not supported."),
        Refused(kind="MUL", why='Tensor "t4" has bad input dims size: 0.'),
        Refused(kind="RESHAPE", why="Tensor dimensions must be less than 5. transpose"),
        Refused(kind="Detect", why="Operation is not supported."),
    )
    assert found.errors == ()


def test_reads_a_log_of_a_model_that_was_compiled_twice_once() -> None:
    twice, once = gpu_log.parse(f"{PART}\n{PART}"), gpu_log.parse(PART)
    assert twice == once


def test_an_adapter_of_hardware_is_none_of_software() -> None:
    assert not gpu_log.parse(HARDWARE).is_software
    assert gpu_log.parse(HARDWARE).adapter == "Mali-G78, Vulkan"
    assert gpu_log.parse("INFO: nothing is said").adapter == ""


@pytest.mark.parametrize(
    ("line", "on_gpu", "on_cpu"),
    [
        ("No operations will run on the GPU, and all 65 operations will run on the CPU.", 0, 65),
        ("First 3 operations will run on the GPU, and the remaining 81 on the CPU.", 3, 81),
    ],
)
def test_reads_the_counts_of_other_versions(line: str, on_gpu: int, on_cpu: int) -> None:
    text = f"ERROR: Next operations are not supported by GPU delegate:\nMEAN: Operation is not supported.\n{line}"
    found = gpu_log.parse(text)
    assert (found.on_gpu, found.on_cpu) == (on_gpu, on_cpu)
    assert [entry.kind for entry in found.refused] == ["MEAN"]


def test_reads_errors_but_not_refusals_as_errors() -> None:
    text = "ERROR: [model_load.cc:316] Variable tensors not yet supported.\nE0000 00:00:1 1 a.cc:7] no luck\n" + PART
    assert gpu_log.parse(text).errors == ("Variable tensors not yet supported.", "no luck")


def test_what_is_refused_takes_its_group_of_neighbours_with_it() -> None:
    refused = (Refused(kind="GATHER_ND", why="Operation is not supported."),)
    placement = gpu_observed.place(oracle(), branching(), answer(refused=refused, on_gpu=3))
    assert (placement.mapped, placement.evidence, placement.subgraphs) == (3, "simulated", 1)
    assert [lost.operator for lost in placement.unmapped] == [0, 1, 3]
    assert "GATHER_ND is not among the operators the GPU delegate takes" in placement.unmapped[1].reason
    assert placement.findings == ()


def test_a_delegate_that_takes_several_groups_is_told_by_its_count() -> None:
    refused = (Refused(kind="GATHER_ND", why="Operation is not supported."),)
    placement = gpu_observed.place(oracle(), branching(), answer(refused=refused, on_gpu=5))
    assert (placement.mapped, placement.subgraphs) == (5, 2)


def test_a_count_that_no_groups_give_is_told_as_a_doubt() -> None:
    refused = (Refused(kind="GATHER_ND", why="Operation is not supported."),)
    placement = gpu_observed.place(oracle(), branching(), answer(refused=refused, on_gpu=4))
    assert "takes 4 operators, and which they are does not follow" in placement.findings[0].what


def test_the_operator_whose_tensor_a_refusal_names_is_meant_and_no_other_of_its_kind() -> None:
    graph = Graph()
    first = graph.op("ABS", [FLOATS], FLOATS)
    second = graph.op("ABS", [first], FLOATS)
    graph.op("NEG", [second], FLOATS)
    named = Refused(kind="ABS", why=f'Tensor "t{second}" has bad input dims size: 6.')
    placement = gpu_observed.place(oracle(), graph.model(), answer(refused=(named,), on_gpu=1))
    assert [lost.operator for lost in placement.unmapped if lost.reason.startswith("Tensor")] == [1]


def test_calls_that_can_be_read_off_are_believed_operator_by_operator() -> None:
    model = branching()
    outputs = [operator.outputs[0] for operator in model.main.operators]
    calls = ((frozenset({outputs[1], outputs[3]}), frozenset({outputs[5]})),)
    said = (Refused(kind="TANH", why="Operation is not supported."),)  # Of one that was taken all the same.
    placement = gpu_observed.place(oracle(is_software=False), model, answer(calls=calls, refused=said))
    assert [lost.operator for lost in placement.unmapped] == [0, 1, 3]
    assert placement.evidence == "measured"


def test_disagreements_with_the_rules_name_operators() -> None:
    refused = (Refused(kind="TANH", why="No luck."),)
    placement = gpu_observed.place(oracle(), branching(), answer(refused=refused, on_gpu=5))
    more, less = (finding.what for finding in placement.findings)
    assert "takes operator 1 (GATHER_ND), which TFLite's GPU delegate refuses by its source" in more
    assert "refuses operator 5 (TANH), which TFLite's GPU delegate takes by its source" in less


@pytest.mark.parametrize("known", [{"failure": "it crashed by SIGSEGV"}, {"on_gpu": None}])
def test_rules_place_what_a_runtime_can_not_run_or_does_not_count(known: Mapping[str, Any]) -> None:
    model = branching()
    placement = gpu_observed.place(oracle(), model, answer(**known))
    assert placement.evidence == "predicted"
    assert placement.mapped == gpu.place(model).mapped
    assert "can't run the model" in placement.findings[0].what
    seen = gpu_observed.Observed(placement=placement, agreement=None, note="it crashed")
    with pytest.raises(PlacementError, match="required"):
        gpu_observed.require_run(seen)


def stand_in(folder: Path, *, log: str = SOFTWARE, then: str = "", **known: Any) -> Path:
    """A program that is called as LiteRT's Python is, logs and answers as told, and then does `then`."""
    said = {"version": "2.3.0", "whole": True, "calls": None, "failure": "", "unread": ""} | known
    program = folder / "python"
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, os, signal, sys, time\n"
        "from pathlib import Path\n"
        f"{'import numpy as np' if 'np.' in then else ''}\n"
        "folder = Path(sys.argv[3])\n"
        f"print({log!r}, file=sys.stderr, flush=True)\n"
        "is_asked = (folder / 'model.tflite').exists()\n"
        f"{then or 'pass'}\n"
        f"(folder / 'answer.json').write_text({json.dumps(said)!r})\n"
    )
    program.chmod(0o755)
    return program


Use = Callable[..., Oracle]


@pytest.fixture
def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Use:
    """Put a stand-in where LiteRT's Python is named, and find it."""

    def call(**behaviour: Any) -> Oracle:
        monkeypatch.setenv(gpu_oracle.LITERT, str(stand_in(tmp_path, **behaviour)))
        monkeypatch.delenv(gpu_oracle.DELEGATE, raising=False)
        return gpu_oracle.require_any()

    return call


def test_finds_a_runtime_with_its_version_and_adapter(use: Use) -> None:
    found = use()
    assert (found.runtime, found.adapter) == ("ai-edge-litert 2.3.0", "SwiftShader Device (Subzero), Vulkan")
    assert found.evidence == "simulated"
    assert gpu_oracle.require(found.runtime, found.adapter) == found
    with pytest.raises(ToolMissingError, match="planned with"):
        gpu_oracle.require("ai-edge-litert 9.9", found.adapter)


def test_without_a_runtime_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (gpu_oracle.LITERT, gpu_oracle.DELEGATE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert gpu_oracle.find() is None
    with pytest.raises(ToolMissingError) as caught:
        gpu_oracle.require_any()
    assert f"{tmp_path}/edgebuild/litert/bin/python -m pip install ai-edge-litert==2.3.0" in caught.value.action


@pytest.mark.parametrize(
    ("behaviour", "fix"),
    [
        ({"log": "Warning: Couldn't load Vulkan: libvulkan.so.1", "failure": "no"}, "libvulkan1"),
        ({"log": "INTERNAL: No adapters found", "failure": "no"}, "Vulkan driver"),
        ({"log": "ModuleNotFoundError: No module named 'ai_edge_litert'", "then": "sys.exit(1)"}, "pip install"),
        ({"log": "INFO: no adapter is named"}, "name a Python"),
        ({"then": "os.kill(os.getpid(), signal.SIGSEGV)"}, "name a Python"),
    ],
)
def test_a_runtime_that_does_not_answer_is_told_with_its_fix(use: Use, behaviour: Mapping[str, Any], fix: str) -> None:
    with pytest.raises(ToolMissingError) as caught:
        use(**behaviour)
    assert fix in caught.value.action
    looked = doctor._gpu_runtime()
    assert (looked.status, looked.fix) == ("optional", caught.value.action)


def test_doctor_names_the_runtime_and_what_its_answers_are_worth(use: Use) -> None:
    found = use(log=HARDWARE)
    looked = doctor._gpu_runtime()
    assert (looked.status, looked.detail) == ("ok", f"{found.title}; what it answers is measured")


def test_a_library_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gpu_oracle.DELEGATE, "/nowhere/libtensorflowlite_gpu_delegate.so")
    with pytest.raises(ToolMissingError, match="not there"):
        gpu_oracle.find()


def test_a_library_that_is_no_delegate_fails_the_run_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "libdelegate.so"
    library.write_bytes(b"no library")
    monkeypatch.setenv(gpu_oracle.DELEGATE, str(library))
    found = gpu_oracle.ask(gpu_oracle.require_any(), projects.shared(MODEL).read_bytes())
    assert str(library) in found.failure
    assert not found.whole


def test_an_answer_holds_outputs_refusals_and_counts(use: Use) -> None:
    given = "np.load(folder / 'inputs.npz').items()"
    made = f"{{k.replace('/a/b', '/c/d'): v + 1 for k, v in {given}}}"
    asked = use(
        log=f"{SOFTWARE}\n{PART}",
        whole=False,
        then=f"if is_asked: np.savez(folder / 'outputs.npz', **{made})",
    )
    samples = [{"a/b": np.array([0.0, 1.0], np.float32)}, {"a/b": np.array([2.0, 3.0], np.float32)}]
    found = gpu_oracle.ask(asked, b"a model", samples)
    assert [outputs["c/d"].tolist() for outputs in found.outputs] == [[1.0, 2.0], [3.0, 4.0]]
    assert (found.whole, found.on_gpu, len(found.refused)) == (False, 4, 5)


def test_a_crash_is_the_models_failure_and_is_named(use: Use) -> None:
    asked = use(then="if is_asked: os.kill(os.getpid(), signal.SIGSEGV)")
    found = gpu_oracle.ask(asked, b"a model")
    assert found.failure.startswith("it crashed by SIGSEGV")
    assert not found.whole


def test_a_hang_is_ended_and_is_no_verdict(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = use(then="if is_asked: time.sleep(600)")
    monkeypatch.setattr(gpu_oracle, "TIMEOUT_S", 1)
    with pytest.raises(ModelError, match="could not be asked"):
        gpu_oracle.ask(asked, b"a model")


def test_outputs_are_held_against_the_cpus(use: Use) -> None:
    data = projects.shared(MODEL).read_bytes()
    model, inputs = flatbuffer.read(data), {"input_1": np.ones((1, 640), np.float32)}
    outputs = Interpreter(data).run(inputs)
    echo = "np.savez(folder / 'outputs.npz', **{'0/Identity': np.zeros((1, 640), np.float32)})"
    seen = gpu_observed.observe(use(then=f"if is_asked: {echo}"), data, model, [(inputs, outputs)])
    assert seen.placement.mapped == len(model.main.operators)
    assert seen.agreement is not None
    assert seen.agreement.max_abs == pytest.approx(float(np.abs(outputs["Identity"]).max()))
    assert "off those of the CPU" in seen.placement.findings[0].what


def test_outputs_that_are_no_numbers_are_a_finding(use: Use) -> None:
    data = projects.shared(MODEL).read_bytes()
    inputs = {"input_1": np.ones((1, 640), np.float32)}
    bad = "np.savez(folder / 'outputs.npz', **{'0/Identity': np.full((1, 640), np.inf, np.float32)})"
    asked = use(then=f"if is_asked: {bad}")
    seen = gpu_observed.observe(asked, data, flatbuffer.read(data), [(inputs, Interpreter(data).run(inputs))])
    assert seen.agreement is None
    assert "NaN or infinity" in seen.placement.findings[0].what


def test_calls_of_tflite_runtimes_own_delegate_are_read_off_as_the_operators_they_replace() -> None:
    from tflite_runtime.interpreter import Interpreter as Runtime

    data = projects.shared(MODEL).read_bytes()
    plain, calls = gpu_probe.delegated(data, [])
    assert calls == []
    runtime = Runtime(model_content=data)  # XNNPACK is in it, unless it is told to leave it out.
    runtime.allocate_tensors()
    added = gpu_probe._nodes(runtime)[len(gpu_probe._nodes(plain)) :]
    model = flatbuffer.read(data)
    taken = [gpu_observed._between(model, set(node["inputs"]), set(node["outputs"])) for node in added]
    assert taken == [frozenset(range(len(model.main.operators)))]


def test_runs_a_delegated_model_by_the_names_of_its_signature_or_tensors(tmp_path: Path) -> None:
    data, inputs = projects.shared(MODEL).read_bytes(), {"input_1": np.ones((1, 640), np.float32)}
    np.savez(tmp_path / "inputs.npz", **{f"0/{name}": array for name, array in inputs.items()})
    interpreter, _ = gpu_probe.delegated(data, [])
    gpu_probe._run_delegated(interpreter, tmp_path)
    wanted = Interpreter(data).run(inputs)["Identity"]
    np.testing.assert_allclose(np.load(tmp_path / "outputs.npz")["0/Identity"], wanted, rtol=1e-4, atol=1e-3)


def scaled(low: float, high: float) -> Sequence[str]:
    """What is said of a graph whose second operator's output spans a range."""
    graph = Graph()
    first = graph.op("MUL", [FLOATS, tensor((4,), "float32", constant=True)], FLOATS)
    second = graph.op("TANH", [first], FLOATS)
    model = graph.model()
    return [
        finding.what for finding in gpu.place(model, {f"t{second}": (low, high), f"t{first}": (-1.0, 1.0)}).findings
    ]


@pytest.mark.parametrize(("low", "high"), [(-65504.0, 65504.0), (0.0, 0.0), (-1.0, 2.0), (0.0, 6e-8)])
def test_what_float16_holds_is_not_spoken_of(low: float, high: float) -> None:
    assert scaled(low, high) == []


def test_what_leaves_float16_is_named_with_its_operator_tensor_and_range() -> None:
    (above,) = scaled(-1.0, 65505.0)
    assert (
        "values of t3 at operator 1 (TANH) leave float16: they lie between -1 and 6.55e+04; float16 ends at 65504"
        in above
    )
    (below,) = scaled(-5e-8, 0.0)
    assert "they become zero" in below


def test_weights_beyond_float16_are_named_at_what_reads_them_packed_or_not() -> None:
    graph = Graph()
    packed = replace(tensor((4,), "float16", constant=True), data=np.full(4, np.inf, np.float16).view(np.uint8))
    unpacked = graph.op("DEQUANTIZE", [packed], tensor((4,), "float32"))
    product = graph.op("MUL", [FLOATS, unpacked], FLOATS)
    large = replace(FLOATS, shape=(4,), data=np.full(4, 1e9, np.float32).view(np.uint8))
    graph.op("ADD", [product, large], FLOATS)
    found = gpu_half.outside(graph.model(), {})
    assert [(entry.operator.kind, entry.problem, entry.high) for entry in found] == [
        ("MUL", "overflows", float("inf")),
        ("ADD", "overflows", 1e9),
    ]


def test_a_constant_that_is_cut_short_is_read_as_far_as_it_goes() -> None:
    graph = Graph()
    short = replace(tensor((4,), "float32", constant=True), data=np.array([1e9], np.float32).view(np.uint8)[:3])
    graph.op("MUL", [FLOATS, short], FLOATS)
    assert gpu_half.outside(graph.model(), {}) == ()


def test_quantized_activations_carry_their_ranges_and_a_check_tells_of_them() -> None:
    graph = Graph()
    graph.op("RELU", [tensor()], tensor())
    model = graph.model()
    wide = tuple(
        replace(t, quantization=replace(t.quantization, scale=(1000.0,))) if t.quantization else t
        for t in model.main.tensors
    )
    model = replace(model, subgraphs=(replace(model.main, tensors=wide),))
    assert gpu_half.carried(model)["t1"] == (-128000.0, 127000.0)
    assert any("values of t1 at operator 0 (RELU)" in finding.what for finding in gpu.place(model).findings)


def test_many_tensors_that_overflow_are_counted_not_listed() -> None:
    graph = Graph()
    last = graph.op("NEG", [FLOATS], FLOATS)
    for _ in range(9):
        last = graph.op("NEG", [last], FLOATS)
    model = graph.model()
    found = gpu_half.findings(model, {t.name: (0.0, 1e6) for t in model.main.tensors})
    assert len(found) == 6
    assert found[-1].what.startswith("values of 6 more tensors")


def test_layers_are_read_off_the_names_that_the_converter_makes() -> None:
    graph = Graph()
    graph.op("CONV_2D", [FLOATS], FLOATS)
    model = graph.model()
    name = "m/act/Relu;m/block/bn/FusedBatchNormV3;;m/block/conv/BiasAdd;m/block/conv/Conv2D"
    tensors = tuple(replace(t, name="x" if t.index else name) for t in model.main.tensors)
    model = replace(model, subgraphs=(replace(model.main, tensors=tensors),))
    assert gpu_half.layers_of(model, model.main.operators[0]) == ("block/conv", "block/bn", "act")


def test_ranges_of_a_model_hold_its_inputs_and_outputs() -> None:
    interpreter = Interpreter(projects.shared(MODEL).read_bytes(), keep_all=True)
    samples = {"input_1": np.stack([np.full(640, -2.0, np.float32), np.full(640, 7.0, np.float32)])}
    found = interpreter.ranges(samples)
    outputs = interpreter.predict(samples)["Identity"]
    assert found["input_1"] == (-2.0, 7.0)
    assert found["Identity"] == (float(outputs.min()), float(outputs.max()))
    assert len(found) == len(interpreter.flatbuffer.main.operators) + 1


@pytest.mark.parametrize(
    ("kind", "inputs", "output", "reason"),
    [
        ("RESHAPE", [tensor((1, 2, 4, 8, 4), "float32")], FLOATS, "a tensor of 5 dimensions"),
        ("ABS", [tensor((), "float32")], tensor((), "float32"), "without dimensions"),
        (
            "ONE_HOT",
            [
                tensor((2, 3), "int32"),
                tensor((), "int32", constant=True),
                tensor((), "float32", constant=True),
                tensor((), "float32", constant=True),
            ],
            tensor((2, 3, 4), "float32"),
            "of several dimensions",
        ),
        (
            "SELECT_V2",
            [tensor((2, 4), "bool"), tensor((2, 4), "float32"), tensor((2, 4), "float32", constant=True)],
            tensor((2, 4), "float32"),
            "constant matrix",
        ),
    ],
)
def test_rules_refuse_what_the_delegates_source_refuses(
    kind: str, inputs: Sequence[Any], output: Any, reason: str
) -> None:
    (lost,) = place_one("gpu", kind, inputs, output).unmapped
    assert reason in lost.reason


def test_only_gpu_has_runtimes_that_can_be_asked() -> None:
    settings = {"model": "m.h5", "targets": {"mcu": {"oracle": "required"}}}
    with pytest.raises(ConfigError) as caught:
        config.parse(settings)
    assert "mcu.oracle: only gpu takes it" in str(caught.value)
    with pytest.raises(ConfigError, match="only be asked about gpu"):
        check(projects.shared(MODEL), ["mcu"], oracle=True)


def test_what_stays_on_the_cpu_does_not_leave_float16() -> None:
    graph = Graph()
    looked_up = graph.op("GATHER_ND", [FLOATS, tensor((1, 1), "int32", values=[0])], FLOATS)
    read = graph.op("NEG", [looked_up], FLOATS)
    graph.op("NEG", [read], FLOATS)
    ranges = dict.fromkeys(("t1", f"t{looked_up}"), (0.0, 1e9))  # What the CPU reads, and what the GPU reads of it.
    (told,) = gpu.place(graph.model(), ranges).findings
    assert f"values of t{looked_up} at operator 0 (GATHER_ND)" in told.what


def test_a_tensor_of_no_operator_has_no_range() -> None:
    graph = Graph()
    graph.op("ABS", [FLOATS], FLOATS)
    graph.add(tensor(IMAGE, "float32"))
    assert gpu_half.outside(graph.model(), {"t2": (0.0, 1e9)}) == ()


def test_a_build_lets_the_runtime_place_the_model_and_makes_nothing_else_anew(
    digits: Build, run: Callable[..., Ended], tmp_path: Path
) -> None:
    project = tmp_path / "project"
    shutil.copytree(digits.folder, project)
    before = json.loads((project / "build/manifest.json").read_bytes())["stages"]
    program = stand_in(tmp_path, log=f"{SOFTWARE}\n{PART}", whole=False, unread="not asked")
    ended = run("-t", "gpu", "--json", cwd=project, EDGEBUILD_LITERT=str(program))
    assert ended.code == 0, ended.stderr
    target = ended.report["targets"]["gpu"]
    assert (target["placement"]["accelerator"], target["placement"]["evidence"]) == ("webgpu accelerator", "simulated")
    assert target["gpu_run"]["note"] == "not asked"
    assert any("outputs were not compared" in note for note in target["notes"])
    assert json.loads((project / "build/gpu/placement.json").read_bytes()) == target["placement"]
    after = json.loads((project / "build/manifest.json").read_bytes())["stages"]
    assert {after[key]["stage"] for key in after.keys() - before.keys()} == {"place", "package"}


def test_a_build_that_requires_a_runtime_fails_where_there_is_none(
    digits: Build, run: Callable[..., Ended], tmp_path: Path
) -> None:
    ended = run("-t", "gpu", "--set", "targets.gpu.oracle=required", "-o", tmp_path / "out", cwd=digits.folder)
    assert ended.code == 9
    assert "pip install ai-edge-litert" in ended.stderr


def test_a_build_warns_of_what_overflows_before_anyone_ships_it(
    digits: Build, run: Callable[..., Ended], tmp_path: Path
) -> None:
    project = tmp_path / "project"
    shutil.copytree(digits.folder, project)
    with np.load(project / "evaluation.npz") as arrays:
        np.savez(project / "evaluation.npz", image=arrays["image"] * 1e6, labels=arrays["labels"])
    ended = run("-t", "gpu", "--set", "gates.min_metric=0", "--json", "-o", tmp_path / "out", cwd=project)
    assert ended.code == 0, ended.stderr
    overflows = [note for note in ended.report["targets"]["gpu"]["notes"] if "float16 ends at 65504" in note]
    assert "(CONV_2D)" in overflows[0]
    assert "scale the inputs" in overflows[0]


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Oracle:
    """The runtime that EDGEBUILD_LITERT names."""
    if not LITERT:
        pytest.skip(
            "EDGEBUILD_LITERT names no Python with LiteRT's GPU runtime; `edgebuild doctor` says how to get one"
        )
    monkeypatch.setenv(gpu_oracle.LITERT, LITERT)
    return gpu_oracle.require_any()


@pytest.mark.gpu_runtime
def test_the_real_runtime_takes_a_whole_model_and_agrees_with_the_cpu(real: Oracle) -> None:
    data = projects.shared(MODEL).read_bytes()
    inputs = {"input_1": np.linspace(-1, 1, 640, dtype=np.float32)[None]}
    seen = gpu_observed.observe(real, data, flatbuffer.read(data), [(inputs, Interpreter(data).run(inputs))])
    assert (seen.placement.mapped_share, seen.placement.evidence) == (1.0, real.evidence)
    assert seen.agreement is not None
    assert seen.agreement.cosine > 0.999


@pytest.mark.gpu_runtime
@pytest.mark.usefixtures("real")
def test_the_real_runtime_refuses_what_no_gpu_has() -> None:
    model = projects.shared("coral/deeplabv3_mnv2_dm05_pascal_quant.tflite")
    (lost,) = check(model, ["gpu"], oracle=True).targets["gpu"].placement.unmapped
    assert (lost.kind, lost.operator) == ("ARG_MAX", 71)
    assert "INT64" in lost.reason


@pytest.mark.gpu_runtime
@pytest.mark.usefixtures("real")
def test_the_real_runtime_fails_in_words_on_a_model_that_it_can_not_load() -> None:
    found = check(projects.shared("coral/keras_lstm_mnist_ptq.tflite"), ["gpu"], oracle=True)
    placement = found.targets["gpu"].placement
    assert placement.evidence == "predicted"
    assert "Variable tensors" in placement.findings[0].what
