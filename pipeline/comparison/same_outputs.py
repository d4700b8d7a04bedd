"""Whether two models compute the same: both on the same samples, in real values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgebuild.calibration import checks
from edgebuild.calibration import samples as loader
from edgebuild.calibration.checks import InputSpec
from edgebuild.export import agreement
from edgebuild.export.agreement import Agreement
from edgebuild.export.errors import ModelError
from edgebuild.export.flatbuffer import Flatbuffer, read_file
from edgebuild.export.formats import Precision
from edgebuild.pipeline.comparison import noise, outputs
from edgebuild.pipeline.comparison.outputs import Arrays
from edgebuild.pipeline.gates import AGREEMENT_LIMITS

if TYPE_CHECKING:
    from edgebuild.pipeline.execution.engine import Event
    from edgebuild.pipeline.storage.store import Store

Sameness: TypeAlias = Literal["equal", "the same", "different", "unknown"]
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

_NOISE: Final = f"{noise.ROWS} samples of seeded noise"
_NOT_PROOF: Final = "noise is not what the model was made for; give real samples with --data to be sure"
_CALIBRATED: Final = ("int8", "int16x8")  # Their activations hold what was calibrated, and noise goes beyond that.


@dataclass(frozen=True, slots=True, kw_only=True)
class SameOutputs:
    """How far the second model's outputs lie from the first one's.

    `limit` is the largest relative RMSE of a sound conversion to `precision`, the coarser of the two models' formats;
    above it they compute something different. `data` says what both ran on, `note` what makes the verdict doubtful.
    """

    agreement: Agreement
    precision: Precision
    limit: float
    data: str
    note: str

    @property
    def sameness(self) -> Sameness:
        """The verdict: `equal` in every value, or `the same` within the limit; an error that is no number never is.

        A calibrated model that differs on noise is `unknown`: it clips what it was not calibrated for, as it should.
        """
        if self.agreement.max_abs == 0:
            return "equal"
        if self.agreement.relative_rmse <= self.limit:
            return "the same"
        return "unknown" if self.note and self.precision in _CALIBRATED else "different"


def of_flatbuffers(a: Path, b: Path, data: Path | None) -> SameOutputs:
    """Run two flatbuffers on the same samples.

    Raises:
        ModelError: their inputs or outputs differ in shape, or tflite-runtime does not take one of them.
        DataError: the samples do not fit.
    """
    one, two = read_file(a), read_file(b)
    wanted = _specs(one)
    order = _order(_spec_shapes(wanted), _spec_shapes(_specs(two)), "inputs")
    arrays = _load(data, wanted) if data else noise.for_all(wanted, [(one, range(len(order))), (two, order)])
    samples = list(arrays.values())
    first = outputs.of_flatbuffer(a, one, samples)
    second = outputs.of_flatbuffer(b, two, [samples[i] for i in order])
    precision = max(precision_of(one), precision_of(two), key=AGREEMENT_LIMITS.__getitem__)
    return _held((a.name, first), (b.name, second), precision, data)


def with_source(
    source: Path, artifact: Path, data: Path | None, store: Store, on_event: Callable[[Event], None]
) -> SameOutputs:
    """Run a source model in TensorFlow and a flatbuffer on tflite-runtime.

    Raises:
        Failure: one of them can't be read or run, or the samples do not fit.
    """
    model = read_file(artifact)
    shapes = _spec_shapes(_specs(model))

    def without_samples(wanted: Sequence[InputSpec]) -> Arrays:
        return noise.for_all(wanted, [(model, _order(_spec_shapes(wanted), shapes, "inputs"))])

    samples, first = outputs.of_source(source, data or without_samples, store, on_event)
    order = _order(_shapes(samples), shapes, "inputs")
    second = outputs.of_flatbuffer(artifact, model, [list(samples.values())[i] for i in order])
    return _held((source.name, first), (artifact.name, second), precision_of(model), data)


def precision_of(model: Flatbuffer) -> Precision:
    """The number format a flatbuffer computes in, from the tensors its operators touch."""
    tensors = [tensor for operator in model.main.operators for tensor in model.operator_tensors(operator)]
    computed = {tensor.dtype for tensor in tensors if not tensor.is_constant and tensor.quantization is not None}
    if "int16" in computed:
        return "int16x8"
    if computed & {"int8", "uint8"}:
        return "int8"
    weights = {tensor.dtype for tensor in model.weights}
    if weights & {"int8", "uint8", "int4"}:
        return "dynamic"
    return "float16" if "float16" in weights else "float32"


def _held(a: tuple[str, Arrays], b: tuple[str, Arrays], precision: Precision, data: Path | None) -> SameOutputs:
    (name, first), (other, second) = a, b
    order = _order(_shapes(first), _shapes(second), "outputs")
    renamed = dict(zip([list(first)[i] for i in order], second.values(), strict=True))
    for model, arrays in ((name, first), (other, second)):
        _require_finite(model, arrays)
    return SameOutputs(
        agreement=agreement.compare(first, renamed),
        precision=precision,
        limit=AGREEMENT_LIMITS[precision],
        data=str(data) if data else _NOISE,
        note="" if data else _NOT_PROOF,
    )


def _order(wanted: Shapes, given: Shapes, what: str) -> list[int]:
    """For each of `given`, its place in `wanted`: by name where both have the same names, else by position."""
    names = list(wanted)
    order = [names.index(name) for name in given] if names and set(names) == set(given) else list(range(len(given)))
    fits = len(wanted) == len(given) and all(
        wanted[names[i]] == shape for i, shape in zip(order, given.values(), strict=True)
    )
    if not fits:
        raise ModelError(
            f"the models have different {what}",
            cause=f"{_listed(wanted)} against {_listed(given)}, batch aside",
            action="give two models that take and give the same arrays",
        )
    return order


def _load(data: Path, wanted: Sequence[InputSpec]) -> Arrays:
    arrays = loader.load(data)
    checks.check(arrays, str(data))
    return checks.match(arrays, wanted, str(data))


def _require_finite(model: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ModelError(
                f"output '{name}' of {model} holds NaN or infinity",
                cause="it overflows on these samples, so nothing can be told from its outputs",
                action="give samples it was made for with --data",
            )


def _specs(model: Flatbuffer) -> tuple[InputSpec, ...]:
    """A flatbuffer's inputs as real values: without the batch, quantized ones as float32."""
    return tuple(
        InputSpec(
            name=name,
            shape=tensor.shape[1:],
            dtype="float32" if tensor.quantization is not None else tensor.dtype,
        )
        for name, tensor in model.inputs.items()
    )


def _spec_shapes(specs: Sequence[InputSpec]) -> Shapes:
    return {spec.name: spec.shape for spec in specs}


def _shapes(arrays: Mapping[str, NDArray[Any]]) -> Shapes:
    return {name: array.shape[1:] for name, array in arrays.items()}


def _listed(shapes: Shapes) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
