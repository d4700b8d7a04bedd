"""Hold the latencies of `local` against those of `litert-benchmark`, ai-edge-litert's own command.

    .venv/bin/python benchmarks/litert_peers.py [--blocks N] [--seed N]

Both run on the same ai-edge-litert, with one thread on one CPU. A block is a fresh process of each side for each model,
in an order drawn for it; a time is the median of its processes, and a ratio that of the blocks' ratios. Their command
differs from our runner in three ways:

- It prints milliseconds with two digits behind the point: steps of 10 us, where keyword spotting takes 30. So its
  figures are taken before they are rounded.
- It puts the mean first, and what else the machine does is in a mean. The ratio is that of its median.
- It calls `CompiledModel.run_by_name`, our runner `Interpreter.invoke`. Their call takes longer, by about the same for
  each model, which is much of a small one. So there is a third side, their command with our call in the place of
  theirs: the warm-up of 5 runs, the 50 timed ones, the inputs and the statistics are theirs.

Exits with 1 where the third side's ratio to ours is not surely within 5 %.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final, TypeAlias

import fixtures

from edgebuild.device_tests.condition import doubts
from edgebuild.device_tests.latency import CONFIDENCE
from edgebuild.device_tests.local import LocalTransport
from edgebuild.device_tests.packages import installed
from edgebuild.device_tests.sample import ProcessSample
from edgebuild.device_tests.transport import RunRequest
from edgebuild.device_tests.versus import ratio_interval
from edgebuild.pipeline import build as building
from edgebuild.pipeline import config

RUNTIME: Final = "ai-edge-litert==2.3.0"
THREADS: Final = 1
MARGIN: Final = 0.05
TIMEOUT_S: Final = 60.0
# Their command from its arguments to its figures, which its module shortens with nothing but `round`.
COMMAND: Final = """
import json
from ai_edge_litert.tools import benchmark_litert_model as benchmark
benchmark.round = lambda value, _: value
arguments = benchmark.parse_args()
{change}
print(json.dumps(benchmark.run_benchmark(arguments)["latency"]))
"""
OUR_CALL: Final = """
from functools import partial
from types import SimpleNamespace
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(arguments.model, num_threads=arguments.num_threads)
interpreter.allocate_tensors()
for detail in interpreter.get_input_details():
    buffer = SimpleNamespace(write=partial(interpreter.set_tensor, detail["index"]))
    benchmark.fill_random_input(buffer, {"dtype": detail["dtype"].__name__, "shape": detail["shape"]})
CompiledModel.run_by_name = lambda *_: interpreter.invoke()
"""
HEADER: Final = (
    "model",
    "variant",
    "ours, us",
    "theirs as printed: avg, median, ms",
    "theirs, us",
    "theirs / ours",
    "within 5 %",
    "theirs by our call, us",
    "that / ours",
    "within 5 %",
    "their call's own, us",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A model in one of its number formats."""

    model: str
    name: str
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """What a process says one inference takes."""

    median_us: float
    mean_us: float


Side: TypeAlias = Callable[[Path], Times]
Found: TypeAlias = Mapping[str, Sequence[Times]]  # By side, in the order of the blocks.


def variants(folder: Path) -> Iterator[Variant]:
    """The fixtures, and in `folder` what we build of those formats that there is no fixture of."""
    for model, fixture, finished in (
        ("KWS", fixtures.kws(), {"dynamic": "ref_dynrange", "int8": "ref_int8"}),
        ("ResNet-8", fixtures.resnet8(), {"float32": "pretrainedResnet", "int8": "pretrainedResnet_quant"}),
    ):
        fixtures.lay_out(fixture, folder / model)
        for name in ("float32", "float16", "dynamic", "int8"):
            there = fixture.model.with_name(f"{finished[name]}.tflite") if name in finished else None
            yield Variant(model=model, name=name, path=there or built(folder / model, name))


def built(folder: Path, precision: str) -> Path:
    """The project's model, as a build for a CPU makes it."""
    project = config.load(folder / config.NAME, [f"targets.cpu.precision={precision}"])
    result = building.build(project, folder / precision, targets=["cpu"])
    if "cpu" not in result.report.targets:
        sys.exit(f"{folder.name} was not built for {precision}: {result.report.failures['cpu']}")
    return folder / precision / "cpu" / "model.tflite"


def sides(packages: Path, samples: list[ProcessSample]) -> dict[str, Side]:
    """Each measures in a fresh process; our own samples are kept, since they tell the machine's state."""
    transport = LocalTransport(packages=packages)

    def ours(model: Path) -> Times:
        samples.append(transport.run(model, RunRequest(threads=THREADS), TIMEOUT_S))
        return Times(median_us=samples[-1].median_us, mean_us=samples[-1].mean_us)

    return {"ours": ours, "theirs": partial(command, packages, ""), "by our call": partial(command, packages, OUR_CALL)}


def command(packages: Path, change: str, model: Path) -> Times:
    """Their command with a change; it sees what our runner sees, its packages and the standard library alone."""
    arguments = [f"--model={model}", f"--num_threads={THREADS}"]
    ended = subprocess.run(
        [sys.executable, "-S", "-c", COMMAND.format(change=change), *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if ended.returncode != 0:
        sys.exit(f"litert-benchmark ended with {ended.returncode} for {model}:\n{ended.stderr[-2000:]}")
    latency = json.loads(ended.stdout.splitlines()[-1])
    return Times(median_us=latency["median_ms"] * 1e3, mean_us=latency["avg_ms"] * 1e3)


def measured(models: Sequence[Variant], ways: Mapping[str, Side], blocks: int, seed: int) -> list[Found]:
    """Each model's times; progress on the screen."""
    found: list[dict[str, list[Times]]] = [{side: [] for side in ways} for _ in models]
    turns = [(place, side) for place in range(len(models)) for side in ways]
    chance = random.Random(seed)  # noqa: S311 - an order, no secret
    for block in range(blocks):
        for place, side in chance.sample(turns, len(turns)):
            found[place][side].append(ways[side](models[place].path))
        print(f"block {block + 1} of {blocks}", file=sys.stderr)
    return list(found)


def held(found: Found, side: str) -> tuple[str, str, str]:
    """A side's time, its ratio to ours of the same block, and whether that is within the margin."""
    pairs = [(a.median_us, b.median_us) for a, b in zip(found["ours"], found[side], strict=True)]
    low, high = ratio_interval(pairs, CONFIDENCE)
    ratio = median(b / a for a, b in pairs)
    return f"{median(b for _, b in pairs):.1f}", f"{ratio:.3f} ({low:.3f} to {high:.3f})", within(low, high)


def within(low: float, high: float) -> str:
    """Whether the whole interval is within the margin, or out of it."""
    least, most = 1 / (1 + MARGIN), 1 + MARGIN
    if least <= low and high <= most:
        return "yes"
    return "no" if high < least or low > most else "undecided"


def row(variant: Variant, found: Found) -> tuple[str, ...]:
    """A line of the table."""
    ours, theirs = (median(times.median_us for times in found[side]) for side in ("ours", "theirs"))
    mean = median(times.mean_us for times in found["theirs"])
    calls = (b.median_us - a.median_us for a, b in zip(found["by our call"], found["theirs"], strict=True))
    return (
        variant.model,
        variant.name,
        f"{ours:.1f}",
        f"{mean / 1e3:.2f}, {theirs / 1e3:.2f}",
        *held(found, "theirs"),
        *held(found, "by our call"),
        f"{median(calls):.1f}",
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--blocks", type=int, default=40, help="processes of each side for each model")
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    arguments = parser.parse_args()
    fixtures.require()
    samples: list[ProcessSample] = []
    with tempfile.TemporaryDirectory() as folder:
        models = tuple(variants(Path(folder)))
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # Every process from here on inherits it.
        found = measured(models, sides(installed(RUNTIME), samples), arguments.blocks, arguments.seed)
    rows = [row(variant, times) for variant, times in zip(models, found, strict=True)]
    print(f"{samples[0].runtime}, {THREADS} thread, {LocalTransport().fingerprint()}, {arguments.blocks} blocks:\n")
    print("\n".join(f"| {' | '.join(line)} |" for line in (HEADER, ("---",) * len(HEADER), *rows)))
    print("".join(f"\n{doubt}" for doubt in doubts(samples, os.cpu_count() or 1)))
    sys.exit(0 if all(line[-2] == "yes" for line in rows) else 1)


if __name__ == "__main__":
    main()
