"""What is promised of a build, however it was disturbed.

Each function gives what is wrong, one line each, and nothing where all is as promised.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from fault_builds import ALL, TAG, Ground, Place
from fixtures import TARGETS

from edgebuild.pipeline.storage.digests import digest_file
from edgebuild.pipeline.storage.store import Store

TIMED: Final = ("report.json", "report.html")
GONE_WITHIN_S: Final = 15.0  # A worker whose parent dies before it could ask for a signal imports TensorFlow first.


def files(out: Path) -> dict[str, str]:
    """The sha256 of everything in a build's folder but the reports, which hold latencies."""
    found = (file for file in sorted(out.rglob("*")) if file.is_file() and file.name not in TIMED)
    return {file.relative_to(out).as_posix(): digest_file(file) for file in found}


def wrong_end(place: Place, code: int, expected: int, *words: str) -> Iterator[str]:
    """The exit status, no traceback, and the words that a message must hold."""
    told = place.complained
    if code != expected:
        yield f"exit {code} instead of {expected}: {told.strip()[-600:]}"
    if "Traceback" in told:
        yield f"a traceback: {told.strip()[-600:]}"
    yield from (f"nothing said of '{word}': {told.strip()[-600:]}" for word in words if word not in told)


def wrong_bytes(ground: Ground, out: Path, targets: tuple[str, ...] = ALL) -> Iterator[str]:
    """Anything in a finished build's folder that an undisturbed one would not have left."""
    expected, found = ground.reference[targets], files(out)
    names = sorted(expected.keys() | found.keys())
    yield from (f"{name} is not the reference's" for name in names if expected.get(name) != found.get(name))


def wrong_halves(ground: Ground, out: Path, allowed: Sequence[str] = TARGETS) -> Iterator[str]:
    """A target's folder that is there and not whole, or that may not be there."""
    for target in TARGETS:
        found = {name: digest for name, digest in files(out).items() if name.startswith(f"{target}/")}
        expected = {name: digest for name, digest in ground.reference[ALL].items() if name.startswith(f"{target}/")}
        if found and (found != expected or target not in allowed):
            yield f"{target}/ is there and is not whole" if target in allowed else f"{target}/ is there"


def wrong_store(place: Place) -> Iterator[str]:
    """An entry that is there and not whole."""
    store = Store(place.store)
    yield from (f"entry {key}: {fault}" for key in tuple(store.keys()) for fault in store.faults(key) or ())


def wrong_left(ground: Ground, place: Place) -> Iterator[str]:
    """Processes, leases and unfinished files that outlive all builds; a lock's empty file locks nothing by itself."""
    yield from wrong_alive(ground)
    for name in ("staging", "leases"):
        yield from (f"{name}/{left.name} is left in the store" for left in (place.store / name).glob("*"))


def wrong_alive(ground: Ground) -> Iterator[str]:
    """Processes that go on without their build."""
    deadline = time.monotonic() + GONE_WITHIN_S
    while (left := _tagged(ground.home.name)) and time.monotonic() < deadline:
        time.sleep(0.05)
    yield from (f"process {process} is left" for process in left)


def _tagged(tag: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{TAG}={tag}".encode() in (folder / "environ").read_bytes():
                found.append(f"{folder.name} {(folder / 'cmdline').read_bytes()[-80:]!r}")
    return found


def wrong_finish(ground: Ground, place: Place, code: int, targets: tuple[str, ...] = ALL) -> tuple[str, ...]:
    """All that is promised of a build that ends well."""
    return (
        *wrong_end(place, code, 0),
        *wrong_bytes(ground, place.out, targets),
        *wrong_left(ground, place),
        *wrong_store(place),
    )
