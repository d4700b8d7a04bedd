"""Files damaged on purpose: bytes flipped, cut, spliced, and messages and tables rearranged.

A mutation is a function from a random generator and a file's bytes to other bytes. What it does follows from the
generator's seed alone.
"""

from __future__ import annotations

import io
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Final

Mutation = Callable[[random.Random, bytes], bytes]
_LENGTH_DELIMITED: Final = 2
_FIXED: Final = {1: 8, 5: 4}
_HEAD: Final = 4096  # Where most formats keep what decides how the rest is read.


def flip(chance: random.Random, data: bytes) -> bytes:
    """Up to 16 bytes replaced, half of them near the beginning."""
    damaged = bytearray(data)
    for _ in range(chance.randint(1, 16)):
        limit = min(len(data), _HEAD) if chance.random() < 0.5 else len(data)
        damaged[chance.randrange(limit)] = chance.randrange(256)
    return bytes(damaged)


def truncate(chance: random.Random, data: bytes) -> bytes:
    """The beginning of a file."""
    return data[: chance.randrange(len(data))]


def splice(chance: random.Random, data: bytes) -> bytes:
    """A piece of the file laid over, or put between, another place of it."""
    start = chance.randrange(len(data))
    piece = data[start : start + chance.randint(1, 4096)]
    place = chance.randrange(len(data))
    kept = place + (len(piece) if chance.random() < 0.5 else 0)
    return data[:place] + piece + data[kept:]


def rearrange(chance: random.Random, data: bytes) -> bytes:
    """A protocol buffer with two fields of one of its messages swapped, or one dropped, doubled, or given a new number.

    What is no protocol buffer is spliced.
    """
    fields = list(_fields(data))
    if len(fields) < 2:
        return splice(chance, data)
    inner = [i for i, (_, kind, payload) in enumerate(fields) if kind == _LENGTH_DELIMITED and len(payload) > 8]
    if inner and chance.random() < 0.75:  # Go deeper: the outermost message is a small part of what there is.
        i = chance.choice(inner)
        number, kind, payload = fields[i]
        fields[i] = (number, kind, rearrange(chance, payload))
        return _joined(fields)
    i, j = chance.sample(range(len(fields)), 2)
    match chance.randrange(4):
        case 0:
            fields[i], fields[j] = (fields[i][0], *fields[j][1:]), (fields[j][0], *fields[i][1:])
        case 1:
            del fields[i]
        case 2:
            fields.insert(j, fields[i])
        case _:
            fields[i] = (chance.randint(1, 40), *fields[i][1:])
    return _joined(fields)


def within_zip(chance: random.Random, data: bytes) -> bytes:
    """A zip archive with one member damaged and every check sum right again."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name = chance.choice(sorted(members))
    members[name] = chance.choice((flip, truncate, splice))(chance, members[name] or b"\0")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return out.getvalue()


def relink(chance: random.Random, data: bytes) -> bytes:
    """A flatbuffer with two fields of one of its tables swapped, one laid over another, moved, or given an odd value.

    What holds no table is spliced.
    """
    tables = list(_tables(data))
    if not tables:
        return splice(chance, data)
    at, vtable, slots = chance.choice(tables)
    damaged = bytearray(data)
    first, second = (vtable + 4 + 2 * chance.randrange(slots) for _ in range(2))
    places = [at + struct.unpack_from("<H", data, slot)[0] for slot in (first, second)]
    match chance.randrange(5):
        case 0:
            damaged[first : first + 2], damaged[second : second + 2] = (
                data[second : second + 2],
                data[first : first + 2],
            )
        case 1 if max(places) + 4 <= len(data):
            damaged[places[0] : places[0] + 4] = data[places[1] : places[1] + 4]
        case 2 if places[0] + 4 <= len(data):
            damaged[places[0] : places[0] + 4] = chance.choice(_ODD)
        case 3:
            damaged[at : at + 4] = chance.choice(_ODD)
        case _:
            damaged[first : first + 2] = struct.pack("<H", chance.choice((0, 1, 4, 6, 255, 0xFFFF)))
    return bytes(damaged)


def _tables(data: bytes) -> Iterator[tuple[int, int, int]]:
    """What looks like a table: where it is, where its vtable is, and how many fields that has.

    ref: flatbuffers.dev/internals
    """
    for at in range(8, len(data) - 4, 4):
        vtable = at - struct.unpack_from("<i", data, at)[0]
        if not 4 <= vtable <= len(data) - 4:
            continue
        length, size = struct.unpack_from("<HH", data, vtable)
        if 6 <= length <= 64 and length % 2 == 0 and 4 < size <= 128 and max(vtable + length, at + size) <= len(data):
            yield at, vtable, length // 2 - 2


_ODD: Final = tuple(struct.pack("<I", value) for value in (0, 1, 4, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 4, 2**32 - 1))
_ANY: Final[tuple[Mutation, ...]] = (flip, truncate, splice)
OF_FORMAT: Final[dict[str, tuple[Mutation, ...]]] = {
    ".onnx": (*_ANY, rearrange, rearrange),
    ".pb": (*_ANY, rearrange, rearrange),
    ".keras": (*_ANY, within_zip, within_zip),
    ".tflite": (*_ANY, relink, relink, relink),
}


def mutated(chance: random.Random, data: bytes, suffix: str) -> bytes:
    """One mutation of those that make sense for files of that name."""
    return chance.choice(OF_FORMAT.get(suffix, _ANY))(chance, data)


def _fields(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Number, wire type and payload of each field of a message; nothing where it is none.

    ref: protobuf.dev/programming-guides/encoding
    """
    found, at = [], 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            _, end = _varint(data, at)
        elif kind == _LENGTH_DELIMITED:
            length, at = _varint(data, at)
            end = at + length
        else:
            end = at + _FIXED.get(kind, len(data))
        if number == 0 or end > len(data):
            return
        found.append((number, kind, data[at:end]))
        at = end
    yield from found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    return value, len(data) + 1


def _joined(fields: list[tuple[int, int, bytes]]) -> bytes:
    return b"".join(
        _encoded(number << 3 | kind) + (_encoded(len(payload)) if kind == _LENGTH_DELIMITED else b"") + payload
        for number, kind, payload in fields
    )


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))
