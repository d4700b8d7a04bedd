"""`report.html` as a person gets it: made-up reports, rendered, and read back with an HTML parser."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass, field, fields, replace
from html.parser import HTMLParser
from typing import TypeVar, get_args
from xml.etree import ElementTree as ET

import pytest

from edgebuild.device_tests.latency import Latency
from edgebuild.device_tests.outputs import DeviceAgreement
from edgebuild.pipeline import gates, page
from edgebuild.pipeline.errors import EXIT_CODES, GATE_EXIT_CODES, INTERRUPTED, OK
from edgebuild.pipeline.report import (
    SCHEMA,
    CompressionReport,
    FailureReport,
    MeasuredAgreement,
    MetricFigure,
    ModelReport,
    Report,
    StepFindings,
    TargetReport,
)
from edgebuild.pipeline.settings import Gates
from edgebuild.pipeline.target_settings import TargetSettings
from edgebuild.pipeline.timed import FloatTwin, NoLatency
from edgebuild.targets.evidence import Evidence, Figure, measured, unavailable
from edgebuild.targets.placement import Placement, Unmapped
from edgebuild.targets.target import Memory

ATTACK = "<script>alert('x')</script>"
VOID = {"meta", "br", "link", "img", "input", "hr"}
T = TypeVar("T")

LATENCY = Latency(
    median_us=1500.0,
    low_us=1400.0,
    high_us=1700.0,
    spread=0.2,
    confidence=0.96875,
    processes=6,
    runs=600,
    threads=1,
    runtime="tflite_runtime 2.14.0",
    device="aarch64, Test Board, 4 cores",
    process_medians_us=(1400.0, 1450.0, 1490.0, 1510.0, 1600.0, 1700.0),
    first_us=2100.0,
    peak_rss_kib=40_960,
    load_average=0.3,
    measured_at="2025-01-01T00:00:00+00:00",
    notes=("the device was busy: load average 9.0 on 4 cores",),
)
METRIC = MetricFigure(name="top1", higher_is_better=True, float=0.91, target=0.9, drop=0.01, n=300, evidence="measured")
NO_METRIC = replace(METRIC, float=None, target=None, drop=None, n=0, evidence="unavailable", note="no evaluation data")
PLACEMENT = Placement(
    accelerator="gpu delegate",
    fallback="cpu",
    operators=4,
    mapped=3,
    unmapped=(
        Unmapped(operator=2, kind="GELU", tensor="block/gelu", reason="no kernel", suggestion="swap for HARD_SWISH"),
    ),
    evidence="predicted",
    source="https://example.com/rules.cc",
)
AGREEMENT = MeasuredAgreement(
    max_abs=0.2, cosine=0.999, relative_rmse=0.05, top1=0.98, n=300, data="evaluation", evidence="measured"
)
TARGET = TargetReport(
    artifact="gpu/model.tflite",
    files=("gpu/model.tflite", "gpu/placement.json"),
    sha256="c0ffee" * 10 + "abcd",
    precision="int8",
    io="float32",
    route="shared calibration",
    calibration_samples=200,
    notes=("calibration: only 3 samples",),
    size_bytes=measured(45_216),
    gzip_bytes=measured(30_585),
    operators=measured(4),
    parameters=measured(22_604),
    sparsity=measured(0.25),
    unique_weights=measured(255),
    agreement=AGREEMENT,
    metric=METRIC,
    placement=PLACEMENT,
    memory=Memory(
        arena_bytes=Figure(value=24_224, evidence="simulated", note="leave 15 % of margin"),
        flash_bytes=unavailable("not a flash-resident target"),
    ),
    latency=LATENCY,
    gates=(),
)
MODEL = ModelReport(
    path="kws/saved_model", sha256="0123456789abcdef" * 4, source_format="SavedModel", parameters=7, macs=9
)
FAILURE = FailureReport(what="the model can't be run", cause="GELU has no kernel", action="use RELU6", exit_code=3)
ALL_GATES = Gates(max_metric_drop=0.005, min_metric=0.8)
ALL_LIMITS = TargetSettings(
    max_size_kib=40.0, max_latency_ms=1.6, max_arena_kib=64.0, max_flash_kib=128.0, min_mapped=0.95
)


def judged(target: TargetReport) -> TargetReport:
    """The target held against every gate there is."""
    names = ("size_bytes", "agreement", "metric", "placement", "memory", "latency")
    figures = {name: getattr(target, name) for name in names}
    return replace(target, gates=gates.judge(target.precision, ALL_LIMITS, ALL_GATES, **figures))


BARE = replace(
    TARGET,
    metric=NO_METRIC,
    latency=NoLatency(note="no device is named for mcu"),
    agreement=replace(AGREEMENT, top1=None),
    memory=Memory(arena_bytes=unavailable("nobody knows"), flash_bytes=measured(45_216)),
)
REPORT = Report(
    schema=SCHEMA,
    edgebuild="0.1.0",
    exit_code=4,
    model=MODEL,
    targets={"gpu": judged(TARGET), "mcu": judged(BARE)},
    failures={"edgetpu": FAILURE},
)
NOTHING = replace(REPORT, exit_code=3, model=None, targets={}, failures={"cpu": FAILURE, "mcu": FAILURE})


@dataclass
class Shown(HTMLParser):
    """What a page holds: every tag in its section, every figure as (section, name, its words), all text."""

    page: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    figures: list[tuple[str, str, str]] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[str] = []
        self._section = ""
        self._figure: tuple[str, int] | None = None
        self._words = ""
        self.feed(self.page)
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "section":
            self._section = given.get("id") or "summary"
        if "data-figure" in given:
            self._figure, self._words = (str(given["data-figure"]), len(self._open)), ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if self._figure and self._figure[1] == len(self._open):
            self.figures.append((self._section, self._figure[0], " ".join(self._words.split())))
            self._figure = None
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data
        self._words += data

    def evidence(self, section: str) -> dict[str, str]:
        """The last word of every figure in a section, by the figure's name."""
        return {name: words.split()[-1] for found, name, words in self.figures if found == section}


def shown(report: Report) -> Shown:
    return Shown(page.render(report))


def evidence_in(target: TargetReport) -> dict[str, Evidence]:
    """Every `Figure` of a target and its evidence, memory included."""
    holders = (target, target.memory)
    found = [(f.name, getattr(holder, f.name)) for holder in holders for f in fields(holder)]
    return {name: value.evidence for name, value in found if isinstance(value, Figure)}


@pytest.mark.parametrize("report", [REPORT, NOTHING], ids=["some", "nothing"])
def test_every_figure_ends_in_one_of_the_four_words(report: Report) -> None:
    for _, name, words in shown(report).figures:
        assert words.split()[-1] in get_args(Evidence), name


@pytest.mark.parametrize("name", REPORT.targets)
def test_figures_say_what_the_report_says_of_their_evidence(name: str) -> None:
    told, target = shown(REPORT).evidence(f"target-{name}"), REPORT.targets[name]
    expected: dict[str, str] = dict(evidence_in(target))
    expected |= {"relative_rmse": target.agreement.evidence, "metric_drop": target.metric.evidence}
    expected |= {"mapped_share": target.placement.evidence, "median_us": target.latency.evidence}
    assert told | expected == told


def test_the_summary_holds_every_figure_of_every_target() -> None:
    found = [name for section, name, _ in shown(REPORT).figures if section == "summary"]
    assert sorted(found) == sorted(list(page.SUMMARY) * len(REPORT.targets))


def test_a_gate_carries_the_evidence_of_the_figure_it_holds() -> None:
    told = {name: word for name, word in shown(REPORT).evidence("target-gpu").items() if name.startswith("gate_")}
    expected = dict.fromkeys((f"gate_{gate.name}" for gate in REPORT.targets["gpu"].gates), "measured")
    expected |= {"gate_max_arena_kib": "simulated", "gate_max_flash_kib": "unavailable", "gate_min_mapped": "predicted"}
    assert told == expected


def test_what_is_unavailable_says_why_in_visible_text() -> None:
    text = shown(replace(REPORT, targets={"gpu": TARGET, "mcu": BARE})).text
    for why in ("no evaluation data", "no device is named for mcu", "nobody knows", "not a flash-resident target"):
        assert why in text


def test_a_doubtful_latency_says_so_in_the_summary_and_in_the_details() -> None:
    assert shown(replace(REPORT, targets={"gpu": TARGET})).text.count(LATENCY.notes[0]) == 2


def test_what_was_measured_beside_a_latency_stands_below_it() -> None:
    twin = FloatTwin(latency=replace(LATENCY, median_us=750.0), ratio=2.0, low=1.9, high=2.1)
    same = DeviceAgreement(
        exact=False,
        promised_exact=False,
        max_steps=3.0,
        rms_steps=0.2,
        limit_steps=16.0,
        differing=0.01,
        top1=1.0,
        n=32,
        verdict="close",
        note="aarch64 beside x86_64",
    )
    text = " ".join(
        shown(replace(REPORT, targets={"cpu": replace(TARGET, twin=twin, device_outputs=same)})).text.split()
    )
    assert "The same model in float32 takes 750.0 µs there" in text
    assert "takes 2 times that, 1.9 to 2.1." in text
    assert "beside this machine's: close, at most 3 steps apart, 32 samples; aarch64 beside x86_64." in text
    exact = replace(same, exact=True)
    assert (
        "bit for bit, 32 samples" in shown(replace(REPORT, targets={"cpu": replace(TARGET, device_outputs=exact)})).text
    )


def test_values_stand_with_their_units() -> None:
    words = {name: words for section, name, words in shown(REPORT).figures if section == "target-gpu"}
    assert words["size_bytes"] == "44.2 KiB 45,216 B measured"
    assert words["median_us"] == "1.50 ms 1.40 ms to 1.70 ms measured"
    assert words["mapped_share"] == "75.0% 3/4 predicted"
    assert words["metric_drop"] == "+0.01 worse measured"
    assert words["gate_max_size_kib"] == "44.16 KiB measured"
    assert words["gate_max_flash_kib"] == "– unavailable"  # noqa: RUF001 - the dash that is shown


def test_unmapped_operators_stand_with_reason_and_suggestion() -> None:
    text = shown(REPORT).text
    assert "cpu runs the others" in text
    assert all(part in text for part in ("GELU", "block/gelu", "no kernel", "swap for HARD_SWISH"))


def test_says_that_a_model_without_fallback_cannot_run() -> None:
    stuck = replace(TARGET, placement=replace(PLACEMENT, fallback=""))
    assert "nothing runs the others" in shown(replace(REPORT, targets={"mcu": stuck})).text


def test_names_from_models_are_escaped() -> None:
    entry = Unmapped(operator=0, kind=ATTACK, tensor=ATTACK, reason=ATTACK, suggestion=ATTACK)
    target = replace(TARGET, placement=replace(PLACEMENT, unmapped=(entry,)), files=(ATTACK,), route=ATTACK)
    noted = replace(target, memory=Memory(arena_bytes=unavailable(f'" onload="x{ATTACK}'), flash_bytes=measured(1)))
    failure = FailureReport(what=ATTACK, cause=ATTACK, action=ATTACK, exit_code=3)
    report = replace(
        REPORT, model=replace(MODEL, path=ATTACK), targets={"gpu": noted}, failures={f'x" onload="{ATTACK}': failure}
    )
    found = shown(report)
    assert all(tag != "script" and not any(key.startswith("on") for key in attrs) for tag, attrs in found.tags)
    assert ATTACK in found.text


@pytest.mark.parametrize("report", [REPORT, NOTHING], ids=["some", "nothing"])
def test_loads_nothing_and_links_only_into_itself(report: Report) -> None:
    found = shown(report)
    links = {attrs[key] or "" for _, attrs in found.tags for key in ("src", "href", "srcset", "data") if key in attrs}
    ids = [attrs["id"] for _, attrs in found.tags if "id" in attrs]
    assert not {"link", "img", "iframe", "object", "script"} & {tag for tag, _ in found.tags}
    assert not re.search(r"url\(|@import", found.page)
    assert links <= {f"#{one}" for one in ids}
    assert len(ids) == len(set(ids))


def test_equal_reports_give_equal_bytes() -> None:
    assert page.render(REPORT) == page.render(replace(REPORT))


def test_plots_are_drawn_for_what_is_known() -> None:
    dots = [attrs for tag, attrs in shown(REPORT).tags if tag == "circle" and attrs.get("class") == "dot"]
    assert len(dots) == LATENCY.processes
    for name in ("size", "metric", "latency"):
        assert f'id="plot-{name}"' in page.render(REPORT)


def test_plots_of_what_nobody_knows_are_left_out() -> None:
    html = page.render(replace(REPORT, targets={"mcu": BARE}))
    assert 'id="plot-metric"' not in html
    assert 'id="plot-latency"' not in html


def test_nothing_is_drawn_outside_its_plot() -> None:
    for svg in re.findall(r"<svg.*?</svg>", page.render(REPORT), re.DOTALL):
        for element in ET.fromstring(svg).iter():  # noqa: S314 - our own page
            for key in ("x", "cx", "width"):
                assert 0 <= float(element.get(key, "0")) <= page.PLOT_WIDTH


@pytest.mark.parametrize("values", [(0.0, 0.0), (1.0, 1.0), (-3.0, 5.0), (0.91, 0.9133), (1e-9, 4e6)])
def test_the_metric_plot_encloses_its_values(values: tuple[float, float]) -> None:
    target = replace(TARGET, metric=replace(METRIC, float=values[0], target=values[1]))
    found = page.metric_range(replace(REPORT, targets={"gpu": target}))
    assert found is not None
    assert found[0] < min(values)
    assert max(values) <= found[1]


def test_a_small_drop_does_not_fill_the_metric_plot() -> None:
    target = replace(TARGET, metric=replace(METRIC, float=0.91, target=0.9133))
    low, high = page.metric_range(replace(REPORT, targets={"gpu": target})) or (0.0, 0.0)
    assert (0.9133 - 0.91) / (high - low) < 0.05


def test_a_build_of_nothing_says_what_failed_why_and_what_to_do() -> None:
    text = shown(NOTHING).text
    assert "Failed: the model can't be read, converted or run" in text
    assert "0 of\n    2 targets built" in text
    assert all(part in text for part in (FAILURE.what, FAILURE.cause, FAILURE.action))
    assert "Nothing is known of the source model" in text


def test_one_failure_of_many_targets_is_told_once() -> None:
    text = shown(NOTHING).text
    assert text.count(FAILURE.cause) == 1
    assert f"cpu, mcu: {FAILURE.what}" in text


def test_gates_that_did_not_pass_stand_in_the_headline() -> None:
    headline = [name for section, name, _ in shown(REPORT).figures if not section]
    missed = [gate.name for target in REPORT.targets.values() for gate in target.gates if gate.verdict != "pass"]
    assert missed
    assert headline == [f"gate_{name}" for name in missed]


def test_a_step_that_took_the_metric_out_of_its_interval_is_told() -> None:
    fallen = StepFindings(step="prune 99 %", bought={"gpu": "nothing"}, idle=False, falls={"gpu": "top1 went down"})
    found = CompressionReport(steps=(), findings=(fallen,), lost=())
    assert "prune 99 % on gpu: top1 went down" in page.render(replace(REPORT, compression=found))


def test_a_good_build_says_so() -> None:
    found = shown(replace(REPORT, exit_code=0, targets={"gpu": TARGET}, failures={}))
    assert "Built: every target was built and every gate passed" in found.text
    assert "Failed" not in found.text


@pytest.mark.parametrize("code", {*EXIT_CODES.values(), *GATE_EXIT_CODES.values(), INTERRUPTED, OK})
def test_every_exit_code_has_words(code: int) -> None:
    assert page.EXIT_WORDS[code] in shown(replace(REPORT, exit_code=code)).text


def test_nearly_all_is_not_all() -> None:
    assert page.share_text(0.9999) == "99.9%"
    assert page.share_text(1.0) == "100.0%"


def test_sizes_choose_their_unit() -> None:
    assert [page.size_text(n) for n in (12, 1024, 5 << 20)] == ["12 B", "1.0 KiB", "5.00 MiB"]


def test_importing_the_page_leaves_jinja_unimported() -> None:
    code = "import sys, edgebuild.pipeline.page; sys.exit('jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
