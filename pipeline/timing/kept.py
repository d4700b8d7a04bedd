"""Latencies that were kept in a file as baselines: one for each device, runtime and model.

Such a file is a project's own, made to lie beside its configuration: `edgebuild profile --save-baseline` writes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Final

from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.latency import Latency, Setup
from edgebuild.device_tests.transport import RunRequest, Transport
from edgebuild.device_tests.versus import Comparison, Terms, compare_kept, doubted
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.storage.locks import held

SCHEMA: Final = "edgebuild-baseline/1"
_SAVE_ONE: Final = "measure one there: edgebuild profile OLD.tflite --save-baseline {path}"
_TFLITE: Final = b"TFL3"  # From the fifth byte on. ref: TFLite's schema.fbs, file_identifier
# With so many, two equal models whose processes differ by 3 % are told to be within 5 % in 99 of 100 comparisons (400
# were simulated); with twenty, in 72.
PROCESSES: Final = 40
FEWEST: Final = 7  # Of fewer, no interval of a median holds with 97.5 %, which a quotient of two asks of each.


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The latency of the model with this digest, and the name of its file when it was measured."""

    model: str
    sha256: str
    latency: Latency


@dataclass(frozen=True, slots=True, kw_only=True)
class Baselines:
    """The whole file."""

    schema: str
    latencies: tuple[Kept, ...]


def is_kept(baseline: Path) -> bool:
    """Whether a baseline is a file of latencies rather than a model.

    Raises:
        ConfigError: it can't be read.
    """
    try:
        with baseline.open("rb") as file:
            return file.read(8)[4:] != _TFLITE
    except OSError as e:
        raise ConfigError(f"{baseline} can't be read", cause=e.strerror or str(e), action="see its permissions") from e


def read(path: Path) -> tuple[Kept, ...]:
    """The latencies that a file holds.

    Raises:
        ConfigError: it can't be read, or is no such file.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        found = TypeAdapter(Baselines).validate_json(path.read_bytes())
    except ValidationError as e:
        (first, *_) = e.errors()
        place = ".".join(map(str, first["loc"]))
        raise _unusable(path, f"{place}: {first['msg']}" if place else first["msg"]) from e
    except OSError as e:
        raise _unusable(path, e.strerror or str(e)) from e
    if found.schema != SCHEMA:
        raise _unusable(path, f"it is of {found.schema}, not of {SCHEMA}")
    for kept in found.latencies:
        medians = kept.latency.process_medians_us
        if not medians or not all(math.isfinite(us) and us > 0 for us in medians):
            raise _unusable(path, f"the latency of {kept.model} is no measurement")
    return found.latencies


def require_room(path: Path, processes: int) -> None:
    """Refuse, before anything is measured, what `save` would refuse after it.

    Raises:
        ConfigError: the file holds something else, or so few processes make no baseline.
    """
    if path.is_file():
        read(path)
    elif path.exists():
        raise ConfigError(f"{path} is no file", action="name one to keep the latency in")
    if processes < FEWEST:
        raise ConfigError(
            f"{processes} processes make no baseline",
            cause=f"no verdict can rest on fewer than {FEWEST}",
            action=f"leave --processes out, which takes {PROCESSES}",
        )


def save(path: Path, kept: Kept) -> None:
    """Put a latency into a file, in place of an older one of the same model on the same device and runtime.

    Raises:
        ConfigError: the file can't be written, or holds something else.
        DeviceError: the latency is too doubtful for a baseline.
    """
    latency = kept.latency
    if latency.doubts or latency.evidence != "measured":
        raise DeviceError(
            "this latency is no baseline",
            cause="; ".join(latency.notes),
            action="measure again when the device is cool and idle" if latency.doubts else "measure on a real device",
        )
    part = path.with_name(f"{path.name}.part")
    try:
        with held(path.with_name(f"{path.name}.lock")):
            others = read(path) if path.exists() else ()
            stays = [one for one in others if (one.sha256, one.latency.setup) != (kept.sha256, latency.setup)]
            text = json.dumps(asdict(Baselines(schema=SCHEMA, latencies=(*stays, kept))), indent=1) + "\n"
            part.write_text(text, encoding="utf-8")
            part.replace(path)
    except OSError as e:
        part.unlink(missing_ok=True)
        raise ConfigError(f"{path} can't be written", cause=e.strerror or str(e), action="name another file") from e


def compare(
    baseline: Path,
    model: Path,
    transport: Transport,
    terms: Terms,
    *,
    request: RunRequest | None = None,
    timeout_s: float = 60.0,
    on_block: Callable[[int, float], None] | None = None,
) -> Comparison:
    """Hold a model on a device against the newest latency in a file that was taken there in the same way.

    Raises:
        ConfigError: the file can't be used.
        DeviceError: it holds none of this device and runtime; or the device can't be reached or can't run the model.
        ModelError: the model can't be read.
    """
    latencies, device, request = read(baseline), transport.fingerprint(), request or RunRequest()
    samples = [transport.run(model, request, timeout_s)]  # The first process says on which runtime.
    kept = _newest(baseline, latencies, Setup.of(device, samples[0].runtime, request))

    def run() -> float:
        samples.append(transport.run(model, request, timeout_s))
        return samples[-1].median_us

    found = compare_kept(kept.latency.process_medians_us, run, terms, on_block=on_block)
    told = f"{baseline.name} holds {kept.model} (sha256 {kept.sha256[:12]}) of {kept.latency.measured_at}; what "
    told += "has changed on the device since then is in the ratio, too"
    found = doubted(found, samples[1:], device)
    return replace(found, notes=(*found.notes, told))


def _newest(path: Path, latencies: Sequence[Kept], here: Setup) -> Kept:
    """The latency that was last measured as it is `here`."""
    fitting = [kept for kept in latencies if kept.latency.setup == here]
    if fitting:
        return max(fitting, key=lambda kept: kept.latency.measured_at)
    differences = sorted((_differences(kept.latency.setup, here) for kept in latencies), key=len)
    raise DeviceError(
        f"{path} is no baseline for {here.device}, {here.runtime}",
        cause="; ".join(differences[0]) if differences else "it holds no latency",
        action=_SAVE_ONE.format(path=path),
    )


def _differences(there: Setup, here: Setup) -> list[str]:
    values = ((field.name, getattr(there, field.name), getattr(here, field.name)) for field in fields(Setup))
    return [
        f"its {name.replace('_', ' ')} is {old or 'none'}, not {new or 'none'}"
        for name, old, new in values
        if old != new
    ]


def _unusable(path: Path, cause: str) -> ConfigError:
    return ConfigError(
        f"{path} is neither a .tflite nor a file of baselines",
        cause=cause,
        action="name one that `edgebuild profile OLD.tflite --save-baseline FILE` wrote, or a new one to write",
    )
