"""What `doctor` says of the microcontroller target's optional packages and programs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from edgebuild.pipeline import doctor

LOOKS: dict[str, tuple[Callable[[], doctor.Finding], str]] = {
    "tflite-micro": (doctor._microcontroller, "edgebuild[mcu]"),
    "ethos-u-vela": (doctor._ethosu, "edgebuild[ethosu]"),
    "arm-none-eabi-g++": (doctor._cross_compiler, "apt-get install gcc-arm-none-eabi"),
    "qemu-system-arm": (doctor._emulator, "apt-get install qemu-system-arm"),
}

HEAVY = {"tflite_micro", "ethosu"}


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def missing(_: str) -> str:
    raise metadata.PackageNotFoundError


def test_every_look_is_among_what_is_examined() -> None:
    assert {look for look, _ in LOOKS.values()} <= set(doctor._OPTIONAL)


@pytest.mark.parametrize("name", LOOKS)
def test_what_is_missing_is_optional_and_has_its_fix(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.setenv("PATH", str(tmp_path))
    look, fix = LOOKS[name]
    found = look()
    assert (found.name, found.status) == (name, "optional")
    assert fix in found.fix
    assert "needed for" in found.detail


@pytest.mark.parametrize("name", ["tflite-micro", "ethos-u-vela"])
def test_an_installed_package_says_its_version(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", {name: "1.2.3"}.__getitem__)
    found = LOOKS[name][0]()
    assert (found.status, found.detail, found.fix) == ("ok", "1.2.3", "")


@pytest.mark.parametrize("name", ["arm-none-eabi-g++", "qemu-system-arm"])
def test_a_program_says_its_version_and_its_place(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, name, 'test "$1" = --version && echo "tool 9.8.7" && echo "free software"')
    monkeypatch.setenv("PATH", str(tmp_path))
    found = LOOKS[name][0]()
    assert (found.status, found.detail) == ("ok", f"tool 9.8.7, {tmp_path / name}")


@pytest.mark.parametrize("name", ["arm-none-eabi-g++", "qemu-system-arm"])
def test_a_program_that_does_not_start_is_not_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, name, "exit 3")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = LOOKS[name][0]()
    assert found.status == "optional"
    assert "does not say its version" in found.detail
    assert "apt-get install" in found.fix


def test_looking_imports_neither_runtime_nor_compiler() -> None:
    looks = "; ".join(f"doctor.{look.__name__}()" for look, _ in LOOKS.values())
    code = f"import sys; from edgebuild.pipeline import doctor; {looks}; print({HEAVY} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "set()"
