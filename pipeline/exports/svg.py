"""A picture of where each operator of a model runs: boxes and lines in one SVG file, readable in grey as in colour.

ref: https://www.w3.org/TR/SVG11, colours after Okabe and Ito 2008, https://jfly.uni-koeln.de/color
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePath
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.exports import boxes as contents
from edgebuild.pipeline.exports.boxes import Box, Style
from edgebuild.pipeline.exports.layered import Arrangement, Point, arrange, columns
from edgebuild.pipeline.exports.legal import legal

if TYPE_CHECKING:
    from edgebuild.pipeline.check import Check
    from edgebuild.targets.placement import Placement

MOST_OPERATORS: Final = 1000
MOST_ENDS: Final = 200
_MOST_LINES: Final = 4 * MOST_OPERATORS
_BOX_WIDTH: Final = 204.0
_LINE_HEIGHT: Final = 13.0
_MARGIN: Final = 24.0
_LEAST_WIDTH: Final = 560.0
_CHAR_WIDTH: Final = 5.6  # Of the small type.
_BOLD_CAPITAL: Final = 8.3  # Of the larger type.
_BOLD_SMALL: Final = 6.4
_FONT: Final = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"


@dataclass(frozen=True, slots=True)
class _Style:
    """How a box looks."""

    fill: str
    border: str
    border_width: str
    dashes: str
    text: str

    @property
    def attributes(self) -> dict[str, str]:
        """Of the box's rectangle."""
        dashes = {"stroke-dasharray": self.dashes} if self.dashes else {}
        return {"fill": self.fill, "stroke": self.border, "stroke-width": self.border_width} | dashes


# They differ in brightness and border, so that hue is not needed to tell them.
STYLES: Final[dict[Style, _Style]] = {
    "accelerator": _Style("#dcecf7", "#0072b2", "1", "", "#111111"),
    "fallback": _Style("#f5c04a", "#7a4f00", "2.5", "", "#111111"),
    "nowhere": _Style("#933500", "#111111", "2.5", "6 3", "#ffffff"),
    "end": _Style("#ffffff", "#555555", "1", "", "#111111"),
}


def render(found: Check) -> str:
    """The placement of a check on one target as SVG, without scripts and without anything from outside.

    Raises:
        ConfigError: it was checked on several targets, or has more operators or ends than a picture can show.
    """
    if len(found.targets) != 1:
        raise ConfigError("a picture shows one target", action="name it with --target")
    (name, target), *_ = found.targets.items()
    _require_readable(len(target.rows), "operators", MOST_OPERATORS)
    _require_readable(len(found.inputs) + len(found.outputs), "inputs and outputs", MOST_ENDS)
    boxes = list(contents.boxes(found, target))
    edges = contents.edges(boxes)
    _require_readable(len(edges), "lines", _MOST_LINES)
    plan = columns([_height(box) for box in boxes], edges)
    boxes = contents.tied(boxes, plan.ties)
    return _drawn(found, name, boxes, arrange([(_BOX_WIDTH, _height(box)) for box in boxes], plan))


def _require_readable(count: int, what: str, most: int) -> None:
    if count > most:
        told = f"a picture of {count:,} {what} can't be read; {most:,} are the most"
        raise ConfigError(told, action="read the table with --all, or --json")


def _height(box: Box) -> float:
    return 12 + _LINE_HEIGHT * (1 + len(box.lines) + len(box.ties))


def _drawn(found: Check, name: str, boxes: Sequence[Box], places: Arrangement) -> str:
    width = max(places.width, _LEAST_WIDTH)
    head, head_height = _head(found, name, boxes, width)
    top = _MARGIN + head_height
    size = {"width": f"{width + 2 * _MARGIN:g}", "height": f"{top + places.height + _MARGIN:g}"}
    svg = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "font-family": _FONT, "font-size": "11"} | size)
    svg.set("viewBox", f"0 0 {size['width']} {size['height']}")
    ET.SubElement(svg, "rect", size, fill="#ffffff")
    svg.append(head)
    picture = ET.SubElement(svg, "g", transform=f"translate({_MARGIN + (width - places.width) / 2:g} {top:g})")
    for points in places.lines.values():
        ET.SubElement(picture, "path", d=_path(points), fill="none", stroke="#555555")
    for box, middle in zip(boxes, places.middles, strict=True):
        picture.append(_drawn_box(box, *middle))
    ET.indent(svg)
    return ET.tostring(svg, encoding="unicode", xml_declaration=True) + "\n"


def _head(found: Check, name: str, boxes: Sequence[Box], width: float) -> tuple[ET.Element, float]:
    """What the picture shows, how that is known, and a legend; and how high they are."""
    target = found.targets[name]
    placement, chars = target.placement, int(width / _CHAR_WIDTH)
    head = ET.Element("g", transform=f"translate({_MARGIN:g} {_MARGIN:g})")
    mapped = f"{placement.mapped} of {placement.operators} operators mapped ({placement.evidence})"
    y = 0.0
    for line in (contents.short(f"{PurePath(found.model).name} on {name}", chars // 2), mapped):
        y += 20
        _text(head, 0, y, line, {"font-size": "16", "font-weight": "bold"})
    y += 4
    for line in textwrap.wrap(target.problem, chars):
        y += _LINE_HEIGHT
        _text(head, 0, y, line, {"font-weight": "bold", "fill": STYLES["nowhere"].fill})
    for line in textwrap.wrap(f"{placement.evidence} from {placement.source}", chars):
        y += _LINE_HEIGHT
        _text(head, 0, y, line, {"fill": "#555555"})
    y += 10
    for style, label in _legend(boxes, placement):
        swatch = {"x": "0", "y": f"{y:g}", "width": "26", "height": "14"}
        ET.SubElement(head, "rect", swatch | STYLES[style].attributes)
        _text(head, 34, y + 11, label)
        y += 20
    if any(box.ties for box in boxes):
        _text(
            head,
            0,
            y + 11,
            f"{contents.FROM}, {contents.TO}: a line that is not drawn, by the operator at its other end",
        )
        y += 20
    return head, y + 12


def _legend(boxes: Sequence[Box], placement: Placement) -> Iterator[tuple[Style, str]]:
    names: dict[Style, str] = {
        "accelerator": placement.accelerator,
        "fallback": placement.fallback,
        "nowhere": "nothing there",
    }
    for style, name in names.items():
        if count := sum(box.count for box in boxes if box.style == style):
            yield style, f"{name} runs {count} operator{'s' if count > 1 else ''}"


def _drawn_box(box: Box, x: float, y: float) -> ET.Element:
    group = ET.Element("g", transform=f"translate({x - _BOX_WIDTH / 2:g} {y - _height(box) / 2:g})")
    ET.SubElement(group, "title").text = legal(box.told)
    style = STYLES[box.style]
    size = {"width": f"{_BOX_WIDTH:g}", "height": f"{_height(box):g}", "rx": "12" if box.style == "end" else "3"}
    ET.SubElement(group, "rect", size | style.attributes)
    baseline, ink = _LINE_HEIGHT + 3, {"fill": style.text}
    _text(group, 8, baseline, box.title, ink | {"font-size": "12", "font-weight": "bold"} | _fit(box.title))
    for line in (*box.lines, *box.ties):
        baseline += _LINE_HEIGHT
        _text(group, 8, baseline, line, ink)
    return group


def _fit(title: str) -> dict[str, str]:
    """Squeezed where it would not fit its box: capitals in bold are the widest."""
    width = sum(_BOLD_CAPITAL if c.isupper() or c in "_%&" else _BOLD_SMALL for c in title)
    room = _BOX_WIDTH - 16
    return {"textLength": f"{room:g}", "lengthAdjust": "spacingAndGlyphs"} if width > room else {}


def _text(parent: ET.Element, x: float, y: float, text: str, attributes: Mapping[str, str] | None = None) -> None:
    ET.SubElement(parent, "text", {"x": f"{x:g}", "y": f"{y:g}"} | dict(attributes or {})).text = legal(text)


def _path(points: Sequence[Point]) -> str:
    """Straight through layers, which come as pairs of points, and curved between them."""
    d = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for (x, y), (to_x, to_y) in pairwise(points):
        bend = (y + to_y) / 2
        d += f" V{to_y:.1f}" if x == to_x else f" C{x:.1f} {bend:.1f} {to_x:.1f} {bend:.1f} {to_x:.1f} {to_y:.1f}"
    return d
