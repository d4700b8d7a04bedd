"""Whether a flatbuffer's offsets and lengths hold, before anything follows them.

The generated readers believe a file: an offset may point anywhere, and a length of 2^31 is a loop of as many turns.
What has passed here lies inside the file, and reading it takes time in proportion to the file's size.

ref: https://flatbuffers.dev/internals, and the Verifier of its C++ library, which stops at as many tables.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from edgebuild.export.errors import ModelError


@dataclass(frozen=True, slots=True)
class Vector:
    """Elements of so many bytes each; `is_read` where they become Python numbers, and are not viewed as they lie."""

    width: int
    is_read: bool = True


@dataclass(frozen=True, slots=True)
class Union:
    """A table of the kind that the byte in another slot names; of kinds not named here only numbers are read."""

    type_slot: int
    kinds: Mapping[int, str]


Field: TypeAlias = Vector | Union | str | tuple[str]  # A table by its name, or a vector of tables.

NUMBERS_ONLY: Final = "numbers only"
_TEXT: Final = Vector(1)
_INT32: Final = Vector(4)
_INT64: Final = Vector(8)
_COORDINATES: Final = {1: "Int32Vector", 2: "Uint16Vector", 3: "Uint8Vector"}

# What `flatbuffer.py` reads behind offsets, by slot. Offsets in other slots are not followed;
# see schema.fbs in TensorFlow's tensorflow/compiler/mlir/lite/schema.
LAYOUT: Final[Mapping[str, Mapping[int, Field]]] = {
    "Model": {1: ("OperatorCode",), 2: ("SubGraph",), 3: _TEXT, 4: ("Buffer",), 7: ("SignatureDef",)},
    "OperatorCode": {1: _TEXT},
    "SubGraph": {0: ("Tensor",), 1: _INT32, 2: _INT32, 3: ("Operator",), 4: _TEXT},
    "Tensor": {0: _INT32, 3: _TEXT, 4: "QuantizationParameters", 6: "SparsityParameters", 7: _INT32},
    "QuantizationParameters": {2: Vector(4), 3: _INT64},
    "SparsityParameters": {0: _INT32, 1: _INT32, 2: ("DimensionMetadata",)},
    "DimensionMetadata": {3: Union(2, _COORDINATES), 5: Union(4, _COORDINATES)},
    "Int32Vector": {0: Vector(4, is_read=False)},
    "Uint16Vector": {0: Vector(2, is_read=False)},
    "Uint8Vector": {0: Vector(1, is_read=False)},
    "Operator": {
        1: _INT32,
        2: _INT32,
        4: Union(
            3,
            {
                3: "ConcatEmbeddingsOptions",
                17: "ReshapeOptions",
                30: "SqueezeOptions",
                111: "VarHandleOptions",
                115: "BucketizeOptions",
            },
        ),
    },
    "ConcatEmbeddingsOptions": {1: _INT32, 2: _INT32},
    "ReshapeOptions": {0: _INT32},
    "SqueezeOptions": {0: _INT32},
    "VarHandleOptions": {0: _TEXT, 1: _TEXT},
    "BucketizeOptions": {0: Vector(4)},
    "Buffer": {0: Vector(1, is_read=False)},
    "SignatureDef": {0: ("TensorMap",), 1: ("TensorMap",), 2: _TEXT},
    "TensorMap": {0: _TEXT},
    NUMBERS_ONLY: {},
}

MOST_TABLES: Final = 1_000_000
REUSE: Final = 2  # Writers let many tensors share the empty buffer, and nothing larger.


def verify(data: bytes, layout: Mapping[str, Mapping[int, Field]] = LAYOUT) -> None:
    """Follow every offset that a reader will follow: those of `layout`.

    Raises:
        ModelError: one leads out of the file, or so many lead to the same bytes that reading them would not end.
    """
    try:
        walk = _Walk(data, layout)
        walk.table("Model", walk.target(0))
    except (struct.error, ValueError) as e:
        raise damaged(str(e)) from e


def damaged(cause: str) -> ModelError:
    """The refusal of a file whose parts do not hold together."""
    return ModelError("the TFLite flatbuffer is damaged", cause=cause, action="convert or download it again")


class _Walk:
    """A walk over a file; `_left_bytes` is what it may still read, and `_tables` how many it saw."""

    def __init__(self, data: bytes, layout: Mapping[str, Mapping[int, Field]] = LAYOUT) -> None:
        self._data = data
        self._layout = layout
        self._left_bytes = REUSE * len(data)
        self._tables = 0

    def table(self, name: str, at: int) -> None:
        """Verify a table and all that hangs from it. It is nested no deeper than the layout is."""
        offsets = self._offsets(name, at)
        for slot, kind in self._layout[name].items():
            if slot < len(offsets) and offsets[slot]:
                self._follow(self._kind(kind, at, offsets), self.target(at + offsets[slot]), f"{name}, slot {slot}")

    def target(self, at: int) -> int:
        """Where the offset at a place leads."""
        found = at + self._number("<I", at)
        if found == at:
            raise ValueError(f"the offset at byte {at:,} leads to itself")
        return found

    def _offsets(self, name: str, at: int) -> tuple[int, ...]:
        """Where each field of a table lies in it, 0 where it is absent; the table and its vtable lie in the file."""
        vtable = at - self._number("<i", at)
        self._inside(vtable, 4, f"the vtable of {name}")
        length, size = self._number("<H", vtable), self._number("<H", vtable + 2)
        self._inside(vtable, length, f"the vtable of {name}")
        self._inside(at, size, name)
        self._spend(size, name)
        if length < 4 or length % 2 or size < 4 or (vtable < at + size and at < vtable + length):
            raise ValueError(f"the vtable of {name} at byte {vtable:,} describes no table")
        offsets = struct.unpack_from(f"<{length // 2 - 2}H", self._data, vtable + 4)
        if any(0 < offset < 4 or offset >= size for offset in offsets):
            raise ValueError(f"a field of {name} at byte {at:,} lies outside it")
        self._tables += 1
        if self._tables > MOST_TABLES:
            raise ValueError(f"it holds more than {MOST_TABLES:,} tables")
        return offsets

    def _kind(self, field: Field, at: int, offsets: tuple[int, ...]) -> Vector | str | tuple[str]:
        if not isinstance(field, Union):
            return field
        offset = offsets[field.type_slot]
        return field.kinds.get(self._number("<B", at + offset) if offset else 0, NUMBERS_ONLY)

    def _follow(self, kind: Vector | str | tuple[str], at: int, name: str) -> None:
        if isinstance(kind, str):
            self.table(kind, at)
            return
        if isinstance(kind, Vector):
            count = self._vector(at, kind.width, name)
            self._spend(4 + (count * kind.width if kind.is_read else 0), name)
            return
        for place in self._places(at, name):
            self.table(kind[0], self.target(place))

    def _places(self, at: int, name: str) -> Iterator[int]:
        count = self._vector(at, 4, name)
        self._spend(4 + 4 * count, name)
        return (at + 4 + 4 * index for index in range(count))

    def _vector(self, at: int, width: int, name: str) -> int:
        count = self._number("<I", at)
        self._inside(at + 4, count * width, f"the vector of {count:,} in {name}")
        return count

    def _number(self, form: str, at: int) -> int:
        self._inside(at, struct.calcsize(form), "an offset")
        return int(struct.unpack_from(form, self._data, at)[0])

    def _inside(self, at: int, size: int, name: str) -> None:
        if not 0 <= at <= at + size <= len(self._data):
            raise ValueError(f"{name} at byte {at:,} reaches out of the file, which has {len(self._data):,}")

    def _spend(self, size: int, name: str) -> None:
        self._left_bytes -= size
        if self._left_bytes < 0:
            raise ValueError(f"its parts lie over each other ({name}): they come to more than twice the file's size")
