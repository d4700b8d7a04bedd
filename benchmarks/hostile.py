"""Damage every model among the fixtures, and see that edgebuild reads or refuses what is left, and never breaks.

    .venv/bin/python benchmarks/hostile.py [--mutations 200] [--seed 0] [--only NAME] [--jobs 2] [--json FILE]

Each model is mutated `--mutations` times (see `mutations.py`) and ingested as `inspect` and `build` ingest it, under a
limit of time and memory. A case ends as

- `read`: the mutation left a model;
- `refused`: exit 3, or 2 where the file is none;
- `contained`: a native library crashed on it, in a worker process, which costs one task;
- `fault`: edgebuild broke, which would be exit 1;
- `hung`: only the limit ended it.

The last two are wrong, and the benchmark then exits with 1. Finished cases are kept beside the JSON file, so that a run
that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from fixtures import FIXTURES, require
from mutations import mutated
from timed import RESULTS, write

from edgebuild.calibration.errors import Failure
from edgebuild.pipeline.errors import CrashError, exit_code
from edgebuild.pipeline.execution.engine import Event, execute
from edgebuild.pipeline.execution.workers import Limits
from edgebuild.pipeline.ingest.source import Options
from edgebuild.pipeline.source_task import source_task
from edgebuild.pipeline.storage.store import Store
from edgebuild.pipeline.task import Task

SUFFIXES: Final = (".h5", ".keras", ".onnx", ".pb", ".tflite")
LIMITS: Final = Limits(stage_s=120.0, memory_mib=6144.0)
REFUSALS: Final = (2, 3)


def models() -> dict[str, Path]:
    """Every model among the fixtures by name; a SavedModel is its folder."""
    files = (file for suffix in SUFFIXES for file in sorted(FIXTURES.rglob(f"*{suffix}")))
    found = (file.parent if file.name == "saved_model.pb" else file for file in files)
    return {model.relative_to(FIXTURES).as_posix(): model for model in found}


def damage(model: Path, place: Path, chance: random.Random) -> None:
    """A damaged copy of a model at `place`; of a folder, one file is damaged."""
    if model.is_dir():
        shutil.copytree(model, place)
        file = chance.choice(sorted(file for file in place.rglob("*") if file.is_file() and file.stat().st_size))
        file.write_bytes(mutated(chance, file.read_bytes(), file.suffix))
    else:
        place.write_bytes(mutated(chance, model.read_bytes(), model.suffix))


def verdict(failure: Failure | None) -> tuple[str, str]:
    """How a case ended, and the words that tell why."""
    if failure is None:
        return "read", ""
    told = f"{failure.what}: {failure.cause}"
    if isinstance(failure, CrashError):
        return ("hung" if "did not end within" in told else "contained"), told
    return ("refused" if exit_code(failure) in REFUSALS else "fault"), told


def tried(name: str, model: Path, numbers: list[int], seed: int, jobs: int) -> Iterator[dict[str, object]]:
    """Every numbered mutation of one model, ingested side by side; those that are the same bytes end the same way."""
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        tasks: dict[str, Task] = {}
        named: dict[str, list[int]] = {}
        for number in numbers:
            place = Path(folder) / str(number) / model.name
            place.parent.mkdir()
            damage(model, place, random.Random(f"{seed}/{name}/{number}"))  # noqa: S311 - to be repeated, not secret
            task = source_task(place, Options(), place.parent)
            tasks.setdefault(task.key, replace(task, title=f"{name} {number}"))
            named.setdefault(task.key, []).append(number)
        ended: list[tuple[float, str]] = []

        def heard(event: Event) -> None:
            if event.state in ("done", "failed"):
                ended.append((event.seconds, event.task.key))

        found = execute(tasks, list(tasks), Store(Path(folder) / "store"), jobs=jobs, on_event=heard, limits=LIMITS)
        for seconds, key in ended:
            how, told = verdict(found.failures.get(key))
            for number in named[key]:
                yield {"model": name, "number": number, "ended": how, "seconds": round(seconds, 2), "told": told}


def remembered(journal: Path) -> list[dict[str, object]]:
    """The cases that earlier runs finished."""
    return [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []


def judged(done: list[dict[str, object]], seed: int, file: Path) -> int:
    """Print and write what came of all cases; returns 1 where one of them is wrong."""
    wrong = [row for row in done if row["ended"] in ("fault", "hung")]
    for row in wrong:
        print(f"{row['model']} {row['number']}: {row['ended']}: {row['told']}", file=sys.stderr)
    total = Counter(str(row["ended"]) for row in done)
    slowest = max((float(str(row["seconds"])) for row in done), default=0.0)
    write(file, {"seed": seed, "counts": total, "slowest_s": slowest, "wrong": wrong})
    print(f"{sum(total.values())} cases: {dict(total)}; slowest {slowest:.0f} s")
    return int(bool(wrong))


def main() -> None:
    """Run, print a line a model, and leave the counts as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="models whose name holds this")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, default=RESULTS / "hostile.json")
    arguments = parser.parse_args()
    require()
    journal = arguments.json.with_suffix(f".{arguments.seed}.jsonl")
    journal.parent.mkdir(parents=True, exist_ok=True)
    done = remembered(journal)
    chosen = {name: model for name, model in models().items() if arguments.only in name}
    if not chosen:
        sys.exit(f"no model among the fixtures has {arguments.only!r} in its name")
    for name, model in chosen.items():
        began = time.monotonic()
        left = sorted(set(range(arguments.mutations)) - {row["number"] for row in done if row["model"] == name})
        for start in range(0, len(left), 20):
            rows = list(tried(name, model, left[start : start + 20], arguments.seed, arguments.jobs))
            done += rows
            with journal.open("a") as out:
                out.writelines(json.dumps(row) + "\n" for row in rows)
        counts = Counter(str(row["ended"]) for row in done if row["model"] == name)
        print(f"{name:45} {dict(counts)} {time.monotonic() - began:.0f} s", flush=True)
    sys.exit(judged(done, arguments.seed, arguments.json))


if __name__ == "__main__":
    main()
