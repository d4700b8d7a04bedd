"""Latency of what a build made: on the device that each target names, after all else has ended."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgebuild.calibration.errors import Failure
from edgebuild.device_tests import outputs, registry, versus
from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.instructions import CountComparison
from edgebuild.device_tests.latency import Latency, measure
from edgebuild.device_tests.outputs import DeviceAgreement
from edgebuild.device_tests.race import beside
from edgebuild.device_tests.transport import Transport
from edgebuild.device_tests.versus import Comparison
from edgebuild.export.errors import ModelError
from edgebuild.pipeline import assemble, devices
from edgebuild.pipeline.arrays import load_arrays
from edgebuild.pipeline.config import Project
from edgebuild.pipeline.device_settings import LOCAL, Device
from edgebuild.pipeline.devices import Listener
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.execution.engine import Outcome
from edgebuild.pipeline.plan import Export, Plan, Version
from edgebuild.pipeline.report import Entry, FloatTwin, NoLatency, Report, TargetReport, Timed
from edgebuild.pipeline.settings import LatencyGate
from edgebuild.pipeline.storage.digests import digest_file
from edgebuild.pipeline.storage.store import Store
from edgebuild.pipeline.target_settings import FASTEST, TargetSettings
from edgebuild.pipeline.timing import history, kept
from edgebuild.targets.registry import TARGETS

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
            raise ConfigError(
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


def taken(
    project: Project,
    plan: Plan,
    outcome: Outcome,
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
        else:
            before = previous.targets.get(name) if previous else None
            found |= _Taking(project, plan, outcome, name, export, where, before, out / name, listener).all()
    return found


def runnable(outcome: Outcome, export: Export, version: Version) -> Path:
    """The file that the device runs: what the target's own compiler made, where it did."""
    model = assemble.model_file(outcome, export, version)
    compiled = model.with_name(_COMPILED)
    return compiled if compiled.exists() else model


def _baseline(project: Project, name: str) -> Path | None:
    limit = project.config.gates.latency
    if limit is None or limit.baseline is None:
        return None
    path = project.folder / Path(limit.baseline.replace("{target}", name)).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"gates.latency.baseline: there is nothing at {path}",
            action="name a .tflite, or a file of `edgebuild profile --save-baseline`, to hold latencies against",
        )
    if kept.is_kept(path):
        if limit.by == "instructions":
            raise ConfigError(
                f"gates.latency.baseline: {path} holds times and no instructions", action="name the .tflite itself"
            )
        kept.read(path)
    return path


@dataclass(frozen=True, slots=True)
class _Taking:
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

    def all(self) -> dict[str, Timed]:
        versions = [version for version in self.export.versions if version.figures in self.outcome.results]
        with registry.opened(self.device.address, python=self.device.python, on_wait=self.listener.wait) as transport:
            found = {version.figures: self._of(version, transport) for version in versions}
        shipped = self.export.packaged
        if shipped in found and self._limit is not None and self._limit.by == "instructions":
            found[shipped] = replace(found[shipped], against=self._counted())  # By a stay of its own on the device.
        return found

    def _of(self, version: Version, transport: Transport) -> Timed:
        model = runnable(self.outcome, self.export, version)
        if version is not self.export.versions[-1]:
            title = f"{self.name}, {version.title},"
            return Timed(latency=self._known(model, transport) or self._measured(title, model, transport))
        latency, twin = self._shipped(model, transport)
        return Timed(
            latency=latency,
            twin=twin,
            against=self._against(model, transport),
            outputs=self._outputs(version, model, transport),
        )

    def _shipped(self, model: Path, transport: Transport) -> tuple[Latency | NoLatency, FloatTwin | None]:
        """The latency of what ships, and that of its float32 twin, if it has one: by processes of both in turns."""
        twin = self.outcome.results.get(self.export.twin)
        known = None if self._is_gated else self._known(model, transport)
        if known is not None and self.before is not None and (twin is None or self.before.twin is not None):
            return known, self.before.twin
        if twin is None:
            found: Latency | NoLatency = self._measured(self.name, model, transport)
            paired = None
        else:
            found, paired = self._beside(model, twin / "model.tflite", transport)
        if isinstance(found, Latency):
            path = history.place(self.folder / model.name)
            history.add(self._store, history.Record(path=path, sha256=digest_file(model), latency=found))
        return found, paired

    @property
    def _limit(self) -> LatencyGate | None:
        return self.project.config.gates.latency

    @property
    def _is_gated(self) -> bool:
        """Whether a limit is set; a gate never rests on an old figure."""
        settings = self.project.config.targets.get(self.name, TargetSettings())
        return settings.max_latency_ms is not None or (self._limit is not None and self._limit.max_ms is not None)

    @property
    def _store(self) -> Path:
        return Store.holding(next(iter(self.outcome.results.values()))).root

    def _known(self, model: Path, transport: Transport) -> Latency | None:
        """The figure of the report in `out` for these very bytes, measured so on a machine of this kind.

        The store never gives a latency, and another device may be another one behind the same name.
        """
        if self.before is None or self.device.address != LOCAL:
            return None
        entries: list[TargetReport | Entry] = [self.before, *(e for e in self.before.ledger if isinstance(e, Entry))]
        known = {entry.sha256: entry.latency for entry in entries if isinstance(entry.latency, Latency)}
        before = known.get(digest_file(model)) if known else None
        if before is None or self.device.delegate_options:
            return None
        now = (str(transport.fingerprint()), self.device.threads, self.device.delegate)
        return before if now == (before.device, before.threads, before.delegate) else None

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
            return NoLatency(note=told(e))

    def _beside(self, model: Path, twin: Path, transport: Transport) -> tuple[Latency | NoLatency, FloatTwin | None]:
        try:
            ours, theirs, ratio = beside(
                model,
                twin,
                transport,
                request=devices.request(self.device),
                on_process=lambda done, total: self.listener.process(
                    f"{self.name} latency beside float32's", done, total
                ),
            )
        except DeviceError as e:
            return NoLatency(note=told(e)), None
        return ours, FloatTwin(latency=theirs, ratio=ratio.median, low=ratio.low, high=ratio.high)

    def _against(self, model: Path, transport: Transport) -> Comparison | NoLatency | None:
        """What ships against the times of the gate's baseline, until that is decided or time is up."""
        limit, baseline = self._limit, _baseline(self.project, self.name)
        if limit is None or baseline is None or limit.by == "instructions":
            return None
        compare = kept.compare if kept.is_kept(baseline) else versus.compare_models
        try:
            found = compare(
                baseline,
                model,
                transport,
                request=devices.request(self.device),
                budget_s=limit.budget_s,
                margin=limit.max_regression,
                confidence=limit.confidence,
                max_regression=limit.max_regression,
                on_block=lambda done, _: self.listener.process(f"{self.name} latency against {baseline.name}", done, 0),
            )
        except DeviceError as e:
            return NoLatency(note=told(e))
        return found if math.isfinite(found.high) else NoLatency(note="; ".join(found.notes))

    def _counted(self) -> CountComparison | NoLatency | None:
        """The same by instructions, which other programs on the device leave alone."""
        baseline = _baseline(self.project, self.name)
        if baseline is None:
            return None
        model = runnable(self.outcome, self.export, self.export.versions[-1])
        try:
            return devices.count_both(baseline, model, self.device, self.listener)
        except DeviceError as e:
            return NoLatency(note=told(e))

    def _outputs(self, version: Version, model: Path, transport: Transport) -> DeviceAgreement | NoLatency | None:
        """What another device computes for samples, beside what this machine does; None where they are the same."""
        if self.device.address == LOCAL:
            return None
        samples = self.outcome.results[self.plan.samples_of(self.export)] / "samples.npz"
        reference = assemble.model_file(self.outcome, self.export, version)
        try:
            names = outputs.read(reference).inputs
            given = {name: _spread(array) for name, array in load_arrays(samples).items() if name in names}
            return outputs.check(transport, model, devices.request(self.device), given, reference=reference)
        except (DeviceError, ModelError) as e:
            return NoLatency(note=told(e))


def _spread(samples: NDArray[Any]) -> NDArray[Any]:
    """At most `outputs.SAMPLES` of all, evenly apart."""
    return samples[:: max(len(samples) // outputs.SAMPLES, 1)][: outputs.SAMPLES]


def told(failure: Failure) -> str:
    """A failure in one line."""
    return f"{failure.what}: {failure.cause}" if failure.cause else failure.what
