"""Hold the rules for the GPU against a GPU runtime of this machine, on every shared model.

    python benchmarks/gpu_oracle.py

The runtime is the one that builds use: `edgebuild doctor` names it. Float models are converted to float32 and float16
first, through the user's store; the table goes into docs/placement.md.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import fixtures
import numpy as np
from numpy.typing import NDArray
from pages import write_table

from edgebuild.export import flatbuffer
from edgebuild.export.interpreter import Interpreter
from edgebuild.pipeline import build as building
from edgebuild.pipeline import config, inspection
from edgebuild.pipeline.config import Project
from edgebuild.targets.gpu import observed as gpu_observed
from edgebuild.targets.gpu import oracle as gpu_oracle
from edgebuild.targets.gpu import target as gpu
from edgebuild.targets.gpu.oracle import Oracle
from edgebuild.targets.placement import Placement

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "placement.md"
FINISHED: Final = (
    "kws/ref_int8.tflite",
    "kws/ref_dynrange.tflite",
    "resnet8_cifar10/pretrainedResnet_quant.tflite",
    "ad01_toycar/ad01_int8.tflite",
    "str_ww/ref_int8.tflite",
    "coral/mobilenet_v1_0.25_128_quant.tflite",
    "coral/deeplabv3_mnv2_dm05_pascal_quant.tflite",
    "coral/keras_lstm_mnist_ptq.tflite",
)
SAMPLES: Final = 3
HEAD: Final = (
    "| model | format | operators | predicted | taken | refused by the runtime | off the CPU, at most | seconds |",
    "|---|---|---|---|---|---|---|---|",
)


def main() -> None:
    """Ask, and write the table."""
    fixtures.require()
    oracle = gpu_oracle.require_any()
    rows = [row(oracle, name, form, data) for name, form, data in models()]
    title = f"{oracle.title} ({oracle.evidence}), {SAMPLES} seeded samples a model, a process a model:"
    write_table(PAGE, "gpu", "\n".join((title, "", *HEAD, *rows)))


def models() -> Iterator[tuple[str, str, bytes]]:
    """Name, format and bytes of every flatbuffer."""
    for source in fixtures.SOURCES:
        for precision in ("float32", "float16"):
            yield source, precision, converted(fixtures.FIXTURES / source, precision)
    for path in FINISHED:
        yield path, "as it is", (fixtures.FIXTURES / path).read_bytes()


def converted(model: Path, precision: str) -> bytes:
    """A source model as a build for the GPU makes it; seeded noise stands for data, which float formats do not need."""
    shapes = {end.name: [max(size, 1) for size in end.shape[1:]] for end in inspection.inspect(model).inputs}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "noise.npz", **{input_: noise((SAMPLES, *shape)) for input_, shape in shapes.items()})
        settings = {
            "model": str(model),
            "data": {"calibration": "noise.npz"},
            "targets": {"gpu": {"precision": precision, "oracle": "none"}},
        }
        project = Project(config=config.parse(settings, "the benchmark"), folder=folder)
        result = building.build(project, folder / "build", jobs=1)
        if "gpu" not in result.report.targets:
            sys.exit(f"{model} was not built: {result.report.failures['gpu']}")
        return (folder / "build" / "gpu" / "model.tflite").read_bytes()


def noise(shape: tuple[int, ...], dtype: str = "float32") -> NDArray[Any]:
    """Normal values; integers over most of their range."""
    values = np.random.default_rng(0).normal(size=shape)
    return (values * 40 + (128 if dtype == "uint8" else 0) if "int" in dtype else values).astype(dtype)


def row(oracle: Oracle, name: str, form: str, data: bytes) -> str:
    """A model's line of the table; progress on the screen."""
    model = flatbuffer.read(data)
    rules, vectors = gpu.place(model), list(answers(data))
    began = time.perf_counter()
    seen = gpu_observed.observe(oracle, data, model, vectors)
    taken_s = time.perf_counter() - began
    print(f"{name} {form}: {taken_s:.1f} s", file=sys.stderr)
    ran = seen.placement.evidence == oracle.evidence
    cells = (
        f"`{name}`",
        form,
        len(model.main.operators),
        rules.mapped,
        seen.placement.mapped if ran else "-",
        refusals(seen.placement) if ran else f"the model: {seen.note}",
        f"{seen.agreement.max_abs:.1e}" if seen.agreement else "not read back" if ran else "-",
        f"{taken_s:.1f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


def answers(data: bytes) -> Iterator[tuple[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]]]:
    """Seeded inputs and what tflite-runtime gives for them."""
    interpreter = Interpreter(data)
    inputs = interpreter.flatbuffer.inputs
    samples = {name: noise((SAMPLES, *tensor.shape), tensor.dtype) for name, tensor in inputs.items()}
    for index in range(SAMPLES):
        given = {name: samples[name][index] for name in inputs}
        yield given, interpreter.run(given)


def refusals(placement: Placement) -> str:
    """What is not taken, by kind and reason."""
    counts = Counter(f"{lost.kind}: {lost.reason}" for lost in placement.unmapped)
    return "<br>".join(f"{count} x {text}" for text, count in counts.items())


if __name__ == "__main__":
    main()
