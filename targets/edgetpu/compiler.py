"""Google's Edge TPU compiler: where it is, which one, and how it is run.

Options by its documentation, https://coral.ai/docs/edgetpu/compiler. One that maps several parts of a graph
(`--enable_multiple_subgraphs`) is not documented and is left alone: each part costs a transfer of its own.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgebuild.export.errors import ModelError
from edgebuild.targets import leash
from edgebuild.targets.edgetpu import log as edgetpu_log
from edgebuild.targets.errors import ToolMissingError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edgebuild.targets.edgetpu.log import Log

VARIABLE: Final = "EDGETPU_COMPILER"
NAME: Final = "edgetpu_compiler"
GET: Final = (
    "install Coral's Debian package edgetpu-compiler (x86-64 only), as https://coral.ai/docs/edgetpu/compiler says, "
    f"or name the program in {VARIABLE}"
)
TIMEOUT_S: Final = 600  # For all attempts together.
MEMORY_BYTES: Final = 8 * 2**30
_VERSION_TIMEOUT_S: Final = 30
_MARGIN_S: Final = 30  # By which its own limit is below ours: what it says then is worth more than a kill.
_TIMER_SINCE: Final = 16  # The version that brought --timeout_sec and --search_delegate.
# It fails at random on models that it compiles when it is asked again.
# ref: https://github.com/google-coral/edgetpu/issues/211
_FLAKY: Final = ("Internal compiler error", "Segmentation fault", "terminating with uncaught exception")
_LARGE: Final = "large activation tensors"

# What it says where it takes nothing at all of a model, why that is so, and what to do; asking again is of no use.
_REFUSALS: Final[tuple[tuple[str, str, str], ...]] = (
    (
        r"Didn't find op for builtin opcode '(\w+)' version '(\d+)'",
        "it does not know version {1} of {0}: it is older than the converter",
        "replace the layer that becomes {0}; `edgebuild check` names the operator",
    ),
    (
        r"Op builtin_code out of range: (\d+)",
        "it does not know operator code {0}: it is older than the converter",
        "replace the layer; `edgebuild check` names the operator",
    ),
    (
        r"Encountered unresolved custom op: ([^\s.]+)",
        "it does not know the custom operator {0}",
        "leave the operator out of the model, and run it on the CPU after it",
    ),
    (
        r"graph that has dynamic-sized tensors",
        "sizes of the model's tensors are known at run time only",
        "fix every size, the batch to 1, before converting: model.input_shapes",
    ),
    (r"Model not quantized", "the model is not quantized", "give it a full-integer model: precision int8"),
    (r"Model could not be parsed", "it can't read the model", "compare the model with one that it compiles"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiler:
    """A compiler that is here; `version` and `digest`, the sha256 of the file at `path`, tell it from others.

    Coral's package puts a shell script there, and the program beside it: of that the version tells.
    """

    path: Path
    version: str
    digest: str

    @property
    def title(self) -> str:
        """Its name and version."""
        return f"{NAME} {self.version}"


def find() -> Compiler | None:
    """The compiler that EDGETPU_COMPILER names, else the one on PATH, else none.

    Raises:
        ToolMissingError: EDGETPU_COMPILER names no program, or what was found can't be read or says no version.
    """
    named = os.environ.get(VARIABLE)
    found = shutil.which(named or NAME)
    if found is None and named:
        raise ToolMissingError(f"{VARIABLE} names no program: {named}", action=f"correct it, or unset it; or {GET}")
    if found is None:
        return None
    path = Path(found).resolve()
    return Compiler(path=path, version=_version(path), digest=_digest(path))


def require(version: str, digest: str) -> Compiler:
    """The compiler that a build was planned with.

    Raises:
        ToolMissingError: this machine has none, or another.
    """
    found = find()
    if found is None or (found.version, found.digest) != (version, digest):
        raise ToolMissingError(
            f"this build was planned with {NAME} {version}, which is not here",
            cause=f"this machine has {found.title}" if found else f"there is no {NAME} on this machine",
            action="install the same compiler on every machine that builds",
        )
    return found


def compile_models(compiler: Compiler, models: Mapping[str, bytes], out: Path, *, segments: int = 1) -> Log:
    """Compile one model, several that share a device's memory, or one into `segments` for as many devices.

    `models` are flatbuffers by name without a suffix; the first has the first call on the memory. Into the folder `out`
    come `NAME_edgetpu.tflite`, or `NAME_segment_I_of_N_edgetpu.tflite`.

    Raises:
        ModelError: it refuses a model, fails again and again, takes too long, or leaves something else than it says.
    """
    failed, ends = "", time.monotonic() + TIMEOUT_S
    for options in _attempts(compiler, segments):
        with tempfile.TemporaryDirectory(prefix="edgetpu-") as folder:
            said, code = _run(compiler, models, options, Path(folder), ends - time.monotonic())
            if code == leash.TIMED_OUT:
                raise _failure(f"it did not finish within {TIMEOUT_S} s", "make the model smaller, or cut it in two")
            if code == 0 and "compiled successfully in" in said:
                return _taken(edgetpu_log.parse(said), Path(folder) / "out", out)
            _require_worth_another_try(said)
            failed = _last_words(said, code)
    raise _failed(failed, segments)


def _attempts(compiler: Compiler, segments: int) -> tuple[tuple[str, ...], ...]:
    """Options of each attempt: twice as asked, since it fails at random, then a search for a part that compiles."""
    plain = (f"--num_segments={segments}",) if segments > 1 else ()
    if not _has_timer(compiler):
        return (plain, plain)
    return (plain, plain, ("--search_delegate", *plain))


def _run(
    compiler: Compiler, models: Mapping[str, bytes], options: Sequence[str], folder: Path, seconds: float
) -> tuple[str, int]:
    """Run it once in a folder of its own."""
    if seconds <= _MARGIN_S:  # It gave up by its own limit, or failed again and again and late.
        return "", leash.TIMED_OUT
    (folder / "out").mkdir()
    files = [f"./{name}.tflite" for name in models]  # A name may begin with a dash, and is no option.
    for file, data in zip(files, models.values(), strict=True):
        (folder / file).write_bytes(data)
    timer = [f"--timeout_sec={seconds - _MARGIN_S:.0f}"] if _has_timer(compiler) else []
    command = [str(compiler.path), "--show_operations", "--out_dir=out", *timer, *options, *files]
    try:
        ended = leash.run(command, seconds=seconds, memory_bytes=MEMORY_BYTES, folder=folder)
    except subprocess.TimeoutExpired:
        return "", leash.TIMED_OUT
    return ended.stdout.decode("utf-8", "replace"), ended.returncode


def _has_timer(compiler: Compiler) -> bool:
    return int(compiler.version.partition(".")[0]) >= _TIMER_SINCE


def _taken(log: Log, made: Path, out: Path) -> Log:
    """Move what it made to `out`.

    Raises:
        ModelError: a file that it names is not there.
    """
    for model in log.models:
        if not (made / model.output).is_file():
            raise _failure(f"it says that it wrote {model.output}, and did not", "see whether the disk is full")
        shutil.move(made / model.output, out / model.output)
    return log


def _require_worth_another_try(said: str) -> None:
    for pattern, cause, action in _REFUSALS:
        if found := re.search(pattern, said):
            raise ModelError(f"{NAME} refuses the model", cause=cause.format(*found.groups()), action=action)


def _last_words(said: str, code: int) -> str:
    """What it said, and by which signal it ended, as a shell tells of one."""
    known = {128 + number: number.name for number in signal.Signals}
    return f"{said}\nERROR: it was ended by {known[code]} each time" if code in known else said


def _failed(said: str, segments: int) -> ModelError:
    """What it failed of, in its own last words."""
    if _LARGE in said:
        apart = "split it over several devices, targets.edgetpu.segments" if segments == 1 else "take more segments"
        return _failure("activations are too large for the chip's memory", f"make the input smaller, or {apart}")
    if any(words in said for words in _FLAKY):
        return _failure("it crashed each time, without saying why", "make the largest layers smaller, or cut the model")
    errors = [line.strip() for line in said.splitlines() if line.startswith(("ERROR", "Compilation failed: "))]
    cause = errors[-1][:300] if errors else "it gave no reason"
    return _failure(cause, "leave out layers at the end until it compiles: the last one left out is to blame")


def _failure(cause: str, action: str) -> ModelError:
    return ModelError(f"{NAME} did not compile the model", cause=cause, action=action)


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as e:
        raise ToolMissingError(f"{path} can't be read", cause=str(e), action="let whoever builds read it") from e


def _version(path: Path) -> str:
    said, code = _asked(path)
    found = edgetpu_log.version(said)
    if not found:
        late = f"it did not answer within {_VERSION_TIMEOUT_S} s"
        raise ToolMissingError(
            f"{path} is no Edge TPU compiler",
            cause=f"asked for its version, {late if code == leash.TIMED_OUT else f'it said {said.strip()[:200]!r}'}",
            action=f"correct {VARIABLE} or PATH; or {GET}",
        )
    return found


def _asked(path: Path) -> tuple[str, int]:
    """What it says of its version, and how it ended."""
    with tempfile.TemporaryDirectory(prefix="edgetpu-") as folder:
        command = [str(path), "--version"]
        try:
            ended = leash.run(command, seconds=_VERSION_TIMEOUT_S, memory_bytes=MEMORY_BYTES, folder=Path(folder))
        except subprocess.TimeoutExpired:
            return "", leash.TIMED_OUT
    return ended.stdout.decode("utf-8", "replace"), ended.returncode
