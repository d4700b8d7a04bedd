"""`devices` and `devices setup`: what there is to measure on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgebuild.pipeline import console
from edgebuild.pipeline.console import Narrator, safe

if TYPE_CHECKING:
    from edgebuild.device_tests.facts import DeviceFacts


def devices(names: tuple[str, ...], *, config_path: Path, as_json: bool) -> int:
    """Look at the devices that are named, or at all of the configuration; 8 where one can't be reached."""
    from edgebuild.pipeline import devices as found

    seen = found.look(names, found.configured(config_path))
    if as_json:
        console.emit(json.dumps({name: _plain(facts) for name, facts in seen.items()}, indent=1))
    else:
        _show_devices(seen)
    return 8 if any(isinstance(facts, Exception) for facts in seen.values()) else 0


def setup(name: str, *, config_path: Path, wheels: Path | None, requirements: tuple[str, ...]) -> int:
    """Give a device its private environment."""
    from edgebuild.pipeline import devices as found

    device = found.named(name, found.configured(config_path))
    narrator = Narrator()
    with narrator.running():
        runtime = found.setup(device, wheels=wheels, requirements=requirements, hear=narrator.say)
    console.stdout().print(safe(f"{device.address}: {runtime}"), soft_wrap=True)
    return 0


def _plain(facts: DeviceFacts | Exception) -> dict[str, Any]:
    return {"error": str(facts)} if isinstance(facts, Exception) else asdict(facts)


def _show_devices(seen: Mapping[str, DeviceFacts | Exception]) -> None:
    out = console.stdout()
    for name, facts in seen.items():
        if isinstance(facts, Exception):
            out.print(f"[red]{safe(name)}[/]: {safe(str(facts))}", soft_wrap=True)
            continue
        out.print(f"[bold]{safe(name)}[/]: {safe(_line(facts))}", soft_wrap=True)


def _line(facts: DeviceFacts) -> str:
    """What one would ask of a device first."""
    mhz = f" at {facts.frequency_khz / 1e3:,.0f} MHz" if facts.frequency_khz else ""
    parts = [
        f"{facts.machine}, {facts.cpu_model}, {facts.cores or '?'} cores{mhz}",
        f"governor {facts.governor}" if facts.governor else "",
        f"{facts.temperature_c:.0f} degrees" if facts.temperature_c is not None else "",
        f"Linux {facts.kernel}",
        f"Python {', '.join(facts.pythons)}" if facts.pythons else "no Python",
        facts.runtime or "no TFLite runtime: `edgebuild devices setup` brings one",
        f"delegates {', '.join(facts.delegates)}" if facts.delegates else "",
        f"in use by {facts.holder}" if facts.holder else "",
    ]
    return "; ".join(part for part in parts if part)
