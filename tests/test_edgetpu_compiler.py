"""The Edge TPU compiler: its log, its moods, and a build that it takes part in. A stand-in plays the program."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import edgetpu_stand_in as stand_in
import pytest
from conftest import Build, Ended
from planned import lay_out, planned, settings
from projects import shared

from edgebuild.export.errors import ModelError
from edgebuild.export.flatbuffer import read_file
from edgebuild.pipeline import config, doctor
from edgebuild.pipeline.errors import ConfigError
from edgebuild.targets import leash
from edgebuild.targets.edgetpu import compiled as edgetpu_compiled
from edgebuild.targets.edgetpu import compiler as edgetpu_compiler
from edgebuild.targets.edgetpu import log as edgetpu_log
from edgebuild.targets.edgetpu import memory as edgetpu_memory
from edgebuild.targets.edgetpu import target as edgetpu
from edgebuild.targets.edgetpu.findings import findings
from edgebuild.targets.edgetpu.log import ModelLog, StatusCount
from edgebuild.targets.errors import ToolMissingError
from edgebuild.targets.evidence import Figure
from edgebuild.targets.target import Compiled

LSTM = "coral/keras_lstm_mnist_ptq.tflite"
MIB = 2**20
ALONE = """Edge TPU Compiler version 15.0.340273435

Model compiled successfully in 1379 ms.

Input model: folder/model.tflite
Input size: 4.41MiB
Output model: model_edgetpu.tflite
Output size: 5.49MiB
On-chip memory used for caching model parameters: 1.92MiB
On-chip memory remaining for caching model parameters: 1.75KiB
Off-chip memory used for streaming uncached model parameters: 3.23MiB
Number of Edge TPU subgraphs: 1
Total number of operations: 19
Operation log: model_edgetpu.log

Number of operations that will run on Edge TPU: 18
Number of operations that will run on CPU: 1

Operator                       Count      Status

RESHAPE                        15         Mapped to Edge TPU
CONCATENATION                  3          Mapped to Edge TPU
CUSTOM                         1          Operation is working on an unsupported data type
"""
SEARCHED = """Edge TPU Compiler version 16.0.384591198
Searching for valid delegate with step 10
Try to compile segment with 340 ops
Started a compilation timeout timer of 180 seconds.
ERROR: Restored original execution plan after delegate application failure.
Compilation failed: Compilation failed due to large activation tensors in model.
Compilation child process completed within timeout period.
Compilation failed!
Try to compile segment with 2 ops
Intermediate tensors: tfl.dequantize,Reshape
Started a compilation timeout timer of 180 seconds.

Model compiled successfully in 2270 ms.

Input model: model_segment_0_of_2.tflite
Input size: 5.21MiB
Output model: model_segment_0_of_2_edgetpu.tflite
Output size: 6.51MiB
On-chip memory used for caching model parameters: 6.02MiB
On-chip memory remaining for caching model parameters: 1.02MiB
Off-chip memory used for streaming uncached model parameters: 0.00B
Number of Edge TPU subgraphs: 1
Total number of operations: 2
Operation log: model_segment_0_of_2_edgetpu.log

Operator                       Count      Status

CONV_2D                        1          Mapped to Edge TPU
CONV_2D                        1          More than one subgraph is not supported
Compilation child process completed within timeout period.
Compilation succeeded!
"""


def test_log_of_one_model_becomes_records() -> None:
    log = edgetpu_log.parse(ALONE)
    assert log.version == "15.0.340273435"
    (model,) = log.models
    assert (model.input, model.output) == ("model.tflite", "model_edgetpu.tflite")
    assert model.on_chip_bytes == round(1.92 * MIB)
    assert model.remaining_bytes == round(1.75 * 1024)
    assert model.streamed_bytes == round(3.23 * MIB)
    assert (model.subgraphs, model.operations, model.mapped) == (1, 19, 18)
    assert model.statuses[-1] == StatusCount(
        kind="CUSTOM", count=1, status="Operation is working on an unsupported data type"
    )


def test_log_of_a_search_tells_the_success_from_what_failed_before() -> None:
    (model,) = edgetpu_log.parse(SEARCHED).models
    assert (model.operations, model.mapped, model.streamed_bytes) == (2, 1, 0)


def test_log_of_several_models_has_a_record_for_each() -> None:
    both = ALONE + ALONE.partition("\n\n")[2].replace("model_edgetpu", "other_edgetpu")
    assert [model.output for model in edgetpu_log.parse(both).models] == [
        "model_edgetpu.tflite",
        "other_edgetpu.tflite",
    ]


@pytest.mark.parametrize(
    ("right", "wrong", "cause"),
    [
        ("Edge TPU Compiler version 15.0.340273435", "Some Compiler", "does not name its version"),
        ("Input model: folder/model.tflite", "", "neither its version nor a model"),
        ("1.92MiB", "plenty", "'plenty', no size"),
        ("Total number of operations: 19", "Total number of operations: 20", "lists 19 operators"),
        ("Total number of operations: 19", "Total number of operations: ²", "no number"),
        ("run on Edge TPU: 18", "run on Edge TPU: 17", "maps 18 operators"),
        ("Number of Edge TPU subgraphs: 1\n", "", "it lacks 'Number of Edge TPU subgraphs'"),
        ("Operator                       Count      Status", "", "no table"),
    ],
)
def test_log_that_lacks_something_or_contradicts_itself_is_refused(right: str, wrong: str, cause: str) -> None:
    with pytest.raises(ModelError) as caught:
        edgetpu_log.parse(ALONE.replace(right, wrong))
    assert caught.value.what == "what edgetpu_compiler said can't be read"
    assert cause in caught.value.cause


@pytest.fixture
def standing_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., edgetpu_compiler.Compiler]:
    """Make the stand-in the compiler that is found."""

    def install(**plan: Any) -> edgetpu_compiler.Compiler:
        monkeypatch.setenv(edgetpu_compiler.VARIABLE, str(stand_in.install(tmp_path / "compiler", **plan)))
        found = edgetpu_compiler.find()
        assert found is not None
        return found

    return install


def compile_lstm(
    compiler: edgetpu_compiler.Compiler, out: Path, *, segments: int = 1, beside: tuple[str, ...] = ()
) -> Compiled:
    out.mkdir()
    data = shared(LSTM).read_bytes()
    return edgetpu_compiled.compile_artifact(compiler, data, dict.fromkeys(beside, data), segments, out)


def test_compiler_is_found_by_its_variable_with_version_and_digest(
    standing_in: Callable[..., edgetpu_compiler.Compiler],
) -> None:
    found = standing_in(version="15.0.340273435")
    assert (found.path.name, found.version, len(found.digest)) == ("edgetpu_compiler", "15.0.340273435", 64)


def test_compiler_is_found_on_the_path_and_else_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(edgetpu_compiler.VARIABLE, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}/empty:/usr/bin:/bin")
    assert edgetpu_compiler.find() is None
    monkeypatch.setenv("PATH", f"{stand_in.install(tmp_path / 'here').parent}:/usr/bin:/bin")
    found = edgetpu_compiler.find()
    assert found is not None
    assert found.title == "edgetpu_compiler 16.0.384591198"


@pytest.mark.parametrize(("named", "what"), [("nowhere/compiler", "names no program"), ("/bin/echo", "is no Edge TPU")])
def test_what_is_named_and_is_no_compiler_is_refused(named: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(edgetpu_compiler.VARIABLE, named)
    with pytest.raises(ToolMissingError, match=what):
        edgetpu_compiler.find()
    assert "coral.ai" in doctor._edgetpu_compiler().fix


def test_compiler_that_cannot_be_read_is_refused(
    standing_in: Callable[..., edgetpu_compiler.Compiler], monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))  # Root, who may run this, is denied nothing.

    standing_in()
    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(ToolMissingError, match="edgetpu_compiler can't be read"):
        edgetpu_compiler.find()


def test_whole_model_on_the_device(standing_in: Callable[..., edgetpu_compiler.Compiler], tmp_path: Path) -> None:
    done = compile_lstm(standing_in(), tmp_path / "out")
    placement = done.placement
    assert (placement.mapped, placement.operators, placement.subgraphs, placement.evidence) == (6, 6, 1, "measured")
    assert placement.source.startswith("edgetpu_compiler 16.0.384591198")
    assert done.memory.on_chip_bytes is not None
    assert (done.memory.on_chip_bytes.value, done.memory.on_chip_bytes.evidence) == (round(9.5 * 1024), "measured")
    assert [file.name for file in done.folder.iterdir()] == ["model_edgetpu.tflite"]


def test_part_of_a_model_on_the_device(standing_in: Callable[..., edgetpu_compiler.Compiler], tmp_path: Path) -> None:
    left = {4: "Operation not supported", 5: "More than one subgraph is not supported"}
    placement = compile_lstm(standing_in(left=left, streamed="2.00MiB"), tmp_path / "out").placement
    assert [(lost.operator, lost.kind) for lost in placement.unmapped] == [(4, "SOFTMAX"), (5, "QUANTIZE")]
    assert placement.unmapped[0].reason == "edgetpu_compiler: 'Operation not supported'"
    assert "make the operators before it mappable" in placement.unmapped[1].suggestion
    assert "2,097,152 streamed from the host at every inference (measured)" in placement.findings[0].what
    assert "segments" in placement.findings[0].action


def test_real_compiled_file_gives_every_operator_its_own_reason() -> None:
    """One kind, two reasons: the graph says which resize came first, and the log's table alone does not."""
    model, made = (read_file(shared(f"coral/deeplabv3_mnv2_dm05_pascal_quant{end}.tflite")) for end in ("", "_edgetpu"))
    after, limit = "More than one subgraph is not supported", "Image-interpolation layer won't run precisely enough"
    rows = [
        ("CONV_2D", 36, "Mapped to Edge TPU"),
        ("CONV_2D", 2, after),
        ("DEPTHWISE_CONV_2D", 17, "Mapped to Edge TPU"),
        ("ADD", 10, "Mapped to Edge TPU"),
        ("AVERAGE_POOL_2D", 1, "Mapped to Edge TPU"),
        ("RESIZE_BILINEAR", 1, limit),
        ("RESIZE_BILINEAR", 2, after),
        ("QUANTIZE", 1, after),
        ("CONCATENATION", 1, after),
        ("ARG_MAX", 1, "Operation not supported"),
    ]
    log = model_log(rows, subgraphs=1)
    placement = edgetpu_compiled.place(model, [made], [log], "a compiler")
    assert (placement.mapped, placement.operators) == (64, 72)
    resizes = [lost for lost in placement.unmapped if lost.kind == "RESIZE_BILINEAR"]
    assert limit in resizes[0].reason
    assert "resizes from a height of 1" in resizes[0].reason
    assert all(after in lost.reason for lost in resizes[1:])
    predicted = edgetpu.place(model)
    assert [lost.operator for lost in placement.unmapped] == [lost.operator for lost in predicted.unmapped]


def model_log(rows: list[tuple[str, int, str]], **changes: Any) -> ModelLog:
    statuses = tuple(StatusCount(kind=kind, count=count, status=status) for kind, count, status in rows)
    return replace(
        ModelLog(
            input="model.tflite",
            output="model_edgetpu.tflite",
            on_chip_bytes=0,
            remaining_bytes=0,
            streamed_bytes=0,
            subgraphs=1,
            operations=sum(row.count for row in statuses),
            statuses=statuses,
        ),
        **changes,
    )


@pytest.mark.parametrize(
    ("rows", "changes"),
    [
        ([("QUANTIZE", 6, "Mapped to Edge TPU")], {"subgraphs": 2}),
        ([("QUANTIZE", 5, "Mapped to Edge TPU")], {}),
        ([("QUANTIZE", 5, "Mapped to Edge TPU"), ("SOFTMAX", 1, "Operation not supported")], {}),
    ],
)
def test_log_that_does_not_fit_the_compiled_file_is_refused(
    rows: list[tuple[str, int, str]], changes: dict[str, Any]
) -> None:
    model, made = (read_file(shared(f"coral/keras_lstm_mnist_ptq{end}.tflite")) for end in ("", "_edgetpu"))
    with pytest.raises(ModelError, match="do not fit"):
        edgetpu_compiled.place(model, [made], [model_log(rows, **changes)], "a compiler")


def test_of_several_contradictions_the_same_is_told_at_every_run() -> None:
    model, made = (read_file(shared(f"coral/keras_lstm_mnist_ptq{end}.tflite")) for end in ("", "_edgetpu"))
    log = model_log([(kind, 1, "Operation not supported") for kind in ("SOFTMAX", "QUANTIZE", "ADD", "MUL")])
    with pytest.raises(ModelError) as caught:
        edgetpu_compiled.place(model, [made], [log], "a compiler")
    assert caught.value.cause == "it says that 1 ADD stay on the CPU; its file holds 0"


def test_model_whose_name_begins_with_a_dash_is_no_option(
    standing_in: Callable[..., edgetpu_compiler.Compiler], tmp_path: Path
) -> None:
    done = compile_lstm(standing_in(), tmp_path / "out", beside=("-n",))
    assert sorted(file.name for file in done.folder.iterdir()) == ["-n_edgetpu.tflite", "model_edgetpu.tflite"]


def test_models_that_share_a_device_are_compiled_at_once_and_in_order(
    standing_in: Callable[..., edgetpu_compiler.Compiler], tmp_path: Path
) -> None:
    done = compile_lstm(standing_in(streamed="1.00KiB"), tmp_path / "out", beside=("second", "another"))
    files = ["another_edgetpu.tflite", "model_edgetpu.tflite", "second_edgetpu.tflite"]
    assert sorted(file.name for file in done.folder.iterdir()) == files
    assert done.memory.streamed_bytes == Figure(
        value=1024, evidence="measured", note=done.memory.streamed_bytes.note if done.memory.streamed_bytes else ""
    )
    told = [finding.what.partition(",")[0] for finding in done.placement.findings]
    assert told == ["parameters do not fit on chip: 9", "second.tflite", "another.tflite"]


def test_segments_are_files_of_one_placement(
    standing_in: Callable[..., edgetpu_compiler.Compiler], tmp_path: Path
) -> None:
    compiler = standing_in(left={5: "Operation not supported"})
    done = compile_lstm(compiler, tmp_path / "out", segments=2)
    assert sorted(file.name for file in done.folder.iterdir()) == [
        "model_segment_0_of_2_edgetpu.tflite",
        "model_segment_1_of_2_edgetpu.tflite",
    ]
    assert (done.placement.mapped, done.placement.subgraphs) == (5, 2)
    assert stand_in.calls(compiler.path) == [["--num_segments=2"]]


@pytest.mark.parametrize("failure", ["internal", "crash"])
def test_random_failure_is_tried_again(
    failure: str, standing_in: Callable[..., edgetpu_compiler.Compiler], tmp_path: Path
) -> None:
    compiler = standing_in(calls=[failure, "compile"])
    assert compile_lstm(compiler, tmp_path / "out").placement.mapped == 6
    assert stand_in.calls(compiler.path) == [[], []]


def test_third_attempt_searches_for_a_part_that_compiles(
    standing_in: Callable[..., edgetpu_compiler.Compiler], tmp_path: Path
) -> None:
    compiler = standing_in(calls=["large", "large", "compile"])
    compile_lstm(compiler, tmp_path / "out")
    assert stand_in.calls(compiler.path)[-1] == ["--search_delegate"]


def test_old_compiler_is_not_asked_for_what_it_lacks(
    standing_in: Callable[..., edgetpu_compiler.Compiler], tmp_path: Path
) -> None:
    compiler = standing_in(version="14.1.317412892", calls=["internal", "compile"])
    compile_lstm(compiler, tmp_path / "out")
    assert "--timeout_sec" not in (compiler.path.parent / "calls.txt").read_text()


def test_attempts_share_one_limit_of_time_and_the_compilers_own_ends_before_it(
    standing_in: Callable[..., edgetpu_compiler.Compiler], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = standing_in(calls=["internal"])
    clock = iter((0, 100, 400, 580))  # The start, and what it is before each attempt.
    monkeypatch.setattr(edgetpu_compiler, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with pytest.raises(ModelError) as caught:
        compile_lstm(compiler, tmp_path / "out")
    assert caught.value.cause == "it did not finish within 600 s"
    told = re.findall(r"--timeout_sec=(\d+)", (compiler.path.parent / "calls.txt").read_text())
    assert told == ["470", "170"]


def test_a_compiler_that_crashes_without_a_shell_to_say_so_is_told_by_its_signal(
    standing_in: Callable[..., edgetpu_compiler.Compiler], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, died = standing_in(calls=["crash"]), subprocess.CompletedProcess([], 128 + signal.SIGSEGV, b"")
    monkeypatch.setattr(leash, "run", lambda *_, **__: died)
    with pytest.raises(ModelError) as caught:
        compile_lstm(compiler, tmp_path / "out")
    assert "ended by SIGSEGV each time" in caught.value.cause


@pytest.mark.parametrize(
    ("failure", "attempts", "cause", "action"),
    [
        ("internal", 3, "crashed each time", "layers smaller"),
        ("nameless", 3, "it gave no reason", "leave out layers at the end"),
        ("crash", 3, "crashed each time", "layers smaller"),
        ("large", 3, "too large for the chip's memory", "targets.edgetpu.segments"),
        ("version", 1, "does not know version 12 of FULLY_CONNECTED", "replace the layer"),
        ("dynamic", 1, "known at run time only", "the batch to 1"),
        ("custom", 1, "custom operator Atan", "run it on the CPU"),
        ("float", 1, "not quantized", "int8"),
        ("nonsense", 1, "neither its version nor a model", "edgebuild doctor"),
        ("contradict", 1, "its file holds 0", "edgebuild doctor"),
        ("no file", 1, "says that it wrote model_edgetpu.tflite, and did not", "disk is full"),
    ],
)
def test_failure_is_told_with_its_cause_and_what_to_do(
    failure: str,
    attempts: int,
    cause: str,
    action: str,
    standing_in: Callable[..., edgetpu_compiler.Compiler],
    tmp_path: Path,
) -> None:
    compiler = standing_in(calls=[failure], left={4: "Operation not supported"})
    with pytest.raises(ModelError) as caught:
        compile_lstm(compiler, tmp_path / "out")
    assert cause in caught.value.cause
    assert action in caught.value.action
    assert len(stand_in.calls(compiler.path)) == attempts


def is_alive(process: int) -> bool:
    """Whether it runs: not gone, and no zombie that nobody has asked about yet."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def test_compiler_that_hangs_is_killed_with_its_children(
    standing_in: Callable[..., edgetpu_compiler.Compiler], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = standing_in()
    stand_in.hang(compiler.path)
    monkeypatch.setattr(edgetpu_compiler, "_MARGIN_S", 0)
    child = tmp_path / "compiler/pid"
    limits = iter((1, 10, 100))  # A busy machine may take its time until the child is there.

    def has_hung() -> bool:
        limit = next(limits)
        monkeypatch.setattr(edgetpu_compiler, "TIMEOUT_S", limit)
        with pytest.raises(ModelError) as caught:
            compile_lstm(compiler, tmp_path / f"out {limit}")
        assert f"did not finish within {limit} s" in caught.value.cause
        return child.exists()

    wait_for(has_hung)
    assert not is_alive(int(child.read_text()))


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_compiler_does_not_outlive_who_asked_for_it(end: signal.Signals, tmp_path: Path) -> None:
    sleeper = ["sh", "-c", f"sleep 600 & echo $! > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; wait"]
    asking = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from edgebuild.targets import leash; "
        f"leash.run({sleeper!r}, seconds=600, memory_bytes=2**32, folder='.')"
    )
    owner = subprocess.Popen([sys.executable, "-c", asking], stderr=subprocess.DEVNULL)
    wait_for((tmp_path / "pid").exists)
    owner.send_signal(end)
    assert owner.wait() == -end
    child = int((tmp_path / "pid").read_text())
    wait_for(lambda: not is_alive(child))


def wait_for(holds: Callable[[], bool], seconds: float = 60) -> None:
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.02)


def test_leash_bounds_memory(tmp_path: Path) -> None:
    hungry = [sys.executable, "-c", "bytearray(2**30)"]
    ended = leash.run(hungry, seconds=60, memory_bytes=2**29, folder=tmp_path)
    assert ended.returncode == 1
    assert b"MemoryError" in ended.stdout


def test_leash_ends_what_left_the_session_of_a_program_that_ended_well(tmp_path: Path) -> None:
    apart = "setsid sh -c 'echo $$ > new; mv new pid; sleep 600' & until test -e pid; do sleep 0.02; done; echo hi"
    ended = leash.run(["sh", "-c", apart], seconds=60, memory_bytes=2**32, folder=tmp_path)
    assert (ended.returncode, ended.stdout) == (0, b"hi\n")
    assert not is_alive(int((tmp_path / "pid").read_text()))


def test_leash_keeps_to_a_lower_limit_of_its_surroundings(tmp_path: Path) -> None:
    asking = (
        "import resource; resource.setrlimit(resource.RLIMIT_DATA, (2**32, 2**32)); "
        "from edgebuild.targets import leash; "
        "print(leash.run(['sh', '-c', 'ulimit -Hd'], seconds=60, memory_bytes=2**33, folder='.').stdout)"
    )
    ended = subprocess.run([sys.executable, "-c", asking], cwd=tmp_path, capture_output=True, check=True)
    assert ended.stdout == b"b'4194304\\n'\n", "in KiB"


def test_leash_tells_a_fault_of_its_own_from_one_of_the_program(tmp_path: Path) -> None:
    missing = leash.run(["./nowhere"], seconds=60, memory_bytes=2**32, folder=tmp_path)
    assert missing.returncode == leash.NOT_STARTED
    assert b"No such file or directory: './nowhere'" in missing.stdout
    with pytest.raises(ToolMissingError, match="true can't be run with limits"):
        leash.run(["true"], seconds=60, memory_bytes=2**80, folder=tmp_path)


def test_parameters_beyond_the_chip_are_predicted_to_be_streamed() -> None:
    model = read_file(shared("coral/mobilenet_v1_0.25_128_quant.tflite"))
    big = replace(model.main.tensors[0], quantization=model.weights[0].quantization)
    grown = replace(
        model.main,
        tensors=tuple(
            replace(big, index=t.index, name=t.name, shape=t.shape, data=t.data.repeat(40)) if t.data is not None else t
            for t in model.main.tensors
        ),
    )
    memory = edgetpu_memory.predicted(replace(model, subgraphs=(grown,)), ())
    assert memory.on_chip_bytes is not None
    assert memory.streamed_bytes is not None
    assert (memory.on_chip_bytes.value, memory.on_chip_bytes.evidence) == (8 * MIB, "predicted")
    assert memory.streamed_bytes.value is not None
    assert "do not fit on chip" in findings(model, memory)[0].what


def keyed(folder: Path) -> dict[str, str]:
    return {task.title: key for key, task in planned(folder).tasks.items()}


def test_key_of_what_ships_holds_the_compiler(
    standing_in: Callable[..., edgetpu_compiler.Compiler], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another compiler, another version of it, or none: each makes the package anew, and nothing else."""
    folder = lay_out(tmp_path / "project")
    monkeypatch.delenv(edgetpu_compiler.VARIABLE, raising=False)
    without = keyed(folder)
    standing_in()
    first = keyed(folder)
    standing_in(version="17.0")
    second = keyed(folder)
    assert first.keys() - without.keys() == {"compile for edgetpu"}
    assert {title for title in without if without[title] != first[title]} == {"package edgetpu"}
    assert {title for title in first if first[title] != second[title]} == {"package edgetpu", "compile for edgetpu"}


def test_order_of_models_on_a_device_is_part_of_the_key(
    standing_in: Callable[..., edgetpu_compiler.Compiler], tmp_path: Path
) -> None:
    standing_in()
    keys = []
    for names in (["a.tflite", "b.tflite"], ["b.tflite", "a.tflite"]):
        folder = lay_out(tmp_path / names[0], settings(targets={"edgetpu": {"with": names}}))
        (folder / "a.tflite").write_bytes(b"a")
        (folder / "b.tflite").write_bytes(b"b")
        keys.append(keyed(folder)["compile for edgetpu"])
    assert keys[0] != keys[1]


@pytest.mark.parametrize("asked", [{"segments": 2}, {"with": ["other.tflite"]}])
def test_what_only_the_compiler_can_do_is_refused_without_it(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(edgetpu_compiler.VARIABLE, raising=False)
    folder = lay_out(tmp_path, settings(targets={"edgetpu": asked}))
    with pytest.raises(ToolMissingError, match=f"{next(iter(asked))} needs edgetpu_compiler") as caught:
        planned(folder)
    assert "coral.ai" in caught.value.action


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({"cpu": {"segments": 2}}, "cpu.segments: only edgetpu"),
        ({"mcu": {"with": ["a.tflite"]}}, "mcu.with: only edgetpu"),
        ({"edgetpu": {"segments": 2, "with": ["a.tflite"]}}, "choose segments or with"),
        ({"edgetpu": {"segments": 1}}, "targets.edgetpu.segments"),
        ({"edgetpu": {"with": ["a.tflite", "b/a.tflite"]}}, "each of another name"),
        ({"edgetpu": {"with": ["model.tflite"]}}, "none of them model.tflite"),
        ({"edgetpu": {"with": ["a.h5"]}}, "name .tflite files"),
        ({"edgetpu": {"beside": ["a.tflite"]}}, "targets.edgetpu.beside: unknown key"),
        ({"edgetpu": {"wiht": ["a.tflite"]}}, "did you mean with?"),
    ],
)
def test_settings_for_the_compiler_are_checked(targets: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse({"model": "m", "targets": targets})
    assert message in str(caught.value)


def test_build_runs_the_compiler_and_says_what_it_said(
    digits: Build, run: Callable[..., Ended], tmp_path: Path
) -> None:
    program = stand_in.install(tmp_path / "here", left={8: "Operation not supported"}, streamed="3.00KiB")
    variables = {edgetpu_compiler.VARIABLE: str(program)}
    other = shared(LSTM)
    (tmp_path / "lstm.tflite").write_bytes(other.read_bytes())
    beside = f"targets.edgetpu.with=[{os.path.relpath(tmp_path / 'lstm.tflite', digits.folder)}]"
    arguments = ("-t", "edgetpu", "--set", beside, "-o", tmp_path / "out")
    ended = run(*arguments, "--json", cwd=digits.folder, **variables)
    assert ended.code == 0, ended.stderr
    target = ended.report["targets"]["edgetpu"]
    assert target["placement"]["evidence"] == "measured"
    assert (target["placement"]["mapped"], target["placement"]["subgraphs"]) == (8, 1)
    assert target["memory"]["on_chip_bytes"]["value"] == round(9.5 * 1024)
    assert target["memory"]["streamed_bytes"]["evidence"] == "measured"
    assert any(note.startswith("lstm.tflite, on the same device") for note in target["notes"])
    files = {"lstm_edgetpu.tflite", "model_edgetpu.tflite", "model.tflite", "placement.json"}
    assert {file.name for file in (tmp_path / "out/edgetpu").iterdir()} == files
    assert "Streamed" in (tmp_path / "out/report.html").read_text()
    without = run("-t", "edgetpu", "-o", tmp_path / "out", "--json", cwd=digits.folder)
    assert without.report["targets"]["edgetpu"]["placement"]["evidence"] == "predicted"
    assert not (tmp_path / "out/edgetpu/model_edgetpu.tflite").exists(), "no compiler, and none of its files"


def test_a_companion_that_is_not_there_is_a_fault_of_the_configuration(
    digits: Build, run: Callable[..., Ended], tmp_path: Path
) -> None:
    variables = {edgetpu_compiler.VARIABLE: str(stand_in.install(tmp_path / "here"))}
    beside = ("--set", "targets.edgetpu.with=[nope.tflite]")
    ended = run("-t", "edgetpu", *beside, "--dry-run", cwd=digits.folder, **variables)
    assert ended.code == 2
    assert "no such file" in ended.stderr


def test_build_without_a_compiler_ends_with_9_where_one_is_needed(digits: Build, run: Callable[..., Ended]) -> None:
    ended = run("-t", "edgetpu", "--set", "targets.edgetpu.segments=2", "--dry-run", cwd=digits.folder)
    assert ended.code == 9
    assert "edgetpu_compiler" in ended.stderr
