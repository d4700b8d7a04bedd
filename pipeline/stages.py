"""The stages: plain functions from parameters and inputs to an output folder.

Importing this module is cheap; what is heavy is imported where it is used, in a worker process. Inputs are folders of
other stages in the store, or the user's own files. Each docstring says what a stage reads and writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from edgebuild.export.formats import IoType, Precision
from edgebuild.pipeline.arrays import load_arrays, save_arrays
from edgebuild.pipeline.ingest.source import Options
from edgebuild.pipeline.task import Stage

if TYPE_CHECKING:
    from edgebuild.pipeline.compress.settings import Compression
    from edgebuild.targets.target import Artifact

Labels: TypeAlias = Literal["required", "taken", "left"]
_BATCH: Final = 64
VECTORS: Final = 3  # Known answers that go with a firmware package.


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """A stage without parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplesParameters:
    """`function` is `package.module:function`, or empty for a file; `labels` are required, taken if any, or left."""

    function: str
    count: int | None
    labels: Labels


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertParameters:
    """What to convert to."""

    precision: Precision
    io: IoType
    sparse: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyParameters:
    """How to measure, and of which output where there are several; an empty metric measures agreement alone."""

    metric: str
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetParameters:
    """What an artifact is weighed or packaged for."""

    target: str


def ingest(options: Options, inputs: Mapping[str, Path], out: Path) -> None:
    """Source `model` -> a float model (see `ingest.float_model`)."""
    from edgebuild.pipeline.ingest import load

    load.ingest(inputs["model"], out, options)


def adopt(_: Nothing, inputs: Mapping[str, Path], out: Path) -> None:
    """Source `model`, a flatbuffer -> `model.tflite`, `route.json`, `description.json`."""
    from edgebuild.pipeline.ingest import adopted

    adopted.adopt(inputs["model"], out)


def samples(parameters: SamplesParameters, inputs: Mapping[str, Path], out: Path) -> None:
    """Source `data`, `model` -> `samples.npz`: checked arrays by input name, `labels` where there are some."""
    from edgebuild.calibration import checks
    from edgebuild.calibration import samples as loader
    from edgebuild.pipeline.ingest import float_model

    source = parameters.function or str(inputs["data"])
    arrays = loader.call(parameters.function) if parameters.function else loader.load(inputs["data"])
    checks.check(arrays, source)
    described = float_model.describe(inputs["model"])
    matched = described.to_model_layout(checks.match(arrays, described.source_inputs, source))
    if parameters.labels == "required" or (parameters.labels == "taken" and loader.LABELS in arrays):
        matched |= {loader.LABELS: checks.labels(arrays, source)}
    save_arrays(out / "samples.npz", loader.choose(matched, parameters.count))


def compress(parameters: Compression, inputs: Mapping[str, Path], out: Path) -> None:
    """`model`, `source`, perhaps `samples` -> a float model made smaller by one technique (see `compress.steps`)."""
    from edgebuild.pipeline.compress import steps

    steps.apply(parameters, inputs, out)


def reference(_: Nothing, inputs: Mapping[str, Path], out: Path) -> None:
    """`model`, `samples` -> `outputs.npz`: what the float model gives, `float32 [N, ...]` by output name."""
    import numpy as np

    from edgebuild.pipeline.ingest import float_model

    model, described = float_model.load(inputs["model"]), float_model.describe(inputs["model"])
    arrays = load_arrays(inputs["samples"] / "samples.npz")
    ordered = [arrays[spec.name] for spec in described.inputs]
    batched = described.batched
    results = [_forward(model, batch, batched=batched) for batch in _batches(ordered, model, batched=batched)]
    save_arrays(
        out / "outputs.npz",
        {
            name: np.concatenate(parts)
            for name, parts in zip(described.outputs, zip(*results, strict=True), strict=True)
        },
    )


def calibrate(_: Nothing, inputs: Mapping[str, Path], out: Path) -> None:
    """`model`, `samples` -> `calibrated.tflite`: float, with the range of every activation."""
    from edgebuild.export import convert

    saved_model = _frozen(inputs["model"])
    (out / "calibrated.tflite").write_bytes(convert.calibrate(saved_model, _model_inputs(inputs)))


def convert(parameters: ConvertParameters, inputs: Mapping[str, Path], out: Path) -> None:
    """`model`, for int8 also `calibrated` and `samples` -> `model.tflite` and `route.json`, how it was made."""
    from edgebuild.calibration import checks

    data, route = _converted(parameters, inputs)
    (out / "model.tflite").write_bytes(data)
    samples = _model_inputs(inputs) if "samples" in inputs else {}
    count = len(next(iter(samples.values()), ()))
    notes = [f"calibration: {doubt}" for doubt in checks.doubts(samples)] if samples else []
    write_json(out / "route.json", {"route": route, "calibration_samples": count, "notes": notes})


def verify(parameters: VerifyParameters, inputs: Mapping[str, Path], out: Path) -> None:
    """`artifact`, `samples`, `reference` -> `verify.json` (agreement, metric) and `vectors.npz` (known answers).

    `reference` is what the float model gives; without one, where the source is the artifact itself, there is neither
    agreement nor a float model's metric. With `source` that metric is the source's, and the reference is compressed.
    """
    from edgebuild.export import agreement
    from edgebuild.export.interpreter import Interpreter
    from edgebuild.pipeline import intervals, metrics

    interpreter = Interpreter((inputs["artifact"] / "model.tflite").read_bytes())
    arrays = load_arrays(inputs["samples"] / "samples.npz")
    labels = arrays.pop("labels", None)
    wanted = load_arrays(inputs["reference"] / "outputs.npz") if "reference" in inputs else None
    got = interpreter.predict(arrays)  # By name: the flatbuffer's order of outputs is its own.
    result: dict[str, Any] = {"agreement": asdict(agreement.compare(wanted, got)) if wanted else None, "metric": None}
    if parameters.metric and labels is not None:
        source = load_arrays(inputs["source"] / "outputs.npz") if "source" in inputs else wanted
        float_score, score = (
            metrics.score(parameters.metric, outputs, labels, parameters.output) if outputs else None
            for outputs in (source, got)
        )
        interval = intervals.interval(parameters.metric, got, labels, parameters.output)
        result["metric"] = {"float": float_score, "target": score, "interval": interval, "n": len(labels)}
    write_json(out / "verify.json", result)
    save_arrays(out / "vectors.npz", _vectors(interpreter, arrays))


def weigh(parameters: TargetParameters, inputs: Mapping[str, Path], out: Path) -> None:
    """`artifact`, `verified` -> `figures.json` alone: of a step on the way, which does not ship."""
    _write_figures(parameters.target, inputs, out)


def package(parameters: TargetParameters, inputs: Mapping[str, Path], out: Path) -> None:
    """`artifact`, `verified` -> `files/`, the target's folder as the user gets it, and `figures.json`."""
    from edgebuild.targets.registry import TARGETS

    artifact = _write_figures(parameters.target, inputs, out)
    (out / "files").mkdir()
    TARGETS[parameters.target].package(artifact, out / "files")


def _write_figures(name: str, inputs: Mapping[str, Path], out: Path) -> Artifact:
    """Measure an artifact for a target, add how it was made, and give it."""
    from edgebuild.export import flatbuffer
    from edgebuild.pipeline import figures
    from edgebuild.targets.registry import TARGETS
    from edgebuild.targets.target import Artifact

    data = (inputs["artifact"] / "model.tflite").read_bytes()
    artifact = Artifact(
        data=data,
        flatbuffer=flatbuffer.read(data),
        vectors=_pairs(load_arrays(inputs["verified"] / "vectors.npz")),
    )
    found = asdict(figures.of(artifact, TARGETS[name]))
    write_json(out / "figures.json", found | json.loads((inputs["artifact"] / "route.json").read_bytes()))
    return artifact


_READERS: Final = (
    "tensorflow",
    "tf-keras",
    "keras",
    "onnx",
    "onnx2tf",
    "onnxruntime",
    "onnxsim",
    "torch",
    "onnxscript",
)
STAGES: Final[dict[str, Stage]] = {
    stage.name: stage
    for stage in (
        Stage(
            name="ingest",
            version=1,
            function=ingest,
            worker="tensorflow",
            tools=_READERS,
        ),
        Stage(name="adopt", version=1, function=adopt, worker="light", tools=()),
        Stage(name="samples", version=1, function=samples, worker="light", tools=("numpy",)),
        Stage(
            name="compress",
            version=1,
            function=compress,
            worker="tensorflow",
            tools=("tensorflow", "tf-keras", "tensorflow-model-optimization", "numpy"),
            resumes=True,
        ),
        Stage(name="reference", version=1, function=reference, worker="tensorflow", tools=("tensorflow", "tf-keras")),
        Stage(name="calibrate", version=1, function=calibrate, worker="tensorflow", tools=("tensorflow", "tf-keras")),
        Stage(name="convert", version=1, function=convert, worker="tensorflow", tools=("tensorflow", "tf-keras")),
        Stage(name="verify", version=2, function=verify, worker="light", tools=("tflite-runtime", "numpy")),
        Stage(name="weigh", version=1, function=weigh, worker="light", tools=("edgebuild", "tflite-micro")),
        Stage(name="package", version=1, function=package, worker="light", tools=("edgebuild", "tflite-micro")),
    )
}


def write_json(path: Path, value: object) -> None:
    """Write plain data; equal data gives equal bytes."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def _converted(parameters: ConvertParameters, inputs: Mapping[str, Path]) -> tuple[bytes, str]:
    from edgebuild.export import convert

    data, route = _convert(parameters, inputs)
    return (convert.sparsify(data), f"{route}; zeros not stored") if parameters.sparse else (data, route)


def _convert(parameters: ConvertParameters, inputs: Mapping[str, Path]) -> tuple[bytes, str]:
    from edgebuild.export import convert
    from edgebuild.export.errors import ModelError

    refusal = ""
    if parameters.precision == "int8":
        try:
            return convert.quantize(
                (inputs["calibrated"] / "calibrated.tflite").read_bytes(), parameters.io
            ), "shared calibration"
        except ModelError as e:
            refusal = (
                f": {e.what} ({e.cause})"  # The public converter has the last word, and says so if it refuses too.
            )
    saved_model = _frozen(inputs["model"])
    if parameters.precision in ("int8", "int16x8"):
        data = convert.quantize_publicly(saved_model, _model_inputs(inputs), parameters.precision, parameters.io)
        return data, f"public converter, own calibration{refusal}"
    return convert.to_float(saved_model, parameters.precision), "public converter"


def _frozen(model: Path) -> Path:
    """The float model as a SavedModel with constant weights, made once a worker process."""
    from edgebuild.pipeline.frozen import frozen

    return frozen(model)


def _model_inputs(inputs: Mapping[str, Path]) -> dict[str, Any]:
    arrays = load_arrays(inputs["samples"] / "samples.npz")
    arrays.pop("labels", None)
    return arrays


def _batches(arrays: list[Any], model: Any, *, batched: bool) -> Iterator[list[Any]]:
    """Samples as the model takes them: many at once, as many as its inputs are fixed to, or one if none is a batch."""
    if not batched:
        yield from (list(sample) for sample in zip(*arrays, strict=True))
        return
    size = model.inputs[0].shape[0] or _BATCH
    yield from ([array[i : i + size] for array in arrays] for i in range(0, len(arrays[0]), size))


def _forward(model: Any, batch: list[Any], *, batched: bool) -> list[Any]:
    import numpy as np
    import tensorflow as tf

    outputs = model(batch[0] if len(batch) == 1 else batch, training=False)
    return [np.asarray(output) if batched else np.asarray(output)[None] for output in tf.nest.flatten(outputs)]


def _vectors(interpreter: Any, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Native inputs and outputs of the first samples, named `0/in/<name>` and `0/out/<name>`."""
    vectors: dict[str, Any] = {}
    first = {name: array[:VECTORS] for name, array in arrays.items()}
    for row, encoded in enumerate(interpreter.encoded(first)):
        vectors |= {f"{row}/in/{name}": value for name, value in encoded.items()}
        vectors |= {f"{row}/out/{name}": value for name, value in interpreter.run(encoded).items()}
    return vectors


def _pairs(vectors: Mapping[str, Any]) -> tuple[tuple[dict[str, Any], dict[str, Any]], ...]:
    rows: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
    for key, value in vectors.items():
        row, side, name = key.split("/", 2)
        rows.setdefault(int(row), ({}, {}))[side == "out"][name] = value
    return tuple(rows[row] for row in sorted(rows))
