"""The one thing every source becomes: a tf_keras functional model as two plain files and a description.

`architecture.json` is the model's own configuration, `weights.npz` its weights in the model's order, and
`description.json` says what goes in and out, layer by layer. The first two need tf_keras to become a model again;
the third is for everybody. No file holds code, and equal models give equal bytes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgebuild.calibration.checks import InputSpec
from edgebuild.calibration.samples import LABELS
from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest.source import Reading, settle

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

_WEIGHTED_SUMS: Final = frozenset(
    "Dense Conv1D Conv2D Conv3D DepthwiseConv1D DepthwiseConv2D SeparableConv1D SeparableConv2D".split()  # noqa: SIM905 - shorter
)

_BATCH: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer; those of a nested model stand under its name, as `outer/inner`.

    `macs` is multiply-accumulates for one sample, over all calls of a shared layer, of convolutions and dense layers
    alone. `output_shape` is that of the first call and the first output.
    """

    name: str
    kind: str
    output_shape: tuple[int | None, ...]
    parameters: int
    macs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What goes in and out of a float model, under the source's own names, and its layers in order.

    `inputs` and `output_shapes` are in the model's layout; `input_axes` and `output_axes` say how the source's axes,
    batch included, stand in it, and are empty where they agree. Where `batched` is false, a sample is a whole input:
    its first axis is no batch, and the shapes of `inputs` are whole.
    """

    source_format: str
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    output_shapes: tuple[tuple[int | None, ...], ...]
    layers: tuple[Layer, ...]
    input_axes: tuple[tuple[int, ...], ...]
    output_axes: tuple[tuple[int, ...], ...]
    batched: bool
    notes: tuple[str, ...]

    @property
    def source_inputs(self) -> tuple[InputSpec, ...]:
        """The inputs in the source's own layout: what the user's data is held against."""
        pairs = zip(self.inputs, self.input_axes, strict=True)
        return tuple(replace(spec, shape=self._source_shape(spec.shape, axes)) for spec, axes in pairs)

    def to_model_layout(self, samples: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Samples by input name, `[N, ...]` each, from the source's layout to the model's."""
        orders = {spec.name: self._sample_axes(axes) for spec, axes in zip(self.inputs, self.input_axes, strict=True)}
        return {name: array.transpose(orders[name]) if orders[name] else array for name, array in samples.items()}

    def _source_shape(self, shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
        order = self._sample_axes(axes)
        return tuple(shape[order.index(axis) - 1] for axis in range(1, len(order))) if order else shape

    def _sample_axes(self, axes: tuple[int, ...]) -> tuple[int, ...]:
        """The order of an array of samples: without a batch, every axis of the model stands behind that of samples."""
        return axes if self.batched or not axes else (0, *(axis + 1 for axis in axes))

    @property
    def parameters(self) -> int:
        """Weights of all layers, trainable or not."""
        return sum(layer.parameters for layer in self.layers)


def save(reading: Reading, source_format: str, folder: Path) -> None:
    """Write what a reader gave into `folder`.

    Raises:
        ModelError: an input has a dynamic dimension beyond the batch or a type no target takes, or a layer's
            configuration is not plain data.
    """
    _write(reading.model, _describe(reading, source_format), folder)


def save_changed(model: Any, described: Description, folder: Path) -> None:
    """Write a model made of another that `described` speaks of: same inputs and outputs, other weights or layers."""
    _write(model, replace(described, layers=tuple(_layers(model))), folder)


def _write(model: Any, description: Description, folder: Path) -> None:
    import numpy as np

    (folder / "architecture.json").write_text(_architecture(model))
    (folder / "description.json").write_text(json.dumps(asdict(description), indent=1))
    np.savez(folder / "weights.npz", **{f"{i:05}": value for i, value in enumerate(model.get_weights())})


def input_specs(reading: Reading) -> tuple[InputSpec, ...]:
    """The inputs of a model as read, in its own layout.

    Raises:
        ModelError: one has a dynamic dimension beyond the batch, or is text, ragged or sparse.
    """
    ends = zip(reading.inputs, reading.model.inputs, strict=True)
    return tuple(_input(port.name, tensor, batched=reading.batched) for port, tensor in ends)


def describe(folder: Path) -> Description:
    """Read the description, without TensorFlow."""
    raw = json.loads((folder / "description.json").read_bytes())
    return Description(
        source_format=raw["source_format"],
        inputs=tuple(InputSpec(**spec | {"shape": tuple(spec["shape"])}) for spec in raw["inputs"]),
        outputs=tuple(raw["outputs"]),
        output_shapes=tuple(tuple(shape) for shape in raw["output_shapes"]),
        layers=tuple(Layer(**layer | {"output_shape": tuple(layer["output_shape"])}) for layer in raw["layers"]),
        input_axes=tuple(map(tuple, raw["input_axes"])),
        output_axes=tuple(map(tuple, raw["output_axes"])),
        batched=raw["batched"],
        notes=tuple(raw["notes"]),
    )


@lru_cache(maxsize=2)
def load(folder: Path) -> Any:
    """The tf_keras model again. A folder in the store never changes, so a worker rebuilds each model once."""
    return rebuild(folder)


def rebuild(folder: Path) -> Any:
    """The tf_keras model from its files, anew on every call: the caller may change it."""
    import numpy as np
    import tf_keras

    from edgebuild.pipeline.ingest.graph.layers import Operator

    own = {"Operator": Operator}
    model = tf_keras.models.model_from_json((folder / "architecture.json").read_text(), custom_objects=own)
    with np.load(folder / "weights.npz", allow_pickle=False) as weights:
        model.set_weights([weights[name] for name in weights.files])
    return model


def outputs(model: Any, described: Description, samples: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What a model gives at inference for samples by input name, `[N, ...]` by output name; others are left alone."""
    import numpy as np

    ordered = [samples[spec.name] for spec in described.inputs]
    batches = _batches(ordered, model, batched=described.batched)
    results = [_forward(model, batch, batched=described.batched) for batch in batches]
    named = zip(described.outputs, zip(*results, strict=True), strict=True)
    return {name: np.concatenate(parts) for name, parts in named}


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

    results = model(batch[0] if len(batch) == 1 else batch, training=False)
    return [np.asarray(result) if batched else np.asarray(result)[None] for result in tf.nest.flatten(results)]


def _architecture(model: Any) -> str:
    try:
        return str(model.to_json())
    except (TypeError, ValueError, NotImplementedError) as e:
        raise ModelError(
            f"the model '{model.name}' can't be written as plain data",
            cause=f"{type(e).__name__}: {e}",
            action="build it from Keras's own layers",
        ) from e


def _describe(reading: Reading, source_format: str) -> Description:
    return Description(
        source_format=source_format,
        inputs=input_specs(reading),
        outputs=tuple(port.name for port in reading.outputs),
        output_shapes=tuple(tuple(tensor.shape) for tensor in reading.model.outputs),
        layers=tuple(_layers(reading.model)),
        input_axes=tuple(port.axes for port in reading.inputs),
        output_axes=tuple(port.axes for port in reading.outputs),
        batched=reading.batched,
        notes=reading.notes,
    )


def _input(name: str, tensor: Any, *, batched: bool) -> InputSpec:
    import tensorflow as tf

    if name == LABELS:
        raise ModelError(
            f"an input is named '{name}'",
            cause="evaluation data holds the labels under that name",
            action="rename the input",
        )
    if not isinstance(tensor.type_spec, tf.TensorSpec) or tensor.dtype == tf.string or tensor.shape.rank is None:
        raise ModelError(
            f"input '{name}' is {tensor.type_spec}",
            cause="a flatbuffer for these targets takes dense numbers of a known rank",
            action="leave text, ragged and sparse data outside the model, and give it numbers",
        )
    shape = tuple(tensor.shape)[1:] if batched else tuple(tensor.shape)
    if None in shape:
        raise ModelError(
            f"input '{name}' has the dynamic shape {list(tensor.shape)}",
            cause=f"dimension {shape.index(None) + batched} has no fixed size, which a flatbuffer needs",
            action=settle(name, ((1,) if batched else ()) + shape),
        )
    return InputSpec(name=name, shape=shape, dtype=tensor.dtype.name)


def _layers(model: Any, prefix: str = "", calls: int = 1) -> Iterator[Layer]:
    """Layers in order; each is counted once, and its arithmetic once a call."""
    nodes = [node for depth in model._nodes_by_depth.values() for node in depth]  # noqa: SLF001 - the calls of this model
    for layer in model.layers:
        shapes = [_first_shape(node.output_shapes) for node in nodes if node.layer is layer] or [(None,)]
        if hasattr(layer, "_nodes_by_depth"):
            yield from _layers(layer, f"{prefix}{layer.name}/", calls * len(shapes))
            continue
        yield Layer(
            name=prefix + layer.name,
            kind=type(layer).__name__,
            output_shape=shapes[0],
            parameters=int(layer.count_params()),
            macs=calls * sum(_macs(layer, shape) for shape in shapes),
        )


def first_output_shape(layer: Any) -> tuple[int | None, ...]:
    """The shape of what a layer of a functional model gives at its first call."""
    return _first_shape(layer.inbound_nodes[0].output_shapes)


def _first_shape(shapes: Any) -> tuple[int | None, ...]:
    """The first of a layer's output shapes, which Keras keeps as a shape, or a list or dictionary of shapes."""
    while not isinstance(shapes, tuple) or (shapes and isinstance(shapes[0], tuple | list)):
        shapes = next(iter(shapes.values())) if isinstance(shapes, dict) else next(iter(shapes))
    return shapes


def _macs(layer: Any, output_shape: Sequence[int | None]) -> int:
    """Kernel size times the positions it is applied at."""
    inner = layer.layer if type(layer).__name__ == "TimeDistributed" else layer
    if type(inner).__name__ not in _WEIGHTED_SUMS:
        return 0
    kernels = [weight for weight in inner.weights if weight.name.split(":")[0].endswith("kernel")]
    first = getattr(inner, "data_format", None) == "channels_first"
    positions = output_shape[2:] if first else output_shape[1:-1]
    elements = sum(int(prod(kernel.shape)) for kernel in kernels)
    return elements * prod(size or 1 for size in positions)
