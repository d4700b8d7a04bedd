"""Time one cold `edgebuild` for four targets against four stock-converter scripts, interleaved in one run.

    .venv/bin/python benchmarks/build_vs_scripts.py [--rounds 3] [--json FILE]

Each script is a fresh process, as a user writes it, run one after the other; `edgebuild` starts with an empty store
and does what the scripts leave undone: verification, metric, placement, arena, latency. A machine's speed drifts, so
only ratios within a round count, and the median of them is held against the limit. Exits with 1 above a limit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import yaml

HERE: Final = Path(__file__).resolve().parent
KWS: Final = HERE.parents[1] / "shared" / "fixtures" / "kws"
TARGETS: Final = ("cpu", "gpu", "edgetpu", "mcu")
EDGEBUILD: Final = str(Path(sys.executable).with_name("edgebuild"))
LIMITS: Final = {"cold_over_scripts": 0.5, "noop_s": 0.8, "help_s": 0.25}
GOALS: Final = {"cold_over_scripts": 0.35}
REPEATS: Final = 7


def seconds(command: Sequence[str], folder: Path, **variables: str) -> float:
    """Wall time of a command that must succeed."""
    began = time.perf_counter()
    ended = subprocess.run(command, cwd=folder, env=os.environ | variables, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
    return time.perf_counter() - began


def lay_out(folder: Path) -> None:
    """Data and configuration of the keyword-spotting project."""
    data = np.load(KWS / "kws_a500.npz")
    np.savez(folder / "calibration.npz", input_1=data["x"][:200])
    np.savez(folder / "evaluation.npz", input_1=data["x"][200:], labels=data["y"][200:])
    sources = {"calibration": "calibration.npz", "evaluation": "evaluation.npz"}
    config = {"model": str(KWS / "saved_model"), "data": sources, "targets": {name: {} for name in TARGETS}}
    (folder / "edgebuild.yaml").write_text(yaml.safe_dump(config))


def scripts(folder: Path) -> float:
    """The four scripts, one after the other."""
    script, model = str(HERE / "stock_convert.py"), str(KWS / "saved_model")
    return sum(
        seconds([sys.executable, script, name, model, "calibration.npz", f"stock_{name}.tflite"], folder)
        for name in TARGETS
    )


def cold(folder: Path) -> float:
    """One build of all targets from an empty store into an empty folder."""
    with tempfile.TemporaryDirectory() as fresh:
        return seconds([EDGEBUILD, "-o", f"{fresh}/build"], folder, EDGEBUILD_CACHE=f"{fresh}/cache")


def repeated(measure: Callable[[], float]) -> float:
    """The median of several, after one to warm the disk's cache."""
    measure()
    return median(measure() for _ in range(REPEATS))


def run(rounds: int) -> dict[str, Any]:
    """All figures; every round runs both sides, taking turns at going first."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lay_out(folder)
        pairs = []
        for turn in range(rounds):
            sides: list[tuple[str, Callable[[Path], float]]] = [("scripts_s", scripts), ("cold_s", cold)]
            pair = {side: measure(folder) for side, measure in (sides if turn % 2 == 0 else reversed(sides))}
            pairs.append(pair)
            print(f"round {turn + 1}: scripts {pair['scripts_s']:.1f} s, edgebuild {pair['cold_s']:.1f} s", flush=True)
        store = {"EDGEBUILD_CACHE": f"{name}/cache"}
        return {
            "rounds": pairs,
            "cold_over_scripts": median(pair["cold_s"] / pair["scripts_s"] for pair in pairs),
            "noop_s": repeated(lambda: seconds([EDGEBUILD], folder, **store)),
            "help_s": repeated(lambda: seconds([EDGEBUILD, "--help"], folder)),
        }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "build_vs_scripts.json")
    arguments = parser.parse_args()
    if not KWS.is_dir():
        sys.exit(f"the shared fixtures are not there: {KWS}")
    figures = run(arguments.rounds)
    over = [name for name, limit in LIMITS.items() if figures[name] > limit]
    for name, limit in LIMITS.items():
        goal = f", goal {GOALS[name]}" if name in GOALS else ""
        print(f"{name}: {figures[name]:.3f} (limit {limit}{goal}) {'ABOVE' if name in over else 'ok'}")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(figures | {"limits": LIMITS}, indent=1) + "\n")
    sys.exit(1 if over else 0)


if __name__ == "__main__":
    main()
