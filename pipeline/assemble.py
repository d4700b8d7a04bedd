"""Put a report together from what the stages left."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeAlias

from edgebuild.calibration.errors import Failure
from edgebuild.device_tests import outputs
from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.latency import Latency
from edgebuild.device_tests.outputs import DeviceAgreement
from edgebuild.export import flatbuffer
from edgebuild.export.agreement import Agreement
from edgebuild.export.formats import Precision
from edgebuild.export.weights import Weights
from edgebuild.pipeline import baseline, firmware_report, gates, ledger, placing
from edgebuild.pipeline.compress.learned import Learned
from edgebuild.pipeline.compress.scan import Search
from edgebuild.pipeline.config import Project
from edgebuild.pipeline.errors import OK, exit_code
from edgebuild.pipeline.execution.engine import Outcome
from edgebuild.pipeline.firmware_report import FirmwareReport
from edgebuild.pipeline.fitting.records import FIX, MODEL, Cut, Fix, Share, Taken, shipped
from edgebuild.pipeline.ingest import float_model
from edgebuild.pipeline.intervals import NOT_ASKED
from edgebuild.pipeline.placing import GpuRun
from edgebuild.pipeline.plan import Export, Plan, Role, Version
from edgebuild.pipeline.report import (
    SCHEMA,
    CompressionReport,
    Entry,
    FailureReport,
    GateResult,
    InputReport,
    KernelReport,
    MeasuredAgreement,
    MetricFigure,
    MissingEntry,
    ModelReport,
    NoAgreement,
    Report,
    StepReport,
    TargetReport,
)
from edgebuild.pipeline.settings import Metric
from edgebuild.pipeline.storage.digests import digest_file
from edgebuild.pipeline.target_settings import TargetSettings, can_choose
from edgebuild.pipeline.task import tool_version
from edgebuild.pipeline.timed import Choice, Timed
from edgebuild.pipeline.timed import notes as time_notes
from edgebuild.targets.evidence import Evidence, Figure
from edgebuild.targets.microcontroller import tflm
from edgebuild.targets.placement import Placement
from edgebuild.targets.placement import from_plain as placement_from_plain
from edgebuild.targets.registry import TARGETS
from edgebuild.targets.target import RuntimeName, memory_from_plain

Latencies: TypeAlias = Mapping[str, Timed]
_STANDS_IN: Final[Mapping[RuntimeName, str]] = {
    "tflite-runtime": "tflite-runtime's CPU kernels stand in for the target",
    "tflite-micro": "TFLite Micro's reference kernels, run on this machine",
}
_FIGURES = ("size_bytes", "gzip_bytes", "operators", "parameters", "sparsity", "unique_weights")


def report(
    project: Project, plan: Plan, outcome: Outcome, latencies: Latencies, choices: Mapping[str, Choice]
) -> Report:
    """The report of a build: a `TargetReport` or a `FailureReport` for each target; latencies by key of figures.

    `choices` are what `precision: fastest` chose from, by target.
    """
    failures = {name: f for name, export in plan.exports.items() if (f := _failure(outcome, export)) is not None}
    targets = {
        name: replace(target(project, name, export, plan, outcome, latencies), choice=choices.get(name))
        for name, export in plan.exports.items()
        if name not in failures
    }
    failures |= {
        f"{name} in QEMU": failure_report(outcome.failures[export.emulated])
        for name, export in plan.exports.items()
        if name in targets and export.emulated in outcome.failures
    }
    failures |= {
        f"{name} on a device": failure_report(wrong) for name, found in targets.items() if (wrong := _wrong(found))
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
        compression=_compression(plan, outcome, targets) if plan.steps else None,
    )


def _compression(plan: Plan, outcome: Outcome, targets: Mapping[str, TargetReport]) -> CompressionReport:
    done = [(plan.tasks[key].title, outcome.results[key]) for key in plan.steps if key in outcome.results]
    steps = tuple(_step(title, _read(folder / "step.json")) for title, folder in done)
    ledgers = {name: target.ledger for name, target in targets.items()}
    precisions = {name: target.precision for name, target in targets.items()}
    bought = zip(ledger.findings(ledgers), plan.steps, strict=False)  # No finding, where no target was built.
    files = {name: entries[-1].weights for name, entries in ledgers.items() if isinstance(entries[-1], Entry)}
    return CompressionReport(
        steps=steps,
        findings=tuple(
            ledger.explained(found, plan.tasks[key].parameters.technique, precisions) for found, key in bought
        ),
        lost=ledger.lost(steps[-1].kernels if steps else (), files),
    )


def _step(title: str, raw: Mapping[str, Any]) -> StepReport:
    from pydantic import TypeAdapter

    return StepReport(
        step=title,
        kernels=tuple(KernelReport(**kernel) for kernel in raw["kernels"]),
        losses=tuple(epoch["loss"] for epoch in raw["history"]),
        search=TypeAdapter(Search).validate_python(raw["search"]) if raw["search"] else None,
        notes=tuple(raw["notes"]),
        learned=Learned(**raw["learned"]) if raw["learned"] else None,
    )


def model_file(outcome: Outcome, export: Export, version: Version) -> Path:
    """The flatbuffer of a version: what ships is what the target made of it."""
    ships = version is export.versions[-1]
    return outcome.results[version.figures if ships else version.artifact] / ("files" if ships else "") / "model.tflite"


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


def target(
    project: Project, name: str, export: Export, plan: Plan, outcome: Outcome, latencies: Latencies
) -> TargetReport:
    """The report of one target, whose stages all succeeded."""
    packaged = outcome.results[export.packaged]
    raw = _read(packaged / "figures.json")
    verified = _read(outcome.results[export.verified] / "verify.json")
    evidence: Evidence = "measured" if TARGETS[name].HOST_RUNS else "simulated"
    cut = _cut(raw.get("cut"))
    placement = _without_joints(placement_from_plain(raw["placement"]), cut)
    firmware = _firmware(name, raw, verified, export, outcome)
    memory = memory_from_plain(raw["memory"])
    timed = latencies[export.packaged]
    is_choice = can_choose(name, project.config.targets.get(name, TargetSettings()))
    fix = _fix(name, export.versions[-1], outcome, cut, packaged / "files")
    run = _gpu_run(raw.get("gpu_run"))
    built = TargetReport(
        artifact=f"{name}/model.tflite",
        files=tuple(f"{name}/{file.name}" for file in sorted((packaged / "files").iterdir())),
        sha256=digest_file(packaged / "files" / "model.tflite"),
        precision=export.precision,
        io=export.io,
        route=raw["route"],
        calibration_samples=raw["calibration_samples"],
        notes=(*raw["notes"], *_doubts(run, fix, placement), *time_notes(export.precision, timed, is_choice=is_choice)),
        **{figure: Figure(**raw[figure]) for figure in _FIGURES},  # type: ignore[arg-type] # of these names alone
        agreement=_agreement(verified["agreement"], plan.evaluated_on, evidence),
        metric=_metric(project.config.metric, verified, name, export.precision),
        placement=placement,
        memory=memory if firmware is None else firmware_report.refined(memory, firmware),
        latency=timed.latency,
        gates=(),
        ledger=tuple(_entry(project, name, export, version, outcome, latencies) for version in export.versions)
        if plan.steps
        else (),
        cut=cut,
        fix=fix,
        gpu_run=run,
        firmware=firmware,
        against=timed.against,
        twin=timed.twin,
        device_outputs=timed.outputs,
    )
    return replace(built, gates=_judged(project, name, built, has_device=timed.is_asked))


def _doubts(run: GpuRun | None, fix: Fix | None, placement: Placement) -> Iterator[str]:
    yield from placing.run_line(run)
    if fix is not None and fix.doubt:
        yield fix.doubt
    yield from (f"{finding.what}: {finding.action}" for finding in placement.findings)


def _wrong(found: TargetReport) -> DeviceError | None:
    """A device that computes something else than this machine does."""
    compared, latency = found.device_outputs, found.latency
    device = latency.device if isinstance(latency, Latency) else "the device"
    return outputs.wrong(compared, device) if isinstance(compared, DeviceAgreement) else None


def _judged(project: Project, name: str, built: TargetReport, *, has_device: bool) -> tuple[GateResult, ...]:
    config = project.config
    settings = config.targets.get(name, TargetSettings())
    return gates.judge(
        built.precision,
        settings,
        config.gates if has_device else config.gates.model_copy(update={"latency": None}),
        size_bytes=shipped(built.size_bytes, built.cut),
        agreement=built.agreement,
        metric=built.metric,
        placement=built.placement,
        memory=built.memory,
        latency=built.latency,
        against=built.against,
        firmware=built.firmware,
        baseline=baseline.instructions(settings.tflm, project.folder, name),
    )


def _firmware(
    name: str, figures: Mapping[str, Any], verified: Mapping[str, Any], export: Export, outcome: Outcome
) -> FirmwareReport | None:
    if not TARGETS[name].FLASHED:
        return None
    emulated = outcome.results.get(export.emulated)
    return firmware_report.of(figures, verified, _read(emulated / "emulated.json") if emulated else None)


def _gpu_run(raw: Mapping[str, Any] | None) -> GpuRun | None:
    if raw is None:
        return None
    return GpuRun(**{**raw, "agreement": raw["agreement"] and Agreement(**raw["agreement"])})


def _fix(name: str, version: Version, outcome: Outcome, cut: Cut | None, shipped: Path) -> Fix | None:
    """What was edited, and what the target takes of the whole model without the edits and with them."""
    if not version.edited:
        return None

    def share(folder: Path) -> Share:
        placed = TARGETS[name].place(flatbuffer.read_file(folder / MODEL))
        return Share(mapped=placed.mapped, operators=placed.operators)

    records = (outcome.results[key] / FIX for key in version.edited if key in outcome.results)
    raw = [taken for record in records if record.exists() for taken in json.loads(record.read_bytes())]
    return Fix(
        edits=tuple(Taken(**taken | {"layers": tuple(taken["layers"])}) for taken in raw),
        before=share(outcome.results[version.unedited]) if version.unedited in outcome.results else None,
        after=share(shipped) if cut is None else Share(mapped=cut.mapped, operators=cut.operators),
    )


def _cut(raw: Mapping[str, Any] | None) -> Cut | None:
    from pydantic import TypeAdapter

    return TypeAdapter(Cut).validate_python(raw) if raw is not None else None


def _without_joints(placement: Placement, cut: Cut | None) -> Placement:
    """What is found of a part's inputs is no matter of the application's where another part makes them."""
    joints = [link.name for link in cut.links if MODEL in link.read_by] if cut else []
    kept = (told for told in placement.findings if told.tensor not in joints)
    return replace(placement, findings=tuple(kept))


def _entry(
    project: Project, name: str, export: Export, version: Version, outcome: Outcome, latencies: Latencies
) -> Entry | MissingEntry:
    failed = [key for key in (version.artifact, version.verified, version.figures) if key in outcome.failures]
    if failed:
        return MissingEntry(step=version.title, why=str(outcome.failures[failed[0]]))
    raw = _read(outcome.results[version.figures] / "figures.json")
    verified = _read(outcome.results[version.verified] / "verify.json")
    found = tuple(Weights(**tensor | {"shape": tuple(tensor["shape"])}) for tensor in raw["weights"])
    return Entry(
        step=version.title,
        sha256=digest_file(model_file(outcome, export, version)),
        size_bytes=raw["size_bytes"]["value"],
        gzip_bytes=raw["gzip_bytes"]["value"],
        entropy_bytes=sum(tensor.entropy_bytes for tensor in found),
        sparsity=Figure(**raw["sparsity"]),
        weights=found,
        metric=_metric(project.config.metric, verified, name, export.precision),
        arena_bytes=memory_from_plain(raw["memory"]).arena_bytes,
        latency=latencies[version.figures].latency,
        compiled_bytes=raw.get("compiled_bytes"),
    )


def _agreement(found: Mapping[str, Any] | None, data: Role, evidence: Evidence) -> MeasuredAgreement | NoAgreement:
    if found is None:
        return NoAgreement(note="the artifact is the source file itself: there is no float model to agree with")
    return MeasuredAgreement(**found, data=data, evidence=evidence)


def _metric(metric: Metric, verified: Mapping[str, Any], name: str, precision: Precision) -> MetricFigure:
    higher = metric.is_higher_better
    found, runtime = verified["metric"], _runtime(name, verified)
    if found is None or runtime is None:
        return MetricFigure(
            name=metric.name,
            higher_is_better=higher,
            float=None,
            target=None,
            drop=None,
            n=0,
            evidence="unavailable",
            note="there is no evaluation data" if found is None else tflm.MISSING,
        )
    evidence: Evidence = "measured" if TARGETS[name].HOST_RUNS else "simulated"
    note = "" if evidence == "measured" else _STANDS_IN[runtime]
    if ":" in metric.name and not metric.interval:
        note = "; ".join(filter(None, (note, NOT_ASKED)))
    found = {**found, "interval": tuple(found["interval"]) if found["interval"] else None}
    if found["float"] is None and precision == "float32":  # The source file is the float model.
        found = {**found, "float": found["target"]}
    if found["float"] is None:
        unknown = "there is no float model to hold the artifact against"
        note = "; ".join(filter(None, (note, unknown)))
        return MetricFigure(name=metric.name, higher_is_better=higher, drop=None, evidence=evidence, note=note, **found)
    drop = found["float"] - found["target"] if higher else found["target"] - found["float"]
    return MetricFigure(name=metric.name, higher_is_better=higher, drop=drop, evidence=evidence, note=note, **found)


def _runtime(name: str, verified: Mapping[str, Any]) -> RuntimeName | None:
    """What ran the artifact as the target, or in its stead; None where what should have was not there."""
    ran: RuntimeName = verified["runtime"]
    return None if TARGETS[name].FLASHED and ran == "tflite-runtime" else ran


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found
