"""Latency of what a build made: on the device that each target names, after all else has ended."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from edgebuild.device_tests import registry
from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.latency import Latency, measure
from edgebuild.device_tests.transport import Transport
from edgebuild.device_tests.versus import Comparison, compare_models
from edgebuild.pipeline import assemble, devices
from edgebuild.pipeline.config import Project
from edgebuild.pipeline.device_settings import LOCAL, Device
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.execution.engine import Outcome
from edgebuild.pipeline.plan import Export, Plan, Version
from edgebuild.pipeline.report import Entry, NoLatency, Report, TargetReport, Timed
from edgebuild.pipeline.settings import LatencyGate
from edgebuild.pipeline.storage.digests import digest_file
from edgebuild.pipeline.target_settings import TargetSettings
from edgebuild.targets.registry import TARGETS

_COMPILED: Final = "model_edgetpu.tflite"


def require(project: Project, targets: Iterable[str], device: str) -> None:
    """Refuse devices and baselines that are not there, before anything is built for them.

    Raises:
        ConfigError: there is no such device, or no such baseline.
    """
    for name in targets:
        _device(project, name, device)
    _baseline(project)


def taken(
    project: Project,
    plan: Plan,
    outcome: Outcome,
    previous: Report | None,
    device: str,
    on_latency: Callable[[str, int, int], None],
) -> Mapping[str, Timed]:
    """Of every version of every target, by the key of its figures; `device` stands in for what targets say."""
    found: dict[str, Timed] = {}
    for name, export in plan.exports.items():
        where = _device(project, name, device)
        if where is None:
            why = NoLatency(note=f"no device is named for {name}, and this machine is none")
            none = Timed(latency=why, is_asked=False)
            found |= {version.figures: none for version in export.versions}
        else:
            found |= _on(where, project, name, export, outcome, previous, on_latency)
    return found


def _device(project: Project, name: str, device: str) -> Device | None:
    """Where a target is measured; None where nobody says, and this machine is not it."""
    if TARGETS[name].FLASHED:
        return None
    asked = device or project.config.targets.get(name, TargetSettings()).device
    if asked:
        return devices.named(asked, project.config.devices)
    return Device() if TARGETS[name].HOST_RUNS else None


def _on(
    device: Device,
    project: Project,
    name: str,
    export: Export,
    outcome: Outcome,
    previous: Report | None,
    on_latency: Callable[[str, int, int], None],
) -> dict[str, Timed]:
    """All versions of a target on one device, which is let in once."""
    settings = project.config.targets.get(name, TargetSettings())
    limit = project.config.gates.latency
    baseline = _baseline(project)
    gated = settings.max_latency_ms is not None or (limit is not None and limit.max_ms is not None)
    found: dict[str, Timed] = {}
    with registry.opened(device.address, python=device.python) as transport:
        for version in export.versions:
            if version.figures not in outcome.results:
                continue
            ships = version is export.versions[-1]
            model = _runnable(outcome, export, version)
            kept = None if (gated and ships) or device.address != LOCAL else _still_good(previous, name, model)
            title = name if ships else f"{name}, {version.title},"
            latency = kept or _measured(title, model, device, transport, on_latency)
            against = None
            if limit is not None and baseline is not None and ships:
                against = _held(title, model, baseline, limit, device, transport, on_latency)
            found[version.figures] = Timed(latency=latency, against=against)
    return found


def _runnable(outcome: Outcome, export: Export, version: Version) -> Path:
    """The file that the device runs: what the target's own compiler made, where it did."""
    model = assemble.model_file(outcome, export, version)
    compiled = model.with_name(_COMPILED)
    return compiled if compiled.exists() else model


def _baseline(project: Project) -> Path | None:
    limit = project.config.gates.latency
    if limit is None or limit.baseline is None:
        return None
    path = project.folder / Path(limit.baseline).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"gates.latency.baseline: there is nothing at {path}", action="name a .tflite to hold latencies against"
        )
    return path


def _still_good(previous: Report | None, name: str, model: Path) -> Latency | None:
    """The figure of the report in `out` for these very bytes on a machine of this kind; its time stands beside it.

    The store never holds a latency, and a gate never rests on an old one.
    """
    target = previous.targets.get(name) if previous else None
    if target is None:
        return None
    entries: list[TargetReport | Entry] = [target, *(e for e in target.ledger if isinstance(e, Entry))]
    known = {entry.sha256: entry.latency for entry in entries if isinstance(entry.latency, Latency)}
    before = known.get(digest_file(model)) if known else None
    with registry.opened(LOCAL) as here:
        same_device = before is not None and before.device == str(here.fingerprint())
    return before if same_device else None


def _measured(
    name: str, model: Path, device: Device, transport: Transport, on_latency: Callable[[str, int, int], None]
) -> Latency | NoLatency:
    try:
        return measure(
            model,
            transport,
            threads=device.threads,
            delegate=device.delegate,
            delegate_options=device.delegate_options,
            on_process=lambda done, total: on_latency(name, done, total),
        )
    except DeviceError as e:
        return NoLatency(note=_told(e))


def _held(
    name: str,
    model: Path,
    baseline: Path,
    limit: LatencyGate,
    device: Device,
    transport: Transport,
    on_latency: Callable[[str, int, int], None],
) -> Comparison | NoLatency:
    """The model against a baseline by processes of both in turns, until that is decided or time is up."""
    try:
        found = compare_models(
            baseline,
            model,
            transport,
            request=devices.request(device),
            budget_s=limit.budget_s,
            margin=limit.max_regression,
            confidence=limit.confidence,
            max_regression=limit.max_regression,
            on_block=lambda done, _: on_latency(f"{name} against {baseline.name}", done, done),
        )
    except DeviceError as e:
        return NoLatency(note=_told(e))
    return found if math.isfinite(found.high) else NoLatency(note="; ".join(found.notes))


def _told(failure: DeviceError) -> str:
    return f"{failure.what}: {failure.cause}" if failure.cause else failure.what
