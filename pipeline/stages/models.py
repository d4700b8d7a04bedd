"""Sources and samples in, float models out: what stands before a flatbuffer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from edgebuild.pipeline.arrays import load_arrays, save_arrays
from edgebuild.pipeline.ingest.source import Options
from edgebuild.pipeline.stages.files import model_inputs, write_json
from edgebuild.pipeline.stages.parameters import EditParameters, Nothing, SamplesParameters

if TYPE_CHECKING:
    from edgebuild.pipeline.compress.settings import Compression


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


def fix(parameters: EditParameters, inputs: Mapping[str, Path], out: Path) -> None:
    """`model`, `samples` -> the float model with edits for an accelerator, and `fix.json`, a record of each."""
    from edgebuild.calibration import samples as loader
    from edgebuild.pipeline.fitting import fixing
    from edgebuild.pipeline.fitting.records import FIX

    arrays = loader.choose(model_inputs(inputs), fixing.SAMPLES)
    write_json(out / FIX, [asdict(taken) for taken in fixing.fix(inputs["model"], out, parameters.edits, arrays)])


def reference(_: Nothing, inputs: Mapping[str, Path], out: Path) -> None:
    """`model`, `samples` -> `outputs.npz`: what the float model gives, `float32 [N, ...]` by output name."""
    from edgebuild.pipeline.ingest import float_model

    model, described = float_model.load(inputs["model"]), float_model.describe(inputs["model"])
    arrays = load_arrays(inputs["samples"] / "samples.npz")
    save_arrays(out / "outputs.npz", float_model.outputs(model, described, arrays))
