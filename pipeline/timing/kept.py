"""Latencies that were kept in a file as baselines: one for each device, runtime and model.

Such a file is a project's own, made to lie beside its configuration: `edgebuild profile --save-baseline` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.latency import Latency
from edgebuild.device_tests.transport import RunRequest, Transport
from edgebuild.device_tests.versus import Comparison, compare_kept, doubted
from edgebuild.pipeline.errors import ConfigError

SCHEMA: Final = "edgebuild-baseline/1"
_SAVE_ONE: Final = "measure one there: edgebuild profile OLD.tflite --save-baseline {path}"
# With so many, two equal models whose processes differ by 3 % are told to be within 5 % in 99 of 100 comparisons (400
# were simulated); with twenty, in 72.
PROCESSES: Final = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The latency of the model with this digest, and the name of its file when it was measured."""

    model: str
    sha256: str
    latency: Latency

    @property
    def where(self) -> dict[str, Any]:
        """What it was measured on and with, in words: it is no baseline for anything else."""
        return {name: getattr(self.latency, name) for name in ("device", "runtime", "threads", "delegate")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Baselines:
    """The whole file."""

    schema: str
    latencies: tuple[Kept, ...]


def read(path: Path) -> tuple[Kept, ...]:
    """The latencies that a file holds.

    Raises:
        ConfigError: it can't be read, or is no such file.
    """
    from pydantic import TypeAdapter

    try:
        found = TypeAdapter(Baselines).validate_json(path.read_bytes())
    except (OSError, ValueError) as e:
        raise ConfigError(
            f"{path} is no file of baselines", cause=str(e).splitlines()[0], action=_SAVE_ONE.format(path=path)
        ) from e
    if found.schema != SCHEMA:
        raise ConfigError(f"{path} is of {found.schema}, not of {SCHEMA}", action=_SAVE_ONE.format(path=path))
    return found.latencies


def save(path: Path, kept: Kept) -> None:
    """Put a latency into a file, in place of an older one of the same model on the same device and runtime.

    Raises:
        ConfigError: the file can't be written, or holds something else.
        DeviceError: the latency is too doubtful for a baseline.
    """
    if kept.latency.doubts or kept.latency.evidence != "measured":
        raise DeviceError(
            "this latency is no baseline",
            cause="; ".join(kept.latency.notes),
            action="measure again when the device is cool and idle",
        )
    others = read(path) if path.exists() else ()
    stays = [other for other in others if (other.sha256, other.where) != (kept.sha256, kept.where)]
    text = json.dumps(asdict(Baselines(schema=SCHEMA, latencies=(*stays, kept))), indent=1) + "\n"
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as e:
        part.unlink(missing_ok=True)
        raise ConfigError(f"{path} can't be written", cause=e.strerror or str(e), action="name another file") from e


def is_kept(baseline: Path) -> bool:
    """Whether a baseline is a file of latencies rather than a model, by its first byte."""
    with baseline.open("rb") as file:
        return file.read(1) == b"{"


def compare(
    baseline: Path,
    model: Path,
    transport: Transport,
    *,
    request: RunRequest | None = None,
    timeout_s: float = 60.0,
    budget_s: float = 60.0,
    margin: float = 0.05,
    confidence: float = 0.95,
    on_block: Callable[[int, float], None] | None = None,
    max_regression: float | None = None,
) -> Comparison:
    """Hold a model on a device against the newest latency in a file that was taken there in the same way.

    Raises:
        ConfigError: the file can't be used.
        DeviceError: it holds none of this device and runtime; or the device can't be reached or can't run the model.
        ModelError: the model can't be read.
    """
    latencies, device, request = read(baseline), transport.fingerprint(), request or RunRequest()
    samples = [transport.run(model, request, timeout_s)]  # The first process says on which runtime.
    here = {"device": str(device), "runtime": samples[0].runtime}
    kept = _newest(baseline, latencies, {**here, "threads": request.threads, "delegate": request.delegate})

    def run() -> float:
        samples.append(transport.run(model, request, timeout_s))
        return samples[-1].median_us

    found = compare_kept(
        kept.latency.process_medians_us,
        run,
        budget_s=budget_s,
        margin=margin,
        confidence=confidence,
        on_block=on_block,
        max_regression=max_regression,
    )
    told = f"{baseline.name} holds {kept.model} (sha256 {kept.sha256[:12]}) of {kept.latency.measured_at}"
    found = doubted(found, samples[1:], device)
    return replace(found, notes=(*found.notes, told))


def _newest(path: Path, latencies: Sequence[Kept], here: Mapping[str, Any]) -> Kept:
    """The latency that was last measured as it is `here`."""
    fitting = [kept for kept in latencies if kept.where == here]
    if fitting:
        return max(fitting, key=lambda kept: kept.latency.measured_at)
    nearest = max(latencies, key=lambda kept: sum(kept.where[name] == here[name] for name in here), default=None)
    differs = [name for name in here if nearest and nearest.where[name] != here[name]]
    raise DeviceError(
        f"{path} is no baseline for {here['device']}, {here['runtime']}",
        cause="; ".join(f"its {name} is {nearest.where[name]}, not {here[name]}" for name in differs if nearest)
        or "it holds no latency",
        action=_SAVE_ONE.format(path=path),
    )
