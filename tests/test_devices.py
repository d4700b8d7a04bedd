"""Devices by name: what a configuration may say of them, what the commands show, and latency in a build."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import valgrind_stand_in
from conftest import Build, Ended
from pydantic import ValidationError

from edgebuild.pipeline import devices
from edgebuild.pipeline.device_settings import Device
from edgebuild.pipeline.errors import ConfigError

Run = Callable[..., Ended]


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        ({}, "local:"),
        ({"transport": "ssh", "host": "pi4"}, "ssh://pi4"),
        ({"transport": "ssh", "host": "pi4", "user": "pi", "port": 2222}, "ssh://pi@pi4:2222"),
        ({"transport": "adb"}, "adb://"),
        ({"transport": "adb", "serial": "R58M"}, "adb://R58M"),
        ({"transport": "adb", "host": "10.0.0.7", "port": 5555}, "adb://10.0.0.7:5555"),
        ("ssh://pi@pi4:22", "ssh://pi@pi4:22"),
    ],
)
def test_a_device_has_one_address(settings: Any, address: str) -> None:
    assert Device.model_validate(settings).address == address


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"transport": "ssh"}, "host: required for ssh"),
        ({"uri": "ssh://pi", "user": "pi"}, "leave out user"),
        ({"transport": "ssh", "host": "pi", "port": 0}, "greater than 0"),
        ({"threads": 0}, "greater than or equal to 1"),
    ],
)
def test_a_device_that_can_not_be_is_refused(settings: Any, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        Device.model_validate(settings)


def test_a_device_goes_by_its_name_or_its_uri() -> None:
    known = {"pi": Device(transport="ssh", host="pi4")}
    assert devices.named("pi", known).address == "ssh://pi4"
    assert devices.named("adb://R58M", known).address == "adb://R58M"
    assert devices.named("local", known).address == "local:"
    with pytest.raises(ConfigError, match="there is no device 'phone'") as caught:
        devices.named("phone", known)
    assert "pi" in caught.value.action


def test_this_machine_is_a_device_with_the_runtime_that_measures(run: Run, tmp_path: Path) -> None:
    ended = run("devices", "--json", cwd=tmp_path)
    assert ended.code == 0
    (facts,) = ended.report.values()
    assert facts["runtime"].startswith("tflite_runtime 2.14.0")
    assert facts["cores"] >= 1


def test_a_device_that_can_not_be_reached_is_told_and_ends_with_8(run: Run, tmp_path: Path) -> None:
    ended = run("devices", "show", "local", "ssh://127.0.0.1:1", cwd=tmp_path)
    assert ended.code == 8
    assert "local" in ended.stdout
    assert "127.0.0.1" in ended.stdout


def test_a_model_is_held_to_another_by_processes_of_both(digits: Build, run: Run) -> None:
    model = "build/cpu/model.tflite"
    ended = run("profile", model, "--baseline", model, "--max-regression", "900%", "--json", cwd=digits.folder)
    found = json.loads(ended.stdout)
    assert (found["gate"], ended.code) in {("pass", 0), ("inconclusive", 8)}  # The latter on a busy machine alone.
    comparison = found["comparison"]
    assert (found["gate"] == "pass") == (not comparison["doubts"])
    assert len(comparison["a_us"]) == len(comparison["b_us"]) >= 9


@pytest.mark.parametrize("share", ["5", "0", "-5%", "five", "nan"])
def test_a_share_that_is_none_is_refused(share: str, digits: Build, run: Run) -> None:
    command = ("profile", "build/cpu/model.tflite", "--baseline", "build/cpu/model.tflite", "--max-regression", share)
    ended = run(*command, "--budget", "1", cwd=digits.folder)
    assert (ended.code == 2) == (share != "5")


def test_a_build_measures_on_the_device_that_it_is_told(digits: Build, run: Run, tmp_path: Path) -> None:
    gates = "gates.latency={max_ms: 10000, baseline: build/cpu/model.tflite, max_regression: 900%}"
    out = tmp_path / "out"
    ended = run("-t", "cpu", "-o", out, "--device", "local", "--set", gates, "--json", cwd=digits.folder)
    found = ended.report["targets"]["cpu"]
    verdicts = {gate["name"]: gate["verdict"] for gate in found["gates"]}
    assert verdicts["max_ms"] == "pass"
    assert verdicts["max_regression"] in {"pass", "inconclusive"}
    assert (verdicts["max_regression"] == "pass") == (ended.code == 0)
    assert found["against"]["margin"] == 9


def test_a_gate_for_all_targets_is_meant_where_there_is_a_device(digits: Build, run: Run, tmp_path: Path) -> None:
    ended = run("-o", tmp_path / "out", "--set", "gates.latency={max_ms: 10000}", "--json", cwd=digits.folder)
    assert ended.code == 0, ended.stderr
    gated = {name: [gate["name"] for gate in t["gates"]] for name, t in ended.report["targets"].items()}
    assert {name for name, gates in gated.items() if "max_ms" in gates} == {"cpu"}


def test_a_device_that_is_away_leaves_the_build_whole_and_its_gate_open(
    digits: Build, run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    settings = ("--set", "targets.cpu={device: 'ssh://127.0.0.1:1', max_latency_ms: 5}")
    ended = run("-t", "cpu", "-o", out, *settings, "--json", cwd=digits.folder)
    assert ended.code == 8
    found = ended.report["targets"]["cpu"]
    assert found["latency"]["evidence"] == "unavailable"
    assert (out / "cpu" / "model.tflite").exists()


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("targets.cpu.device=phone", "there is no device 'phone'"),
        ("gates.latency={baseline: nowhere.tflite}", "there is no file"),
        ("gates.latency={baseline: '{name}.tflite'}", "{name} stands for nothing; {target} stands for"),
        ("gates.latency={baseline: evaluation.npz}", "is neither a .tflite nor a file of baselines"),
    ],
)
def test_what_is_not_there_is_refused(setting: str, told: str, digits: Build, run: Run, tmp_path: Path) -> None:
    ended = run("-t", "cpu", "-o", tmp_path / "out", "--set", setting, cwd=digits.folder)
    assert ended.code == 2
    assert told in ended.stderr
    assert " + " not in ended.stderr, "before anything ran"


def test_a_runtime_that_can_not_be_had_is_told_in_its_row(digits: Build, run: Run) -> None:
    ended = run("profile", "build/cpu/model.tflite", "--runtimes", "tflite-runtime", cwd=digits.folder)
    assert ended.code == 8
    assert "tflite-runtime" in ended.stdout


def test_instructions_are_counted_by_the_valgrind_of_the_device(digits: Build, run: Run, tmp_path: Path) -> None:
    number = valgrind_stand_in.put(tmp_path, "10**9 + 5_000_000 * runs")
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    ended = run("profile", "build/cpu/model.tflite", "--instructions", "--json", cwd=digits.folder, PATH=path)
    assert ended.code == 0, ended.stderr
    assert (ended.report["per_inference"], ended.report["valgrind"]) == (5e6, valgrind_stand_in.VERSION)
    assert number.read_text() == "4"
