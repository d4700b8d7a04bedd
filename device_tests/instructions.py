"""How many instructions one inference takes: a figure that other programs on the machine leave alone.

Valgrind's callgrind counts the instructions of a whole process. Two processes that differ in nothing but their number
of inferences differ by the instructions of those, of the call from Python included, which is some thousand each.

It counts on the processor that valgrind imitates: on x86 that has AVX2 and no AVX-512, so the runtime may choose other
kernels than it does outside. Instructions are no time, but more of them on the same runtime is a regression as a rule.
"""

from __future__ import annotations

import itertools
import math
import secrets
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from edgebuild.device_tests.device import RemoteTransport, answer_in, running
from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.link import Ended, last_words
from edgebuild.device_tests.sample import read_sample
from edgebuild.device_tests.stay import Stay
from edgebuild.device_tests.transport import RUNNER, RunRequest, model_digest
from edgebuild.device_tests.versus import Gate, regressed

REPEATABILITY: Final = 0.005
"""The share by which two counts of one model may differ; where its repeats differ by more, a count is no gate."""

_FEW: Final = 1
_MORE: Final = 5  # Inferences that the second process runs beyond the first's.
# Equal processes differ by some ten thousand instructions (the clock's digits, what Python's allocator met): beside so
# many that is a tenth of `REPEATABILITY`.
_ENOUGH: Final = 20_000_000
_MOST: Final = 10_000  # An inference of less than two thousand instructions is the call's own.
_LOOK_S: Final = 60.0
_VERSION: Final = "valgrind --version"
# A seed for the hashes of strings: with another one each time, dictionaries take another path each time.
_COUNTED: Final = "env PYTHONHASHSEED=0 valgrind -q --tool=callgrind --callgrind-out-file=callgrind.out {python}"
_COUNT: Final = """\
rm -f callgrind.out
(
{run}
)
code=$?
sed -n 's/^totals: /{mark} /p' callgrind.out 2>/dev/null
rm -f callgrind.out
exit $code
"""
_TOTAL: Final = "EDGEBUILD-INSTRUCTIONS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instructions:
    """The instructions of one inference on a device: the median of `repeats`, and `spread`, their range over it.

    `valgrind` and `runtime` are names with versions, `device` is the fingerprint in one line: a count holds for them.
    """

    per_inference: float
    repeats: tuple[float, ...]
    spread: float
    valgrind: str
    runtime: str
    device: str
    model_sha256: str

    @property
    def is_steady(self) -> bool:
        """Whether the repeats agree as well as counts of instructions do; a single one agrees with itself."""
        return self.spread <= REPEATABILITY


@dataclass(frozen=True, slots=True, kw_only=True)
class CountComparison:
    """A model's instructions beside those of a baseline, of the same runtime on the same device."""

    found: Instructions
    baseline: Instructions

    @property
    def ratio(self) -> float:
        """Above 1 is more than the baseline's."""
        return self.found.per_inference / self.baseline.per_inference


def count(
    stay: Stay,
    model: Path,
    *,
    python: str | None = None,
    delegate: str = "default",
    repeats: int = 2,
    timeout_s: float = 600.0,
    runner: Path = RUNNER,
    on_process: Callable[[int], None] | None = None,
) -> Instructions:
    """Count a model's instructions on the device of a stay, in two processes for each repeat, on one thread.

    A process takes some fifty times as long as it does without valgrind. Models of few instructions are run more
    often, until those stand out. `python` is the interpreter there, `on_process` hears of each process by number.

    Raises:
        DeviceError: the device has no valgrind, can't be reached, can't run the model, or gives counts that make no
            sense.
        ModelError: the file can't be read.
        ValueError: there is no repeat to count.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    python = python or (sys.executable if stay.link.uri.startswith("local") else "python3")
    valgrind = _valgrind(stay)
    device = str(RemoteTransport(stay).fingerprint())
    counter = _Counter(stay, model, python, RunRequest(delegate=delegate), timeout_s, runner)
    found = tuple(_repeated(counter, repeats, on_process))
    center = median(found)
    return Instructions(
        per_inference=center,
        repeats=found,
        spread=(max(found) - min(found)) / center,
        valgrind=valgrind,
        runtime=counter.runtime,
        device=device,
        model_sha256=counter.digest,
    )


def against(found: Instructions, baseline: Instructions, max_regression: float) -> Gate:
    """Judge a count by an older one of this runtime on this device: `regressed`, with `REPEATABILITY` either way.

    Raises:
        DeviceError: the two were counted with different things.
    """
    for name in ("device", "runtime", "valgrind"):
        here, there = getattr(found, name), getattr(baseline, name)
        if here != there:
            raise DeviceError(
                f"the baseline's instructions are those of another {name}",
                cause=f"it was counted with {there}, and this with {here}",
                action="count the baseline anew",
            )
    if not (found.is_steady and baseline.is_steady):
        return "inconclusive"
    ratio = found.per_inference / baseline.per_inference
    return regressed(ratio * (1 - REPEATABILITY), ratio * (1 + REPEATABILITY), max_regression)


def _valgrind(stay: Stay) -> str:
    ended = stay.link.run(_VERSION, _LOOK_S)
    if ended.code or not ended.stdout.strip():
        raise DeviceError(
            f"{stay.link.uri} has no valgrind to count instructions with",
            cause=last_words(ended.stderr),
            action="install it there: apt-get install valgrind",
        )
    return ended.stdout.strip()


class _Counter:
    """Counts the instructions of whole processes."""

    def __init__(
        self, stay: Stay, model: Path, python: str, request: RunRequest, timeout_s: float, runner: Path
    ) -> None:
        self.digest = model_digest(model)
        self.runtime = ""
        self._stay, self._model, self._request, self._timeout_s = stay, model, request, timeout_s
        self._program = _COUNTED.format(python=shlex.quote(python))
        self._files = {"runner.py": runner, self.digest: model}

    def total(self, runs: int) -> int:
        """The instructions of a process with so many timed inferences."""
        nonce = secrets.token_hex(8)
        argument = self._request.exactly(runs).argument(model=self.digest, nonce=nonce)
        mark = f"{_TOTAL} {nonce}"
        script = _COUNT.format(run=running(self._program, argument), mark=mark)
        ended = self._stay.run_anew(self._files, script, self._timeout_s)
        read = partial(read_sample, nonce=nonce, model_sha256=self.digest)
        sample = answer_in(ended, self._model, self._timeout_s, read)
        if sample.runs != runs:
            raise DeviceError(f"the device ran {self._model.name} {sample.runs} times instead of {runs}")
        self.runtime = sample.runtime
        return self._counted(ended, mark)

    def _counted(self, ended: Ended, mark: str) -> int:
        totals = [line[len(mark) :].strip() for line in ended.stdout.splitlines() if line.startswith(mark)]
        if len(totals) != 1 or not totals[0].isdecimal():
            raise DeviceError(
                f"valgrind counted no instructions of {self._model.name}",
                cause="the Python there may be a script that starts the real one",
                action="give the path of the Python itself",
            )
        return int(totals[0])


def _repeated(counter: _Counter, repeats: int, on_process: Callable[[int], None] | None) -> Iterator[float]:
    """Instructions of one inference, again and again from two fresh processes.

    N inferences more take N times as many; N grows once where they are too few to stand out.
    """
    heard, more = itertools.count(1), _MORE

    def total(runs: int) -> int:
        found = counter.total(runs)
        if on_process is not None:
            on_process(next(heard))
        return found

    few, many = total(_FEW), total(_FEW + more)
    if many - few < _ENOUGH:
        more = min(_MOST, math.ceil(_ENOUGH * more / max(many - few, 1)))
        many = total(_FEW + more)
    for _ in range(repeats - 1):
        yield _each(few, many, more)
        few, many = total(_FEW), total(_FEW + more)
    yield _each(few, many, more)


def _each(few: int, many: int, more: int) -> float:
    if many <= few:
        raise DeviceError(
            f"{more} inferences more took {many - few:,} instructions",
            cause="what valgrind counts there is not the runtime's work",
            action="give the path of the Python itself",
        )
    return (many - few) / more
