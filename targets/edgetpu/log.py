"""What `edgetpu_compiler` says, as records. A text that is not of that form is refused, never guessed at.

The form is that of versions 14 to 16 with `--show_operations`: a block for each model, or for each segment of one, of
lines `name: value`, and under it a table `Operator  Count  Status`. ref: https://coral.ai/docs/edgetpu/compiler
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final

from edgebuild.export.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAPPED: Final = "Mapped to Edge TPU"
CUSTOM: Final = "CUSTOM"  # The table's name for every custom operator.
_UNITS: Final = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_VERSION: Final = re.compile(r"^Edge TPU Compiler version (\d+(?:\.\d+)*)\s*$", re.MULTILINE)
_BLOCK: Final = re.compile(r"^Input model: ", re.MULTILINE)
_ROW: Final = re.compile(r"^([A-Z][A-Z0-9_]*)\s+(\d+)\s+(\S.*?)\s*$", re.MULTILINE)
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)(B|KiB|MiB|GiB)")
_ON_CHIP: Final = "On-chip memory used for caching model parameters"
_REMAINING: Final = "On-chip memory remaining for caching model parameters"
_STREAMED: Final = "Off-chip memory used for streaming uncached model parameters"
_SUBGRAPHS: Final = "Number of Edge TPU subgraphs"
_OPERATIONS: Final = "Total number of operations"
_ON_TPU: Final = "Number of operations that will run on Edge TPU"


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusCount:
    """So many operators of a kind have a status: `MAPPED`, or why they stay on the CPU."""

    kind: str
    count: int
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLog:
    """What became of one model, or of one segment; the names are those of files without folders.

    Bytes are rounded: the compiler prints two decimals of a KiB or MiB.
    """

    input: str
    output: str
    on_chip_bytes: int
    remaining_bytes: int
    streamed_bytes: int
    subgraphs: int
    operations: int
    statuses: tuple[StatusCount, ...]

    @property
    def mapped(self) -> int:
        """The operators that the Edge TPU runs."""
        return sum(row.count for row in self.statuses if row.status == MAPPED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """One run of the compiler that succeeded."""

    version: str
    models: tuple[ModelLog, ...]


def version(text: str) -> str:
    """The compiler's version, or nothing where the text does not say.

    >>> version("Edge TPU Compiler version 16.0.384591198")
    '16.0.384591198'
    """
    found = _VERSION.search(text)
    return found.group(1) if found else ""


def parse(text: str) -> Log:
    """Read what the compiler said of models that it compiled.

    Raises:
        ModelError: the text lacks something, or contradicts itself.
    """
    blocks = _BLOCK.split(text)[1:]
    if not version(text) or not blocks:
        raise _unreadable("it names neither its version nor a model" if not blocks else "it does not name its version")
    return Log(version=version(text), models=tuple(_model(block) for block in blocks))


def _model(block: str) -> ModelLog:
    fields = dict(_fields(f"Input model: {block}"))
    found = ModelLog(
        input=PurePosixPath(_text(fields, "Input model")).name,
        output=PurePosixPath(_text(fields, "Output model")).name,
        on_chip_bytes=_bytes(fields, _ON_CHIP),
        remaining_bytes=_bytes(fields, _REMAINING),
        streamed_bytes=_bytes(fields, _STREAMED),
        subgraphs=_count(fields, _SUBGRAPHS),
        operations=_count(fields, _OPERATIONS),
        statuses=tuple(_table(block)),
    )
    listed = sum(row.count for row in found.statuses)
    if listed != found.operations:
        raise _unreadable(f"its table lists {listed} operators of {found.input}, and it counts {found.operations}")
    if _ON_TPU in fields and _count(fields, _ON_TPU) != found.mapped:
        raise _unreadable(f"its table maps {found.mapped} operators of {found.input}, and it counts {fields[_ON_TPU]}")
    return found


def _fields(block: str) -> Iterator[tuple[str, str]]:
    """The lines `name: value`, the first of each name."""
    seen = set()
    for line in block.splitlines():
        name, colon, value = line.partition(": ")
        if colon and name not in seen:
            seen.add(name)
            yield name, value.strip()


def _table(block: str) -> Iterator[StatusCount]:
    _, header, rows = block.partition("Operator ")
    if not header or not re.match(r"\s*Count\s+Status\s*$", rows, re.MULTILINE):
        raise _unreadable("it has no table of operators")
    return (StatusCount(kind=kind, count=int(count), status=status) for kind, count, status in _ROW.findall(rows))


def _text(fields: dict[str, str], name: str) -> str:
    if not fields.get(name):
        raise _unreadable(f"it lacks '{name}'")
    return fields[name]


def _count(fields: dict[str, str], name: str) -> int:
    value = _text(fields, name)
    if not value.isascii() or not value.isdigit():
        raise _unreadable(f"'{name}' is '{value}', no number")
    return int(value)


def _bytes(fields: dict[str, str], name: str) -> int:
    value = _text(fields, name)
    found = _SIZE.fullmatch(value)
    if not found:
        raise _unreadable(f"'{name}' is '{value}', no size")
    return round(float(found.group(1)) * _UNITS[found.group(2)])


def _unreadable(cause: str) -> ModelError:
    return ModelError(
        "what edgetpu_compiler said can't be read",
        cause=cause,
        action="see with `edgebuild doctor` which program it is; versions 14 to 16 are known to be read",
    )
