"""Latency of what a build made: on the device that each target names, after all else has ended."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from edgebuild.calibration.errors import Failure
from edgebuild.device_tests import outputs
from edgebuild.device_tests.errors import DeviceError, ModelRunError
from edgebuild.device_tests.instructions import CountComparison
from edgebuild.device_tests.latency import Latency, Setup, measure
from edgebuild.device_tests.outputs import DeviceAgreement
from edgebuild.device_tests.race import beside
from edgebuild.device_tests.transport import Transport
from edgebuild.device_tests.versus import Comparison, Terms
from edgebuild.pipeline import assemble, devices
from edgebuild.pipeline.arrays import load_arrays
from edgebuild.pipeline.config import Project
from edgebuild.pipeline.device_settings import LOCAL, Device
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.execution.engine import Outcome
from edgebuild.pipeline.plan import Export, Plan, Version
from edgebuild.pipeline.report import Entry, Report, TargetReport
from edgebuild.pipeline.settings import LatencyGate
from edgebuild.pipeline.storage.digests import digest_file
from edgebuild.pipeline.storage.store import Store
from edgebuild.pipeline.target_settings import FASTEST, TargetSettings
from edgebuild.pipeline.timed import FloatTwin, NoLatency, Timed
from edgebuild.pipeline.timing import history, kept, questions
from edgebuild.pipeline.timing.listener import Listener
from edgebuild.targets.registry import TARGETS

_COMPILED: Final = "model_edgetpu.tflite"


def require(project: Project, targets: Iterable[str], device: str) -> None:
    """Refuse devices and baselines that are not there, before anything is built for them.

    Raises:
        ConfigError: there is no such device, or no such baseline; or none to pick the fastest precision on.
    """
    for name in targets:
        where = device_of(project, name, device)
        if where is not None:
            _baseline(project, name)
        elif project.config.targets.get(name, TargetSettings()).precision == FASTEST:
            raise no_device(name)


def no_device(name: str) -> ConfigError:
    """What to say where the fastest precision is asked for, and there is nothing to measure on."""
    return ConfigError(
        f"targets.{name}.precision: fastest is picked by measurement, and this machine is no {name}",
        action=f"name a device: targets.{name}.device, or --device",
    )


def device_of(project: Project, name: str, device: str) -> Device | None:
    """Where a target is measured; None where nobody says, and this machine is not it.

    Raises:
        ConfigError: there is no such device.
    """
    if TARGETS[name].FLASHED:
        return None
    asked = device or project.config.targets.get(name, TargetSettings()).device
    if asked:
        return devices.named(asked, project.config.devices)
    return Device() if TARGETS[name].HOST_RUNS else None


def samples_elsewhere(project: Project, plan: Plan, device: str) -> tuple[str, ...]:
    """The keys of the samples that devices other than this machine compute on: goals of a build, too."""
    places = {name: device_of(project, name, device) for name in plan.exports}
    elsewhere = [name for name, where in places.items() if where is not None and where.address != LOCAL]
    return tuple(dict.fromkeys(plan.samples_of(plan.exports[name]) for name in elsewhere))


def latencies(
    project: Project,
    plan: Plan,
    outcome: Outcome,
    *,
    previous: Report | None,
    out: Path,
    device: str,
    listener: Listener,
) -> Mapping[str, Timed]:
    """Of every version of every target, by the key of its figures; what ships goes to `out`.

    `previous` is the report that lies there, and `device` stands in for what targets say.
    """
    found: dict[str, Timed] = {}
    for name, export in plan.exports.items():
        where = device_of(project, name, device)
        if where is None:
            why = NoLatency(note=f"no device is named for {name}, and this machine is none")
            none = Timed(latency=why, is_asked=False)
            found |= {version.figures: none for version in export.versions}
        elif export.packaged not in outcome.failures:
            found |= _Target(
                project=project,
                plan=plan,
                outcome=outcome,
                name=name,
                export=export,
                device=where,
                before=previous.targets.get(name) if previous else None,
                folder=out / name,
                listener=listener,
            ).timed()
    return found


def runnable(outcome: Outcome, export: Export, version: Version) -> Path:
    """The file that the device runs: what the target's own compiler made, where it did."""
    model = assemble.model_file(outcome, export, version)
    compiled = model.with_name(_COMPILED)
    return compiled if compiled.exists() else model


def compared(plan: Plan, outcome: Outcome, export: Export, device: Device, transport: Transport) -> DeviceAgreement:
    """What a device computes for samples that the export was verified on, beside what this machine does.

    Raises:
        DeviceError: the device can't be reached, or can't run the model.
        ModelError: the samples don't fit the model, as where that is but a part of one.
    """
    version = export.versions[-1]
    samples = load_arrays(outcome.results[plan.samples_of(export)] / "samples.npz")
    reference = assemble.model_file(outcome, export, version)
    names = outputs.read(reference).inputs
    arrays = {name: array for name, array in samples.items() if name in names}
    most = min(map(len, arrays.values()), default=0)
    rows = np.linspace(0, most - 1, min(most, outputs.SAMPLES)).astype(int)
    given = {name: array[rows] for name, array in arrays.items()}
    return outputs.check(transport, runnable(outcome, export, version), device.request, given, reference=reference)


def _baseline(project: Project, name: str) -> Path | None:
    limit = project.config.gates.latency
    if limit is None or limit.baseline is None:
        return None
    path = project.folder / Path(limit.baseline.replace("{target}", name)).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"gates.latency.baseline: there is no file {path}",
            action="name a .tflite, or a file of `edgebuild profile --save-baseline`, to hold latencies against",
        )
    if kept.is_kept(path):
        if limit.by == "instructions":
            raise ConfigError(
                f"gates.latency.baseline: {path} holds times and no instructions", action="name the .tflite itself"
            )
        kept.read(path)
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """All that is measured of one target, on one device, which is let in once."""

    project: Project
    plan: Plan
    outcome: Outcome
    name: str
    export: Export
    device: Device
    before: TargetReport | None
    folder: Path
    listener: Listener

    def timed(self) -> dict[str, Timed]:
        *earlier, ships = self.export.versions
        known = [version for version in earlier if version.figures in self.outcome.results]
        with questions.opened(self.device, self.listener) as transport:
            found = {version.figures: Timed(latency=self._earlier(version, transport)) for version in known}
            found[ships.figures] = self._shipped(transport)
        if self._limit is not None and self._limit.by == "instructions":  # By a stay of its own on the device.
            found[ships.figures] = replace(found[ships.figures], against=self._counted())
        return found

    def _earlier(self, version: Version, transport: Transport) -> Latency | NoLatency:
        model = runnable(self.outcome, self.export, version)
        return self._known(model, transport) or self._measured(f"{self.name}, {version.title},", model, transport)

    def _shipped(self, transport: Transport) -> Timed:
        """What ships, with all that is measured beside it; of a device that is away nothing more is asked."""
        model = runnable(self.outcome, self.export, self.export.versions[-1])
        latency, twin = self._with_twin(model, transport)
        is_elsewhere = self.device.address != LOCAL
        if isinstance(latency, NoLatency):
            against = latency if self._limit and self._limit.baseline else None
            return Timed(latency=latency, twin=twin, against=against, outputs=latency if is_elsewhere else None)
        return Timed(
            latency=latency,
            twin=twin,
            against=self._against(model, transport),
            outputs=self._outputs(transport) if is_elsewhere else None,
        )

    def _with_twin(self, model: Path, transport: Transport) -> tuple[Latency | NoLatency, FloatTwin | NoLatency | None]:
        """The latency of what ships, and of its float32 twin, if it has one: by processes of both in turns."""
        before = self.before if self.before is not None and self.before.sha256 == digest_file(model) else None
        known = None if self._is_gated else self._known(model, transport)
        file = self.outcome.results.get(self.export.twin)
        if known is not None and before is not None and (file is None or isinstance(before.twin, FloatTwin)):
            return known, before.twin
        latency: Latency | NoLatency | None = None
        twin: FloatTwin | NoLatency | None = None
        if file is not None:
            latency, twin = self._beside(model, file / "model.tflite", transport)
        elif self.export.twin:
            twin = NoLatency(note=_told(self.outcome.failures[self.export.twin]))
        if latency is None:
            latency = self._measured(self.name, model, transport)
        if isinstance(latency, Latency):
            store = Store.holding(self.outcome.results[self.export.packaged]).root
            history.remember(store, model, self.folder / model.name, self.device.address, latency)
        return latency, twin

    @property
    def _limit(self) -> LatencyGate | None:
        return self.project.config.gates.latency

    @property
    def _is_gated(self) -> bool:
        """Whether a limit is set; a gate never rests on an old figure."""
        settings = self.project.config.targets.get(self.name, TargetSettings())
        return settings.max_latency_ms is not None or (self._limit is not None and self._limit.max_ms is not None)

    def _known(self, model: Path, transport: Transport) -> Latency | None:
        """The figure of the report in `out` for these very bytes, measured so on a machine of this kind.

        The store never gives a latency, and another device may be another one behind the same name.
        """
        if self.before is None or self.device.address != LOCAL:
            return None
        entries: list[TargetReport | Entry] = [self.before, *(e for e in self.before.ledger if isinstance(e, Entry))]
        known = {entry.sha256: entry.latency for entry in entries if isinstance(entry.latency, Latency)}
        before = known.get(digest_file(model)) if known else None
        if before is None:
            return None
        now = Setup.of(transport.fingerprint(), before.runtime, self.device.request)
        return before if now == before.setup else None

    def _measured(self, title: str, model: Path, transport: Transport) -> Latency | NoLatency:
        try:
            return measure(
                model,
                transport,
                threads=self.device.threads,
                delegate=self.device.delegate,
                delegate_options=self.device.delegate_options,
                on_process=lambda done, total: self.listener.process(f"{title} latency", done, total),
            )
        except DeviceError as e:
            return NoLatency(note=_told(e))

    def _beside(
        self, model: Path, twin: Path, transport: Transport
    ) -> tuple[Latency | NoLatency | None, FloatTwin | NoLatency]:
        """The artifact's latency and the twin's; None for the former where one of them can't run there."""
        title = f"{self.name} latency beside float32's"
        try:
            ours, theirs, ratio = beside(
                model,
                twin,
                transport,
                request=self.device.request,
                on_process=lambda done, total: self.listener.process(title, done, total),
            )
        except ModelRunError as e:  # Which of the two, the artifact alone will show.
            return None, NoLatency(note=_told(e))
        except DeviceError as e:
            away = NoLatency(note=_told(e))
            return away, away
        return ours, FloatTwin(latency=theirs, ratio=ratio.median, low=ratio.low, high=ratio.high)

    def _against(self, model: Path, transport: Transport) -> Comparison | NoLatency | None:
        """What ships against the times of the gate's baseline, until that is decided or time is up."""
        limit, baseline = self._limit, self._baseline()
        if limit is None or limit.by == "instructions" or not isinstance(baseline, Path):
            return None if isinstance(baseline, Path) else baseline
        terms = Terms(
            budget_s=limit.budget_s,
            margin=limit.max_regression,
            confidence=limit.confidence,
            max_regression=limit.max_regression,
        )
        title = f"{self.name} latency against {baseline.name}"
        try:
            found = questions.held(baseline, model, self.device, transport, terms, title, self.listener)
        except Failure as e:
            return NoLatency(note=_told(e))
        return found if math.isfinite(found.high) else NoLatency(note="; ".join(found.notes))

    def _counted(self) -> CountComparison | NoLatency | None:
        """The same by instructions, which other programs on the device leave alone."""
        model, baseline = runnable(self.outcome, self.export, self.export.versions[-1]), self._baseline()
        if not isinstance(baseline, Path):
            return baseline
        try:
            return questions.count_both(baseline, model, self.device, self.listener)
        except Failure as e:
            return NoLatency(note=_told(e))

    def _baseline(self) -> Path | NoLatency | None:
        """That of the gate, where there is one; it may have gone while we built."""
        try:
            return _baseline(self.project, self.name)
        except ConfigError as e:
            return NoLatency(note=_told(e))

    def _outputs(self, transport: Transport) -> DeviceAgreement | NoLatency:
        try:
            return compared(self.plan, self.outcome, self.export, self.device, transport)
        except Failure as e:
            return NoLatency(note=_told(e))


def _told(failure: Failure) -> str:
    """A failure in one line."""
    return f"{failure.what}: {failure.cause}" if failure.cause else failure.what
