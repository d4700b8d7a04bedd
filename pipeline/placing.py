"""Where a model for the GPU runs, found out with what is here: ranges over samples, and a GPU runtime's answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from edgebuild.calibration.samples import choose
from edgebuild.export.agreement import Agreement  # At run time too: the report's JSON Schema is made from annotations.
from edgebuild.targets.evidence import Evidence
from edgebuild.targets.placement import Placement

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgebuild.targets.target import Artifact

RANGED: Final = 64  # Samples at most, whose every activation is looked at: what overflows does so for many.


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRun:
    """An artifact on a GPU runtime of the build's machine, held against its own outputs on the CPU.

    `evidence` is simulated where the adapter is software. `agreement` is None where `note` says why.
    """

    runtime: str
    adapter: str
    evidence: Evidence
    agreement: Agreement | None
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A placement, and the run that it rests on; None where rules predict it."""

    placement: Placement
    run: GpuRun | None


def place_on_gpu(
    artifact: Artifact,
    whole: bytes,
    samples: Mapping[str, NDArray[Any]],
    *,
    runtime: str,
    adapter: str,
    required: bool,
) -> Placed:
    """Place an artifact by a GPU runtime, or by rules where `runtime` is empty; `whole` is the model before it was cut.

    Raises:
        ModelError: the runtime took too long, or the model does not run on tflite-runtime.
        PlacementError: the runtime is required and can't run the model.
        ToolMissingError: it is not on this machine.
    """
    from edgebuild.export.interpreter import Interpreter
    from edgebuild.targets.gpu import observed as gpu_observed
    from edgebuild.targets.gpu import oracle as gpu_oracle
    from edgebuild.targets.gpu import target as gpu

    ranges = Interpreter(whole, keep_all=True).ranges(choose(dict(samples), RANGED))
    if not runtime:
        return Placed(placement=gpu.place(artifact.flatbuffer, ranges), run=None)
    oracle = gpu_oracle.require(runtime, adapter)
    seen = gpu_observed.observe(oracle, artifact.data, artifact.flatbuffer, artifact.vectors, ranges)
    if required:
        gpu_observed.require_run(seen)
    run = GpuRun(runtime=runtime, adapter=adapter, evidence=oracle.evidence, agreement=seen.agreement, note=seen.note)
    return Placed(placement=seen.placement, run=run)


def run_line(run: GpuRun | None) -> tuple[str, ...]:
    """A run in words, for the notes of a report."""
    if run is None:
        return ()
    where = f"on {run.runtime}, {run.adapter or 'adapter unknown'}"
    if run.agreement is None:
        return (f"{where}: outputs were not compared with the CPU's: {run.note}",)
    found = run.agreement
    distance = f"at most {found.max_abs:.2g} off the CPU's, cosine {found.cosine:.6f}, {found.n} samples"
    return (f"{where}: outputs lie {distance} ({run.evidence})",)
