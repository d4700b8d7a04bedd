"""Memory figures: what TFLM's interpreter needs on the host, and honest silence where nothing can be told."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from edgebuild.export.errors import ModelError
from edgebuild.export.flatbuffer import read
from edgebuild.targets.evidence import Figure, unavailable
from edgebuild.targets.microcontroller import arena as tflm_arena
from edgebuild.targets.microcontroller import code_size, tflm
from edgebuild.targets.microcontroller import target as microcontroller
from edgebuild.targets.registry import target
from edgebuild.targets.target import Artifact

FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures"
needs_tflm = pytest.mark.skipif(find_spec("tflite_micro") is None, reason="the optional wheel tflite-micro is not here")


def artifact(name: str) -> Artifact:
    path = FIXTURES / name
    if not path.exists():
        pytest.skip(f"the shared model {name} is not here")
    data = path.read_bytes()
    return Artifact(data=data, flatbuffer=read(data), vectors=())


@needs_tflm
@pytest.mark.parametrize(
    ("name", "arena_bytes"),
    [
        ("kws/ref_int8.tflite", 24_272),
        ("resnet8_cifar10/pretrainedResnet_quant.tflite", 55_984),
        ("ad01_toycar/ad01_int8.tflite", 4_640),
    ],
)
def test_arena_is_the_smallest_that_tflm_runs_in(name: str, arena_bytes: int) -> None:
    figure = tflm.arena(artifact(name).data)
    assert (figure.value, figure.evidence) == (arena_bytes, "simulated")
    assert "64-bit" in figure.note


def test_the_arena_that_ships_has_its_margin_rounded_up_to_sixteen() -> None:
    shipped = microcontroller.with_margin(Figure(value=24_272, evidence="simulated", note="the smallest"))
    assert shipped.value is not None
    assert shipped.value % 16 == 0
    assert 24_272 * 1.15 <= shipped.value < 24_272 * 1.15 + 16
    assert "24,272" in shipped.note


@needs_tflm
def test_the_arena_holds_what_vector_kernels_keep_of_dense_layers() -> None:
    model = artifact("ad01_toycar/ad01_int8.tflite")
    assert microcontroller.sums_bytes(model.flatbuffer, "cortex-m55") == 4 * (8 * 128 + 8 + 640)
    assert microcontroller.sums_bytes(model.flatbuffer, "cortex-m4f") == 0
    shipped = target("mcu").memory(replace(model, core="cortex-m55")).arena_bytes
    assert shipped.value is not None
    assert shipped.value >= 9_712  # What TFLM with CMSIS-NN needs on an emulated Cortex-M55.
    assert "6,688" in shipped.note


def test_a_child_that_takes_too_long_is_a_failure_and_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tflm, "installed", lambda: True)
    monkeypatch.setattr(tflm, "TIMEOUT_S", 0.001)
    with pytest.raises(ModelError, match="could not be asked"):
        tflm.arena(b"a model that nobody asked about")


@needs_tflm
def test_firmware_is_refused_for_a_model_tflm_refuses(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        target("mcu").package(artifact("kws/ref_dynrange.tflite"), tmp_path)
    assert caught.value.action
    assert not list(tmp_path.iterdir())


@needs_tflm
@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("kws/ref_dynrange.tflite", "Hybrid models are not supported"),
        ("coral/mobilenet_v1_0.25_128_quant_edgetpu.tflite", "op code CUSTOM"),
    ],
)
def test_arena_of_a_model_tflm_refuses_is_unavailable_with_its_own_words(name: str, cause: str) -> None:
    figure = tflm.arena(artifact(name).data)
    assert figure.evidence == "unavailable"
    assert cause in figure.note


@needs_tflm
@pytest.mark.parametrize("path", sorted(FIXTURES.rglob("*.tflite")), ids=lambda path: path.stem)
def test_placement_promises_a_model_to_the_mcu_exactly_where_tflm_runs_it(path: Path) -> None:
    model = artifact(str(path.relative_to(FIXTURES)))
    promised = not target("mcu").place(model.flatbuffer).unmapped
    assert promised == (target("mcu").memory(model).arena_bytes.value is not None)


@needs_tflm
def test_garbage_costs_a_child_process_and_not_this_one() -> None:
    assert tflm.arena(b"TFL3" * 64).evidence == "unavailable"


def test_missing_wheel_is_unavailable_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tflm, "installed", lambda: False)
    figure = tflm.arena(b"a model seen nowhere else")
    assert figure.value is None
    assert "pip install 'edgebuild[mcu]'" in figure.note


def test_crash_of_the_child_names_the_signal() -> None:
    assert "SIGSEGV" in tflm._cause(-11, "Failed to allocate tail memory\n")


@pytest.mark.parametrize("needed", [1, 2048, 2049, 4096, 24_265, 55_984, 1_000_001])
def test_bisection_finds_the_smallest_multiple_of_sixteen(needed: int) -> None:
    found = tflm_arena.smallest(lambda size: size >= needed)
    assert found >= needed
    assert found % tflm_arena.STEP_BYTES == 0
    assert found == tflm_arena.FLOOR_BYTES or found - tflm_arena.STEP_BYTES < needed


def test_arena_in_which_tflm_refuses_or_crashes_does_not_fit() -> None:
    program = """
import os
from edgebuild.targets.microcontroller import arena as tflm_arena
tflm_arena.runs = lambda model, size: os.abort() if size < 100 else size >= 200
print([tflm_arena.fits(b"", size) for size in (50, 150, 250)])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[False, False, True]"


def test_bisection_never_tries_less_than_the_floor() -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size >= 5000

    tflm_arena.smallest(fits)
    assert min(tried) == tflm_arena.FLOOR_BYTES


def test_flash_is_the_model_and_an_estimate_of_code_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tflm, "arena", lambda _: unavailable("not asked for"))
    model = artifact("kws/ref_int8.tflite")
    flash = target("mcu").memory(model).flash_bytes
    code = code_size.estimate({operator.kind for operator in model.flatbuffer.main.operators}, "")
    assert code.value is not None
    assert (flash.value, flash.evidence) == (len(model.data) + code.value, "predicted")
    assert f"{len(model.data):,}" in flash.note
    assert f"{code.value:,}" in flash.note


@pytest.mark.parametrize("name", ["cpu", "gpu", "edgetpu"])
def test_other_targets_invent_no_figure(name: str) -> None:
    memory = target(name).memory(artifact("kws/ref_int8.tflite"))
    assert memory.arena_bytes.value is None
    assert memory.arena_bytes.note
    assert memory.flash_bytes.note == "not a flash-resident target"


@needs_tflm
def test_outputs_come_from_tflm_sample_by_sample_whatever_the_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    from tflite_micro import runtime

    bare = artifact("resnet8_cifar10/pretrainedResnet_quant.tflite")
    images = np.random.default_rng(0).integers(-128, 128, (5, 1, 32, 32, 3)).astype(np.int8)
    (name,) = bare.flatbuffer.inputs
    monkeypatch.setattr(tflm, "SLICE", 2)
    slices = list(tflm.outputs(bare.data, bare.flatbuffer, [{name: image} for image in images]))
    assert [len(some) for some in slices] == [2, 2, 1]
    interpreter = runtime.Interpreter.from_bytes(bare.data, arena_size=2**20)
    for image, outputs in zip(images, (row for some in slices for row in some), strict=True):
        interpreter.set_input(image, 0)
        interpreter.invoke()
        (output,) = outputs.values()
        assert (output == interpreter.get_output(0)).all()


@needs_tflm
def test_a_model_that_remembers_is_run_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = artifact("coral/keras_lstm_mnist_ptq.tflite")
    assert any(tensor.is_variable for tensor in bare.flatbuffer.main.tensors)
    monkeypatch.setattr(tflm, "SLICE", 2)
    ((name, tensor),) = bare.flatbuffer.inputs.items()
    row = {name: np.full(tensor.shape, 7, tensor.dtype)}
    (results,) = tflm.outputs(bare.data, bare.flatbuffer, [row] * 5)
    assert len(results) == 5
    assert any((results[0][end] != results[4][end]).any() for end in results[0])


@needs_tflm
def test_outputs_of_a_model_that_tflm_refuses_are_a_failure_in_its_words() -> None:
    bare = artifact("kws/ref_dynrange.tflite")
    (name,) = bare.flatbuffer.inputs
    with pytest.raises(ModelError, match="can't run") as caught:
        list(tflm.outputs(bare.data, bare.flatbuffer, [{name: np.zeros((1, 49, 10, 1), np.float32)}]))
    assert "Hybrid models are not supported" in caught.value.cause
