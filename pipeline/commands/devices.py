"""`devices` and `devices setup`: what there is to measure on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgebuild.calibration.errors import Failure
from edgebuild.pipeline import console
from edgebuild.pipeline.console import Narrator, safe
from edgebuild.pipeline.errors import exit_code

if TYPE_CHECKING:
    from edgebuild.device_tests.facts import DeviceFacts


def devices(names: tuple[str, ...], *, config_path: Path, as_json: bool) -> int:
    """Look at the devices that are named, or at all of the configuration; 8 where one can't be reached."""
    from edgebuild.pipeline import devices as found

    narrator = console.quiet_unless_terminal()
    with narrator.running():
        seen = found.look(names, found.configured(config_path))
    if as_json:
        console.emit(json.dumps({name: _plain(facts) for name, facts in seen.items()}, indent=1))
    else:
        _show_devices(seen)
    return min((exit_code(facts) for facts in seen.values() if isinstance(facts, Failure)), default=0)


def setup(name: str, *, config_path: Path, wheels: Path | None, requirements: tuple[str, ...]) -> int:
    """Give a device its private environment."""
    from edgebuild.pipeline import devices as found

    device = found.named(name, found.configured(config_path))
    narrator = Narrator()
    narrator.say(f"look for a runtime for {device.address}, and put it there")
    with narrator.running():
        runtime = found.setup(device, wheels=wheels, requirements=requirements, hear=narrator.say)
    console.stdout().print(safe(f"{device.address}: {runtime}"), soft_wrap=True)
    return 0


def _plain(facts: DeviceFacts | Failure) -> dict[str, Any]:
    return {"error": str(facts)} if isinstance(facts, Failure) else asdict(facts)


def _show_devices(seen: Mapping[str, DeviceFacts | Failure]) -> None:
    out = console.stdout()
    for name, facts in seen.items():
        if isinstance(facts, Failure):
            out.print(f"[red]{safe(name)}[/]: {safe('; '.join(str(facts).splitlines()))}", soft_wrap=True)
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
