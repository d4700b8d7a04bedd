"""Hold the A/B verdict to what it claims, on this machine under a load that comes and goes.

    .venv/bin/python benchmarks/latency_gate.py [--rounds N] [--case NAME] [--budget SECONDS] [--json FILE]

A model against itself must rarely be called faster or slower, a tenth more work must be found, and three per cent more
must never be called the same by an interval that leaves them out. More work is more invocations of the same model in
one timed run, eleven against ten: a slowdown whose size is known, of code that is real. Exits with 1 where a claim
does not hold.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import fixtures
from timed import write

from edgebuild.device_tests.condition import doubts
from edgebuild.device_tests.local import LocalTransport
from edgebuild.device_tests.sample import ProcessSample
from edgebuild.device_tests.transport import RUNNER, RunRequest
from edgebuild.device_tests.versus import Comparison, Terms, compare

MARGIN: Final = 0.05
BUDGET_S: Final = 60.0
TIMEOUT_S: Final = 60.0
BURST_S: Final = (0.02, 2.0)  # Of the load, and the pauses between: the core is taken four fifths of the time.
PAUSE_S: Final = (0.0, 0.5)
# The runner with several invocations as one timed run.
BATCHES: Final = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("runner", {runner!r})
runner = importlib.util.module_from_spec(spec)
spec.loader.exec_module(runner)
single = runner._repeat
def repeat(invoke, *limits):
    def batch():
        for _ in range({invocations}):
            invoke()
    return single(batch, *limits)
runner._repeat = repeat
sys.exit(runner.main(sys.argv[1:]))
"""
HEADER: Final = (
    "case",
    "rounds",
    "faster",
    "same",
    "slower",
    "inconclusive",
    "interval misses",
    "blocks",
    "seconds",
    "in doubt",
    "claim",
    "holds",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Invocations of one model in a timed run of a and of b, and what is claimed of so many rounds."""

    name: str
    model: str
    a: int
    b: int
    rounds: int
    claim: str
    holds: Callable[[Sequence[Comparison], float], bool]

    @property
    def ratio(self) -> float:
        """The true one."""
        return self.b / self.a


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A comparison, and what made the machine doubtful meanwhile."""

    comparison: Comparison
    doubts: tuple[str, ...]


def rarely_wrong(found: Sequence[Comparison], _: float) -> bool:
    """At most 3 of 60 are called faster or slower."""
    return sum(c.verdict in {"faster", "slower"} for c in found) <= len(found) * 3 / 60


def found_out(found: Sequence[Comparison], _: float) -> bool:
    """At least 19 of 20 are called slower."""
    return sum(c.verdict == "slower" for c in found) >= len(found) * 19 / 20


def never_same_by_mistake(found: Sequence[Comparison], ratio: float) -> bool:
    """None is called the same by an interval without the true ratio, and none faster."""
    return not any(c.verdict == "faster" or (c.verdict == "same" and misses(c, ratio)) for c in found)


def misses(found: Comparison, ratio: float) -> bool:
    """Whether the interval leaves the true ratio out."""
    return not found.low <= ratio <= found.high


CASES: Final = (
    Case(
        name="kws int8 against itself",
        model="kws/ref_int8.tflite",
        a=1,
        b=1,
        rounds=60,
        claim="at most 3 of 60 faster or slower",
        holds=rarely_wrong,
    ),
    Case(
        name="ResNet-8, 10 % more",
        model="resnet8_cifar10/pretrainedResnet.tflite",
        a=10,
        b=11,
        rounds=20,
        claim="at least 19 of 20 slower",
        holds=found_out,
    ),
    Case(
        name="AD01, 3 % more",  # A run of half a millisecond, or the load decides and nothing is proved.
        model="ad01_toycar/ad01_fp32.tflite",
        a=33,
        b=34,
        rounds=20,
        claim="no same whose interval misses",
        holds=never_same_by_mistake,
    ),
)


def one_round(case: Case, folder: Path, seed: int, budget_s: float) -> Round:
    """One comparison, in processes of this machine."""
    samples: list[ProcessSample] = []

    def median_us(invocations: int) -> float:
        transport = LocalTransport(runner=_batched(folder, invocations))
        samples.append(transport.run(fixtures.FIXTURES / case.model, RunRequest(), TIMEOUT_S))
        return samples[-1].median_us

    a, b = partial(median_us, case.a), partial(median_us, case.b)
    comparison = compare(a, b, Terms(budget_s=budget_s, margin=MARGIN), seed=seed)
    return Round(comparison=comparison, doubts=doubts(samples, os.cpu_count() or 1))


def _batched(folder: Path, invocations: int) -> Path:
    """The runner that takes so many invocations for one; the same file's name for all, which is part of a process."""
    path = folder / str(invocations) / "runner.py"
    if not path.exists():
        path.parent.mkdir()
        path.write_text(BATCHES.format(runner=str(RUNNER), invocations=invocations), encoding="utf-8")
    return path


@contextmanager
def load(seed: int) -> Iterator[None]:
    """One core that is busy in bursts."""
    process = multiprocessing.get_context("spawn").Process(target=_burn, args=(seed,), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def _burn(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - a load, no secret
    while True:
        until = time.perf_counter() + chance.uniform(*BURST_S)
        while time.perf_counter() < until:
            pass
        time.sleep(chance.uniform(*PAUSE_S))


def row(case: Case, rounds: Sequence[Round]) -> tuple[str, ...]:
    """A line of the table."""
    found = [r.comparison for r in rounds]
    verdicts = Counter(c.verdict for c in found)
    return (
        case.name,
        str(len(found)),
        *(str(verdicts[verdict]) for verdict in ("faster", "same", "slower", "inconclusive")),
        str(sum(misses(c, case.ratio) for c in found)),
        f"{median(c.blocks for c in found):.0f} (most {max(c.blocks for c in found)})",
        f"{median(c.seconds for c in found):.0f} (most {max(c.seconds for c in found):.0f})",
        str(sum(bool(r.doubts) for r in rounds)),
        case.claim,
        "yes" if case.holds(found, case.ratio) else "NO",
    )


def run(cases: Sequence[Case], rounds: int | None, budget_s: float) -> dict[str, list[Round]]:
    """The cases, each comparison with a seed of its own."""
    done: dict[str, list[Round]] = {}
    with tempfile.TemporaryDirectory() as folder, load(seed=1):
        for case in cases:
            done[case.name] = []
            for seed in range(rounds or case.rounds):
                done[case.name].append(one_round(case, Path(folder), seed, budget_s))
                c = done[case.name][-1].comparison
                print(f"{case.name} {seed + 1}: {c.verdict}, {c.ratio:.3f} ({c.low:.3f} to {c.high:.3f})", flush=True)
    return done


def figures(done: Mapping[str, Sequence[Round]]) -> dict[str, Any]:
    """What a later look at the numbers needs."""
    return {name: [asdict(r.comparison) | {"doubts": r.doubts} for r in rounds] for name, rounds in done.items()}


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, help="of each case, instead of its own number")
    parser.add_argument("--case", choices=[case.name for case in CASES], metavar="NAME", help="this one alone")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds for one comparison")
    parser.add_argument("--json", type=Path, help="where to write every comparison with its medians")
    arguments = parser.parse_args()
    fixtures.require()
    cases = [case for case in CASES if arguments.case in {None, case.name}]
    done = run(cases, arguments.rounds, arguments.budget)
    rows = [row(case, done[case.name]) for case in cases]
    lines = [HEADER, ("---",) * len(HEADER), *rows]
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))
    if arguments.json:
        write(arguments.json, figures(done))
    sys.exit(0 if all(line[-1] == "yes" for line in rows) else 1)


if __name__ == "__main__":
    main()
