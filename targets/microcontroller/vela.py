"""Arm's compiler for Ethos-U NPUs, always in a child process: it crashes on models that it can't read.

Its output runs on the NPU alone, so that numbers are checked on the model that it was made of; and its figures are a
compiler's estimates.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgebuild.export import flatbuffer, strip
from edgebuild.export.errors import ModelError
from edgebuild.targets import leash
from edgebuild.targets.errors import ToolMissingError, UnknownTargetError
from edgebuild.targets.microcontroller import vela_output, vela_summary
from edgebuild.targets.microcontroller.ethos_u import DISTRIBUTION, UNPRICED, EthosU, OnCpu
from edgebuild.targets.microcontroller.npu import BUNDLED
from edgebuild.targets.tools import python_module

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from edgebuild.calibration.errors import Failure
    from edgebuild.export.flatbuffer import Flatbuffer
    from edgebuild.targets.microcontroller.npu import Npu

MODEL: Final = "model_vela.tflite"
MISSING: Final = f"{DISTRIBUTION} is not installed"
GET: Final = "pip install 'edgebuild[ethosu]'"
TIMEOUT_S: Final = 300
MEMORY_BYTES: Final = 4 * 2**30
_STEM: Final = "model"
_REACHED_MODEL: Final = "regor.compile("  # In a traceback: what came before was about the configuration.


def installed() -> bool:
    """Whether the optional wheel is here."""
    return find_spec("ethosu") is not None


def version() -> str:
    """Which one is.

    Raises:
        ToolMissingError: none is.
    """
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError as e:
        raise ToolMissingError(MISSING, action=GET) from e


def compile_model(npu: Npu, model: bytes, out: Path, named: Flatbuffer | None = None) -> EthosU:
    """Compile a .tflite file for an NPU, as `model_vela.tflite` in the folder `out`.

    A model of which nothing suits the NPU comes out too, with everything on the CPU. What Vela says goes by names of
    tensors: where a model has none of its own, the record takes them from `named`, the model before they were stripped.

    Raises:
        ModelError: Vela can't read it, crashes, takes too long, or says what we can't read.
        ToolMissingError: Vela is not installed, or can't be bounded here.
        UnknownTargetError: Vela refuses the configuration.
    """
    if not installed():
        raise ToolMissingError(MISSING, action=GET)
    if named is not None:
        model = strip.numbered(model)
    graph = flatbuffer.read(model)
    with tempfile.TemporaryDirectory(prefix="vela-") as name:
        folder = Path(name)
        said = _run(npu, model, folder)
        record = _record(npu, graph, model, said, folder)
        shutil.move(folder / MODEL, out / MODEL)
    return record if named is None else _spoken(record, named)


def _spoken(record: EthosU, named: Flatbuffer) -> EthosU:
    def say(text: str) -> str:
        return strip.spoken(text, named)

    on_cpu = tuple(replace(each, tensor=say(each.tensor), reason=say(each.reason)) for each in record.on_cpu)
    return replace(record, on_cpu=on_cpu, layers=tuple(replace(layer, name=say(layer.name)) for layer in record.layers))


def _run(npu: Npu, model: bytes, folder: Path) -> str:
    """Let Vela write its files into the folder; what it said."""
    (folder / f"{_STEM}.tflite").write_bytes(model)
    command = python_module(
        "ethosu.vela",
        *("--output-dir", ".", "--config", _config(npu)),
        *("--accelerator-config", npu.accelerator, "--system-config", npu.system_config),
        *("--memory-mode", npu.memory_mode, "--optimise", "Performance", "--verbose-performance"),
        f"{_STEM}.tflite",
    )
    try:
        ended = leash.run(command, seconds=TIMEOUT_S, memory_bytes=MEMORY_BYTES, folder=folder)
    except subprocess.TimeoutExpired as e:
        raise _unfinished() from e
    said = ended.stdout.decode("utf-8", "replace")
    if ended.returncode:
        raise _failed(npu, said, ended.returncode)
    return said


def _config(npu: Npu) -> str:
    """Its own file by its name, another one by its full path: Vela runs in another folder."""
    if npu.config == BUNDLED:
        return BUNDLED
    path = Path(npu.config).resolve()
    if not path.is_file():
        raise UnknownTargetError(f"{npu.config} is no file", action=f"correct it, or leave it out for {BUNDLED}")
    return str(path)


def _failed(npu: Npu, said: str, code: int) -> Failure:
    """What Vela failed of, in its own last words."""
    if code == leash.TIMED_OUT:
        return _unfinished()
    last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "it gave no reason")[:300]
    known = {128 + number: number.name for number in signal.Signals}
    if code in known:
        why = f"it crashed ({known[code]}): {last}"
        return ModelError("Vela did not compile the model", cause=why, action="convert the model again, or simplify it")
    if last.startswith(("ImportError", "ModuleNotFoundError")):
        return ToolMissingError("Vela is installed, and does not start", cause=last, action=f"install it anew: {GET}")
    if _REACHED_MODEL not in said:
        names = f"{npu.accelerator}, {npu.system_config} and {npu.memory_mode}"
        return UnknownTargetError(
            f"Vela refuses {names} of {npu.config}", cause=last, action="compare the names with the file's sections"
        )
    return ModelError("Vela did not compile the model", cause=last, action="replace the layer that it names")


def _unfinished() -> ModelError:
    return ModelError(
        "Vela did not compile the model",
        cause=f"it did not finish within {TIMEOUT_S} s",
        action="make the model smaller; a resize to a large output can become thousands of operators",
    )


def _record(npu: Npu, graph: Flatbuffer, model: bytes, said: str, folder: Path) -> EthosU:
    output, left = vela_output.read(_written(folder / MODEL), model)
    summary = vela_summary.summary(_text(folder / f"{_STEM}_summary_{npu.system_config}.csv"))
    layers, left_out = vela_summary.slowest(vela_summary.layers(_text(folder / f"{_STEM}_per-layer.csv")))
    on_cpu, on_npu = vela_summary.counts(said)
    return EthosU(
        vela=version(),
        npu=npu,
        summary=summary,
        output=output,
        cpu_operators=on_cpu,
        npu_operators=on_npu,
        on_cpu=tuple(_on_cpu(graph, left, vela_summary.reasons(said))),
        layers=layers,
        notes=tuple(filter(None, (left_out, UNPRICED if on_cpu else ""))),
    )


def _written(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as e:
        raise ModelError(
            f"Vela did not write {path.name}, and does not say why", action="see whether the disk is full"
        ) from e


def _text(path: Path) -> str:
    """One of Vela's tables; names in it are the model's, of any bytes."""
    return _written(path).decode("utf-8", "replace")


def _on_cpu(graph: Flatbuffer, left: Iterable[int], reasons: Mapping[str, Mapping[str, str]]) -> Iterator[OnCpu]:
    """Operators with their reasons; where an activation is fused, Vela may give a reason for that alone."""
    for operator in (graph.main.operators[index] for index in left):
        tensor = next((graph.main.tensors[i].name for i in operator.outputs if i >= 0), "")
        told = reasons.get(tensor, {})
        reason = told.get(operator.kind) or next(iter(told.values()), "Vela leaves it to the CPU, and does not say why")
        yield OnCpu(operator=operator.index, kind=operator.kind, tensor=tensor, reason=reason)
