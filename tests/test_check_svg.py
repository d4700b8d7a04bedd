"""The picture of a placement: what it shows, that nothing in a model gets out of its text, and how it is laid out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import projects
import pytest
from conftest import Ended
from flatbuffers_made import chain, model, operator, packed, tensor

from edgebuild.pipeline.check import Check, check
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.exports import boxes, layered, svg

Run = Callable[..., Ended]
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '"/><script>alert(1)</script><a xlink:href="javascript:x">&lt;\x00\x1b[31m\ud800'


@pytest.fixture(scope="module")
def deeplab() -> Check:
    """64 of 72 operators mapped, five for one reason, and residual connections."""
    return check(projects.shared("coral/deeplabv3_mnv2_dm05_pascal_quant.tflite"), ["edgetpu"])


def parsed(text: str) -> ET.Element:
    return ET.fromstring(text)  # noqa: S314 - what is parsed is our own


def drawn(found: Check) -> ET.Element:
    return parsed(svg.render(found))


def titles(picture: ET.Element) -> list[str]:
    """The bold line of each box, in the order they are drawn."""
    groups = (group for group in picture.iter(f"{SVG}g") if group.find(f"{SVG}title") is not None)
    return [text.text or "" for group in groups if (text := group.find(f"{SVG}text")) is not None]


def checked(tmp_path: Path, made: Any, target: str = "gpu") -> Check:
    path = tmp_path / "model.tflite"
    path.write_bytes(made if isinstance(made, bytes) else packed(made))
    return check(path, [target])


def test_every_operator_has_a_box_with_its_index_kind_and_output(deeplab: Check) -> None:
    picture = drawn(deeplab)
    (found,) = deeplab.targets.values()
    assert titles(picture)[1:-1] == [f"{row.operator} {row.kind}" for row in found.rows]
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert all(boxes.sizes(row.outputs[0]) in texts for row in found.rows)


def test_what_is_not_mapped_looks_otherwise_and_says_why_in_text_and_under_the_pointer(deeplab: Check) -> None:
    looks: dict[str, set[tuple[str | None, ...]]] = {"edgetpu": set(), "cpu": set()}
    (found,) = deeplab.targets.values()
    groups = [group for group in drawn(deeplab).iter(f"{SVG}g") if group.find(f"{SVG}title") is not None][1:-1]
    for row, box in zip(found.rows, groups, strict=True):
        words = " ".join(text.text or "" for text in box.findall(f"{SVG}text"))
        told, rectangle = box.findtext(f"{SVG}title") or "", box.find(f"{SVG}rect")
        assert rectangle is not None
        looks[row.runs_on].add(tuple(rectangle.get(name) for name in ("fill", "stroke", "stroke-width")))
        assert row.reason in words
        assert all(part in told for part in (row.reason, row.suggestion, row.outputs[0].name))
    mapped, fallback = looks["edgetpu"], looks["cpu"]
    assert len(mapped) == len(fallback) == 1
    assert all(a != b for a, b in zip(*mapped, *fallback, strict=True)), "by more than hue"


@pytest.mark.parametrize("style", svg.STYLES)
def test_text_stands_out_from_its_box(style: boxes.Style) -> None:
    """7:1 is what WCAG 2.1 asks of text at its strictest level."""
    assert contrast(svg.STYLES[style].text, svg.STYLES[style].fill) > 7


def test_boxes_differ_in_grey_too() -> None:
    fills = [svg.STYLES[style].fill for style in svg.STYLES if style != "end"]
    assert all(contrast(a, b) > 1.3 for a, b in itertools.combinations(fills, 2))


def contrast(one: str, other: str) -> float:
    """Ref: https://www.w3.org/TR/WCAG21/#dfn-contrast-ratio."""
    dark, light = sorted(luminance(colour) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_the_head_says_how_the_placement_is_known_and_counts(deeplab: Check) -> None:
    text = svg.render(deeplab)
    assert "64 of 72 operators mapped (predicted)" in text
    assert "edgetpu runs 64 operators" in text
    assert "cpu runs 8 operators" in text


def test_a_problem_is_in_the_picture() -> None:
    hybrid = projects.shared("kws/ref_dynrange.tflite")
    assert any("it can't run" in text for text in drawn(check(hybrid, ["mcu"])).itertext())


def test_names_stay_text(tmp_path: Path) -> None:
    name = HOSTILE.encode("utf-8", "surrogatepass")
    found = checked(tmp_path, model([tensor(name), tensor(name)], [operator([0], [1])], outputs=[1]))
    picture = drawn(found)
    assert {element.tag for element in picture.iter()} == {
        f"{SVG}{tag}" for tag in ("svg", "g", "rect", "path", "text", "title")
    }
    attributes = {key for element in picture.iter() for key in element.attrib}
    assert not {key for key in attributes if "href" in key or key.startswith("on")}
    assert "alert(1)" in "".join(picture.itertext())


def test_operators_that_unpack_constants_of_another_share_a_box(tmp_path: Path) -> None:
    """As float16 weights are: two boxes of three would hide the model."""
    halves = [tensor(f"half{i}", (4,), buffer=1, kind="FLOAT16") for i in range(2)]
    tensors = [tensor("in"), *halves, tensor("w", (4,)), tensor("b", (4,)), tensor("out")]
    operators = [operator([1], [3]), operator([2], [4]), operator([0, 3, 4], [5], code=1)]
    made = model(tensors, operators, outputs=[5], kinds=("DEQUANTIZE", "ADD"), contents=[bytes(8)])
    assert titles(drawn(checked(tmp_path, made)))[1:-1] == ["0, 1 DEQUANTIZE", "2 ADD"]


def test_a_picture_is_of_one_target_and_no_more_than_a_person_can_read(run: Run, tmp_path: Path) -> None:
    (tmp_path / "long.tflite").write_bytes(chain(svg.MOST_OPERATORS + 1))
    (tmp_path / "short.tflite").write_bytes(chain(3))
    ended = run("check", "short.tflite", "--svg", "x.svg", cwd=tmp_path)
    assert (ended.code, "name it with --target" in ended.stderr) == (2, True)
    assert not (tmp_path / "x.svg").exists()
    with pytest.raises(ConfigError, match="1,001 operators can't be read"):
        svg.render(check(tmp_path / "long.tflite", ["cpu"]))
    wide = model([tensor(f"t{i}") for i in range(svg.MOST_ENDS)], [], inputs=range(svg.MOST_ENDS), outputs=[0])
    with pytest.raises(ConfigError, match="201 inputs and outputs can't be read"):
        svg.render(checked(tmp_path, wide))
    assert run("check", "short.tflite", "-t", "cpu", "--svg", "sub/x.svg", cwd=tmp_path).code == 0
    assert titles(parsed((tmp_path / "sub/x.svg").read_text()))[1:-1] == ["0 RELU", "1 RELU", "2 RELU"]


# Layout

SIZE = (100.0, 30.0)


def laid_out(count: int, edges: list[layered.Edge]) -> tuple[layered.Columns, layered.Arrangement]:
    plan = layered.columns([SIZE[1]] * count, edges)
    return plan, layered.arrange([SIZE] * count, plan)


def residual(blocks: int) -> list[layered.Edge]:
    """Three in a row, and a connection past them, again and again."""
    steps = [(i, i + 1) for i in range(3 * blocks)]
    return steps + [(3 * i, 3 * i + 3) for i in range(blocks)]


@pytest.mark.parametrize(
    ("count", "edges"),
    [
        (1, []),
        (4, []),
        (40, [(i, i + 1) for i in range(39)]),
        (61, residual(20)),
        (60, [(0, i) for i in range(1, 60)]),
        (60, [(i // 2, i) for i in range(1, 60)]),
        (30, [(i, j) for i in range(30) for j in range(i + 1, 30, 3)]),
    ],
    ids=["one", "apart", "chain", "residual", "star", "tree", "dense"],
)
def test_boxes_do_not_overlap_and_lines_run_downwards(count: int, edges: list[layered.Edge]) -> None:
    plan, places = laid_out(count, edges)
    for (x, y), (other_x, other_y) in itertools.combinations(places.middles, 2):
        assert abs(x - other_x) >= SIZE[0] - 1e-6 or abs(y - other_y) >= SIZE[1] - 1e-6
    for x, y in places.middles:
        assert SIZE[0] / 2 - 1e-6 <= x <= places.width - SIZE[0] / 2 + 1e-6
        assert SIZE[1] / 2 - 1e-6 <= y <= places.height - SIZE[1] / 2 + 1e-6
    for (start, end), points in places.lines.items():
        heights = [y for _, y in points]
        assert heights == sorted(heights)
        assert points[0] == pytest.approx((places.middles[start][0], places.middles[start][1] + SIZE[1] / 2))
        assert points[-1] == pytest.approx((places.middles[end][0], places.middles[end][1] - SIZE[1] / 2))
    assert set(places.lines) | set(plan.ties) == set(edges)
    assert not set(places.lines) & set(plan.ties)


def test_lines_pass_beside_boxes() -> None:
    _, places = laid_out(61, residual(20))
    for (start, end), points in places.lines.items():
        for box, (x, y) in enumerate(places.middles):
            if box not in (start, end):
                inside = [p for p in points if abs(p[0] - x) < SIZE[0] / 2 and abs(p[1] - y) < SIZE[1] / 2]
                assert not inside


def test_a_chain_is_straight_and_a_long_one_has_columns() -> None:
    _, short = laid_out(10, [(i, i + 1) for i in range(9)])
    assert len({round(x, 3) for x, _ in short.middles}) == 1
    plan, long = laid_out(100, [(i, i + 1) for i in range(99)])
    assert len({round(x, 3) for x, _ in long.middles}) == len(plan.ranges) > 3
    assert len(plan.ties) == len(plan.ranges) - 1
    assert long.height < 3 * long.width
