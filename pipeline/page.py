"""`report.html`: the report for a person, as one file that works offline, without JavaScript, and on paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

from edgebuild.device_tests.latency import Latency
from edgebuild.pipeline import firmware_report, ledger
from edgebuild.pipeline.firmware_report import FirmwareReport
from edgebuild.pipeline.fitting.records import mapped, shipped
from edgebuild.pipeline.report import Entry, FailureReport, NoAgreement, Report, TargetReport
from edgebuild.pipeline.timed import NoLatency
from edgebuild.targets.evidence import Evidence, Figure, measured, unavailable
from edgebuild.targets.target import Memory

if TYPE_CHECKING:
    from jinja2 import Environment

# What each code of the one table in `errors` means to somebody who reads no table.
EXIT_WORDS: Final[Mapping[int, str]] = {
    0: "every target was built and every gate passed",
    1: "a fault of edgebuild's own",
    2: "the configuration or the data can't be used",
    3: "the model can't be read, converted or run",
    4: "a metric or agreement gate did not pass",
    5: "a size or memory gate did not pass",
    6: "a latency gate did not pass",
    7: "a placement gate did not pass",
    8: "a device could not be reached, or its measurement is inconclusive",
    9: "a tool is missing",
    130: "interrupted",
}
EVIDENCE_WORDS: Final[Mapping[Evidence, str]] = {
    "measured": "taken from the thing itself: counted in the file, or timed on the device that is named.",
    "simulated": "taken from the target's own software on another machine. The device can differ.",
    "predicted": "derived from published rules or numbers. Nothing was run.",
    "unavailable": "not known; the reason stands beside it. A gate on it is inconclusive and does not pass.",
}
GATED_ROWS: Final[Mapping[str, str]] = {
    "agreement": "relative_rmse",
    "max_metric_drop": "metric_drop",
    "min_metric": "metric_target",
    "max_size_kib": "size_bytes",
    "max_arena_kib": "arena_bytes",
    "max_flash_kib": "flash_bytes",
    "min_mapped": "mapped_share",
    "max_latency_ms": "median_us",
    "max_ms": "median_us",
    "max_regression": "median_us",
    "max_cycles": "cycles",
    "max_sram_kib": "sram_bytes",
    "max_cpu_operators": "cpu_operators",
    "package_arena_kib": "arena_bytes",
    "max_instructions": "instructions",
    "max_growth": "instructions",
}
COUNTED: Final = ("max_cycles", "max_instructions", "max_growth")
SUMMARY: Final = (
    "size_bytes",
    "gzip_bytes",
    "metric_float",
    "metric_target",
    "metric_drop",
    "relative_rmse",
    "top1",
    "mapped_share",
    "arena_bytes",
    "median_us",
)
PLOT_WIDTH: Final = 320.0  # Of the SVG's own units: about one a pixel on a phone, so that text stays readable there.


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure in words: `text` is its value with its unit, `extra` what belongs beside it, `meaning` what it is."""

    label: str
    text: str
    extra: str
    meaning: str
    evidence: Evidence
    note: str


def render(report: Report) -> str:
    """The whole page; equal reports give equal text."""
    template = environment().get_template("page.html")
    report = replace(report, targets={name: _with_all_parts(target) for name, target in report.targets.items()})
    groups = {name: row_groups(target) for name, target in report.targets.items()}
    return template.render(
        report=report,
        failures=targets_by_failure(report),
        groups=groups,
        rows={name: dict(chain.from_iterable(map(dict.items, by.values()))) for name, by in groups.items()},
        summary=SUMMARY,
        gated_rows=GATED_ROWS,
        exit_words=EXIT_WORDS,
        evidence_words=EVIDENCE_WORDS,
        metric_range=metric_range(report),
        scale=scale,
        plot_width=PLOT_WIDTH,
        number=number_text,
        gate_number=gate_text,
        count=count_text,
        duration=duration_text,
        share=share_text,
        ledger_rows=ledger_rows,
        idle_line=ledger.idle_line,
        fall_lines=ledger.fall_lines,
        sought=ledger.sought,
        firmware_lines=firmware_report.lines,
    )


def environment() -> Environment:
    """Where our pages' templates are found. Names in models are other people's: nothing reaches a page unescaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def row_groups(target: TargetReport) -> dict[str, dict[str, Row]]:
    """Every figure of a target by its name in `report.json`, in the groups and the order they are read in."""
    return {
        "File": _file_rows(target),
        "Quality": _metric_rows(target) | _agreement_rows(target),
        "On the device": _device_rows(target) | _firmware_rows(target.firmware) | _latency_rows(target.latency),
    }


def ledger_rows(entry: Entry) -> dict[str, Row]:
    """The figures of an artifact after one step, by the column they stand in."""
    m = entry.metric
    metric = Figure(value=m.target, evidence=m.evidence, note=m.note)
    interval = f"{number_text(m.interval[0])} to {number_text(m.interval[1])}" if m.interval else ""
    channel = max((weights.unique_per_channel for weights in entry.weights), default=None)
    values = unavailable("there is no kernel") if channel is None else measured(channel)
    return {
        "file": _row(measured(entry.size_bytes), "", count_text, ""),
        "gzip": _row(measured(entry.gzip_bytes), "", count_text, ""),
        "entropy": _row(measured(entry.entropy_bytes), "", count_text, ""),
        "zeros": _row(entry.sparsity, "", share_text, ""),
        "values": _row(values, "", count_text, ""),
        "metric": _row(metric, "", number_text, "", interval),
        "ram": _row(entry.arena_bytes, "", size_text, ""),
        "latency": _latency_rows(entry.latency)["median_us"],
    }


def _with_all_parts(target: TargetReport) -> TargetReport:
    """A target whose size is what ships."""
    return replace(target, size_bytes=shipped(target.size_bytes, target.cut))


def targets_by_failure(report: Report) -> dict[FailureReport, list[str]]:
    """Targets under what stopped them: a model that can't be read stops all of them, and is told once."""
    found: dict[FailureReport, list[str]] = {}
    for name, failure in report.failures.items():
        found.setdefault(failure, []).append(name)
    return found


def metric_range(report: Report) -> tuple[float, float] | None:
    """The metric plot's ends, or None where no metric is known.

    They span a tenth of the metric at least: a single sample's difference must not look like a gulf.
    """
    metrics = [target.metric for target in report.targets.values()]
    values = [value for metric in metrics for value in (metric.float, metric.target) if value is not None]
    if not values:
        return None
    low, high = min(values), max(values)
    margin = (max(high - low, 0.1 * max(abs(low), abs(high))) or 1.0) * 0.6
    middle = (low + high) / 2
    return middle - margin, min(middle + margin, 1.0) if high <= 1 else middle + margin


def scale(low: float, high: float) -> Callable[[float], str]:
    """A function from a value to its place on a plot that runs from `low` to `high`, in the SVG's units."""
    span = (high - low) or 1.0
    return lambda value: f"{(value - low) / span * PLOT_WIDTH:.1f}"


def number_text(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def count_text(value: float) -> str:
    """A whole number with its thousands apart."""
    return f"{value:,.0f}"


def share_text(value: float) -> str:
    """A share from 0 to 1 as a percentage that says 100 only where nothing is missing."""
    return f"{value if value == 1 else min(value, 0.999):.1%}"


def size_text(size_bytes: float) -> str:
    """Bytes in the largest unit that leaves a figure before the point."""
    if size_bytes < 1024:
        return f"{size_bytes:.0f} B"
    return f"{size_bytes / 2**10:,.1f} KiB" if size_bytes < 2**20 else f"{size_bytes / 2**20:,.2f} MiB"


def duration_text(time_us: float) -> str:
    """Microseconds, or milliseconds from one on."""
    return f"{time_us:.1f} µs" if time_us < 1e3 else f"{time_us / 1e3:,.2f} ms"


def drop_text(drop: float) -> str:
    """A drop with its sign; 0 has none."""
    return f"{drop:+.3g}" if drop else "0"


def gate_text(gate: str, value: float) -> str:
    """A gate's limit or value in the unit its name ends in."""
    unit = {"kib": " KiB", "ms": " ms"}.get(gate.rpartition("_")[2], "")
    return count_text(value) if gate in COUNTED else number_text(value) + unit


def _file_rows(t: TargetReport) -> dict[str, Row]:
    parts = [part.file for part in t.cut.parts] if t.cut else []
    files = " and ".join(parts) or "model.tflite"
    download = f"what a download costs{' of model.tflite alone' if parts else ''}"
    many = "distinct values stored in the weight tensor that has most"
    return {
        "size_bytes": _row(t.size_bytes, "Size", size_text, f"{files} on disk", _bytes(t.size_bytes)),
        "gzip_bytes": _row(t.gzip_bytes, "Gzipped", size_text, download, _bytes(t.gzip_bytes)),
        "operators": _row(t.operators, "Operators", count_text, "in all subgraphs"),
        "parameters": _row(t.parameters, "Parameters", count_text, "elements of weight tensors, biases included"),
        "sparsity": _row(t.sparsity, "Sparsity", share_text, "weights that are exactly zero"),
        "unique_weights": _row(t.unique_weights, "Unique weights", count_text, many),
    }


def _metric_rows(t: TargetReport) -> dict[str, Row]:
    m = t.metric
    samples = f"on {m.n:,} evaluation samples; {'higher' if m.higher_is_better else 'lower'} is better"
    side = "" if not m.drop else "worse" if m.drop > 0 else "better"
    float_, target, drop = (
        unavailable(m.note) if value is None else Figure(value=value, evidence=m.evidence, note=m.note)
        for value in (m.float, m.target, m.drop)
    )
    return {
        "metric_float": _row(float_, f"{m.name}, {'source' if t.ledger else 'float'} model", number_text, samples),
        "metric_target": _row(target, f"{m.name}, artifact", number_text, samples),
        "metric_drop": _row(drop, "Drop", drop_text, "how much worse the artifact is; below zero it is better", side),
    }


def _agreement_rows(t: TargetReport) -> dict[str, Row]:
    a = t.agreement
    if isinstance(a, NoAgreement):
        rmse = cosine = largest = top1 = unavailable(a.note)
        samples = ""
    else:
        rmse, cosine, largest = (Figure(value=v, evidence=a.evidence) for v in (a.relative_rmse, a.cosine, a.max_abs))
        classes = a.top1 is not None
        top1 = Figure(value=a.top1, evidence=a.evidence) if classes else unavailable("no output is a list of classes")
        samples = f"; on {a.n:,} {a.data} samples"
    meaning = (
        "error over the spread of the outputs of the float model that was converted, the compressed one where there is "
        f"one: 0 is exact, 1 no better than a constant{samples}"
    )
    return {
        "relative_rmse": _row(rmse, "Relative RMSE", number_text, meaning),
        "top1": _row(top1, "Top-1 agreement", share_text, f"samples whose top class is that float model's{samples}"),
        "cosine": _row(cosine, "Cosine", lambda x: f"{x:.6f}", "1 where outputs point the same way"),
        "max_abs": _row(largest, "Largest error", number_text, "in the output's own unit"),
    }


def _device_rows(t: TargetReport) -> dict[str, Row]:
    p, arena, flash = t.placement, t.memory.arena_bytes, t.memory.flash_bytes
    share, count = Figure(value=p.mapped_share, evidence=p.evidence), mapped(p, t.cut)
    return {
        "mapped_share": _row(share, "Mapped", share_text, f"operators that {p.accelerator} takes", count),
        "arena_bytes": _row(arena, "Arena", size_text, "working memory for tensors", _bytes(arena)),
        "flash_bytes": _row(flash, "Flash", size_text, "program storage", _bytes(flash)),
        **_accelerator_rows(t.memory),
    }


def _accelerator_rows(memory: Memory) -> dict[str, Row]:
    """Of an accelerator with memory of its own."""
    if memory.on_chip_bytes is None or memory.streamed_bytes is None:
        return {}
    on_chip, streamed = memory.on_chip_bytes, memory.streamed_bytes
    return {
        "on_chip_bytes": _row(on_chip, "On chip", size_text, "parameters that stay on the chip", _bytes(on_chip)),
        "streamed_bytes": _row(streamed, "Streamed", size_text, "parameters sent at every inference", _bytes(streamed)),
    }


def _firmware_rows(found: FirmwareReport | None) -> dict[str, Row]:
    """Of an Ethos-U as its compiler estimates it, and of a run on an emulated core."""
    if found is None:
        return {}
    rows: dict[str, Row] = {}
    if found.ethos_u is not None:
        cycles, sram, left = map(_estimate, firmware_report.npu_figures(found.ethos_u))
        rows = {
            "cycles": _row(cycles, "Cycles", count_text, "one inference on the NPU alone"),
            "sram_bytes": _row(sram, "SRAM", size_text, "of the NPU and its arena", _bytes(sram)),
            "cpu_operators": _row(left, "Operators on the core", count_text, "of those that Vela made of the model's"),
        }
    if found.emulation is not None:
        counted = found.emulation.instructions
        instructions = (
            unavailable("there is no test vector")
            if counted is None
            else Figure(value=counted, evidence=found.emulation.evidence)
        )
        where = f"one inference on {found.emulation.machine}; no time follows from it"
        rows["instructions"] = _row(instructions, "Instructions", count_text, where)
    return rows


def _estimate(value: float) -> Figure:
    return Figure(value=value, evidence="predicted", note="Vela's estimate")


def _latency_rows(found: Latency | NoLatency) -> dict[str, Row]:
    if isinstance(found, NoLatency):
        return {"median_us": _row(unavailable(found.note), "Latency", duration_text, "one inference")}
    median, first = (Figure(value=v, evidence=found.evidence) for v in (found.median_us, found.first_us))
    median = replace(median, note="; ".join(found.notes))
    rss = unavailable("the device keeps no such figure")
    if found.peak_rss_kib is not None:
        rss = Figure(value=found.peak_rss_kib * 1024, evidence=found.evidence)
    interval = f"{duration_text(found.low_us)} to {duration_text(found.high_us)}"
    meaning = f"one inference: the median over fresh processes and its interval at {found.confidence:.1%} confidence"
    return {
        "median_us": _row(median, "Latency", duration_text, meaning, interval),
        "first_us": _row(first, "First inference", duration_text, "of a fresh process"),
        "peak_rss_kib": _row(rss, "Peak memory", size_text, "of the whole process, runtime included"),
    }


def _row(figure: Figure, label: str, text: Callable[[float], str], meaning: str, extra: str = "") -> Row:
    return Row(
        label=label,
        text="–" if figure.value is None else text(figure.value),  # noqa: RUF001 - a dash, as tables print nothing
        extra="" if figure.value is None else extra,
        meaning=meaning,
        evidence=figure.evidence,
        note=figure.note,
    )


def _bytes(figure: Figure) -> str:
    return "" if figure.value is None else f"{figure.value:,} B"
