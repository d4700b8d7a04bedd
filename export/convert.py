"""Float model to flatbuffer. The only door to TensorFlow's converter; import it in a worker process only.

`convert()` leaks memory and a calibrator can take its process down, so nothing here runs in the user's own process.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from edgebuild.calibration.checks import InputSpec
from edgebuild.export import flatbuffer, signature
from edgebuild.export.errors import ModelError

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # Spares the import of Keras 3 inside TensorFlow's.

if TYPE_CHECKING:
    from edgebuild.export.formats import IoType, Precision

SIGNATURE: Final = "serving_default"
_NAMES: Final = "names.json"
_QUANTIZED_AT_MOST: Final = 6  # Times: all fail by chance once in some 90,000.
_SAFE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Inputs and outputs, from names that TensorFlow's signatures take to the model's own.

    A signature's arguments are Python keywords; `my-input` would lose its dash, and `a/b` its meaning. Where `batched`
    is false, a sample is a whole input.
    """

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    batched: bool = True

    @classmethod
    def of(cls, inputs: Sequence[str], outputs: Sequence[str], *, batched: bool = True) -> Names:
        """Names that are safe stay; if one is not, all are numbered."""
        if all(_SAFE.fullmatch(name) for name in (*inputs, *outputs)):
            return cls(
                inputs={name: name for name in inputs}, outputs={name: name for name in outputs}, batched=batched
            )
        return cls(
            inputs={f"input_{i}": name for i, name in enumerate(inputs)},
            outputs={f"output_{i}": name for i, name in enumerate(outputs)},
            batched=batched,
        )

    @property
    def are_safe(self) -> bool:
        """Whether no name had to change."""
        return all(safe == own for names in (self.inputs, self.outputs) for safe, own in names.items())


def freeze(
    model: Any, inputs: Sequence[InputSpec], outputs: Sequence[str], folder: Path, *, batched: bool = True
) -> None:
    """Save a tf_keras model as a SavedModel with constant weights, batch 1 and the model's own input and output names.

    Without a batch axis the shapes of `inputs` are whole, and stay.

    Converting from it costs 0.9 s where `from_keras_model` costs 4.5 s, most of which saves the Keras object graph
    anew for every precision.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    names = Names.of([spec.name for spec in inputs], outputs, batched=batched)
    batch = (1,) if batched else ()
    specs = [
        tf.TensorSpec((*batch, *spec.shape), spec.dtype, name=name)
        for spec, name in zip(inputs, names.inputs, strict=True)
    ]

    def flat(*tensors: Any) -> list[Any]:
        return list(tf.nest.flatten(model(tensors[0] if len(tensors) == 1 else list(tensors), training=False)))

    frozen = convert_variables_to_constants_v2(tf.function(flat, autograph=False).get_concrete_function(*specs))

    def named(**tensors: Any) -> dict[str, Any]:
        return dict(zip(names.outputs, frozen(*(tensors[name] for name in names.inputs)), strict=True))

    call = tf.function(named, autograph=False).get_concrete_function(**{spec.name: spec for spec in specs})
    # swish's own gradient captures its beta, and saving it fails.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(tf.Module(), str(folder), signatures={SIGNATURE: call}, options=options)
    (folder / _NAMES).write_text(json.dumps(asdict(names)))


def to_float(saved_model: Path, precision: Precision) -> bytes:
    """A flatbuffer whose inputs, outputs and arithmetic stay floating point: float32, float16 or dynamic.

    Dynamic range keeps dense layers per tensor: per channel gives FULLY_CONNECTED version 12, which
    tflite-runtime 2.14.0 refuses.
    """
    converter = _converter(saved_model)
    if precision == "float16":
        converter.optimizations = _default_optimizations()
        converter.target_spec.supported_types = [_tf().float16]
    elif precision == "dynamic":
        converter.optimizations = _default_optimizations()
        _keep_dense_per_tensor(converter)
    return _convert(converter, saved_model, precision)


def calibrate(saved_model: Path, samples: Mapping[str, NDArray[Any]]) -> bytes:
    """A float flatbuffer whose activations carry the ranges seen over `samples`, ready to `quantize` many times."""
    converter = _converter(saved_model, samples)
    converter._experimental_calibrate_only = True  # noqa: SLF001 - no public way
    return _convert(converter, saved_model, "calibration")


def quantize(calibrated: bytes, io_type: IoType, *, dense_per_tensor: bool = False) -> bytes:
    """Full-integer int8 out of a calibrated flatbuffer, in milliseconds; inputs and outputs as `io_type`.

    The kernel of a dense layer has a scale a channel, or with `dense_per_tensor` one: its operator's version tells old
    compilers nothing of the others.
    Takes the two steps of the public converter after its calibration, so that outputs are the same. TensorFlow 2.19's
    quantizer leaves an operator or two in floating point by chance, of an unrolled LSTM in 3 of 20 calls, so one that
    did is asked again, and the least is taken: the same model gives the same bytes.

    Raises:
        ModelError: the model can't be quantized, or this TensorFlow lacks the two functions.
    """
    found: list[tuple[int, bytes]] = []
    while len(found) < _QUANTIZED_AT_MOST:
        model = _quantized(calibrated, io_type, dense_per_tensor=dense_per_tensor)
        found.append((_floats_inside(model), model))
        if not found[-1][0]:
            return model
    return min(found)[1]


def _quantized(calibrated: bytes, io_type: IoType, *, dense_per_tensor: bool) -> bytes:
    tf = _tf()
    try:
        from tensorflow.lite.python.convert import mlir_quantize
        from tensorflow.lite.python.util import modify_model_io_type

        model = mlir_quantize(
            calibrated,
            input_data_type=tf.float32,
            output_data_type=tf.float32,
            disable_per_channel_for_dense_layers=dense_per_tensor,
        )
        wanted = tf.dtypes.as_dtype(io_type)
        return bytes(model if wanted == tf.float32 else modify_model_io_type(model, wanted, wanted))
    except (ImportError, TypeError, ValueError, RuntimeError) as e:
        raise ModelError("the calibrated model can't be quantized to int8", cause=_reason(e)) from e


def _floats_inside(model: bytes) -> int:
    """How many floating-point tensors there are but for inputs and outputs, in loops and branches too."""
    return sum(
        tensor.dtype == "float32" and tensor.index not in {*graph.inputs, *graph.outputs}
        for graph in flatbuffer.read(model).subgraphs
        for tensor in graph.tensors
    )


def quantize_publicly(
    saved_model: Path,
    samples: Mapping[str, NDArray[Any]],
    precision: Precision,
    io_type: IoType,
    *,
    dense_per_tensor: bool = False,
) -> bytes:
    """int8 or int16x8 by the public converter alone, calibrating anew: the reference, and the fall-back."""
    tf = _tf()
    converter = _converter(saved_model, samples)
    wide = tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
    converter.target_spec.supported_ops = [wide if precision == "int16x8" else tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.dtypes.as_dtype(io_type)
    if dense_per_tensor:
        _keep_dense_per_tensor(converter)
    return _convert(converter, saved_model, precision)


def sparsify(model: bytes) -> bytes:
    """The same model with its pruned weights stored without their zeros; weights with few zeros stay as they are.

    A `DENSIFY` operator unpacks each into memory before the first inference. Storing costs a value and its coordinate,
    so that of int8 weights more than half must be zero.

    Raises:
        ModelError: TensorFlow refuses, or this one lacks the function.
    """
    try:
        from tensorflow.lite.python.convert import mlir_sparsify

        return bytes(mlir_sparsify(model))
    except (ImportError, TypeError, ValueError, RuntimeError) as e:
        raise ModelError(
            "the zeros of this model can't be left out of its file",
            cause=_reason(e),
            action="leave targets.NAME.sparse out",
        ) from e


def _tf() -> Any:
    import tensorflow as tf

    return tf


def _default_optimizations() -> list[Any]:
    return [_tf().lite.Optimize.DEFAULT]


def _converter(saved_model: Path, samples: Mapping[str, NDArray[Any]] | None = None) -> Any:
    converter = _tf().lite.TFLiteConverter.from_saved_model(str(saved_model), signature_keys=[SIGNATURE])
    if samples is not None:
        converter.optimizations = _default_optimizations()
        names = _names(saved_model)
        named = {safe: samples[own] for safe, own in names.inputs.items()}
        converter.representative_dataset = lambda: _rows(named, batched=names.batched)
    return converter


def _keep_dense_per_tensor(converter: Any) -> None:
    switch = "_experimental_disable_per_channel_quantization_for_dense_layers"  # There is no public one.
    if not hasattr(converter, switch):  # Set all the same, it would do nothing, and nobody would know.
        raise ModelError(
            "this TensorFlow can't quantize dense layers with one scale",
            cause=f"its converter has no {switch}",
            action="install the version that edgebuild names, or choose another precision",
        )
    setattr(converter, switch, True)


def _rows(samples: Mapping[str, NDArray[Any]], *, batched: bool) -> Iterator[dict[str, NDArray[Any]]]:
    for row in range(len(next(iter(samples.values())))):
        rows = {name: array[row : row + 1] if batched else array[row] for name, array in samples.items()}
        yield {name: np.ascontiguousarray(sample) for name, sample in rows.items()}


def _names(saved_model: Path) -> Names:
    return Names(**json.loads((saved_model / _NAMES).read_bytes()))


def _convert(converter: Any, saved_model: Path, precision: str) -> bytes:
    from tensorflow.lite.python.convert import ConverterError

    try:
        model = bytes(converter.convert())
    except (ConverterError, ValueError, RuntimeError, TypeError) as e:
        raise ModelError(
            f"TensorFlow's converter refuses the model for {precision}",
            cause=_reason(e),
            action="change the layer it names, or choose another precision for this target",
        ) from e
    names = _names(saved_model)
    return model if names.are_safe else signature.rename(model, names.inputs, names.outputs)


def _reason(error: Exception) -> str:
    """The line that names the operator, out of pages of compiler output."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    named = [line.split("error: ", 1)[1] for line in lines if "error: " in line]
    return (named or lines)[0][:500]
