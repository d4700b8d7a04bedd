"""How well placement is predicted, where the fixtures' operators run, and what damaged files do to `edgebuild check`.

    .venv/bin/python benchmarks/placement.py [--only NAME] [--table docs/placement.md] [--hostile [N]] [--seed 0]

- Of models that Coral published with what `edgetpu_compiler` made of them, the prediction is held to the compiled file:
  what is left in it outside the compiler's operator, by output tensor, is what the compiler did not map.
- Every model among the fixtures is built in int8 and checked for the Edge TPU and the GPU delegate.
- With `--hostile`, N damaged flatbuffers go through `edgebuild check` instead (see `hostile_flatbuffers.py`).

It ends with 1 where a prediction and a compiled file differ, where a model can't be built, or where a damaged file was
neither read nor refused.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import hostile_flatbuffers
import numpy as np
from fixtures import FIXTURES, SOURCES, require
from pages import write_table

from edgebuild.export import flatbuffer
from edgebuild.pipeline import config
from edgebuild.pipeline.build import build
from edgebuild.pipeline.check import check
from edgebuild.pipeline.config import Project
from edgebuild.pipeline.inspection import inspect
from edgebuild.pipeline.storage.store import Store
from edgebuild.targets.edgetpu.target import compiled_calls

PAIRS: Final = ("mobilenet_v1_0.25_128_quant", "keras_lstm_mnist_ptq", "deeplabv3_mnv2_dm05_pascal_quant")
TARGETS: Final = ("edgetpu", "gpu")
_SAMPLES: Final = 4  # What they hold decides ranges, and no operator.


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A published model: what was predicted of its operators, and what its compiled file shows, by operator."""

    name: str
    predicted: Sequence[bool]
    mapped: Sequence[bool]

    @property
    def agreeing(self) -> int:
        """Operators of which the prediction is right."""
        return sum(p == m for p, m in zip(self.predicted, self.mapped, strict=True))


def pair(name: str) -> Pair:
    """Hold the prediction for a model to what is left outside the compiler's operator in the compiled file."""
    model = flatbuffer.read_file(FIXTURES / "coral" / f"{name}.tflite").main
    compiled = flatbuffer.read_file(FIXTURES / "coral" / f"{name}_edgetpu.tflite")
    calls = compiled_calls(compiled)
    left = {compiled.main.tensors[op.outputs[0]].name for op in compiled.main.operators if op.index not in calls}
    (found,) = check(FIXTURES / "coral" / f"{name}.tflite", ["edgetpu"]).targets.values()
    return Pair(
        name=name,
        predicted=[row.runs_on == found.placement.accelerator for row in found.rows],
        mapped=[model.tensors[op.outputs[0]].name not in left for op in model.operators],
    )


def int8_build(name: str, folder: Path) -> Path:
    """The model in int8, as the Edge TPU takes it, calibrated with noise."""
    folder.mkdir()
    store = Store(folder / "store")
    given = inspect(FIXTURES / name, store=store).inputs
    chance = np.random.default_rng(0)
    arrays = {end.name: chance.normal(size=(_SAMPLES, *end.shape[1:])).astype(np.float32) for end in given}
    np.savez(folder / "calibration.npz", **arrays)
    data = {"calibration": "calibration.npz"}
    raw = {"model": str(FIXTURES / name), "data": data, "targets": {"edgetpu": {}}}
    result = build(Project(config=config.parse(raw), folder=folder), folder / "build", store=store)
    if result.report.failures:
        failure = result.report.failures["edgetpu"]
        sys.exit(f"{name}: {failure.what}: {failure.cause}")
    return result.out / result.report.targets["edgetpu"].artifact


def placed(name: str, artifact: Path) -> Sequence[str]:
    """A line of the table: how many operators, and for each target how many are mapped and which kinds are not."""
    found = check(artifact, TARGETS)
    placements = [found.targets[target].placement for target in TARGETS]
    cells = [(f"{p.mapped} ({p.mapped_share:.0%})", kinds(entry.kind for entry in p.unmapped)) for p in placements]
    return (name, str(placements[0].operators), *(cell for target in cells for cell in target))


def kinds(found: Iterable[str]) -> str:
    """Kinds of operators with their counts, the most frequent first."""
    return ", ".join(kind if n == 1 else f"{n} {kind}" for kind, n in Counter(found).most_common())


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, ("---",) * len(columns), *rows))


def pairs_table(pairs: Sequence[Pair]) -> str:
    """Each published model, and all of them."""
    counts = [(len(p.mapped), sum(p.mapped), sum(p.predicted), p.agreeing) for p in pairs]
    rows = [(p.name, *map(str, found)) for p, found in zip(pairs, counts, strict=True)]
    rows.append(("all", *(str(sum(column)) for column in zip(*counts, strict=True))))
    columns = ("model", "operators", "mapped by edgetpu_compiler", "predicted to be mapped", "predicted rightly")
    return table(columns, rows)


def builds_table(only: str) -> str:
    """Each model that is built here."""
    columns = ("model", "operators", "edgetpu, predicted", "not mapped", "gpu, predicted", "not mapped")
    with tempfile.TemporaryDirectory(prefix="edgebuild-placement-") as place:
        rows = []
        for number, name in enumerate(name for name in SOURCES if only in name):
            rows.append(placed(name, int8_build(name, Path(place) / str(number))))
            print(*rows[-1], sep=" | ", flush=True)
    return table(columns, rows)


def main() -> int:
    """Run, print, write, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="build models whose name holds this")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--hostile", type=int, nargs="?", const=500, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    require()
    if options.hostile:
        return int(not hostile_flatbuffers.survived(options.hostile, options.seed))
    pairs = [pair(name) for name in PAIRS]
    print(pairs_table(pairs))
    builds = builds_table(options.only)
    if options.table:
        write_table(options.table, "placement", f"{pairs_table(pairs)}\n\n{builds}")
    return int(any(pair.agreeing < len(pair.mapped) for pair in pairs))


if __name__ == "__main__":
    sys.exit(main())
