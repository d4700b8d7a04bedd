"""Damage the int8 models among the fixtures, and give what is left to TFLM's child processes.

    .venv/bin/python benchmarks/mcu_hostile.py [--mutations 200] [--seed 0]

What edgebuild's own reader refuses goes to TFLM too: it is the child that must hold. A case ends as

- `read`: TFLM ran it;
- `refused`: TFLM said why it can't;
- `crashed`: it took the child down, by a signal that edgebuild names;
- `stopped`: the child's limits of time or memory ended it;
- `fault`: edgebuild broke, or took longer than the child's limit.

The last one is wrong, and the benchmark then exits with 1.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from fixtures import FIXTURES, require
from mutations import mutated

from edgebuild.export.errors import ModelError
from edgebuild.export.flatbuffer import Flatbuffer, read, read_file
from edgebuild.targets.microcontroller import tflm

INT8: Final = (
    "ad01_toycar/ad01_int8.tflite",
    "coral/keras_lstm_mnist_ptq.tflite",
    "kws/ref_int8.tflite",
    "resnet8_cifar10/pretrainedResnet_quant.tflite",
    "str_ww/ref_int8.tflite",
)
SLACK_S: Final = 30.0  # Over the child's own limit: starting it, and ending all that it started.


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What became of a damaged model in one of the children."""

    model: str
    number: int
    asked: str
    verdict: str
    detail: str
    seconds: float


def cases(count: int, seed: int) -> Iterator[Case]:
    """Each damaged model, asked for its arena and for its outputs."""
    for number in range(count):
        name = INT8[number % len(INT8)]
        chance = random.Random(f"{seed}/{number}")  # noqa: S311 - to be repeated, not secret
        whole = FIXTURES / name
        damaged = mutated(chance, whole.read_bytes(), ".tflite")
        for asked in ("arena", "outputs"):
            began = time.monotonic()
            verdict, detail = _asked(asked, damaged, whole)
            took_s = time.monotonic() - began
            if took_s > tflm.TIMEOUT_S + SLACK_S:
                verdict, detail = "fault", f"no end within {tflm.TIMEOUT_S} s"
            yield Case(model=name, number=number, asked=asked, verdict=verdict, detail=detail, seconds=took_s)


def _asked(asked: str, damaged: bytes, whole: Path) -> tuple[str, str]:
    try:
        if asked == "arena":
            figure = tflm.arena(damaged)
            return ("read", "") if figure.value is not None else _worded(figure.note)
        described = _described(damaged, whole)
        rows = [{name: np.zeros(end.shape, end.dtype) for name, end in described.inputs.items()}]
        list(tflm.outputs(damaged, described, rows))
    except ModelError as e:
        return _worded(e.cause)
    except Exception as e:  # noqa: BLE001 - whatever it is, it is what is looked for
        return "fault", repr(e)
    return "read", ""


def _described(damaged: bytes, whole: Path) -> Flatbuffer:
    """The model as edgebuild reads it, or as it was before, where it no longer does."""
    try:
        return read(damaged)
    except ModelError:
        return read_file(whole)


def _worded(why: str) -> tuple[str, str]:
    if "crashed" in why:
        return "crashed", why
    return ("stopped" if "finish" in why or "killed" in why else "refused"), why


def main() -> None:
    """Print a row a model, and every case that the limits ended or that broke edgebuild."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    require()
    found = list(cases(arguments.mutations, arguments.seed))
    verdicts = ("read", "refused", "crashed", "stopped", "fault")
    print(f"{'model':46} {'asked for':9} {' '.join(f'{each:>8}' for each in verdicts)}  slowest")
    for model in INT8:
        for asked in ("arena", "outputs"):
            rows = [case for case in found if (case.model, case.asked) == (model, asked)]
            counts = Counter(case.verdict for case in rows)
            slowest_s = max((case.seconds for case in rows), default=0.0)
            print(f"{model:46} {asked:9} {' '.join(f'{counts[each]:8}' for each in verdicts)}  {slowest_s:5.1f} s")
    for detail, times in Counter(case.detail for case in found if case.verdict in ("crashed", "stopped")).most_common():
        print(f"{times:4} {detail}")
    for case in found:
        if case.verdict == "fault":
            print(f"{case.model} {case.number}, {case.asked}: {case.detail}", file=sys.stderr)
    sys.exit(any(case.verdict == "fault" for case in found))


if __name__ == "__main__":
    main()
