"""Places for boxes and lines of a directed graph: in layers from top to bottom, in columns from left to right.

The steps of Sugiyama, Tagawa and Toda 1981, "Methods for Visual Understanding of Hierarchical System Structures":
layers by longest path, an invisible point wherever a line passes a layer, an order in each layer by the mean of the
neighbours', and places that leave the order as it is. A long graph is cut into columns where few lines pass; a line
that is cut, or longer than an eye follows, is not drawn: it is one of the `ties`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, TypeAlias

Edge: TypeAlias = tuple[int, int]
Point: TypeAlias = tuple[float, float]

BETWEEN_LAYERS: Final = 26.0
BETWEEN_BOXES: Final = 18.0
BETWEEN_COLUMNS: Final = 44.0
_LONGEST: Final = 12  # Layers that a drawn line may pass.
_COLUMN_HEIGHT: Final = 1150.0
_ORDERINGS: Final = 8
_PLACINGS: Final = 16
_FIRM: Final = 30.0  # Boxes stay below each other; a line that passes them gives way, and bends where it leaves a box.
_LOOSE: Final = 0.02
_NOTHING: Final = 1e-6
_FAR_LEFT: Final = -1e4


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The layer of each box, the layers of each column (the first, and the one after the last), and what is drawn."""

    layers: tuple[int, ...]
    ranges: tuple[tuple[int, int], ...]
    drawn: tuple[Edge, ...]
    ties: tuple[Edge, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """Where each box has its middle, and the points that each drawn line passes, from top to bottom."""

    middles: tuple[Point, ...]
    lines: Mapping[Edge, tuple[Point, ...]]
    width: float
    height: float


@dataclass(slots=True)
class _Item:
    """A box, or the point (`width` 0) where a line passes a layer; what it is tied to in the layers above and below."""

    width: float
    height: float
    above: list[_Item] = field(default_factory=list)
    below: list[_Item] = field(default_factory=list)
    x: float = 0.0

    @property
    def is_aside(self) -> bool:
        """Whether nothing leads to it, and one box alone reads it: it stands beside a chain and is in none."""
        return not self.above and len(self.below) == 1

    @property
    def weight(self) -> float:
        """What it takes to move it; what is tied to nothing goes where there is room."""
        if not self.above and not self.below:
            return _NOTHING
        return _FIRM if self.width and not self.is_aside else 1.0


def columns(heights: Sequence[float], edges: Sequence[Edge]) -> Columns:
    """Layers and columns for boxes of about these heights; an edge leads from a box to a later one."""
    layers = _layers(len(heights), edges)
    ranges = tuple((first, last) for first, last in _ranges(heights, edges, layers) if first < last)
    column = [next(i for i, (first, last) in enumerate(ranges) if first <= layer < last) for layer in layers]
    drawn = [
        (start, end) for start, end in edges if column[start] == column[end] and layers[end] - layers[start] <= _LONGEST
    ]
    ties = sorted(set(edges) - set(drawn))
    return Columns(layers=tuple(layers), ranges=ranges, drawn=tuple(drawn), ties=tuple(ties))


def arrange(sizes: Sequence[tuple[float, float]], plan: Columns) -> Arrangement:
    """Places for boxes of given widths and heights, column by column."""
    middles: dict[int, Point] = {}
    lines: dict[Edge, tuple[Point, ...]] = {}
    left = height = 0.0
    for first, last in plan.ranges:
        boxes = {box: layer - first for box, layer in enumerate(plan.layers) if first <= layer < last}
        column = _Column(sizes, [edge for edge in plan.drawn if edge[0] in boxes], boxes)
        middles |= {box: (left + x, y) for box, (x, y) in column.middles().items()}
        lines |= {edge: tuple((left + x, y) for x, y in points) for edge, points in column.lines().items()}
        left += column.width + BETWEEN_COLUMNS
        height = max(height, column.height)
    places = tuple(middles[box] for box in range(len(sizes)))
    return Arrangement(middles=places, lines=lines, width=max(left - BETWEEN_COLUMNS, 0.0), height=height)


def _layers(count: int, edges: Sequence[Edge]) -> list[int]:
    """The longest path to each box; one that nothing leads to stands right above the first that reads it."""
    layers = [0] * count
    for start, end in sorted(edges, key=lambda edge: edge[1]):
        layers[end] = max(layers[end], layers[start] + 1)
    led_to = {end for _, end in edges}
    below: dict[int, int] = {}
    for start, end in edges:
        if start not in led_to:
            below[start] = min(layers[end], below.get(start, count))
    for start, layer in below.items():
        layers[start] = layer - 1
    return layers


def _ranges(heights: Sequence[float], edges: Sequence[Edge], layers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ranges of layers, each about as high as the others, cut where the fewest lines pass."""
    rows = [0.0] * (max(layers, default=-1) + 1)
    for height, layer in zip(heights, layers, strict=True):
        rows[layer] = max(rows[layer], height + BETWEEN_LAYERS)
    passing = [0] * (len(rows) + 1)  # By cut, which lies above the layer of that number.
    for start, end in edges:
        for cut in range(layers[start] + 1, layers[end] + 1):
            passing[cut] += 1
    first = 0
    for left in range(max(1, round(sum(rows) / _COLUMN_HEIGHT)), 1, -1):
        cut = min(_near(rows, first, sum(rows[first:]) / left), key=lambda at: (passing[at], -at))
        yield first, cut
        first = cut
    yield first, len(rows)


def _near(heights: Sequence[float], first: int, wanted: float) -> list[int]:
    """Cuts that leave a column of 75 to 110 % of the wanted height, or the first that reaches it."""
    height, found = 0.0, list[int]()
    for layer in range(first, len(heights) - 1):
        height += heights[layer]
        if 0.75 * wanted <= height <= 1.1 * wanted or (height > 1.1 * wanted and not found):
            found.append(layer + 1)
    return found or [len(heights)]


class _Column:
    """The boxes of some layers, arranged."""

    def __init__(self, sizes: Sequence[tuple[float, float]], edges: Sequence[Edge], row_of: Mapping[int, int]) -> None:
        self._row_of = row_of
        self._boxes = {box: _Item(*sizes[box]) for box in row_of}
        self._rows: list[list[_Item]] = [[] for _ in range(max(row_of.values(), default=-1) + 1)]
        for box, item in self._boxes.items():
            self._rows[row_of[box]].append(item)
        self._paths = {edge: self._path(*edge) for edge in edges}
        for path in self._paths.values():
            for upper, lower in pairwise(path):
                upper.below.append(lower)
                lower.above.append(upper)
        self._settle()
        self._tops = self._row_tops()
        self.height = self._tops[-1] - BETWEEN_LAYERS
        items = [item for row in self._rows for item in row]
        left = min((item.x - item.width / 2 for item in items), default=0.0)
        for item in items:
            item.x -= left
        self.width = max((item.x + item.width / 2 for item in items), default=0.0)

    def middles(self) -> dict[int, Point]:
        """The middle of each box."""
        return {box: (item.x, self._middle(self._row_of[box])) for box, item in self._boxes.items()}

    def lines(self) -> dict[Edge, tuple[Point, ...]]:
        """From the lower edge of a box to the upper edge of another, straight through the layers between."""
        return {edge: tuple(self._points(edge, path)) for edge, path in self._paths.items()}

    def _points(self, edge: Edge, path: Sequence[_Item]) -> Iterator[Point]:
        first, last = (self._row_of[box] for box in edge)
        yield path[0].x, self._middle(first) + path[0].height / 2
        for row, item in enumerate(path[1:-1], first + 1):
            yield item.x, self._tops[row]
            yield item.x, self._tops[row + 1] - BETWEEN_LAYERS
        yield path[-1].x, self._middle(last) - path[-1].height / 2

    def _path(self, start: int, end: int) -> list[_Item]:
        passed = [_Item(0.0, 0.0) for _ in range(self._row_of[start] + 1, self._row_of[end])]
        for row, item in enumerate(passed, self._row_of[start] + 1):
            self._rows[row].append(item)
        return [self._boxes[start], *passed, self._boxes[end]]

    def _middle(self, row: int) -> float:
        return (self._tops[row] + self._tops[row + 1] - BETWEEN_LAYERS) / 2

    def _row_tops(self) -> list[float]:
        tops = [0.0]
        for row in self._rows:
            tops.append(tops[-1] + max(item.height for item in row) + BETWEEN_LAYERS)
        return tops

    def _settle(self) -> None:
        """Order each layer, then place it, by the means of the layers above and below, downwards and upwards."""
        for row in self._rows:
            for place, item in enumerate(row):
                item.x = float(place)
        for sweep in range(_ORDERINGS + _PLACINGS + 1):
            downwards = sweep % 2 == 0
            for row in self._rows if downwards else self._rows[::-1]:
                if sweep < _ORDERINGS:
                    _order(row, downwards=downwards)
                else:
                    _place(row, downwards=downwards)


def _mean(item: _Item, *, downwards: bool) -> float:
    """The mean of its neighbours' places in the layer that was settled before."""
    ties = [(other, _pull(other, item)) for other in item.above if downwards]
    ties += [(other, _pull(item, other)) for other in item.below if not downwards]
    weight = sum(pull for _, pull in ties)
    if item.weight == _NOTHING:
        return _FAR_LEFT  # It comes last in its layer, and so beside the others.
    return sum(other.x * pull for other, pull in ties) / weight if weight else item.x


def _pull(upper: _Item, lower: _Item) -> float:
    """How firmly one is kept below the other: a line may bend where it leaves a box."""
    return _LOOSE if upper.is_aside or bool(upper.width) != bool(lower.width) else 1.0


def _order(row: list[_Item], *, downwards: bool) -> None:
    row.sort(key=lambda item: (item.weight == _NOTHING, _mean(item, downwards=downwards)))
    for place, item in enumerate(row):
        item.x = place - (len(row) - 1) / 2


def _place(row: Sequence[_Item], *, downwards: bool) -> None:
    """Move each item as near to its neighbours' mean as the order and the room between items allow.

    The least squares under an order: where two would overlap, they move as one (pool adjacent violators).
    """
    offsets = [0.0]
    for left, right in pairwise(row):
        offsets.append(offsets[-1] + (left.width + right.width) / 2 + BETWEEN_BOXES)
    pools: list[tuple[float, float, int]] = []  # Mean place without offsets, weight, items.
    for item, offset in zip(row, offsets, strict=True):
        mean, weight, count = _mean(item, downwards=downwards) - offset, item.weight, 1
        while pools and pools[-1][0] > mean:
            before, other, more = pools.pop()
            mean, weight, count = (mean * weight + before * other) / (weight + other), weight + other, count + more
        pools.append((mean, weight, count))
    places = [mean for mean, _, count in pools for _ in range(count)]
    for item, place, offset in zip(row, places, offsets, strict=True):
        item.x = place + offset
