"""`profile`: a model on a device, and all that can be asked of it there."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgebuild.pipeline import console
from edgebuild.pipeline.console import Narrator, safe
from edgebuild.pipeline.device_settings import LOCAL, Device
from edgebuild.pipeline.errors import ConfigError

if TYPE_CHECKING:
    from edgebuild.device_tests.instructions import CountComparison, Instructions
    from edgebuild.device_tests.latency import Latency
    from edgebuild.device_tests.per_operator import OperatorTable
    from edgebuild.device_tests.runtimes import RuntimeReport
    from edgebuild.pipeline.devices import Listener, Versus
    from edgebuild.pipeline.timing.history import Series

_EXIT_CODES: Final = {"pass": 0, "fail": 6, "inconclusive": 8}
_PROCESSES: Final = 6
# What can't be asked for together: each is an answer of its own.
_APART: Final = ("runtimes", "operators", "history", "save_baseline", "instructions")
_WITH_BASELINE: Final = ("instructions",)


def profile(model: Path, *, device: str, config_path: Path, threads: int | None, as_json: bool, **asked: Any) -> int:
    """Measure a flatbuffer on a device, or hold it to another one, or to itself on other runtimes."""
    from edgebuild.pipeline import devices

    _require_one_question(asked)
    if asked["history"]:
        return _history(model, asked["history"], as_json=as_json)
    found = devices.named(device, devices.configured(config_path))
    if threads is not None:
        found = found.model_copy(update={"threads": threads})
    narrator = Narrator()
    with narrator.running():
        answer = _answer(model, found, narrator.listener, asked)
    if as_json:
        console.emit(json.dumps(answer.plain, indent=1))
    else:
        answer.show()
    return answer.code


def _require_one_question(asked: Mapping[str, Any]) -> None:
    chosen = [name for name in _APART if asked[name]]
    if asked["baseline"]:
        chosen = ["baseline", *(name for name in chosen if name not in _WITH_BASELINE)]
    if len(chosen) > 1:
        options = " and ".join(f"--{name.replace('_', '-')}" for name in chosen)
        raise ConfigError(f"{options} are two questions", action="ask one after the other")


class _Answer:
    """What was found, for a person or for a script, with the exit code."""

    def __init__(self, found: Any, show: Callable[[], None], code: int = 0) -> None:
        self.plain, self.show, self.code = _finite(found), show, code


def _answer(model: Path, device: Device, listener: Listener, asked: Mapping[str, Any]) -> _Answer:
    from edgebuild.pipeline import devices

    if asked["runtimes"]:
        names = tuple(filter(None, (name.strip() for name in asked["runtimes"].split(","))))
        told = devices.runtimes(model, names, wheels=asked["wheels"], listener=listener)
        return _Answer(told, lambda: _show_runtimes(told), 8 if all(one.failure for one in told) else 0)
    if asked["instructions"]:
        return _counted(model, device, listener, asked)
    if asked["operators"]:
        table = devices.operators(model, device, listener)
        return _Answer(table, lambda: _show_operators(table))
    if asked["baseline"] is not None:
        held = devices.compare(
            asked["baseline"],
            model,
            device,
            max_regression=asked["max_regression"],
            budget_s=asked["budget"],
            listener=listener,
        )
        return _Answer(held, lambda: _show_comparison(model, asked["baseline"], held), _EXIT_CODES[held.gate])
    return _measured(model, device, listener, asked)


def _measured(model: Path, device: Device, listener: Listener, asked: Mapping[str, Any]) -> _Answer:
    from edgebuild.pipeline import devices
    from edgebuild.pipeline.timing import kept

    keep: Path | None = asked["save_baseline"]
    processes = asked["processes"] or (_PROCESSES if keep is None else kept.PROCESSES)
    profiled = devices.profile(model, device, processes=processes, listener=listener)
    same = devices.outputs(model, device, listener) if device.address != LOCAL else None
    _remember(model, profiled.latency, keep)

    def show() -> None:
        console.show_profile(model.name, profiled)
        if same is not None:
            exact = "bit for bit" if same.exact else f"at most {same.max_steps:g} steps apart"
            console.stdout().print(safe(f"outputs: {exact}, {same.n} samples; {same.note}"), soft_wrap=True)
        if keep is not None:
            console.stdout().print(safe(f"kept as a baseline in {keep}"), soft_wrap=True)

    return _Answer(asdict(profiled) | {"outputs": same and asdict(same)}, show)


def _remember(model: Path, latency: Latency, keep: Path | None) -> None:
    from edgebuild.pipeline.storage.digests import digest_file
    from edgebuild.pipeline.storage.location import default_root
    from edgebuild.pipeline.timing import history, kept

    digest = digest_file(model)
    history.add(default_root(), history.Record(path=history.place(model), sha256=digest, latency=latency))
    if keep is not None:
        kept.save(keep, kept.Kept(model=model.name, sha256=digest, latency=latency))


def _counted(model: Path, device: Device, listener: Listener, asked: Mapping[str, Any]) -> _Answer:
    from edgebuild.device_tests import instructions
    from edgebuild.pipeline import devices

    if asked["baseline"] is None:
        found = devices.count(model, device, listener)
        return _Answer(found, lambda: _show_instructions(found))
    both = devices.count_both(asked["baseline"], model, device, listener)
    gate = instructions.against(both.found, both.baseline, asked["max_regression"])
    return _Answer({"comparison": both, "gate": gate}, lambda: _show_counts(both, asked["baseline"]), _EXIT_CODES[gate])


def _history(model: Path, page: Path, *, as_json: bool) -> int:
    from edgebuild.pipeline.storage.location import default_root
    from edgebuild.pipeline.timing import history, history_page

    found = history.of(default_root(), model)
    if not found:
        raise ConfigError(
            f"nothing was measured of {model} yet", action="measure it: edgebuild profile, or a build of it"
        )
    history_page.write(page, model, found)
    if as_json:
        console.emit(json.dumps([asdict(series) for series in found], indent=1))
    else:
        _show_history(found)
        console.stdout().print(safe(f"with a plot in {page}"), soft_wrap=True)
    return 0


def _finite(found: Any) -> Any:
    """As plain data; what is infinite is not known, and JSON has no word for the former."""
    if is_dataclass(found):
        return {field.name: _finite(getattr(found, field.name)) for field in fields(found)}
    if isinstance(found, dict):
        return {name: _finite(one) for name, one in found.items()}
    if isinstance(found, tuple | list):
        return [_finite(one) for one in found]
    if isinstance(found, Exception):
        return str(found)
    return None if found == math.inf else found


def _show_history(found: tuple[Series, ...]) -> None:
    out = console.stdout()
    for series in found:
        title = f"{series.path} on {series.device}, {series.runtime}, threads {series.threads}, {series.delegate}"
        out.print(console.table(title, ("time", "#ms", "interval", "sha256", "doubts"), _history_rows(series)))


def _history_rows(series: Series) -> Iterator[tuple[object, ...]]:
    for record in series.records:
        latency = record.latency
        interval = f"{latency.low_us / 1e3:.4g} to {latency.high_us / 1e3:.4g}"
        doubts = "; ".join(latency.doubts)
        yield latency.measured_at, f"{latency.median_us / 1e3:.4g}", interval, record.sha256[:12], doubts


def _show_counts(both: CountComparison, baseline: Path) -> None:
    _show_instructions(both.found)
    console.stdout().print(
        safe(f"{both.ratio - 1:+.2%} against the {both.baseline.per_inference:,.0f} of {baseline.name}"), soft_wrap=True
    )


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


def _show_comparison(model: Path, baseline: Path, held: Versus) -> None:
    found, name, other = held.comparison, safe(model.name), safe(baseline.name)
    out = console.stdout()
    out.print(
        f"{name} is [bold]{found.verdict}[/] than {other}"
        if found.verdict in ("faster", "slower")
        else f"{name} against {other}: [bold]{found.verdict}[/]"
    )
    how = f"{found.blocks} processes now, {len(found.a_us)} then" if found.kept else f"{found.blocks} blocks of two"
    out.print(
        f"ratio {found.ratio:.3f}, {found.low:.3f} to {found.high:.3f} at {found.confidence:.0%} confidence; {how}, "
        f"{found.seconds:.0f} s"
    )
    for note in found.notes:
        out.print(f"[yellow]{safe(note)}[/]", soft_wrap=True)
