"""What cutting and fixing leave behind: the records in `cut.json`, `fix.json` and the report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

# At run time too: the report's JSON Schema is made from annotations.
from edgebuild.targets.placement import Unmapped

if TYPE_CHECKING:
    from edgebuild.targets.evidence import Figure
    from edgebuild.targets.placement import Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A tensor that one part makes and others read, under one name in the signatures of all of them.

    real = scale * (q - zero_point); both are empty where it is not quantized.
    """

    name: str
    made_by: str
    read_by: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFile:
    """One part of a model that was cut: its file, what runs it, and its ends by name."""

    file: str
    runs_on: str
    operators: int
    size_bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Where a model was cut, and the proof that its parts in sequence equal the whole, bit for bit.

    `parts` stand in the order they run. There are none where the model stays whole, and `why` says why. `operators` and
    `mapped` are the whole model's, `off` the operators that were cut off. The proof ran on `samples` samples.
    """

    why: str
    parts: tuple[PartFile, ...]
    links: tuple[Link, ...]
    operators: int
    mapped: int
    off: tuple[Unmapped, ...]
    samples: int
    runtime: str

    @property
    def kinds_off(self) -> str:
        """The kinds of what was cut off, each once."""
        return ", ".join(dict.fromkeys(entry.kind for entry in self.off))

    @property
    def host_bytes(self) -> int:
        """What ships beside `model.tflite`."""
        return sum(part.size_bytes for part in self.parts if part.file != MODEL)

    def __str__(self) -> str:
        """One line for a person."""
        if not self.parts:
            return f"not cut: {self.why}"
        parts = ", then ".join(
            f"{part.file} ({_count(part.operators, 'operator')} on {part.runs_on})" for part in self.parts
        )
        proof = f"bit for bit the whole on {_count(self.samples, 'sample')}"
        size = f"{sum(part.size_bytes for part in self.parts):,} B together"
        return f"cut into {parts}, {size}, joined by {_count(len(self.links), 'tensor')}; {proof}"


MODEL = "model.tflite"
BEFORE = "host_before.tflite"
AFTER = "host.tflite"
CUT = "cut.json"
FIX = "fix.json"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def shipped(size: Figure, cut: Cut | None) -> Figure:
    """The size of all parts together, which a limit is held against; `size` is that of `model.tflite`."""
    if cut is None or not cut.parts or size.value is None:
        return size
    return replace(size, value=size.value + cut.host_bytes, note=" and ".join(part.file for part in cut.parts))


def mapped(placement: Placement, cut: Cut | None) -> str:
    """Mapped of all operators, and of how many the model had that `placement` speaks of a part of."""
    share = f"{placement.mapped}/{placement.operators}"
    return f"{share} of {cut.operators}" if cut and cut.parts else share


def whole(why: str, placement: Placement) -> Cut:
    """The record of a model that stays whole."""
    return Cut(
        why=why,
        parts=(),
        links=(),
        operators=placement.operators,
        mapped=placement.mapped,
        off=(),
        samples=0,
        runtime="",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """An edit that found something in the float model, at `layers`; `refused` says why it was not taken, if it was not.

    `relative_rmse` is how far it moves the model's outputs on real samples: a flatbuffer's not at all, or None where it
    would.
    """

    edit: str
    why: str
    source: str
    layers: tuple[str, ...]
    relative_rmse: float | None
    refused: str = ""

    def __str__(self) -> str:
        """A few words for a person."""
        places = f"{self.edit} ({_count(len(self.layers), 'place')})"
        return f"{places} not taken: {self.refused}" if self.refused else places


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Operators that an accelerator takes, `mapped`, out of all `operators`."""

    mapped: int
    operators: int

    @property
    def share(self) -> float:
        """Mapped of all; whole where there is none."""
        return self.mapped / self.operators if self.operators else 1.0

    def __str__(self) -> str:
        """As the tables have it."""
        return f"{self.mapped}/{self.operators}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fix:
    """The edits of a target's model, and what its rules say it takes of the whole model before and after them.

    Both are predicted, so that they can be compared. `before` is None where the model can't be converted without edits.
    """

    edits: tuple[Taken, ...]
    before: Share | None
    after: Share

    @property
    def doubt(self) -> str:
        """What a user should know who asked for it; empty where it did what it should."""
        if self.before is None or not self.edits or self.after.share > self.before.share:
            return ""
        return (
            f"fix: the edits map no more than without them ({self.before} before, {self.after} after): leave them out"
        )

    def __str__(self) -> str:
        """One line for a person."""
        if not self.edits:
            return "fix found nothing to edit"
        before = f"{self.before} operators mapped before" if self.before else "not convertible before"
        return f"edits: {'; '.join(map(str, self.edits))}: {before}, {self.after} after, as predicted"
