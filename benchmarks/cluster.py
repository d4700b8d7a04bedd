"""Build two models for four targets here and on a Dask cluster of two workers, in one run: same bytes, both times.

    .venv/bin/python benchmarks/cluster.py [--rounds 2] [--json FILE]

The cluster is a LocalCluster in a process of its own. Its workers have been used once when the clock starts, as a
cluster's are; a round takes both sides from an empty store, in turns. Exits with 1 where an artifact differs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import fixtures
import yaml
from local_cluster import local_cluster
from timed import EDGEBUILD, RESULTS, write


def lay_out(folder: Path) -> Path:
    """Keyword spotting and ResNet-8, each for four targets, as a matrix; its file."""
    fixtures.lay_out(fixtures.kws(), folder / "kws")
    fixtures.lay_out(fixtures.resnet8(), folder / "resnet8")
    path = folder / "matrix.yaml"
    path.write_text(yaml.safe_dump({"projects": ["kws/edgebuild.yaml", "resnet8/edgebuild.yaml"]}))
    return path


def build(matrix: Path, *options: str) -> dict[str, Any]:
    """One build from an empty store: seconds until the reports lie there, and every artifact's digest."""
    with tempfile.TemporaryDirectory() as cache:
        command = [EDGEBUILD, "matrix", str(matrix), "-q", *options]
        began = time.perf_counter()
        ended = subprocess.run(
            command, env=os.environ | {"EDGEBUILD_CACHE": cache}, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - began
    if ended.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
    models = sorted(matrix.parent.glob("*/build/*/model.tflite"))
    digests = {str(m.relative_to(matrix.parent)): hashlib.sha256(m.read_bytes()).hexdigest() for m in models}
    return {"seconds": seconds, "digests": digests}


def run(rounds: int) -> dict[str, Any]:
    """All figures."""
    with tempfile.TemporaryDirectory() as name:
        matrix = lay_out(Path(name))
        with local_cluster() as (address, _):
            build(matrix, "--scheduler", address)  # And the latencies, which later builds find in the reports.
            found = []
            for turn in range(rounds):
                sides = {"here": (), "cluster": ("--scheduler", address)}
                order = list(sides) if turn % 2 == 0 else list(reversed(sides))
                pair = {side: build(matrix, *sides[side]) for side in order}
                found.append(pair)
                times = ", ".join(f"{side} {ended['seconds']:.1f} s" for side, ended in pair.items())
                print(f"round {turn + 1}: {times}", flush=True)
    here = found[0]["here"]["digests"]
    return {
        "artifacts": len(here),
        "equal": all(side["digests"] == here for pair in found for side in pair.values()),
        "seconds": [{side: ended["seconds"] for side, ended in pair.items()} for pair in found],
        "cluster_over_here": median(pair["cluster"]["seconds"] / pair["here"]["seconds"] for pair in found),
        "digests": here,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, default=RESULTS / "cluster.json")
    arguments = parser.parse_args()
    fixtures.require()
    figures = run(arguments.rounds)
    print(f"{figures['artifacts']} artifacts, {'equal' if figures['equal'] else 'DIFFERENT'} on both sides")
    print(f"cluster over here: {figures['cluster_over_here']:.2f}")
    write(arguments.json, figures)
    sys.exit(0 if figures["equal"] and figures["artifacts"] == 2 * len(fixtures.TARGETS) else 1)


if __name__ == "__main__":
    main()
