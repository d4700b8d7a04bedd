"""Time a build that finds all in the store, with the demo's entries alone and with 10,000 others, interleaved.

    .venv/bin/python benchmarks/store.py [--entries 10000] [--rounds 7] [--json FILE]

The other entries are small, as most stages' are; `cache verify` is timed over them and over a store of a few large
ones, since many small files and few large ones cost different things. Exits with 1 above a limit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

from timed import EDGEBUILD, RESULTS, in_turns, repeated, seconds, write

from edgebuild.pipeline.storage import inventory
from edgebuild.pipeline.storage.store import ENTRY, Store

LIMITS: Final = {"noop_full_s": 1.0}
SMALL: Final = (200, 2_000, 12_000)  # Bytes of one entry's three files.
LARGE: Final = (20_000_000,)


def edgebuild(*arguments: str, folder: Path, store: Path) -> float:
    """Wall time of one command on one store."""
    return seconds([EDGEBUILD, *arguments], folder, EDGEBUILD_CACHE=str(store))


def fill(store: Store, count: int, sizes: tuple[int, ...]) -> None:
    """Entries as the store writes them, but for the flushing to disk, which ten thousand of them need not wait for."""
    chance = random.Random(1)  # noqa: S311 - contents, not secrets
    for _ in range(count):
        key = chance.randbytes(32).hex()
        contents = {f"file{index}": chance.randbytes(size) for index, size in enumerate(sizes)}
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        listing = json.dumps({"key": key, "description": "an entry of the benchmark", "files": digests}, indent=1)
        store.place(key).mkdir(parents=True)
        for name, content in {**contents, ENTRY: listing.encode()}.items():
            (store.place(key) / name).write_bytes(content)


def verified(store: Path) -> float:
    """What `cache verify` prints as its rate, in MB/s."""
    found = inventory.verify(Store(store))
    if found.damaged:
        sys.exit(f"the benchmark's own store is damaged: {found.damaged[0]}")
    return found.mb_per_s


def run(entries: int, rounds: int) -> dict[str, Any]:
    """All figures."""
    with tempfile.TemporaryDirectory() as name:
        folder, lean, full, large = (Path(name) / part for part in ("demo", "lean", "full", "large"))
        edgebuild("demo", str(folder), folder=Path(name), store=lean)
        shutil.copytree(lean, full)
        fill(Store(full), entries, SMALL)
        fill(Store(large), 20, LARGE)
        edgebuild("build", folder=folder, store=full)
        stores = {"lean_s": lean, "full_s": full}
        sides = {side: partial(edgebuild, "build", folder=folder, store=store) for side, store in stores.items()}
        pairs = [in_turns(sides, turn) for turn in range(rounds)]
        return {
            "entries": len(inventory.entries(Store(full))),
            "rounds": pairs,
            "noop_lean_s": median(pair["lean_s"] for pair in pairs),
            "noop_full_s": median(pair["full_s"] for pair in pairs),
            "full_over_lean": median(pair["full_s"] / pair["lean_s"] for pair in pairs),
            "ls_lean_s": repeated(lambda: edgebuild("cache", "ls", folder=folder, store=lean), 3),
            "ls_full_s": repeated(lambda: edgebuild("cache", "ls", folder=folder, store=full), 3),
            "verify_small_mb_per_s": repeated(lambda: verified(full), 3),
            "verify_large_mb_per_s": repeated(lambda: verified(large), 3),
            "gc_half_s": edgebuild("cache", "gc", "--max-size", "70MB", folder=folder, store=full),
        }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--entries", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, default=RESULTS / "store.json")
    arguments = parser.parse_args()
    figures = run(arguments.entries, arguments.rounds)
    over = [name for name, limit in LIMITS.items() if figures[name] > limit]
    for name, value in figures.items():
        if isinstance(value, int | float):
            verdict = f" (limit {LIMITS[name]}) {'ABOVE' if name in over else 'ok'}" if name in LIMITS else ""
            print(f"{name}: {value:,.3f}{verdict}" if isinstance(value, float) else f"{name}: {value:,}")
    write(arguments.json, figures | {"limits": LIMITS})
    sys.exit(1 if over else 0)


if __name__ == "__main__":
    main()
