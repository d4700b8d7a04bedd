"""A .tflite file as it is given: described like any source, converted by nobody."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Final

from edgebuild.calibration.checks import InputSpec
from edgebuild.export import recognise
from edgebuild.export.errors import ModelError
from edgebuild.export.flatbuffer import Flatbuffer, Operator, Tensor, read_file
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.ingest.float_model import Description, Layer
from edgebuild.pipeline.ingest.source import Options

FORMAT: Final = "TFLite flatbuffer"
ROUTE: Final = "given as a flatbuffer"


def is_flatbuffer(path: Path) -> bool:
    """Whether a source model is one, judged by its name."""
    return path.suffix == ".tflite"


def require_no_choice(path: Path, options: Options) -> None:
    """Refuse what is said of a source model where there is a flatbuffer: nothing of it is open.

    Raises:
        ConfigError: a signature, input shapes or custom layers are named.
    """
    chosen = {"signature": options.signature, "input shapes": options.input_shapes, "custom layers": options.custom}
    said = [name for name, value in chosen.items() if value]
    if said:
        raise ConfigError(
            f"{path} leaves no choice of {' or '.join(said)}",
            cause="a .tflite file is taken as it is, with the sizes, signature and operators it has",
            action="leave that out, or give the source model",
        )


def adopt(path: Path, folder: Path) -> None:
    """Put the file and its description into `folder`, as a conversion would.

    Raises:
        ModelError: it is no flatbuffer, or its inputs' sizes are open.
    """
    model = read_file(path)
    (folder / "description.json").write_text(json.dumps(asdict(describe(model)), indent=1))
    (folder / "model.tflite").write_bytes(path.read_bytes())
    route = {"route": ROUTE, "calibration_samples": 0, "notes": []}
    (folder / "route.json").write_text(json.dumps(route, indent=1, sort_keys=True) + "\n")


def describe(model: Flatbuffer) -> Description:
    """What goes in and out, in real numbers where the file quantizes them, and its operators as layers.

    Raises:
        ModelError: a flatbuffer without inputs or with an input of open size beyond the batch.
    """
    if not model.inputs or not model.outputs:
        raise ModelError("the flatbuffer has no inputs or no outputs", action="convert the source model again")
    batched = all(tensor.shape[:1] == (1,) for tensor in model.inputs.values())
    return Description(
        source_format=FORMAT,
        inputs=tuple(_spec(name, tensor, batched=batched) for name, tensor in model.inputs.items()),
        outputs=tuple(model.outputs),
        output_shapes=tuple(tensor.shape for tensor in model.outputs.values()),
        layers=layers(model),
        input_axes=((),) * len(model.inputs),
        output_axes=((),) * len(model.outputs),
        batched=batched,
        notes=(),
    )


def layers(model: Flatbuffer) -> tuple[Layer, ...]:
    """The operators of the main subgraph, named after their first outputs."""
    return tuple(_layer(model, operator) for operator in model.main.operators)


def _layer(model: Flatbuffer, operator: Operator) -> Layer:
    output = model.main.tensors[operator.outputs[0]] if operator.outputs else None
    return Layer(
        name=output.name if output else "",
        kind=operator.kind,
        output_shape=output.shape if output else (),
        parameters=recognise.parameters(model, operator),
        macs=recognise.macs(model, operator),
    )


def _spec(name: str, tensor: Tensor, *, batched: bool) -> InputSpec:
    if -1 in tensor.shape_signature[1 if batched else 0 :]:
        raise ModelError(
            f"input '{name}' has the dynamic shape {list(tensor.shape_signature)}",
            cause="targets need fixed sizes, and a flatbuffer can't be given others",
            action="convert the source model with fixed sizes",
        )
    quantized = tensor.quantization is not None
    return InputSpec(
        name=name, shape=tensor.shape[1:] if batched else tensor.shape, dtype="float32" if quantized else tensor.dtype
    )
