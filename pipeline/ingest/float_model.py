"""The one thing every source becomes: a tf_keras functional model as two plain files and a description.

`architecture.json` is the model's own configuration, `weights.npz` its weights in the model's order, and
`description.json` says what goes in and out, layer by layer. The first two need tf_keras to become a model again;
the third is for everybody. No file holds code, and equal models give equal bytes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgebuild.calibration.checks import InputSpec
from edgebuild.export.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

_WEIGHTED_SUMS = ("Dense", "Conv1D", "Conv2D", "Conv3D", "DepthwiseConv1D", "DepthwiseConv2D", "SeparableConv2D")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer; `macs` is multiply-accumulates for one sample, of convolutions and dense layers alone."""

    name: str
    kind: str
    output_shape: tuple[int | None, ...]
    parameters: int
    macs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What goes in and out of a float model, in the model's own names, and its layers in order."""

    source_format: str
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    output_shapes: tuple[tuple[int | None, ...], ...]
    layers: tuple[Layer, ...]

    @property
    def parameters(self) -> int:
        """Weights of all layers, trainable or not."""
        return sum(layer.parameters for layer in self.layers)


def save(model: Any, source_format: str, folder: Path) -> None:
    """Write a tf_keras functional or sequential model into `folder`.

    Raises:
        ModelError: an input has a dynamic dimension beyond the batch.
    """
    import numpy as np

    description = _describe(model, source_format)
    (folder / "architecture.json").write_text(model.to_json())
    (folder / "description.json").write_text(json.dumps(asdict(description), indent=1))
    np.savez(folder / "weights.npz", **{f"{i:05}": value for i, value in enumerate(model.get_weights())})


def describe(folder: Path) -> Description:
    """Read the description, without TensorFlow."""
    raw = json.loads((folder / "description.json").read_bytes())
    return Description(
        source_format=raw["source_format"],
        inputs=tuple(InputSpec(**spec | {"shape": tuple(spec["shape"])}) for spec in raw["inputs"]),
        outputs=tuple(raw["outputs"]),
        output_shapes=tuple(tuple(shape) for shape in raw["output_shapes"]),
        layers=tuple(Layer(**layer | {"output_shape": tuple(layer["output_shape"])}) for layer in raw["layers"]),
    )


@lru_cache(maxsize=2)
def load(folder: Path) -> Any:
    """The tf_keras model again. A folder in the store never changes, so a worker rebuilds each model once."""
    import numpy as np
    import tf_keras

    model = tf_keras.models.model_from_json((folder / "architecture.json").read_text())
    with np.load(folder / "weights.npz", allow_pickle=False) as weights:
        model.set_weights([weights[name] for name in weights.files])
    return model


def _describe(model: Any, source_format: str) -> Description:
    return Description(
        source_format=source_format,
        inputs=tuple(_input(name, tensor) for name, tensor in zip(model.input_names, model.inputs, strict=True)),
        outputs=tuple(model.output_names),
        output_shapes=tuple(tuple(tensor.shape) for tensor in model.outputs),
        layers=tuple(_layer(layer) for layer in model.layers),
    )


def _input(name: str, tensor: Any) -> InputSpec:
    shape = tuple(tensor.shape)[1:]
    if None in shape:
        raise ModelError(
            f"input '{name}' has the dynamic shape {[None, *shape]}",
            cause=f"dimension {shape.index(None) + 1} has no fixed size, and a flatbuffer for these targets needs one",
            action="save the model with a fixed input shape",
        )
    return InputSpec(name=name, shape=shape, dtype=tensor.dtype.name)


def _layer(layer: Any) -> Layer:
    shape = layer.output_shape
    shape = shape[0] if isinstance(shape, list) else shape
    shape = next(iter(shape.values())) if isinstance(shape, dict) else tuple(shape)
    return Layer(
        name=layer.name,
        kind=type(layer).__name__,
        output_shape=shape,
        parameters=int(layer.count_params()),
        macs=_macs(layer, shape),
    )


def _macs(layer: Any, output_shape: Sequence[int | None]) -> int:
    """Kernel size times the positions it is applied at."""
    import numpy as np

    kind = type(layer).__name__
    kernels = [w for w in layer.weights if w.name.split(":")[0].rsplit("/", 1)[-1].endswith("kernel")]
    if kind not in _WEIGHTED_SUMS or getattr(layer, "data_format", "channels_last") != "channels_last":
        return 0
    positions = output_shape[1:-1]
    elements = sum(int(np.prod(kernel.shape)) for kernel in kernels)
    return elements * int(np.prod([size or 1 for size in positions], dtype=np.int64))
