"""Ways to damage a store that was whole: each gives the keys of the entries it harmed, and what it did."""

from __future__ import annotations

import os
import random
from pathlib import Path

from edgebuild.pipeline.storage.store import ENTRY, Store


def flip(chance: random.Random, store: Store) -> tuple[set[str], str]:
    """A bit of a byte; in a listing, a byte of a digest, since its blanks and its description decide nothing."""
    key, file = _some_file(chance, store)
    content = bytearray(file.read_bytes())
    where = content.rindex(b'"') - chance.randint(1, 64) if file.name == ENTRY else chance.randrange(len(content))
    content[where] ^= 1 << chance.randrange(8)
    file.write_bytes(content)
    return {key}, f"{_name(store, file)} at {where}"


def cut(chance: random.Random, store: Store) -> tuple[set[str], str]:
    """The end of a file, up to all of it."""
    key, file = _some_file(chance, store)
    length = chance.randrange(file.stat().st_size)
    os.truncate(file, length)
    return {key}, f"{_name(store, file)} to {length}"


def swap(chance: random.Random, store: Store) -> tuple[set[str], str]:
    """Two that differ: packages hold copies of what was converted."""
    while True:
        (one, left), (other, right) = _some_file(chance, store), _some_file(chance, store)
        contents = left.read_bytes(), right.read_bytes()
        if one != other and contents[0] != contents[1]:
            right.write_bytes(contents[0])
            left.write_bytes(contents[1])
            return {one, other}, f"{_name(store, left)} with {_name(store, right)}"


def _some_file(chance: random.Random, store: Store) -> tuple[str, Path]:
    key = chance.choice(list(store.keys()))
    return key, chance.choice(sorted(file for file in store.place(key).rglob("*") if file.is_file()))


def _name(store: Store, file: Path) -> str:
    return str(file.relative_to(store.root))[3:]
