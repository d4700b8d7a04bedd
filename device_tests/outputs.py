"""Whether a device computes what we compute here, on the same samples."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.local import LocalTransport
from edgebuild.device_tests.sample import ProcessSample
from edgebuild.device_tests.steps import MOST_STEPS, Gap, gap
from edgebuild.device_tests.transport import RunRequest, Transport
from edgebuild.export import flatbuffer
from edgebuild.export.errors import ModelError
from edgebuild.export.flatbuffer import Flatbuffer, Tensor
from edgebuild.export.interpreter import decode, encoded

Verdict: TypeAlias = Literal["equal", "close", "wrong"]
Outputs: TypeAlias = tuple[NDArray[Any], ...]

# In the measurement that `steps.MOST_STEPS` rests on, 2 samples in 100 changed their class.
LEAST_TOP1: Final = 0.95
SAMPLES: Final = 32
_MOST_ANSWER_BYTES: Final = 4 << 20  # Half of what the runner gives at once: shapes may turn out larger.
_INDEX_BYTES: Final = 4
_ONCE: Final[dict[str, Any]] = {"min_warmup_s": 0.0, "min_warmup_runs": 1, "min_time_s": 0.0, "min_runs": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceAgreement:
    """How far two runs of a model lie apart, over `n` samples and all outputs.

    `exact` where no value differs, `promised_exact` where runtime and machine leave no reason for any to differ;
    `max_steps` is the largest difference, and `rms_steps` the root mean square of them all in the output that comes
    nearest to its limit `limit_steps`: see `steps`. `differing` is the share of values that differ, and `top1` the
    lowest share of an output's samples with the same class, None where no output is one of classes: a class that lies
    within `steps.MOST_STEPS` of the best here counts as the same. The steps are None where outputs are of other shapes
    or types, or one is infinite where the other is not. `note` says what was compared with what.
    """

    exact: bool
    promised_exact: bool
    max_steps: float | None
    rms_steps: float | None
    limit_steps: float
    differing: float
    top1: float | None
    n: int
    verdict: Verdict
    note: str

    def __str__(self) -> str:
        """One line."""
        apart = "" if self.max_steps is None else f", at most {self.max_steps:g} steps apart"
        same = "bit for bit" if self.exact else f"{self.verdict}{apart}"
        return f"{same}, {self.n} samples; {self.note}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Where a model ran, and its outputs for all samples: `[N, *shape]` each, in the model's order."""

    machine: str
    sample: ProcessSample
    outputs: Outputs


def check(
    transport: Transport,
    model: Path,
    request: RunRequest,
    samples: Mapping[str, NDArray[Any]],
    *,
    reference: Path | None = None,
    host: Transport | None = None,
    timeout_s: float = 60.0,
) -> DeviceAgreement:
    """Run a model on a device and here, and hold the outputs against each other.

    `samples` are real values by input name, `[N, ...]` each. Here the model runs without delegates; one that is
    compiled for a delegate has a `reference` to run instead.

    Raises:
        DeviceError: the device can't be reached or can't run the model; or we can't.
        ModelError: a file can't be read, or the samples don't fit the model.
        ValueError: there is no sample.
    """
    here = replace(request, delegate="none", delegate_options={})
    device = run(transport, model, request, samples, timeout_s=timeout_s)
    ours = run(host or LocalTransport(), reference or model, here, samples, timeout_s=timeout_s)
    return agreement(read(reference or model), ours, device)


def wrong(found: DeviceAgreement, device: str) -> DeviceError | None:
    """What to say of a device that computes wrong; None of one that doesn't."""
    if found.verdict != "wrong":
        return None
    by = "" if found.rms_steps is None else f", by {found.rms_steps:.3g} steps in the root mean square, "
    limit = f"and the limit is {found.limit_steps:.3g}" if by else ""
    return DeviceError(
        f"{device} computes wrong",
        cause=f"{found.differing:.2%} of the values differ{by}{limit}; {found.note}",
        action="try it without delegate, and with another version of the runtime",
    )


def made_up(model: Flatbuffer, *, n: int = SAMPLES, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Samples for want of real ones: floats from 0 to 1, the whole range of 8 and 16 bits, else 0 and 1."""
    rng = np.random.default_rng(seed)
    return {name: _drawn(tensor, n, rng) for name, tensor in model.inputs.items()}


def run(
    transport: Transport,
    model: Path,
    request: RunRequest,
    samples: Mapping[str, NDArray[Any]],
    *,
    timeout_s: float = 60.0,
) -> Run:
    """Run a model on samples, in as many processes as their outputs need.

    Raises:
        DeviceError: the device can't be reached, can't run the model, or left the outputs out.
        ModelError: the file can't be read, or the samples don't fit it.
        ValueError: there is no sample.
    """
    answers: list[tuple[ProcessSample, Outputs]] = []
    with tempfile.TemporaryDirectory(prefix="edgebuild-") as folder:
        for inputs in _batches(read(model), samples, Path(folder) / "inputs.npz"):
            answer = transport.run(model, replace(request, inputs=inputs, **_ONCE), timeout_s)
            answers.append((answer, _values(answer, model)))
    if not answers:
        raise ValueError("without a sample nothing is known of the device")
    outputs = _joined([values for _, values in answers], model)
    return Run(machine=transport.fingerprint().machine, sample=answers[0][0], outputs=outputs)


def agreement(model: Flatbuffer, reference: Run, candidate: Run) -> DeviceAgreement:
    """Hold two runs of a model against each other.

    | found | verdict |
    |---|---|
    | no value differs | equal |
    | any does, where none is promised to; or shapes or types do | wrong |
    | an output passes its limit of steps, or has less than `LEAST_TOP1` by three standard deviations | wrong |
    | else | close |
    """
    if _kinds(reference) != _kinds(candidate):
        return _of_another_kind(model, reference, candidate)
    promised = _promised(model, reference, candidate)
    versions = zip(_in_order(model), reference.outputs, candidate.outputs, strict=True)
    gaps = [gap(model, tensor, ours, theirs) for tensor, ours, theirs in versions]
    worst = max(gaps, key=lambda found: found.rms_steps / found.limit_steps)
    differing, n = sum(found.differing for found in gaps), len(reference.outputs[0])
    return DeviceAgreement(
        exact=differing == 0,
        promised_exact=promised,
        max_steps=_finite(max(found.max_steps for found in gaps)),
        rms_steps=_finite(worst.rms_steps),
        limit_steps=worst.limit_steps,
        differing=differing / max(sum(found.size for found in gaps), 1),
        top1=min((found.top1 for found in gaps if found.top1 is not None), default=None),
        n=n,
        verdict=_verdict(gaps, n, promised=promised),
        note=_note(reference, candidate, promised=promised),
    )


def read(model: Path) -> Flatbuffer:
    """Read a model's file.

    Raises:
        ModelError: it can't be read, or is no TFLite flatbuffer.
    """
    try:
        return flatbuffer.read(model.read_bytes())
    except OSError as e:
        raise ModelError(f"can't read {model}", cause=str(e), action="give a .tflite file") from e


def _drawn(tensor: Tensor, n: int, rng: np.random.Generator) -> NDArray[Any]:
    shape, dtype = (n, *(tensor.shape[1:] if tensor.shape[:1] == (1,) else tensor.shape)), _dtype(tensor)
    if dtype.kind == "f":
        return rng.random(shape, np.float32)
    if dtype.kind in "iu" and dtype.itemsize < _INDEX_BYTES:
        limits = np.iinfo(dtype)
        return decode(rng.integers(limits.min, limits.max, shape, dtype, endpoint=True), tensor)
    return rng.integers(0, 1, shape, endpoint=True).astype(dtype)


def _dtype(tensor: Tensor) -> np.dtype[Any]:
    try:
        return np.dtype(tensor.dtype)
    except TypeError as e:
        raise ModelError(f"'{tensor.name}' is of type {tensor.dtype}, which can't be compared", cause=str(e)) from e


def _batches(model: Flatbuffer, samples: Mapping[str, NDArray[Any]], file: Path) -> Iterator[Path]:
    """The file, with as many samples as have room in one answer, one batch after the other."""
    given = [[inputs[name] for name in _names(model)] for inputs in encoded(model, samples)]
    one = sum(tensor.elements * _dtype(tensor).itemsize for tensor in model.outputs.values())
    most = max(_MOST_ANSWER_BYTES // max(one, 1), 1)
    for start in range(0, len(given), most):
        arrays = zip(*given[start : start + most], strict=True)
        np.savez(file, **{str(i): np.stack(values) for i, values in enumerate(arrays)})
        yield file


def _names(model: Flatbuffer) -> list[str]:
    """The inputs' names in the interpreter's order, which need not be the signature's."""
    names = {tensor.index: name for name, tensor in model.inputs.items()}
    return [names[index] for index in model.main.inputs]


def _in_order(model: Flatbuffer) -> list[Tensor]:
    return [model.main.tensors[index] for index in model.main.outputs]


def _values(sample: ProcessSample, model: Path) -> Outputs:
    if not sample.outputs:
        raise DeviceError(
            f"the device gave no outputs of {model.name}", cause="the model has none, or the runner there is another"
        )
    return tuple(answer.values() for answer in sample.outputs)


def _joined(batches: Sequence[Outputs], model: Path) -> Outputs:
    try:
        return tuple(np.concatenate(parts) for parts in zip(*batches, strict=True))
    except ValueError as e:
        raise DeviceError(
            f"outputs of {model.name} can't be compared", cause=f"their shapes change from sample to sample: {e}"
        ) from e


def _kinds(ran: Run) -> list[str]:
    return [f"{values.dtype} {list(values.shape)}" for values in ran.outputs]


def _promised(model: Flatbuffer, reference: Run, candidate: Run) -> bool:
    """Whether two runs must agree bit by bit: integers alone, on one kind of machine, by one version of a runtime.

    Sums of floats depend on the order in which a CPU's widest instructions take them, and a delegate has kernels of
    its own: what it took is unknown, or not nothing.
    """
    same = reference.machine == candidate.machine and reference.sample.runtime == candidate.sample.runtime
    alone = reference.sample.delegated == candidate.sample.delegated == 0
    return (
        same
        and alone
        and not any(tensor.dtype.startswith("float") for graph in model.subgraphs for tensor in graph.tensors)
    )


def _verdict(gaps: Sequence[Gap], n: int, *, promised: bool) -> Verdict:
    if not any(found.differing for found in gaps):
        return "equal"
    least = LEAST_TOP1 - 3 * math.sqrt(LEAST_TOP1 * (1 - LEAST_TOP1) / n)
    passed = all(f.rms_steps <= f.limit_steps and (f.top1 is None or f.top1 >= least) for f in gaps)
    return "close" if passed and not promised else "wrong"


def _finite(steps: float) -> float | None:
    return steps if math.isfinite(steps) else None


def _of_another_kind(model: Flatbuffer, reference: Run, candidate: Run) -> DeviceAgreement:
    promised = _promised(model, reference, candidate)
    return DeviceAgreement(
        exact=False,
        promised_exact=promised,
        max_steps=None,
        rms_steps=None,
        limit_steps=MOST_STEPS,
        differing=1.0,
        top1=None,
        n=len(reference.outputs[0]),
        verdict="wrong",
        note=f"outputs are {_kinds(candidate)}, not {_kinds(reference)}; "
        + _note(reference, candidate, promised=promised),
    )


def _note(reference: Run, candidate: Run, *, promised: bool) -> str:
    bound = "must be equal" if promised else "may differ by roundings"
    return f"{_where(candidate)} against {_where(reference)}: outputs {bound}"


def _where(ran: Run) -> str:
    taken = f", {ran.sample.delegated} of {ran.sample.operators} operators delegated" if ran.sample.delegated else ""
    return f"{ran.sample.runtime} on {ran.machine}{taken}"
