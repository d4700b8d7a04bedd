"""`profile`, `devices` and `devices setup`: models on devices, and the devices themselves."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgebuild.pipeline import console
from edgebuild.pipeline.console import Narrator, safe
from edgebuild.pipeline.device_settings import LOCAL

if TYPE_CHECKING:
    from edgebuild.device_tests.facts import DeviceFacts
    from edgebuild.device_tests.instructions import Instructions
    from edgebuild.device_tests.per_operator import OperatorTable
    from edgebuild.device_tests.runtimes import RuntimeReport
    from edgebuild.pipeline.devices import Versus

_EXIT_CODES: Final = {"pass": 0, "fail": 6, "inconclusive": 8}


def profile(
    model: Path,
    *,
    device: str,
    config_path: Path,
    baseline: Path | None,
    max_regression: float,
    budget: float,
    processes: int,
    threads: int | None,
    instructions: bool,
    operators: bool,
    runtimes: str,
    wheels: Path | None,
    as_json: bool,
) -> int:
    """Measure a flatbuffer on a device, or hold it to another one, or to itself on other runtimes."""
    from edgebuild.pipeline import devices

    found = devices.named(device, devices.configured(config_path))
    if threads is not None:
        found = found.model_copy(update={"threads": threads})
    narrator = Narrator()
    with narrator.running():
        if runtimes:
            told = devices.runtimes(model, _listed(runtimes), wheels=wheels, hear=narrator.on_latency)
            return _show(told, _show_runtimes, as_json=as_json, code=8 if all(one.failure for one in told) else 0)
        if instructions:
            return _show(
                devices.instructions(model, found, hear=narrator.on_latency), _show_instructions, as_json=as_json
            )
        if operators:
            return _show(devices.operators(model, found, hear=narrator.on_latency), _show_operators, as_json=as_json)
        if baseline is not None:
            held = devices.compare(
                baseline, model, found, max_regression=max_regression, budget_s=budget, hear=narrator.on_latency
            )
            show = partial(_show_comparison, model.name, baseline.name)
            return _show(held, show, as_json=as_json, code=_EXIT_CODES[held.gate])
        profiled = devices.profile(model, found, processes=processes, hear=narrator.on_latency)
        same = devices.outputs(model, found) if found.address != LOCAL else None
    if as_json:
        console.emit(json.dumps(asdict(profiled) | {"outputs": same and asdict(same)}, indent=1))
        return 0
    console.show_profile(model.name, profiled)
    if same is not None:
        exact = "bit for bit" if same.exact else f"at most {same.max_steps:g} steps apart"
        console.stdout().print(safe(f"outputs: {exact}, {same.n} samples; {same.note}"), soft_wrap=True)
    return 0


def _listed(runtimes: str) -> tuple[str, ...]:
    return tuple(filter(None, (name.strip() for name in runtimes.split(","))))


def _show(found: Any, show: Callable[[Any], None], *, as_json: bool, code: int = 0) -> int:
    if as_json:
        console.emit(json.dumps(_finite(found), indent=1))
    else:
        show(found)
    return code


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


def _finite(found: Any) -> Any:
    """As plain data; what is infinite is not known, and JSON has no word for the former."""
    if is_dataclass(found):
        return {field.name: _finite(getattr(found, field.name)) for field in fields(found)}
    if isinstance(found, tuple | list):
        return [_finite(one) for one in found]
    if isinstance(found, Exception):
        return str(found)
    return None if found == math.inf else found


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


def _show_instructions(found: Instructions) -> None:
    out = console.stdout()
    out.print(f"{found.per_inference:,.0f} instructions an inference, repeats within {found.spread:.2%}")
    out.print(f"[dim]{safe(found.valgrind)}, {safe(found.runtime)}, {safe(found.device)}[/]", soft_wrap=True)


def _show_operators(found: OperatorTable) -> None:
    out = console.stdout()
    rows = (
        (
            "" if row.index is None else row.index if row.index == row.last else f"{row.index} to {row.last}",
            row.kind,
            row.tensor,
            f"{row.median_us:,.1f}",
            "within noise" if row.is_within_noise else f"{row.low_us:,.1f} to {row.high_us:,.1f}",
        )
        for row in found.rows
    )
    out.print(console.table("", ("#op", "operator", "tensor", "#us", "interval"), rows))
    how = "the runtime's own profiler" if found.call_us is None else "differences between beginnings of the model"
    out.print(f"[dim]by {how}; {found.whole_us:,.1f} us in all, {safe(found.runtime)}[/]", soft_wrap=True)
    for note in found.notes:
        out.print(f"[yellow]{safe(note)}[/]", soft_wrap=True)


def _show_runtimes(found: tuple[RuntimeReport, ...]) -> None:
    columns = ("runtime", "#ms", "#of the first", "outputs")
    console.stdout().print(console.table("", columns, map(_runtime_row, found)))


def _runtime_row(one: RuntimeReport) -> tuple[object, ...]:
    if one.failure is not None or one.latency is None:
        return one.requirement, "-", "-", str(one.failure)
    ratio = "1" if one.ratio is None else f"{one.ratio.median:.2f} ({one.ratio.low:.2f} to {one.ratio.high:.2f})"
    outputs = "" if one.outputs is None else f"{one.outputs.verdict}, at most {one.outputs.max_steps:g} steps apart"
    return one.requirement, f"{one.latency.median_us / 1e3:.3f}", ratio, outputs


def _show_comparison(name: str, baseline: str, held: Versus) -> None:
    found = held.comparison
    out = console.stdout()
    out.print(
        f"{safe(name)} is [bold]{found.verdict}[/] than {safe(baseline)}"
        if found.verdict in ("faster", "slower")
        else f"{safe(name)} against {safe(baseline)}: [bold]{found.verdict}[/]"
    )
    out.print(
        f"ratio {found.ratio:.3f}, {found.low:.3f} to {found.high:.3f} at {found.confidence:.0%} confidence; "
        f"{found.blocks} blocks of two processes, {found.seconds:.0f} s"
    )
    for note in found.notes:
        out.print(f"[yellow]{safe(note)}[/]", soft_wrap=True)
