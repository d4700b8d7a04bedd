"""What a project may say of a microcontroller: refusals before anything runs, and what enters which key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Build

from edgebuild.pipeline import baseline, config, finishing, planner
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.plan import Plan
from edgebuild.pipeline.target_settings import TflmSettings

NPU = {"accelerator": "ethos-u55-128", "system_config": "Ethos_U55_High_End_Embedded", "memory_mode": "Shared_Sram"}
OWN: dict[str, Any] = {"flash_kib": 512, "ram_kib": 128}
TFLM: dict[str, Any] = {"library": "tflm/lib.a", "include": ["tflm/include"]}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose model nothing opens, beside a library for an emulated core; the tools have versions."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "saved_model.pb").write_bytes(b"no graph")
    for name in ("calibration", "evaluation"):
        (tmp_path / f"{name}.npz").write_bytes(b"no archive")
    (tmp_path / "tflm" / "include").mkdir(parents=True)
    (tmp_path / "tflm" / "lib.a").write_bytes(b"!<arch>")
    (tmp_path / "tflm" / "include" / "micro.h").write_text("// 1")
    monkeypatch.setattr(finishing, "_tools", lambda: ("g++ 12", "QEMU 7"))
    return tmp_path


def planned(folder: Path, mcu: dict[str, Any]) -> Plan:
    data = {"calibration": "calibration.npz", "evaluation": "evaluation.npz"}
    raw = {"model": "model", "data": data, "targets": {"mcu": mcu}}
    (folder / config.NAME).write_text(yaml.safe_dump(raw))
    return planner.make(config.load(folder / config.NAME))


def key_of(folder: Path, stage: str, mcu: dict[str, Any]) -> str:
    (found,) = [key for key, task in planned(folder, mcu).tasks.items() if task.stage == stage]
    return found


@pytest.mark.parametrize(
    ("mcu", "told"),
    [
        ({"board": {**OWN, "core": "cortex-m55f"}}, "unknown core; did you mean cortex-m55?"),
        ({"board": "rp2040", "tflm": {**TFLM, "machine": "mps3-an547"}}, "is no cortex-m0plus; mps2-an386 is like it"),
        ({"board": "esp32-s3", "tflm": TFLM}, "is no xtensa-lx7, and no other machine either"),
        ({"board": "nrf52840", "max_cycles": 1}, "mcu.max_cycles: only boards with an Ethos-U"),
        ({"max_sram_kib": 1}, "mcu.max_sram_kib: only boards with an Ethos-U"),
        ({"board": "cortex-m55-ethos-u55-128", "lut": "auto"}, "mcu.lut: not with an Ethos-U"),
        ({"board": {**OWN, "npu": NPU}, "tflm": TFLM}, "mcu.tflm: not with an Ethos-U"),
        ({"board": {**OWN, "npu": {**NPU, "memory_mode": "Shared_Sran"}}}, "mcu.board.npu: unknown memory mode"),
        ({"board": {**OWN, "npu": {**NPU, "accelerator": "u55"}}}, "npu.accelerator: Input should be 'ethos-u55-32'"),
        ({"tflm": {**TFLM, "include": []}}, "tflm.include"),
    ],
)
def test_what_does_not_go_together_is_refused(folder: Path, mcu: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        planned(folder, mcu)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("mcu", "told"),
    [
        ({"tflm": {**TFLM, "library": "nowhere.a"}}, "tflm.library: there is nothing at"),
        ({"tflm": {**TFLM, "include": "nowhere"}}, "tflm.include: there is nothing at"),
        ({"tflm": {**TFLM, "baseline": "nowhere.json"}}, "can't be read"),
        ({"tflm": {**TFLM, "baseline": "calibration.npz"}}, "is no report"),
    ],
)
def test_what_is_named_must_be_there_before_anything_runs(folder: Path, mcu: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        planned(folder, mcu)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "tflm" / "lib.a").write_bytes(b"!<arch>2"),
        lambda folder: (folder / "tflm" / "include" / "micro.h").write_text("// 2"),
    ],
)
def test_a_run_in_qemu_is_made_again_for_another_library(folder: Path, change: Callable[[Path], object]) -> None:
    before = key_of(folder, "emulate", {"tflm": TFLM})
    change(folder)
    assert key_of(folder, "emulate", {"tflm": TFLM}) != before


def test_tools_and_machine_enter_the_key_of_a_run_in_qemu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of(folder, "emulate", {"tflm": TFLM})
    assert key_of(folder, "emulate", {"tflm": {**TFLM, "machine": "mps2-an500"}}) != before
    assert key_of(folder, "emulate", {"tflm": {**TFLM, "max_instructions": 5}}) == before
    monkeypatch.setattr(finishing, "_tools", lambda: ("g++ 13", "QEMU 7"))
    assert key_of(folder, "emulate", {"tflm": TFLM}) != before


def test_a_configuration_of_velas_enters_the_key_by_its_content(folder: Path) -> None:
    board = {**OWN, "npu": {**NPU, "config": "mine.ini"}}
    (folder / "mine.ini").write_text("[System_Config.Ethos_U55_High_End_Embedded]\n")
    before = key_of(folder, "vela", {"board": board})
    assert key_of(folder, "vela", {"board": {**board, "core": "cortex-m55"}}) != before
    (folder / "mine.ini").write_text("[System_Config.Ethos_U55_High_End_Embedded]\naxi0_port=Sram\n")
    assert key_of(folder, "vela", {"board": board}) != before


def test_ram_core_and_margin_enter_the_key_of_tables(folder: Path) -> None:
    before = key_of(folder, "lut", {"lut": "auto", "board": OWN})
    others: list[dict[str, Any]] = [{"board": {**OWN, "ram_kib": 64}}, {"board": {**OWN, "core": "cortex-m7"}}]
    for other in (*others, {"arena_margin": 0.3}):
        assert key_of(folder, "lut", {"lut": "auto", "board": OWN, **other}) != before
    assert key_of(folder, "lut", {"lut": "auto", "board": {**OWN, "flash_kib": 64}}) == before


def test_a_baseline_without_the_figure_is_refused(kws: Build, tmp_path: Path) -> None:
    tflm = TflmSettings(library="lib.a", include=("tflm",), baseline=str(kws.out / "report.json"))
    with pytest.raises(ConfigError, match="holds no instructions of mcu"):
        baseline.instructions(tflm, tmp_path, "mcu")


def test_a_baseline_of_the_same_machine_gives_its_instructions(kws: Build, tmp_path: Path) -> None:
    raw = json.loads((kws.out / "report.json").read_text())
    counts = dict.fromkeys(("model_bytes", "text_bytes", "rodata_bytes", "data_bytes", "bss_bytes", "code_bytes"), 1)
    raw["targets"]["mcu"]["firmware"]["emulation"] = {
        "machine": "mps2-an386",
        "core": "Cortex-M4F",
        "kernels": "CMSIS-NN",
        "architecture": "v7E-M",
        "has_messages": False,
        "arena_package_bytes": 1,
        "arena_used_bytes": 1,
        "arena_min_bytes": 1,
        "vectors": 3,
        "instructions": 7_700_000,
        "operators": [],
        "compiler": "g++",
        "qemu": "QEMU",
        **counts,
    }
    (tmp_path / "report.json").write_text(json.dumps(raw))
    settings: dict[str, Any] = {"library": "lib.a", "include": ("tflm",), "baseline": "report.json"}
    assert baseline.instructions(TflmSettings(**settings), tmp_path, "mcu") == 7_700_000
    with pytest.raises(ConfigError, match="counted on mps2-an386, not on mps2-an500"):
        baseline.instructions(TflmSettings(**settings, machine="mps2-an500"), tmp_path, "mcu")
