"""`precision: fastest`: which of a target's precisions is, by measurement, of those whose artifact passes every gate.

What is known to be as fast as the quickest within a margin counts as fast, and of those the smallest file is taken: a
race between equals would fall out otherwise every night.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from edgebuild.calibration.errors import Failure
from edgebuild.device_tests import outputs
from edgebuild.device_tests.errors import DeviceError, ModelRunError
from edgebuild.device_tests.race import Placed, race
from edgebuild.device_tests.transport import DeviceFingerprint, Transport
from edgebuild.device_tests.versus import Terms
from edgebuild.export.formats import Precision
from edgebuild.pipeline import assemble
from edgebuild.pipeline.config import Project
from edgebuild.pipeline.device_settings import LOCAL, Device
from edgebuild.pipeline.execution.engine import Outcome
from edgebuild.pipeline.plan import Export, Plan
from edgebuild.pipeline.report import TargetReport
from edgebuild.pipeline.settings import LatencyGate
from edgebuild.pipeline.timed import Candidate, Choice, NoLatency, Timed
from edgebuild.pipeline.timing import questions
from edgebuild.pipeline.timing.builds import compared, device_of, no_device, runnable
from edgebuild.pipeline.timing.listener import Listener

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
        if not export.others:
            continue
        try:
            where = device_of(project, name, device)
            if where is None:
                raise no_device(name)
            choosing = _Choosing(
                project=project, plan=plan, outcome=outcome, name=name, export=export, device=where, listener=listener
            )
            exports[name], choices[name] = choosing.chosen()
        except Failure as e:
            exports[name] = replace(export, others=())
            failures[export.packaged] = e
    if exports == plan.exports:
        return Settled(project=project, plan=plan, outcome=outcome, choices={})
    return Settled(
        project=_naming(project, {name: exports[name].precision for name in choices}),
        plan=plan.choosing(exports),
        outcome=replace(outcome, failures=failures),
        choices=choices,
    )


def _naming(project: Project, found: Mapping[str, Precision]) -> Project:
    """The project as if it had named what was chosen: a build of that is the same again."""
    targets = {
        name: settings.model_copy(update={"precision": found[name]}) if name in found else settings
        for name, settings in project.config.targets.items()
    }
    return replace(project, config=project.config.model_copy(update={"targets": targets}))


@dataclass(frozen=True, slots=True, kw_only=True)
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
        reports, out = self._built(exports)
        missed = {precision: why for precision, report in reports.items() if (why := _missed(report))}
        fit = [precision for precision in reports if precision not in missed] or list(reports)
        with questions.opened(self.device, self.listener) as transport:
            self._require_real(transport.fingerprint())
            wrong = self._wrong(fit, exports, transport)
            ran = self._raced([one for one in fit if one not in wrong], exports, transport)
        alike = [precision for precision, placed in ran.items() if placed.standing in ("leads", "as fast")]
        taken = min(alike, key=lambda precision: _size(reports[precision]))
        out = {**out, **missed, **wrong}
        latency = next(placed.latency for placed in ran.values() if placed.latency is not None)
        return replace(exports[taken], others=()), Choice(
            taken=taken,
            candidates=tuple(_candidate(one, reports.get(one), ran.get(one), out.get(one, "")) for one in exports),
            device=latency.device,
            runtime=latency.runtime,
            notes=tuple(self._notes(ran, alike, taken, is_any_fit=len(missed) < len(reports))),
        )

    def _built(self, exports: Mapping[Precision, Export]) -> tuple[dict[Precision, TargetReport], dict[Precision, str]]:
        """What is known of each artifact before it is measured, and why there is none of the others."""
        failures = {one: self._failure(export) for one, export in exports.items()}
        failed = {one: failure for one, failure in failures.items() if failure is not None}
        if len(failed) == len(exports):
            raise failed[self.export.precision]
        reports = {one: self._report(export) for one, export in exports.items() if one not in failed}
        return reports, {one: failure.what for one, failure in failed.items()}

    def _failure(self, export: Export) -> Failure | None:
        made = (export.artifact, export.verified, export.packaged)
        return next((self.outcome.failures[key] for key in made if key in self.outcome.failures), None)

    def _report(self, export: Export) -> TargetReport:
        unmeasured = {version.figures: _UNMEASURED for version in export.versions}
        return assemble.target(self.project, self.name, export, self.plan, self.outcome, unmeasured)

    def _require_real(self, device: DeviceFingerprint) -> None:
        if device.emulator:
            raise DeviceError(
                f"the fastest precision of {self.name} can't be told on {self.device.address}",
                cause=f"{device.emulator} plays the device, and its times say nothing of a real one",
                action="name a precision, or a real device",
            )

    def _wrong(
        self, fit: Iterable[Precision], exports: Mapping[Precision, Export], transport: Transport
    ) -> dict[Precision, str]:
        """Why a device that computes something else, or nothing, is not to be timed with it."""
        if self.device.address == LOCAL:  # Which verified it.
            return {}
        found: dict[Precision, str] = {}
        for one in fit:
            try:
                same = compared(self.plan, self.outcome, exports[one], self.device, transport)
            except ModelRunError:
                continue  # The race tells.
            failure = outputs.wrong(same, self.device.address)
            if failure is not None:
                found[one] = failure.what
        if found.keys() == set(fit):
            raise DeviceError(
                f"{self.device.address} computes wrong with every precision of {self.name}",
                action="try it without delegate, and with another version of the runtime",
            )
        return found

    def _raced(
        self, who: Iterable[Precision], exports: Mapping[Precision, Export], transport: Transport
    ) -> dict[Precision, Placed]:
        models = {one: runnable(self.outcome, exports[one], exports[one].versions[-1]) for one in who}
        title = f"{self.name} latency as {', '.join(models)}"
        limit = self.project.config.gates.latency or LatencyGate()
        found = race(
            models,
            transport,
            Terms(budget_s=limit.budget_s, margin=MARGIN),
            request=self.device.request,
            on_block=lambda block: self.listener.process(title, block, 0),
        )
        processes = sum(placed.latency.processes for placed in found.values() if placed.latency is not None)
        self.listener.process(title, processes, processes)
        return found

    def _notes(
        self, ran: Mapping[Precision, Placed], alike: list[Precision], taken: Precision, *, is_any_fit: bool
    ) -> Iterator[str]:
        gates = self.project.config.gates
        if not is_any_fit:
            yield "no precision passes every gate: the fastest of all was taken"
        elif gates.max_metric_drop is None and gates.min_metric is None:
            yield "no gate is set on the metric: a precision that loses accuracy is chosen all the same"
        if len(alike) > 1:
            yield f"{', '.join(alike)} are as fast within {MARGIN:.0%}: {taken} is the smallest file"
        still_open = [precision for precision, placed in ran.items() if placed.standing == "open"]
        if still_open:
            yield f"{', '.join(still_open)} may be as fast: gates.latency.budget_s was over before that was told"
        latencies = (placed.latency for placed in ran.values() if placed.latency is not None)
        yield from dict.fromkeys(f"the choice: {doubt}" for latency in latencies for doubt in latency.doubts)


def _missed(report: TargetReport) -> str:
    """The gates that an artifact does not pass; how fast it is comes later."""
    missed = (gate for gate in report.gates if gate.kind != "latency" and gate.verdict != "pass")
    return ", ".join(f"gate {gate.name}: {gate.verdict}" for gate in missed)


def _size(report: TargetReport) -> float:
    return math.inf if report.size_bytes.value is None else report.size_bytes.value


def _candidate(precision: Precision, report: TargetReport | None, placed: Placed | None, why: str) -> Candidate:
    latency, ratio = (placed.latency, placed.ratio) if placed else (None, None)
    has_interval = ratio is not None and math.isfinite(ratio.high)
    size = report.size_bytes.value if report else None
    return Candidate(
        precision=precision,
        size_bytes=None if size is None else int(size),
        metric=report.metric.target if report else None,
        median_us=latency.median_us if latency else None,
        ratio=ratio.median if ratio else 1.0 if latency else None,
        low=ratio.low if ratio and has_interval else None,
        high=ratio.high if ratio and has_interval else None,
        why=why or (placed.failure.what if placed and placed.failure else ""),
    )
