"""Float models to flatbuffers, and flatbuffers held to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from edgebuild.calibration.errors import DataError
from edgebuild.pipeline.arrays import load_arrays, save_arrays
from edgebuild.pipeline.stages import running
from edgebuild.pipeline.stages.files import model_inputs, named, write_json
from edgebuild.pipeline.stages.parameters import (
    ConvertParameters,
    EditParameters,
    Nothing,
    TargetParameters,
    VerifyParameters,
)

VECTORS: Final = 3  # Known answers that go with a firmware package.


def calibrate(_: Nothing, inputs: Mapping[str, Path], out: Path) -> None:
    """`model`, `samples` -> `calibrated.tflite`: float, with the range of every activation."""
    from edgebuild.export import convert

    saved_model = _frozen(inputs["model"])
    (out / "calibrated.tflite").write_bytes(convert.calibrate(saved_model, model_inputs(inputs)))


def convert(parameters: ConvertParameters, inputs: Mapping[str, Path], out: Path) -> None:
    """`model`, for int8 also `calibrated` and `samples` -> `model.tflite` and `route.json`, how it was made."""
    from edgebuild.calibration import checks

    data, route = _convert(parameters, inputs)
    data, told = _sparse(data) if parameters.sparse else (data, "")
    (out / "model.tflite").write_bytes(data)
    samples = model_inputs(inputs) if "samples" in inputs else {}
    count = len(next(iter(samples.values()), ()))
    notes = [f"calibration: {doubt}" for doubt in checks.doubts(samples)] if samples else []
    notes += [told] if told else []
    write_json(out / "route.json", {"route": route, "calibration_samples": count, "notes": notes})


def _sparse(data: bytes) -> tuple[bytes, str]:
    """The model without its zeros, or as it is where they are too few, which is told."""
    from edgebuild.export import convert

    sparse = convert.sparsify(data)
    if len(sparse) < len(data):
        return sparse, ""
    return data, f"sparse: the places of weights that stay would take {len(sparse) - len(data):,} B more than the zeros"


def _convert(parameters: ConvertParameters, inputs: Mapping[str, Path]) -> tuple[bytes, str]:
    from edgebuild.export import convert
    from edgebuild.export.errors import ModelError

    refusal = ""
    if parameters.precision == "int8":
        calibrated = (inputs["calibrated"] / "calibrated.tflite").read_bytes()
        try:
            data = convert.quantize(calibrated, parameters.io, dense_per_tensor=parameters.dense_per_tensor)
        except ModelError as e:
            refusal = (
                f": {e.what} ({e.cause})"  # The public converter has the last word, and says so if it refuses too.
            )
        else:
            return data, "shared calibration"
    saved_model = _frozen(inputs["model"])
    if parameters.precision in ("int8", "int16x8"):
        data = convert.quantize_publicly(
            saved_model,
            model_inputs(inputs),
            parameters.precision,
            parameters.io,
            dense_per_tensor=parameters.dense_per_tensor,
        )
        return data, f"public converter, own calibration{refusal}"
    return convert.to_float(saved_model, parameters.precision), "public converter"


def _frozen(model: Path) -> Path:
    """The float model as a SavedModel with constant weights, made once a worker process."""
    from edgebuild.pipeline.frozen import frozen

    return frozen(model)


def reform(parameters: EditParameters, inputs: Mapping[str, Path], out: Path) -> None:
    """`artifact`, `samples` -> `model.tflite` with operators in other forms, `route.json`, and `fix.json`."""
    from edgebuild.pipeline.fitting import reforming
    from edgebuild.pipeline.fitting.records import FIX

    data = (inputs["artifact"] / "model.tflite").read_bytes()
    edited, records = reforming.reform(data, parameters.edits, model_inputs(inputs))
    (out / "model.tflite").write_bytes(edited)
    (out / "route.json").write_bytes((inputs["artifact"] / "route.json").read_bytes())
    write_json(out / FIX, [asdict(taken) for taken in records])


def verify(parameters: VerifyParameters, inputs: Mapping[str, Path], out: Path) -> None:
    """`artifact`, `samples`, `reference` -> `verify.json` (agreement, metric) and `vectors.npz` (known answers).

    `reference` is what the float model gives; without one, where the source is the artifact itself, there is neither
    agreement nor a float model's metric. With `source` that metric is the source's, and the reference is compressed.
    Where a runtime other than tflite-runtime ran the artifact, `difference` says how far the two lie apart.
    """
    from edgebuild.export import agreement, flatbuffer
    from edgebuild.export.interpreter import decoded, encoded

    data = (inputs["artifact"] / "model.tflite").read_bytes()
    model = flatbuffer.read(data)
    arrays = load_arrays(inputs["samples"] / "samples.npz")
    labels = arrays.pop("labels", None)
    wanted = load_arrays(inputs["reference"] / "outputs.npz") if "reference" in inputs else None
    rows = list(encoded(model, arrays))
    running.require(parameters.runtime, parameters.stands_in)
    results = running.run(parameters.runtime, data, model, rows)
    got = decoded(model, arrays, results)  # By name: the flatbuffer's order of outputs is its own.
    found: dict[str, Any] = {
        "runtime": parameters.runtime,
        "agreement": asdict(agreement.compare(wanted, got)) if wanted else None,
        "metric": None,
        "difference": None,
    }
    if parameters.metric and labels is not None:
        source = load_arrays(inputs["source"] / "outputs.npz") if "source" in inputs else wanted
        found["metric"] = _metric(parameters, source, got, labels)
    if parameters.runtime != running.SHIPPED:
        shipped = running.run(running.SHIPPED, data, model, rows)
        found["difference"] = asdict(agreement.difference(results, shipped))
    write_json(out / "verify.json", found)
    save_arrays(out / "vectors.npz", named(zip(rows[:VECTORS], results[:VECTORS], strict=True)))


def _metric(parameters: VerifyParameters, source: Any, got: Mapping[str, Any], labels: Any) -> dict[str, Any]:
    from edgebuild.pipeline import intervals, metrics

    try:
        float_score, score = (
            metrics.score(parameters.metric, outputs, labels, parameters.output) if outputs else None
            for outputs in (source, got)
        )
    except DataError as e:
        raise DataError(f"data.evaluation: {e.what}", cause=e.cause, action=e.action) from e
    interval = intervals.interval(parameters.metric, got, labels, parameters.output, asked=parameters.interval)
    return {"float": float_score, "target": score, "interval": interval, "n": len(labels)}


def cut(parameters: TargetParameters, inputs: Mapping[str, Path], out: Path) -> None:
    """`artifact`, `samples` -> `model.tflite`, what the accelerator takes, the host's parts beside it, and `cut.json`.

    Where the model was cut, `vectors.npz` holds known answers of that part.
    """
    from edgebuild.pipeline.fitting import cutting
    from edgebuild.pipeline.fitting.records import CUT
    from edgebuild.targets.registry import TARGETS

    data = (inputs["artifact"] / "model.tflite").read_bytes()
    done = cutting.cut(data, TARGETS[parameters.target], model_inputs(inputs), VECTORS)
    for name, part in done.files.items():
        (out / name).write_bytes(part)
    (out / "route.json").write_bytes((inputs["artifact"] / "route.json").read_bytes())
    write_json(out / CUT, asdict(done.record))
    if done.vectors:
        save_arrays(out / "vectors.npz", named(done.vectors))
