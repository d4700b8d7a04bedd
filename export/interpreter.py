"""Run flatbuffers on tflite-runtime: the runtime that ships, and the only door to it.

The runtime is native code that can crash on a broken model, so callers run this in a process they can lose.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebuild.export.errors import ModelError
from edgebuild.export.flatbuffer import Flatbuffer, Quantization, Tensor, read


class Interpreter:
    """One model, allocated once; inputs and outputs go by signature name."""

    def __init__(self, data: bytes, *, threads: int = 1, keep_all: bool = False) -> None:
        """Load and allocate; `keep_all` keeps every activation after a run, which takes memory and the faster kernels.

        Raises:
            ModelError: the runtime does not take the model.
        """
        from tflite_runtime.interpreter import Interpreter as Runtime

        self.flatbuffer: Flatbuffer = read(data)
        try:
            self._runtime = Runtime(model_content=data, num_threads=threads, experimental_preserve_all_tensors=keep_all)
            self._runtime.allocate_tensors()
        except (ValueError, RuntimeError) as e:
            raise _refused(e) from e

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """One inference in the model's own types: `[1, ...]` in, `[1, ...]` out.

        Raises:
            ModelError: an input does not fit, or an operator fails.
        """
        _require_inputs(self.flatbuffer, inputs)
        try:
            for name, tensor in self.flatbuffer.inputs.items():
                self._runtime.set_tensor(tensor.index, inputs[name])
            self._runtime.invoke()
            return {name: self._runtime.get_tensor(t.index) for name, t in self.flatbuffer.outputs.items()}
        except (ValueError, RuntimeError) as e:
            raise _refused(e) from e

    def predict(self, samples: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Real values in, real values out, over all samples: `[N, ...]` each, quantized and dequantized as declared.

        Where the model's inputs have no batch axis, a sample is a whole input, and results are stacked.

        Raises:
            ModelError: an input does not fit, or an operator fails.
        """
        return decoded(self.flatbuffer, samples, [self.run(inputs) for inputs in encoded(self.flatbuffer, samples)])

    def ranges(self, samples: Mapping[str, NDArray[Any]]) -> dict[str, tuple[float, float]]:
        """The least and the largest value of every floating-point activation over all samples, by tensor name.

        NaN is left out, and infinity counts as float32's largest number. What the runtime keeps no memory for, as the
        outputs of a loop whose sizes are open, is left out too. The interpreter must `keep_all`.

        Raises:
            ModelError: an input does not fit, or an operator fails.
        """
        main = self.flatbuffer.main
        given = {*main.inputs, *(i for operator in main.operators for i in operator.outputs)}
        floats = [main.tensors[i] for i in sorted(given) if i >= 0 and main.tensors[i].dtype == "float32"]
        found: dict[str, tuple[float, float]] = {}
        for inputs in encoded(self.flatbuffer, samples):
            self.run(inputs)
            for tensor, values in self._kept(floats):
                low, high = _extremes(values)
                before = found.get(tensor.name, (low, high))
                found[tensor.name] = min(low, before[0]), max(high, before[1])
        return found

    def _kept(self, tensors: Iterable[Tensor]) -> Iterator[tuple[Tensor, NDArray[Any]]]:
        for tensor in tensors:
            try:
                values = self._runtime.get_tensor(tensor.index)
            except ValueError:  # "Tensor data is null".
                continue
            yield tensor, values


def encoded(model: Flatbuffer, samples: Mapping[str, NDArray[Any]]) -> Iterator[dict[str, NDArray[Any]]]:
    """Each sample as a runtime takes it: in the model's own types, under a batch axis if the model has one.

    Raises:
        ModelError: an input is missing.
    """
    _require_inputs(model, samples)
    native = {name: encode(samples[name], tensor) for name, tensor in model.inputs.items()}
    whole = {name for name, tensor in model.inputs.items() if samples[name].ndim > len(tensor.shape)}
    for row in range(len(next(iter(samples.values())))):
        yield {name: array[row] if name in whole else array[row : row + 1] for name, array in native.items()}


def decoded(
    model: Flatbuffer, samples: Mapping[str, NDArray[Any]], results: Sequence[Mapping[str, NDArray[Any]]]
) -> dict[str, NDArray[np.float32]]:
    """What a runtime gave for each of the samples, joined and in real values: `float32 [N, ...]` by output name."""
    batched = all(samples[name].ndim == len(t.shape) for name, t in model.inputs.items())
    join = np.concatenate if batched else np.stack
    return {name: decode(join([result[name] for result in results]), tensor) for name, tensor in model.outputs.items()}


def _require_inputs(model: Flatbuffer, given: Mapping[str, NDArray[Any]]) -> None:
    missing = [name for name in model.inputs if name not in given]
    if missing:
        raise ModelError(
            f"the model's input {', '.join(missing)} is not given", cause=f"given are {', '.join(given) or 'none'}"
        )


def require_running(data: bytes) -> None:
    """Parse a flatbuffer, allocate it, and run it once on zeros.

    Raises:
        ModelError: one of the three fails.
    """
    interpreter = Interpreter(data)
    inputs = interpreter.flatbuffer.inputs.items()
    interpreter.run({name: np.zeros([max(size, 1) for size in tensor.shape], tensor.dtype) for name, tensor in inputs})


def encode(values: NDArray[Any], tensor: Tensor) -> NDArray[Any]:
    """Real values in the tensor's type: q = clip(round(x / scale) + zero_point)."""
    if tensor.quantization is None or not _is_integer(tensor):
        return values.astype(tensor.dtype, copy=False)
    scale, zero_point = _per_tensor(tensor.quantization)
    limits = np.iinfo(tensor.dtype)
    steps: NDArray[Any] = np.asarray(values / scale)
    np.round(steps, out=steps)  # In place: a whole evaluation set comes at once.
    steps += zero_point
    np.clip(steps, limits.min, limits.max, out=steps)
    return steps.astype(tensor.dtype)


def decode(values: NDArray[Any], tensor: Tensor) -> NDArray[np.float32]:
    """Real values of a tensor: x = scale * (q - zero_point)."""
    if tensor.quantization is None or not _is_integer(tensor):
        return values.astype(np.float32)
    scale, zero_point = _per_tensor(tensor.quantization)
    return ((values.astype(np.float32) - zero_point) * scale).astype(np.float32)


def _extremes(values: NDArray[Any]) -> tuple[float, float]:
    finite = np.nan_to_num(values[~np.isnan(values)])
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def _is_integer(tensor: Tensor) -> bool:
    return np.dtype(tensor.dtype).kind in "iu"


def _per_tensor(quantization: Quantization) -> tuple[np.float32, int]:
    return np.float32(quantization.scale[0]), quantization.zero_point[0]


def _refused(error: Exception) -> ModelError:
    text = " ".join(str(error).split())
    if "Didn't find op" in text or "unresolved custom op" in text:
        return ModelError(
            "tflite-runtime 2.14.0 does not take the model",
            cause=text,
            action="an operator is newer than the runtime, or custom: convert with edgebuild, or change the layer",
        )
    return ModelError("tflite-runtime 2.14.0 can't run the model", cause=text)
