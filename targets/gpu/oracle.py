"""Runtimes that reach a GPU of this machine, asked in a process of their own what they make of a model.

Two are known: LiteRT with its WebGPU accelerator, in a Python of its own because of its pins; and a library of TFLite's
GPU delegate, loaded by tflite-runtime. Nothing is ever downloaded. What a software adapter answers is
`simulated`: it takes the same operators, and rounds and times as no GPU does.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from edgebuild.export.errors import ModelError
from edgebuild.targets import leash
from edgebuild.targets.errors import ToolMissingError
from edgebuild.targets.gpu import log as gpu_log

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from edgebuild.targets.evidence import Evidence
    from edgebuild.targets.gpu.log import Log, Refused

LITERT: Final = "EDGEBUILD_LITERT"
DELEGATE: Final = "EDGEBUILD_GPU_DELEGATE"
VERSION: Final = "2.3.0"  # Of ai-edge-litert: the first whose accelerator and log were held against each other.
TIMEOUT_S: Final = 300
_IDENTIFY_TIMEOUT_S: Final = 60
_MEMORY_BYTES: Final = 24 * 2**30
_PROBE: Final = Path(__file__).with_name("probe.py")
# What decides, beside the machine, which adapter Vulkan gives. ref: LoaderDriverInterface.md of Khronos' Vulkan-Loader
_VULKAN: Final = ("VK_ICD_FILENAMES", "VK_DRIVER_FILES", "VK_ADD_DRIVER_FILES", "LD_LIBRARY_PATH")
_NO_LOADER: Final = "Couldn't load Vulkan"
_NO_ADAPTER: Final = "No adapters found"


@dataclass(frozen=True, slots=True, kw_only=True)
class Oracle:
    """A runtime that was found and answers; `runtime`, with its version, and `adapter` decide what it says."""

    way: Literal["litert", "delegate"]
    command: tuple[str, ...]
    library: str
    runtime: str
    adapter: str
    is_software: bool

    @property
    def evidence(self) -> Evidence:
        """What its answers are worth."""
        return "simulated" if self.is_software else "measured"

    @property
    def accelerator(self) -> str:
        """What it runs operators on."""
        return "webgpu accelerator" if self.way == "litert" else "gpu delegate"

    @property
    def title(self) -> str:
        """In words."""
        return f"{self.runtime} on {self.adapter}" if self.adapter else self.runtime


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a runtime made of a model.

    `whole` where it takes every operator. Otherwise `calls` are the tensors in and out of each call of the delegate,
    where they can be read off, else None. `refused` and `on_gpu`, a count of operators, are what it logs. `outputs` are
    its results for each sample that was given; there are none where `unread` says why. `failure` says why it can't run
    the model at all. Both are empty where all is well.
    """

    whole: bool
    calls: tuple[tuple[frozenset[int], frozenset[int]], ...] | None
    refused: tuple[Refused, ...]
    on_gpu: int | None
    outputs: tuple[Mapping[str, NDArray[Any]], ...]
    unread: str
    failure: str


def default_python() -> Path:
    """Where LiteRT's Python is looked for, if no variable names one."""
    from platformdirs import user_data_path

    return user_data_path("edgebuild") / "litert" / "bin" / "python"


def install_commands() -> str:
    """The two commands that put LiteRT where it is looked for."""
    python = default_python()
    return f"python3 -m venv {python.parents[1]} && {python} -m pip install ai-edge-litert=={VERSION}"


def find() -> Oracle | None:
    """The delegate's library that a variable names, else LiteRT; None where there is neither.

    Raises:
        ToolMissingError: one is named, or lies where it is looked for, and does not answer.
    """
    if library := os.environ.get(DELEGATE):
        return _find_delegate(library, _stamp(Path(library)))
    named = os.environ.get(LITERT)
    python = Path(named) if named else default_python()
    if not named and not python.exists():
        return None
    return _find_litert(python, tuple(os.environ.get(name, "") for name in _VULKAN))


def require(runtime: str, adapter: str) -> Oracle:
    """The runtime that a plan was made for.

    Raises:
        ToolMissingError: it is not here, or is another.
    """
    found = find()
    if found is None or (found.runtime, found.adapter) != (runtime, adapter):
        raise ToolMissingError(
            f"the build was planned with {runtime} on {adapter or 'its adapter'}, which is not here",
            cause=f"here is {found.title if found else 'no GPU runtime'}; it runs on another machine, or has changed",
            action=f"set {LITERT} alike on every machine, or targets.gpu.oracle: none",
        )
    return found


def require_any() -> Oracle:
    """Whatever GPU runtime is here.

    Raises:
        ToolMissingError: there is none, or it does not answer.
    """
    found = find()
    if found is None:
        raise _missing(
            "no GPU runtime is here",
            f"neither {DELEGATE} nor {LITERT} is set, and {default_python()} is not there",
            install_commands(),
        )
    return found


def _stamp(path: Path) -> tuple[int, int]:
    """By what a file that was changed is told."""
    try:
        found = path.stat()
    except OSError as e:
        raise _missing(
            f"{DELEGATE} names {path}, which is not there", str(e), f"name the library, or unset {DELEGATE}"
        ) from e
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=4)
def _find_delegate(library: str, _: tuple[int, int]) -> Oracle:
    digest = hashlib.sha256(Path(library).read_bytes()).hexdigest()
    return Oracle(
        way="delegate",
        command=(sys.executable,),
        library=str(Path(library).absolute()),
        runtime=f"tflite-runtime with {Path(library).name}, sha256 {digest[:16]}",
        adapter="",
        is_software=False,
    )


@lru_cache(maxsize=4)
def _find_litert(python: Path, _: tuple[str, ...]) -> Oracle:
    with tempfile.TemporaryDirectory() as folder:
        code, said = _run((str(python), str(_PROBE), "litert", folder), Path(folder), _IDENTIFY_TIMEOUT_S)
        answer = _read(Path(folder))
    log = gpu_log.parse(said)
    if code or answer is None or answer["failure"] or not log.adapter:
        raise _no_litert(python, code, said, answer)
    return Oracle(
        way="litert",
        command=(str(python),),
        library="",
        runtime=f"ai-edge-litert {answer['version']}",
        adapter=log.adapter,
        is_software=log.is_software,
    )


def _no_litert(python: Path, code: int, said: str, answer: Mapping[str, Any] | None) -> ToolMissingError:
    """What is wrong with LiteRT's Python, and the exact fix."""
    if _NO_LOADER in said:
        cause = "the Vulkan loader, libvulkan.so.1, is not there"
        fix = "install the Vulkan loader (Debian: libvulkan1) and your GPU's Vulkan driver"
    elif _NO_ADAPTER in said:
        cause = "Vulkan has no adapter that WebGPU takes"
        fix = (
            "install your GPU's Vulkan driver, or a software one: Debian's chromium-common has one, "
            "VK_ICD_FILENAMES=/usr/lib/chromium/vk_swiftshader_icd.json"
        )
    elif "No module named" in said:
        cause, fix = _last(said), f"{python} -m pip install ai-edge-litert=={VERSION}, or: {install_commands()}"
    else:
        cause = str(answer["failure"]) if answer and answer["failure"] else _ended(code, said)
        fix = f"name a Python with ai-edge-litert {VERSION} in {LITERT}, or unset it"
    return _missing(
        f"the GPU runtime of {python} does not answer", cause, f"{fix}; or predict: targets.gpu.oracle: none"
    )


def ask(oracle: Oracle, model: bytes, samples: Sequence[Mapping[str, NDArray[Any]]] = ()) -> Answer:
    """Have a runtime compile a model and run it on samples, in the model's own types, by signature name.

    Raises:
        ModelError: it took too long or was killed, which says more of this machine's load than of the model.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.tflite").write_bytes(model)
        _write(folder, samples)
        library = (oracle.library,) if oracle.library else ()
        code, said = _run((*oracle.command, str(_PROBE), oracle.way, name, *library), folder, TIMEOUT_S)
        return _answer(folder, code, said, len(samples))


def _answer(folder: Path, code: int, said: str, samples: int) -> Answer:
    log, raw = gpu_log.parse(said), _read(folder)
    failure = _ended(code, said) if code or raw is None else _failure(raw, log)
    raw = raw or {"whole": False, "calls": None, "unread": ""}
    calls = raw["calls"]
    return Answer(
        whole=bool(raw["whole"]) and not failure,
        calls=None if calls is None else tuple((frozenset(c["inputs"]), frozenset(c["outputs"])) for c in calls),
        refused=log.refused,
        on_gpu=log.on_gpu,
        outputs=_outputs(folder, samples),
        unread=str(raw["unread"]),
        failure=failure,
    )


def _failure(raw: Mapping[str, Any], log: Log) -> str:
    """Why it can't run the model: the errors it logs, which its exception leaves out."""
    return raw["failure"] and ("; ".join(log.errors) or str(raw["failure"]))


def _write(folder: Path, samples: Sequence[Mapping[str, NDArray[Any]]]) -> None:
    import numpy as np

    arrays: dict[str, Any] = {
        f"{i}/{name}": array for i, sample in enumerate(samples) for name, array in sample.items()
    }
    if arrays:
        np.savez(folder / "inputs.npz", **arrays)


def _outputs(folder: Path, samples: int) -> tuple[Mapping[str, NDArray[Any]], ...]:
    import numpy as np

    if not (folder / "outputs.npz").exists():
        return ()
    with np.load(folder / "outputs.npz") as arrays:
        keys = [key.partition("/") for key in arrays.files]
        return tuple({name: arrays[f"{i}/{name}"] for at, _, name in keys if at == str(i)} for i in range(samples))


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((folder / "answer.json").read_bytes())
    except (OSError, ValueError):
        return None
    return found


def _run(command: tuple[str, ...], folder: Path, seconds: int) -> tuple[int, str]:
    """The exit status, and what was said."""
    try:
        done = leash.run(command, seconds=seconds, memory_bytes=_MEMORY_BYTES, folder=folder)
    except subprocess.TimeoutExpired as e:
        raise _unasked(f"it did not end within {seconds} s") from e
    if done.returncode == leash.TIMED_OUT:
        raise _unasked(f"it did not answer within {seconds} s")
    if done.returncode == 128 + signal.SIGKILL:
        raise _unasked("it was killed: the machine may be out of memory")
    return done.returncode, done.stdout.decode("utf-8", "replace")


def _unasked(cause: str) -> ModelError:
    return ModelError(
        "the GPU runtime could not be asked about the model",
        cause=cause,
        action="build again, or leave it out: targets.gpu.oracle: none",
    )


def _ended(code: int, said: str) -> str:
    names = {signal_.value: signal_.name for signal_ in signal.Signals}
    how = f"it crashed by {names[code - 128]}" if code - 128 in names else f"it ended with exit status {code}"
    return f"{how}: {_last(said)}"


def _last(said: str) -> str:
    return next((line.strip()[:300] for line in reversed(said.splitlines()) if line.strip()), "it gave no reason")


def _missing(what: str, cause: str, action: str) -> ToolMissingError:
    return ToolMissingError(what, cause=cause, action=action)
