"""Time one cold `edgebuild` for four targets against four stock-converter scripts, interleaved in one run.

    .venv/bin/python benchmarks/build_vs_scripts.py [--rounds 3] [--json FILE]

Each script is a fresh process, as a user writes it, run one after the other; `edgebuild` starts with an empty store
and does what the scripts leave undone: verification, metric, placement, arena, latency. A machine's speed drifts, so
only ratios within a round count, and the median of them is held against the limit. Exits with 1 above a limit.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import fixtures
from timed import EDGEBUILD, RESULTS, in_turns, repeated, seconds, write

LIMITS: Final = {"cold_over_scripts": 0.5, "noop_s": 0.8, "help_s": 0.25}
GOALS: Final = {"cold_over_scripts": 0.35}
REPEATS: Final = 7


def scripts(folder: Path) -> float:
    """The four scripts, one after the other."""
    script = str(Path(__file__).with_name("stock_convert.py"))
    return sum(
        seconds([sys.executable, script, name, "model", "calibration.npz", f"stock_{name}.tflite"], folder)
        for name in fixtures.TARGETS
    )


def cold(folder: Path) -> float:
    """One build of all targets from an empty store into an empty folder."""
    with tempfile.TemporaryDirectory() as fresh:
        return seconds([EDGEBUILD, "-o", f"{fresh}/build"], folder, EDGEBUILD_CACHE=f"{fresh}/cache")


def run(rounds: int) -> dict[str, Any]:
    """All figures; every round runs both sides, taking turns at going first."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fixtures.lay_out(fixtures.kws(), folder)
        sides = {"scripts_s": partial(scripts, folder), "cold_s": partial(cold, folder)}
        pairs = []
        for turn in range(rounds):
            pair = in_turns(sides, turn)
            pairs.append(pair)
            print(f"round {turn + 1}: scripts {pair['scripts_s']:.1f} s, edgebuild {pair['cold_s']:.1f} s", flush=True)
        store = {"EDGEBUILD_CACHE": f"{name}/cache"}
        return {
            "rounds": pairs,
            "cold_over_scripts": median(pair["cold_s"] / pair["scripts_s"] for pair in pairs),
            "noop_s": repeated(lambda: seconds([EDGEBUILD], folder, **store), REPEATS),
            "help_s": repeated(lambda: seconds([EDGEBUILD, "--help"], folder), REPEATS),
        }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=RESULTS / "build_vs_scripts.json")
    arguments = parser.parse_args()
    fixtures.require()
    figures = run(arguments.rounds)
    over = [name for name, limit in LIMITS.items() if figures[name] > limit]
    for name, limit in LIMITS.items():
        goal = f", goal {GOALS[name]}" if name in GOALS else ""
        print(f"{name}: {figures[name]:.3f} (limit {limit}{goal}) {'ABOVE' if name in over else 'ok'}")
    write(arguments.json, figures | {"limits": LIMITS})
    sys.exit(1 if over else 0)


if __name__ == "__main__":
    main()
