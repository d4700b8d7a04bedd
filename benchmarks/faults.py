"""Disturb builds on purpose, and see that none of them lies and none loses anything.

    .venv/bin/python benchmarks/faults.py [--kills 60] [--pairs 10] [--corruptions 20] [--segfaults 5] [--hangs 5]
                                          [--seed 0] [--only NAME] [--json FILE]

An undisturbed build of the demo gives the bytes that every other one has to end with: artifacts, manifest, statements.
Then builds are killed, run against each other, given a damaged store, a full disk, native code that crashes or hangs,
and a cluster that loses a worker. Prints a table; exits with 1 where anything ended otherwise than promised.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from itertools import count as numbers
from pathlib import Path
from typing import Any, Final

from fault_builds import ALL, SOME, Ground, Place, build, chosen, ended
from fault_cases import PARTS, SkippedError
from fault_verdicts import files
from timed import RESULTS, write

from edgebuild.pipeline import demo

COUNTS: Final = {"kills": 60, "pairs": 10, "corruptions": 20, "segfaults": 5, "hangs": 5}


def undisturbed(ground: Ground) -> float:
    """Build all targets from nothing, and some of them from the store; the seconds of the first."""
    demo.lay_out(ground.project)
    began = time.monotonic()
    _refer(ground, ground.whole, ALL)
    seconds = time.monotonic() - began
    _refer(ground, ground.fresh(ground.whole.store), SOME)
    return seconds


def _refer(ground: Ground, place: Place, targets: tuple[str, ...]) -> None:
    code = ended(build(ground, place, *chosen(targets)))
    if code != 0:
        sys.exit(f"an undisturbed build ended with {code}:\n{place.complained}")
    ground.reference[targets] = files(place.out)


def tried(name: str, ground: Ground, count: int, seconds: float) -> dict[str, Any]:
    """Run one part and print its line."""
    began, cases, skipped = time.monotonic(), [], ""
    try:
        for case in PARTS[name](ground, count, seconds):
            cases.append(case)
            for wrong in case.wrong:
                print(f"  {name}, {case.kind} {case.told}: {wrong}", file=sys.stderr, flush=True)
    except SkippedError as e:
        skipped = str(e)
    held = sum(not case.wrong for case in cases)
    kinds = Counter(case.kind for case in cases)
    told = f"skipped: {skipped}" if skipped else ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    took = time.monotonic() - began
    print(f"{name:<14}{len(cases):>6}{held:>6}{took:>8.0f}  {told}", flush=True)
    return {"held": held, "seconds": round(took, 1), "skipped": skipped, "cases": [asdict(case) for case in cases]}


def main() -> None:
    """Disturb, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in COUNTS.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=PARTS, help="repeatable; default: all")
    parser.add_argument("--json", type=Path, default=RESULTS / "faults.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgebuild-faults-") as home:
        chance = random.Random(arguments.seed)  # noqa: S311 - moments and places, not secrets
        ground = Ground(home=Path(home), chance=chance, numbers=numbers(), reference={})
        seconds = undisturbed(ground)
        print(f"an undisturbed build takes {seconds:.1f} s and leaves {len(ground.reference[ALL])} files", flush=True)
        print(f"{'part':<14}{'cases':>6}{'held':>6}{'s':>8}", flush=True)
        parts = arguments.only or PARTS
        found = {name: tried(name, ground, getattr(arguments, name, 0), seconds) for name in parts}
    settings = {"seed": arguments.seed, "undisturbed_s": round(seconds, 1), "reference": ground.reference[ALL]}
    write(arguments.json, settings | {"parts": found})
    sys.exit(any(case["wrong"] for part in found.values() for case in part["cases"]))


if __name__ == "__main__":
    main()
