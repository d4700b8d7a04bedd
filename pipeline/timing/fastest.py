"""`precision: fastest`: which of a target's precisions is, by measurement, of those whose artifact passes every gate.

What is as fast as the quickest within a margin counts as fast, and of those the smallest file is taken: a race between
equals would fall out otherwise every night.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from edgebuild.calibration.errors import Failure
from edgebuild.device_tests import registry
from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.race import Placed, race
from edgebuild.device_tests.transport import DeviceFingerprint
from edgebuild.export.formats import Precision
from edgebuild.pipeline import assemble, devices
from edgebuild.pipeline.config import Project
from edgebuild.pipeline.device_settings import Device
from edgebuild.pipeline.devices import Listener
from edgebuild.pipeline.execution.engine import Outcome
from edgebuild.pipeline.plan import Export, Plan
from edgebuild.pipeline.report import Candidate, Choice, NoLatency, TargetReport, Timed
from edgebuild.pipeline.timing.taken import device_of, runnable

MARGIN: Final = 0.05  # What counts as as fast: less is within what a machine's state does from day to day.
_UNMEASURED: Final = Timed(latency=NoLatency(note="not measured yet"), is_asked=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A build whose precisions are all known: the project and plan as if they had been named, and what was chosen from.

    A target that no precision could be measured for is among the outcome's failures.
    """

    project: Project
    plan: Plan
    outcome: Outcome
    choices: Mapping[str, Choice]


def settle(project: Project, plan: Plan, outcome: Outcome, device: str, listener: Listener) -> Settled:
    """Choose the precision of each target that asks for the fastest, on `device` or where the target says."""
    exports, choices, failures = dict(plan.exports), dict[str, Choice](), dict(outcome.failures)
    for name, export in plan.exports.items():
        where = device_of(project, name, device) if export.others else None
        if where is None:
            continue
        try:
            exports[name], choices[name] = _Choosing(project, plan, outcome, name, export, where, listener).chosen()
        except Failure as e:
            exports[name] = replace(export, others=())
            failures[export.packaged] = e
    if exports == plan.exports:
        return Settled(project=project, plan=plan, outcome=outcome, choices={})
    return Settled(
        project=_named(project, {name: exports[name].precision for name in choices}),
        plan=plan.choosing(exports),
        outcome=replace(outcome, failures=failures),
        choices=choices,
    )


def _named(project: Project, found: Mapping[str, Precision]) -> Project:
    """The project as if it had named what was chosen: a build of that is the same again."""
    targets = {
        name: settings.model_copy(update={"precision": found[name]}) if name in found else settings
        for name, settings in project.config.targets.items()
    }
    return replace(project, config=project.config.model_copy(update={"targets": targets}))


@dataclass(frozen=True, slots=True)
class _Choosing:
    """The choice for one target."""

    project: Project
    plan: Plan
    outcome: Outcome
    name: str
    export: Export
    device: Device
    listener: Listener

    def chosen(self) -> tuple[Export, Choice]:
        """The export of the precision to take, and what it was chosen from.

        Raises:
            Failure: no precision could be built, or none ran on the device.
        """
        exports = {export.precision: export for export in self.export.all}
        failures = {precision: self._failure(export) for precision, export in exports.items()}
        failed = {precision: failure for precision, failure in failures.items() if failure is not None}
        if len(failed) == len(exports):
            raise failed[self.export.precision]
        reports = {precision: self._report(export) for precision, export in exports.items() if precision not in failed}
        missed = {precision: why for precision, report in reports.items() if (why := _missed(report))}
        fit = [precision for precision in reports if precision not in missed]
        ran = self._raced(fit or list(reports), exports)
        unbeaten = [precision for precision, placed in ran.items() if not placed.is_beaten]
        chosen = min(unbeaten, key=lambda precision: _size(reports[precision]))
        ruled_out = {**{precision: failure.what for precision, failure in failed.items()}, **missed}
        latency = next(placed.latency for placed in ran.values() if placed.latency is not None)
        return replace(exports[chosen], others=()), Choice(
            taken=chosen,
            candidates=tuple(
                _candidate(one, reports.get(one), ran.get(one), ruled_out.get(one, "")) for one in exports
            ),
            device=latency.device,
            runtime=latency.runtime,
            notes=tuple(self._notes(ran, unbeaten, chosen, is_any_fit=bool(fit))),
        )

    def _failure(self, export: Export) -> Failure | None:
        return next((self.outcome.failures[key] for key in _made(export) if key in self.outcome.failures), None)

    def _report(self, export: Export) -> TargetReport:
        """What is known of an artifact before it is measured."""
        unmeasured = {version.figures: _UNMEASURED for version in export.versions}
        return assemble.target(self.project, self.name, export, self.plan, self.outcome, unmeasured)

    def _raced(self, who: Sequence[Precision], exports: Mapping[Precision, Export]) -> dict[Precision, Placed]:
        models = {one: runnable(self.outcome, exports[one], exports[one].versions[-1]) for one in who}
        title = f"{self.name} latency as {', '.join(models)}"
        with registry.opened(self.device.address, python=self.device.python, on_wait=self.listener.wait) as transport:
            self._require_real(transport.fingerprint())
            return race(
                models,
                transport,
                request=devices.request(self.device),
                margin=MARGIN,
                on_block=lambda done: self.listener.process(title, done, 0),
            )

    def _require_real(self, device: DeviceFingerprint) -> None:
        if device.emulator:
            raise DeviceError(
                f"the fastest precision of {self.name} can't be told on {self.device.address}",
                cause=f"{device.emulator} plays the device, and its times say nothing of a real one",
                action="name a precision, or a real device",
            )

    def _notes(
        self, ran: Mapping[Precision, Placed], unbeaten: Sequence[Precision], chosen: Precision, *, is_any_fit: bool
    ) -> Iterator[str]:
        gates = self.project.config.gates
        if not is_any_fit:
            yield "no precision passes every gate: the fastest of all was taken"
        elif gates.max_metric_drop is None and gates.min_metric is None:
            yield "no gate is set on the metric: a precision that loses accuracy is chosen all the same"
        if len(unbeaten) > 1:
            yield f"{', '.join(unbeaten)} are equally fast within {MARGIN:.0%}: {chosen} is the smallest file"
        latencies = (placed.latency for placed in ran.values() if placed.latency is not None)
        yield from dict.fromkeys(doubt for latency in latencies for doubt in latency.doubts)


def _made(export: Export) -> tuple[str, ...]:
    return export.artifact, export.verified, export.packaged


def _missed(report: TargetReport) -> str:
    """The gates that an artifact does not pass; how fast it is comes later."""
    missed = (gate for gate in report.gates if gate.kind != "latency" and gate.verdict != "pass")
    return ", ".join(f"gate {gate.name}: {gate.verdict}" for gate in missed)


def _size(report: TargetReport) -> float:
    return math.inf if report.size_bytes.value is None else report.size_bytes.value


def _candidate(precision: Precision, report: TargetReport | None, placed: Placed | None, why: str) -> Candidate:
    latency, ratio = (placed.latency, placed.ratio) if placed else (None, None)
    is_quickest = latency is not None and ratio is None
    has_interval = ratio is not None and math.isfinite(ratio.high)
    failed = placed.failure.what if placed and placed.failure else ""
    return Candidate(
        precision=precision,
        size_bytes=None if report is None or report.size_bytes.value is None else int(report.size_bytes.value),
        metric=None if report is None else report.metric.target,
        median_us=None if latency is None else latency.median_us,
        ratio=ratio.median if ratio else 1.0 if is_quickest else None,
        low=ratio.low if ratio and has_interval else None,
        high=ratio.high if ratio and has_interval else None,
        why=why or failed,
    )
