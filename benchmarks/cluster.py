"""Build two models for four targets here and on a Dask cluster of two workers, in one run: same bytes, both times.

    .venv/bin/python benchmarks/cluster.py [--rounds 2] [--json FILE]

The cluster is a LocalCluster in a process of its own. Its workers have been used once when the clock starts, as a
cluster's are; a round takes both sides from an empty store, in turns. Exits with 1 where an artifact differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import yaml

HERE: Final = Path(__file__).resolve().parent
FIXTURES: Final = HERE.parents[1] / "shared" / "fixtures"
TARGETS: Final = ("cpu", "gpu", "edgetpu", "mcu")
EDGEBUILD: Final = str(Path(sys.executable).with_name("edgebuild"))
_CLUSTER: Final = """\
import sys
from distributed import LocalCluster

if __name__ == "__main__":
    options = dict(threads_per_worker=1, dashboard_address=None, worker_dashboard_address=None, host="127.0.0.1")
    with LocalCluster(n_workers=2, **options) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""


def lay_out(folder: Path) -> Path:
    """Keyword spotting and ResNet-8, each for four targets, as a matrix; its file."""
    kws = np.load(FIXTURES / "kws" / "kws_a500.npz")
    cifar = np.load(FIXTURES / "resnet8_cifar10" / "cifar10_jpeg_2k_1k.npz")
    project(folder / "kws", FIXTURES / "kws" / "saved_model", kws["x"][:200], kws["x"][200:], kws["y"][200:])
    model = FIXTURES / "resnet8_cifar10" / "pretrainedResnet.h5"
    train, test = (cifar[name][:300].astype(np.float32) for name in ("x_train", "x_test"))
    project(folder / "resnet8", model, train[:200], test, cifar["y_test"][:300])
    path = folder / "matrix.yaml"
    path.write_text(yaml.safe_dump({"projects": ["kws/edgebuild.yaml", "resnet8/edgebuild.yaml"]}))
    return path


def project(folder: Path, model: Path, calibration: Any, evaluation: Any, labels: Any) -> None:
    """One project's data and configuration."""
    folder.mkdir()
    np.savez(folder / "calibration.npz", input_1=calibration)
    np.savez(folder / "evaluation.npz", input_1=evaluation, labels=labels)
    sources = {"calibration": "calibration.npz", "evaluation": "evaluation.npz"}
    config = {"model": str(model), "data": sources, "targets": {name: {} for name in TARGETS}}
    (folder / "edgebuild.yaml").write_text(yaml.safe_dump(config))


@contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """A scheduler's address."""
    script = folder / "cluster.py"
    script.write_text(_CLUSTER)
    with (folder / "cluster.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
    if process.stdout is None:
        raise RuntimeError("it was asked for")
    try:
        yield process.stdout.readline().strip()
    finally:
        process.communicate(timeout=60)


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
        with cluster(Path(name)) as address:
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
    parser.add_argument("--json", type=Path, default=HERE / "results" / "cluster.json")
    arguments = parser.parse_args()
    if not FIXTURES.is_dir():
        sys.exit(f"the shared fixtures are not there: {FIXTURES}")
    figures = run(arguments.rounds)
    print(f"{figures['artifacts']} artifacts, {'equal' if figures['equal'] else 'DIFFERENT'} on both sides")
    print(f"cluster over here: {figures['cluster_over_here']:.2f}")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    sys.exit(0 if figures["equal"] and figures["artifacts"] == 2 * len(TARGETS) else 1)


if __name__ == "__main__":
    main()
