"""Two builds, two flatbuffers, or a source model and a flatbuffer: what differs, and what became worse.

Example::

    from pathlib import Path
    from edgebuild.pipeline.compare import compare

    found = compare(Path("old/build"), Path("build"), fail_on=["regress:size:5%"])
    print(found.exit_code, [d.figure for d in found.differences if d.change == "worse"])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from edgebuild.export import flatbuffer
from edgebuild.export.errors import ModelError
from edgebuild.pipeline import finished
from edgebuild.pipeline.comparison import readings, regression, same_outputs
from edgebuild.pipeline.comparison.readings import WHOLE_MODEL, Readings
from edgebuild.pipeline.comparison.regression import Difference, Held, Tolerance
from edgebuild.pipeline.comparison.same_outputs import SameOutputs
from edgebuild.pipeline.errors import OK, ConfigError, CrashError
from edgebuild.pipeline.finished import Finished
from edgebuild.pipeline.report import FailureReport, GateResult, Verdict

if TYPE_CHECKING:
    from edgebuild.pipeline.execution.engine import Event
    from edgebuild.pipeline.storage.store import Store

Kind: TypeAlias = Literal["a build", "a flatbuffer", "a source model"]
_ACTION: Final = "give two builds, two .tflite files, or a source model and a .tflite file"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What differs between `a` and `b`.

    `outputs` is None for builds, and where outputs could not be compared; `notes` say why. `gates` are what was asked
    for with tolerances, and `agreement` of a flatbuffer with its source. `failures` are targets that `a` has and `b`
    failed to build.
    """

    a: str
    b: str
    differences: tuple[Difference, ...]
    outputs: SameOutputs | None
    notes: tuple[str, ...]
    gates: tuple[Held, ...]
    failures: Mapping[str, FailureReport]

    @property
    def exit_code(self) -> int:
        """The smallest code of what did not hold; 0 where all did, or nothing was asked."""
        codes = [failure.exit_code for failure in self.failures.values()]
        codes += [code for code in (regression.exit_code(held.gate for held in self.gates),) if code != OK]
        return min(codes, default=OK)


def compare(
    a: Path,
    b: Path,
    *,
    data: Path | None = None,
    fail_on: Sequence[str] = (),
    store: Store | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
) -> Comparison:
    """Compare; `fail_on` holds tolerances such as `regress:size:5%`, `data` the samples to run models on.

    Raises:
        ConfigError: the two are not of a kind, there is no such build, or a tolerance says nothing.
        ModelError: a model can't be read, or can't be held against its source.
        DataError: the samples do not fit.
    """
    tolerances = [regression.parse(text) for text in fail_on]
    kinds = (_kind(a), _kind(b))
    if kinds == ("a build", "a build"):
        if data is not None:
            raise ConfigError("--data is for models, not for builds", action="leave it out")
        return _builds(a, b, tolerances)
    if kinds == ("a flatbuffer", "a flatbuffer"):
        return _flatbuffers(a, b, data, tolerances)
    if set(kinds) == {"a source model", "a flatbuffer"}:
        if tolerances:
            raise ConfigError(
                "--fail-on is for two builds or two .tflite files", action="leave it out: agreement is held"
            )
        source, artifact = (a, b) if kinds[0] == "a source model" else (b, a)
        return _with_source(source, artifact, data, store, on_event)
    raise ConfigError(f"{a} is {kinds[0]} and {b} is {kinds[1]}, which can't be compared", action=_ACTION)


def _kind(path: Path) -> Kind:
    if not path.exists():
        raise ConfigError(f"there is nothing at {path}", action=_ACTION)
    if finished.is_build(path):
        return "a build"
    if path.is_dir() and not (path / "saved_model.pb").is_file():
        raise ConfigError(f"{path} holds neither a build nor a SavedModel", action="name the folder that a build wrote")
    return "a flatbuffer" if path.suffix == ".tflite" else "a source model"


def _builds(a: Path, b: Path, tolerances: Sequence[Tolerance]) -> Comparison:
    before, after = finished.load(a), finished.load(b)
    found = _differences(readings.of_report(before.report), readings.of_report(after.report))
    lost = {name: failure for name, failure in after.report.failures.items() if name in before.report.targets}
    if not found and not lost:
        raise ConfigError(
            f"{a} and {b} hold no target in common",
            cause="; ".join(", ".join(side.report.targets) or "none" for side in (before, after)),
            action="to compare two targets, give their .tflite files",
        )
    return Comparison(
        a=str(a),
        b=str(b),
        differences=found,
        outputs=None,
        notes=(*_compressed_otherwise(before, after), *_only_one_holds(before, after)),
        gates=regression.judge(found, tolerances),
        failures=lost,
    )


def _compressed_otherwise(a: Finished, b: Finished) -> Iterator[str]:
    """How each is compressed, where they differ in it."""
    said = [
        ", ".join(step.step for step in side.report.compression.steps) if side.report.compression else ""
        for side in (a, b)
    ]
    if said[0] != said[1]:
        words = [f"compressed: {steps}" if steps else "not compressed" for steps in said]
        yield f"a is {words[0]}; b is {words[1]}"


def _only_one_holds(a: Finished, b: Finished) -> list[str]:
    return [
        f"{name} is only in {one.folder}"
        for one, other in ((a, b), (b, a))
        for name in one.report.targets
        if name not in other.report.targets
    ]


def _flatbuffers(a: Path, b: Path, data: Path | None, tolerances: Sequence[Tolerance]) -> Comparison:
    models = {path: flatbuffer.read_file(path) for path in (a, b)}
    sides = [readings.of_flatbuffer(path.read_bytes(), models[path]) for path in (a, b)]
    found, same, why = _differences(*sides), None, ""
    try:
        same = same_outputs.of_flatbuffers(a, b, data)
    except (ModelError, CrashError) as e:  # What one of them can't run can still be weighed.
        why = f"{e.what}: {e.cause}" if e.cause else e.what
    return Comparison(
        a=str(a),
        b=str(b),
        differences=found,
        outputs=same,
        notes=(f"outputs are not compared: {why}",) if why else (),
        gates=(*regression.judge(found, tolerances), *_outputs_gates(same, why, tolerances)),
        failures={},
    )


def _outputs_gates(same: SameOutputs | None, why: str, tolerances: Sequence[Tolerance]) -> list[Held]:
    """A disagreement is a share by itself: 5% allows a relative RMSE of 0.05."""
    return [
        Held(
            target=WHOLE_MODEL,
            gate=GateResult(
                name="regress:agreement",
                kind="metric",
                limit=tolerance.amount,
                value=same.agreement.relative_rmse if same else None,
                verdict=_verdict(same, tolerance.amount),
                note=why or (same.note if same else ""),
            ),
        )
        for tolerance in regression.applying("agreement", tolerances)
    ]


def _verdict(same: SameOutputs | None, limit: float) -> Verdict:
    if same is None:
        return "inconclusive"
    if same.agreement.relative_rmse <= max(limit, regression.ROUNDING):
        return "pass"
    return "inconclusive" if same.sameness == "unknown" else "fail"


def _with_source(
    source: Path, artifact: Path, data: Path | None, store: Store | None, on_event: Callable[[Event], None]
) -> Comparison:
    from edgebuild.pipeline.storage.location import default_root
    from edgebuild.pipeline.storage.store import Store

    same = same_outputs.with_source(source, artifact, data, store or Store(default_root()), on_event)
    gate = GateResult(
        name="agreement",
        kind="metric",
        limit=same.limit,
        value=same.agreement.relative_rmse,
        verdict=_verdict(same, same.limit),
        note=f"{same.precision}, on {same.data}",
    )
    return Comparison(
        a=str(source),
        b=str(artifact),
        differences=(),
        outputs=same,
        notes=(),
        gates=(Held(target=WHOLE_MODEL, gate=gate),),
        failures={},
    )


def _differences(a: Readings, b: Readings) -> tuple[Difference, ...]:
    """Of what both sides speak of, in the order of the first."""
    return tuple(regression.difference(*key, a[key], b[key]) for key in a if key in b)
