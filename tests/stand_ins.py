"""Stages that misbehave, for the engine's tests. A worker process imports them by name."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgebuild.calibration.errors import DataError
from edgebuild.pipeline import headway


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """What to write."""

    text: str = ""


def write(parameters: Text, inputs: Mapping[str, Path], out: Path) -> None:
    """Write the text after what the inputs hold."""
    before = "".join((folder / "text").read_text() for name, folder in sorted(inputs.items()) if folder.is_dir())
    (out / "text").write_text(before + parameters.text)


def process_id(_: Text, __: Mapping[str, Path], out: Path) -> None:
    """Write which process this is."""
    (out / "text").write_text(f"{os.getpid()}\n")


def segfault(_: Text, __: Mapping[str, Path], out: Path) -> None:
    """Write half a file, then read address 0."""
    (out / "text").write_text("half")
    ctypes.string_at(0)


def killed(_: Text, __: Mapping[str, Path], ___: Path) -> None:
    """End as the kernel ends a process that takes too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(_: Text, __: Mapping[str, Path], out: Path) -> None:
    """Write half a file, then fail in a way a user can act on."""
    (out / "text").write_text("half")
    raise DataError("refused", cause="because", action="do otherwise")


def broken(_: Text, __: Mapping[str, Path], ___: Path) -> None:
    """Fail as only a fault of ours does."""
    raise ZeroDivisionError("a fault of ours")


def full_disk(_: Text, __: Mapping[str, Path], ___: Path) -> None:
    """Fail as TensorFlow does where the disk is full: with an error of its own kind."""
    raise RuntimeError("SaveV2: /somewhere/part-0: No space left on device [Op:SaveV2]")


def nothing(_: Text, __: Mapping[str, Path], ___: Path) -> None:
    """End well and leave nothing."""


def malformed(_: Text, __: Mapping[str, Path], out: Path) -> None:
    """End well and leave a cut JSON file."""
    (out / "result.json").write_text('{"value": 1')


def cut_flatbuffer(parameters: Text, _: Mapping[str, Path], out: Path) -> None:
    """End well and leave a flatbuffer that was cut short, as a full disk does."""
    model = Path(parameters.text).read_bytes()
    (out / "model.tflite").write_bytes(model[: len(model) // 2])


def touch_source(_: Text, inputs: Mapping[str, Path], out: Path) -> None:
    """Change the source while reading it."""
    inputs["data"].write_text("changed")
    (out / "text").write_text("made from something else")


def say(_: Text, __: Mapping[str, Path], out: Path) -> None:
    """Tell how far it has come."""
    headway.say("half way")
    (out / "text").write_text("whole")


def slow(parameters: Text, _: Mapping[str, Path], out: Path) -> None:
    """Write when this began and ended."""
    began = time.monotonic()
    time.sleep(float(parameters.text))
    (out / "text").write_text(f"{began} {time.monotonic()}")
