"""How much program storage TFLite Micro's own code takes for a set of operators on a core, from linking it.

`code_bytes.json` holds what was measured on each core: the interpreter; what each operator's kernel adds to it; what
several of them share, which is linked once; and some models' whole sets. Pieces under 128 bytes that kernels share are
counted with each of them, so that an estimate is above what is linked: by 0 to 8 % with the sets that were. Not counted
are the firmware's own code, and what its start-up and its way of making an interpreter bring in.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from edgebuild.targets.evidence import Figure

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

DATA: Final = "code_bytes.json"
# Cores that run the instructions of one that was measured, where a name does not say so.
_ALIKE: Final = {"cortex-m85": "cortex-m55"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Code in bytes, and the operators that it comes with: any of them, or all together where a whole set is linked."""

    bytes: int
    operators: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """What was linked for one core; `linked` are whole sets, each with the interpreter."""

    name: str
    kernels: str
    interpreter_bytes: int
    own_bytes: Mapping[str, int]
    shared: tuple[Piece, ...]
    linked: tuple[Piece, ...]

    def code_bytes(self, kinds: frozenset[str]) -> int:
        """An upper bound of the code that comes with these operators; one that was not measured counts as the largest.

        It is the sum of their pieces, or a measured set that holds them all, whichever is less.
        """
        known = kinds & self.own_bytes.keys()
        summed = self.pieces_bytes(known) + len(kinds - known) * self.largest_bytes
        return min([summed, *(piece.bytes for piece in self.linked if piece.operators >= kinds)])

    def pieces_bytes(self, kinds: frozenset[str]) -> int:
        """The interpreter and the pieces of operators that were measured."""
        own = sum(self.own_bytes[kind] for kind in kinds)
        return self.interpreter_bytes + own + sum(piece.bytes for piece in self.shared if piece.operators & kinds)

    @property
    def largest_bytes(self) -> int:
        """What the largest kernel takes, with all that it shares."""
        return max(self.pieces_bytes(frozenset({kind})) for kind in self.own_bytes) - self.interpreter_bytes

    @property
    def excess(self) -> float:
        """By how much pieces are above what was linked, at most, as a share of the latter."""
        return max(self.pieces_bytes(piece.operators) / piece.bytes - 1 for piece in self.linked)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What was linked, with what, and what came of it on each core."""

    source: str
    cores: Mapping[str, Core]


def estimate(kinds: Iterable[str], core: str) -> Figure:
    """Bytes of code for operators of these kinds on a core, whose name may be empty where none is given.

    A core that was not measured takes what it takes on the core that takes most.
    """
    asked, table = frozenset(kinds), measurement()
    measured = measured_core(core) or max(table.cores.values(), key=lambda known: known.code_bytes(asked))
    size = measured.code_bytes(asked)
    return Figure(value=size, evidence="predicted", note="; ".join(_notes(size, measured, asked, core, table.source)))


def _notes(size: int, measured: Core, asked: frozenset[str], core: str, source: str) -> Iterable[str]:
    yield f"{size:,} of code for {measured.name} with {measured.kernels}, {source}, piece by piece"
    yield f"whole sets of operators came to up to {measured.excess:.0%} less"
    if core != measured.name:
        yield f"{core} itself was not measured" if core else "no core is named, and this one takes most"
    unknown = sorted(asked - set(measured.own_bytes))
    if unknown:
        yield f"not measured, and counted as the largest kernel, {measured.largest_bytes:,}: {', '.join(unknown)}"


def measured_core(core: str) -> Core | None:
    """What was linked for a core, or for one with the same instructions; None where neither was."""
    return measurement().cores.get(_ALIKE.get(core, core))


@lru_cache(maxsize=1)
def measurement() -> Measurement:
    """The table that comes with edgebuild."""
    return parse(json.loads(files("edgebuild.targets.microcontroller").joinpath(DATA).read_text(encoding="utf-8")))


def parse(content: Mapping[str, Any]) -> Measurement:
    """A table from what its JSON holds."""
    cores = {
        name: Core(
            name=name,
            kernels=core["kernels"],
            interpreter_bytes=core["interpreter_bytes"],
            own_bytes=core["own_bytes"],
            shared=_pieces(core["shared"]),
            linked=_pieces(core["linked"]),
        )
        for name, core in content["cores"].items()
    }
    return Measurement(source=content["source"], cores=cores)


def _pieces(raw: Collection[Mapping[str, Any]]) -> tuple[Piece, ...]:
    return tuple(Piece(bytes=piece["bytes"], operators=frozenset(piece["operators"])) for piece in raw)
