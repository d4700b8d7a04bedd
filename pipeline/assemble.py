"""Put a report together from what the stages left."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgebuild.calibration.errors import Failure
from edgebuild.device_tests.latency import Latency
from edgebuild.export.formats import Precision
from edgebuild.pipeline import gates
from edgebuild.pipeline.config import Project
from edgebuild.pipeline.errors import OK, exit_code
from edgebuild.pipeline.execution.engine import Outcome
from edgebuild.pipeline.ingest import float_model
from edgebuild.pipeline.plan import Export, Plan, Role
from edgebuild.pipeline.report import (
    SCHEMA,
    FailureReport,
    InputReport,
    MeasuredAgreement,
    MetricFigure,
    ModelReport,
    NoAgreement,
    NoLatency,
    Report,
    TargetReport,
)
from edgebuild.pipeline.settings import LOWER_IS_BETTER, Metric, TargetSettings
from edgebuild.pipeline.storage.digests import digest_file
from edgebuild.pipeline.task import tool_version
from edgebuild.targets.evidence import Evidence, Figure
from edgebuild.targets.placement import Placement, Unmapped
from edgebuild.targets.registry import TARGETS
from edgebuild.targets.target import Memory

_FIGURES = ("size_bytes", "gzip_bytes", "operators", "parameters", "sparsity", "unique_weights")


def report(project: Project, plan: Plan, outcome: Outcome, latencies: Mapping[str, Latency | NoLatency]) -> Report:
    """The report of a build: a `TargetReport` or a `FailureReport` for each target."""
    failures = {name: f for name, export in plan.exports.items() if (f := _failure(outcome, export)) is not None}
    targets = {
        name: _target(project, name, export, plan.evaluated_on, outcome, latencies[name])
        for name, export in plan.exports.items()
        if name not in failures
    }
    codes = [f.exit_code for f in failures.values()]
    codes += [code for t in targets.values() if (code := gates.exit_code(t.gates)) != OK]
    return Report(
        schema=SCHEMA,
        edgebuild=tool_version("edgebuild"),
        exit_code=min(codes, default=OK),
        model=_model(project, plan, outcome),
        targets=targets,
        failures=failures,
    )


def failure_report(failure: Failure) -> FailureReport:
    """A failure as a record."""
    return FailureReport(what=failure.what, cause=failure.cause, action=failure.action, exit_code=exit_code(failure))


def _failure(outcome: Outcome, export: Export) -> FailureReport | None:
    for key in (export.artifact, export.verified, export.packaged):
        if key in outcome.failures:
            return failure_report(outcome.failures[key])
    return None


def _model(project: Project, plan: Plan, outcome: Outcome) -> ModelReport | None:
    if plan.model not in outcome.results:
        return None
    described = float_model.describe(outcome.results[plan.model])
    return ModelReport(
        path=project.config.model.path,
        sha256=plan.model_digest,
        source_format=described.source_format,
        parameters=described.parameters,
        macs=sum(layer.macs for layer in described.layers),
        inputs=tuple(_inputs(described)),
        notes=(*described.notes, *_turned_outputs(described)),
    )


def _inputs(described: float_model.Description) -> Iterator[InputReport]:
    batch = (1,) if described.batched else ()
    for spec, source, axes in zip(described.inputs, described.source_inputs, described.input_axes, strict=True):
        yield InputReport(
            name=spec.name,
            dtype=spec.dtype,
            source_shape=(*batch, *source.shape),
            shape=(*batch, *spec.shape),
            layout=axes,
        )


def _turned_outputs(described: float_model.Description) -> Iterator[str]:
    for name, axes in zip(described.outputs, described.output_axes, strict=True):
        if axes:
            yield f"output {name} of the artifacts is the source's, transposed by {axes}"


def _target(
    project: Project, name: str, export: Export, data: Role, outcome: Outcome, latency: Latency | NoLatency
) -> TargetReport:
    packaged = outcome.results[export.packaged]
    raw = _read(packaged / "figures.json")
    verified = _read(outcome.results[export.verified] / "verify.json")
    figures = {figure: Figure(**raw[figure]) for figure in _FIGURES}
    evidence: Evidence = "measured" if TARGETS[name].HOST_RUNS else "simulated"
    agreement = _agreement(verified["agreement"], data, evidence)
    metric = _metric(project.config.metric, verified["metric"], evidence, export.precision)
    placement = _placement(raw["placement"])
    memory = Memory(**{kind: Figure(**figure) for kind, figure in raw["memory"].items()})
    judged = gates.judge(
        export.precision,
        project.config.targets.get(name, TargetSettings()),
        project.config.gates,
        size_bytes=figures["size_bytes"],
        agreement=agreement,
        metric=metric,
        placement=placement,
        memory=memory,
        latency=latency,
    )
    return TargetReport(
        artifact=f"{name}/model.tflite",
        files=tuple(f"{name}/{file.name}" for file in sorted((packaged / "files").iterdir())),
        sha256=digest_file(packaged / "files" / "model.tflite"),
        precision=export.precision,
        io=export.io,
        route=raw["route"],
        calibration_samples=raw["calibration_samples"],
        notes=tuple(raw["notes"]),
        **figures,
        agreement=agreement,
        metric=metric,
        placement=placement,
        memory=memory,
        latency=latency,
        gates=judged,
    )


def _agreement(found: Mapping[str, Any] | None, data: Role, evidence: Evidence) -> MeasuredAgreement | NoAgreement:
    if found is None:
        return NoAgreement(note="the artifact is the source file itself: there is no float model to agree with")
    return MeasuredAgreement(**found, data=data, evidence=evidence)


def _metric(metric: Metric, found: Mapping[str, Any] | None, evidence: Evidence, precision: Precision) -> MetricFigure:
    higher = metric.higher_is_better if metric.higher_is_better is not None else metric.name not in LOWER_IS_BETTER
    if found is None:
        return MetricFigure(
            name=metric.name,
            higher_is_better=higher,
            float=None,
            target=None,
            drop=None,
            n=0,
            evidence="unavailable",
            note="there is no evaluation data",
        )
    note = "" if evidence == "measured" else "tflite-runtime's CPU kernels stand in for the target"
    if found["float"] is None and precision == "float32":  # The source file is the float model.
        found = {**found, "float": found["target"]}
    if found["float"] is None:
        unknown = "there is no float model to hold the artifact against"
        note = f"{note}; {unknown}" if note else unknown
        return MetricFigure(name=metric.name, higher_is_better=higher, drop=None, evidence=evidence, note=note, **found)
    drop = found["float"] - found["target"] if higher else found["target"] - found["float"]
    return MetricFigure(name=metric.name, higher_is_better=higher, drop=drop, evidence=evidence, note=note, **found)


def _placement(raw: dict[str, Any]) -> Placement:
    return Placement(**raw | {"unmapped": tuple(Unmapped(**entry) for entry in raw["unmapped"])})


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found
