"""What number format a given flatbuffer is in, and what its operators cost: read off its tensors."""

from __future__ import annotations

from collections.abc import Iterator

from edgebuild.export.flatbuffer import Flatbuffer, Operator, Tensor
from edgebuild.export.formats import IoType, Precision


def precision(model: Flatbuffer) -> Precision:
    """The format of activations and weights; 8-bit models of either sign count as int8."""
    kinds = {tensor.dtype for tensor in _activations(model) if tensor.quantization is not None}
    if "int16" in kinds:
        return "int16x8"
    if kinds & {"int8", "uint8"}:
        return "int8"
    weights = {tensor.dtype for tensor in model.weights}
    if weights & {"int8", "uint8"}:
        return "dynamic"
    return "float16" if "float16" in weights else "float32"


def io_type(model: Flatbuffer) -> IoType:
    """The type of the first input; `float32` also stands for integers that are not quantized, such as indices."""
    first = next(iter(model.inputs.values()), None)
    if first is None or first.quantization is None:
        return "float32"
    return "uint8" if first.dtype == "uint8" else "int8" if first.dtype == "int8" else "float32"


def macs(model: Flatbuffer, operator: Operator) -> int:
    """Multiply-accumulates of one operator: outputs times what each of them sums over; 0 for other kinds."""
    if len(operator.inputs) < 2 or not operator.outputs:
        return 0
    tensors = model.main.tensors
    output = tensors[operator.outputs[0]].elements
    weights = tensors[operator.inputs[1]].shape
    if operator.kind == "CONV_2D" and len(weights) == 4:  # [out, height, width, in]
        return output * weights[1] * weights[2] * weights[3]
    if operator.kind == "DEPTHWISE_CONV_2D" and len(weights) == 4:  # [1, height, width, out]
        return output * weights[1] * weights[2]
    if operator.kind == "FULLY_CONNECTED" and len(weights) == 2:  # [out, in]
        return output * weights[1]
    if operator.kind == "TRANSPOSE_CONV" and len(operator.inputs) > 2 and len(weights) == 4:
        return tensors[operator.inputs[2]].elements * weights[0] * weights[1] * weights[2]
    if operator.kind == "BATCH_MATMUL" and tensors[operator.inputs[0]].shape:
        return output * tensors[operator.inputs[0]].shape[-2 if operator.options.get("adjX") else -1]
    return 0


def parameters(model: Flatbuffer, operator: Operator) -> int:
    """Learned constants that one operator takes."""
    learned = {tensor.index for tensor in model.weights}
    return sum(model.main.tensors[i].elements for i in operator.inputs if i in learned)


def _activations(model: Flatbuffer) -> Iterator[Tensor]:
    """What operators make; the inputs too where no float is made, since a class's index has no scale of its own."""
    made = {i for operator in model.main.operators for i in operator.outputs if i >= 0}
    if not any(model.main.tensors[i].dtype.startswith("float") for i in made):
        made |= set(model.main.inputs)
    return (model.main.tensors[i] for i in sorted(made))
