"""Run a flatbuffer over samples, on the runtime that ships or on the one that stands for its target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeAlias

from edgebuild.export.flatbuffer import Flatbuffer
from edgebuild.pipeline import headway
from edgebuild.pipeline.task import tool_version
from edgebuild.targets.errors import ToolMissingError
from edgebuild.targets.target import RuntimeName

SHIPPED: Final[RuntimeName] = "tflite-runtime"
Row: TypeAlias = dict[str, Any]


def run(runtime: RuntimeName, data: bytes, model: Flatbuffer, rows: Sequence[Row]) -> list[Row]:
    """What the model gives for samples in its own types, `[1, ...]` each by name; how far it is, is said on the way.

    Raises:
        ModelError: the runtime can't run the model.
    """
    results: list[Row] = []
    for some in _RUNTIMES[runtime](data, model, rows):
        results += some
        headway.say(f"sample {len(results):,} of {len(rows):,} in {runtime}")
    return results


def _tflite_runtime(data: bytes, _: Flatbuffer, rows: Sequence[Row]) -> Iterator[list[Row]]:
    from edgebuild.export.interpreter import Interpreter

    interpreter = Interpreter(data)
    yield from ([interpreter.run(row)] for row in rows)


def require(runtime: RuntimeName, version: str) -> None:
    """Refuse to run in another version than the task's key speaks of.

    Raises:
        ToolMissingError: this machine has another, or none.
    """
    here = tool_version(runtime)
    if version and here != version:
        raise ToolMissingError(
            f"this machine's {runtime} is {here}, and the build's is {version}",
            cause="results under one key must be the same, whoever makes them",
            action=f"install {runtime}=={version} here",
        )


def _tflite_micro(data: bytes, model: Flatbuffer, rows: Sequence[Row]) -> Iterator[list[Row]]:
    from edgebuild.targets.microcontroller import tflm

    yield from tflm.outputs(data, model, rows)


_RUNTIMES: Final = {"tflite-runtime": _tflite_runtime, "tflite-micro": _tflite_micro}
