"""What the Edge TPU compiler maps, by its documentation: a table from operator kind to constraints."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Final

from edgebuild.targets.rules import Node, Refusal, Rule, Rules, Table, require

if TYPE_CHECKING:
    from edgebuild.export.flatbuffer import Tensor

SOURCE: Final = (
    "https://coral.ai/docs/edgetpu/models-intro/#supported-operations (compiler 16.0, runtime 14); "
    "RESIZE_BILINEAR limits from the published model pairs of github.com/google-coral/test_data"
)

COMPILED: Final = "edgetpu-custom-op"  # What the compiler makes of all that it maps.
SOFTMAX_MAX_ELEMENTS: Final = 16_000
# The documentation says only "depending on input/output size"; this is where the published pairs part.
RESIZE_MAX_OUTPUT_ELEMENTS: Final = 1_500_000
ACTIVATION_TYPES: Final = ("int8", "uint8")
CONSTANT_TYPES: Final = ("int8", "uint8", "int16", "int32", "int64")
INNER_DIMENSIONS: Final = 3
MEAN_DEPTH_STEP: Final = 4


def _sizes(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _axes(node: Node, position: int = 1) -> tuple[int, ...] | None:
    """The reduced axes, counted from the front; None where they are not known before run time."""
    data, axes = node.input(0), node.integers(position)
    return None if data is None or axes is None else tuple(axis % max(len(data.shape), 1) for axis in axes)


def unknown_operator(node: Node) -> Refusal:
    """Answer for kinds outside the table."""
    kind = f"custom operator {node.kind}" if node.operator.is_custom else node.kind
    return Refusal(
        reason=f"{kind} is not among the operators the Edge TPU runs",
        suggestion="replace it by supported operators, or leave it to the host with cut: auto",
    )


def eight_bit_activations(node: Node) -> Refusal | None:
    """Activations are int8 or uint8; an LSTM's state tensors are its own affair."""
    others = [t for t in node.activations if t.dtype not in ACTIVATION_TYPES and not t.is_variable]
    return require(
        not others,
        f"tensor of {others[0].dtype if others else ''}: the Edge TPU computes in int8 and uint8 only",
        "quantize to full integer, with int8 inputs and outputs",
    )


def integer_constants(node: Node) -> Refusal | None:
    """Weights are 8-bit integers; biases and shapes are wider ones."""
    others = [t for t in node.inputs if node.is_constant(t) and t.dtype not in CONSTANT_TYPES]
    return require(
        not others,
        f"constants of {others[0].dtype if others else ''}",
        "quantize to full integer; dynamic-range quantization is not enough",
    )


def static_sizes(node: Node) -> Refusal | None:
    """Every size is known at compile time; a batch that may be of any size is compiled as the one sample it holds."""
    dynamic = [t for t in node.activations if any(size < 0 for size in t.shape_signature[1:])]
    return require(
        not dynamic,
        f"dynamic tensor size {list(dynamic[0].shape_signature) if dynamic else []}",
        "fix every size before converting",
    )


def three_inner_dimensions(node: Node) -> Refusal | None:
    """Only the three innermost dimensions of an activation exceed 1."""
    wide = [t for t in node.activations if any(size > 1 for size in t.shape[:-INNER_DIMENSIONS])]
    return require(
        not wide,
        f"tensor of {_sizes(wide[0]) if wide else ''}: only the three innermost dimensions may exceed 1",
        "run one sample at a time: batch size 1",
    )


def constant_parameters(node: Node) -> Refusal | None:
    """Parameters (weights, biases) stand in the file."""
    return require(
        all(node.is_constant(t) for t in node.inputs[1:]),
        "its parameters are computed at run time",
        "make weights and biases constants of the model",
    )


def constant_kernel(node: Node) -> Refusal | None:
    """TRANSPOSE_CONV's output shape, weights and bias stand in the file; what it reads is its third input."""
    data = node.input(2)
    return require(
        all(node.is_constant(t) for t in node.inputs if data is None or t.index != data.index),
        "its output shape or its parameters are computed at run time",
        "fix the model's input sizes, the batch to 1, before converting",
    )


def no_fused_activation(node: Node) -> Refusal | None:
    """Pooling and concatenation have no activation fused in."""
    fused = node.option("fusedActivationFunction", "NONE")
    return require(
        fused == "NONE", f"fused activation {fused}", "put the activation before it, or make it its own layer"
    )


def zero_constant_only(node: Node) -> Refusal | None:
    """CONCATENATION with a constant has two inputs, and the constant is all zeros (zero padding)."""
    constants = [t for t in node.inputs if t.is_constant]
    if not constants:
        return None
    allowed_inputs = 2
    zero = all(node.is_real_zero(t) for t in constants)
    return require(
        len(node.inputs) == allowed_inputs and zero,
        "concatenates a constant that is no zero padding",
        "concatenate computed tensors only, or one all-zero constant with one other input",
    )


def equal_dilation(node: Node) -> Refusal | None:
    """Convolutions dilate equally in x and y."""
    x, y = node.option("dilationWFactor", 1), node.option("dilationHFactor", 1)
    return require(x == y, f"dilation {y}x{x} differs in x and y", "use the same dilation in both directions")


def default_weights_format(node: Node) -> Refusal | None:
    """FULLY_CONNECTED stores its weights plainly."""
    return require(node.option("weightsFormat", 0) == 0, "shuffled weights format", "convert with the default format")


def one_dimensional_output(node: Node) -> Refusal | None:
    """The output is a vector: leading dimensions are 1."""
    wide = [t for t in node.outputs if prod(t.shape[:-1]) > 1]
    return require(
        not wide,
        f"output of {_sizes(wide[0]) if wide else ''} is not one-dimensional",
        "apply it to one vector at a time, or use a 1x1 convolution",
    )


def mean_in_multiples_of_four(node: Node) -> Refusal | None:
    """MEAN over the innermost axis takes depths in multiples of four."""
    data, axes = node.input(0), _axes(node)
    if data is None or axes is None or len(data.shape) - 1 not in axes:
        return None
    depth = data.shape[-1]
    return require(depth % MEAN_DEPTH_STEP == 0, f"MEAN over a depth of {depth}", "pad the depth to a multiple of 4")


def keeps_batch(node: Node) -> Refusal | None:
    """Reductions have constant axes and leave the batch dimension alone."""
    axes = _axes(node)
    if axes is None:
        return Refusal(reason="the reduced axes are computed at run time", suggestion="make them a constant")
    return require(0 not in axes, "reduces over the batch dimension", "reduce over the other dimensions only")


def pads_no_batch(node: Node) -> Refusal | None:
    """PAD has constant paddings, none of them in the batch dimension."""
    paddings = node.integers(1)
    if paddings is None:
        return Refusal(reason="the paddings are computed at run time", suggestion="make them a constant")
    return require(not any(paddings[:2]), "pads the batch dimension", "pad the other dimensions only")


def joins_no_batch(node: Node) -> Refusal | None:
    """PACK leaves the batch dimension alone."""
    return require(node.option("axis", 0) != 0, "packs in the batch dimension", "pack along another axis")


def splits_no_batch(node: Node) -> Refusal | None:
    """SPLIT leaves the batch dimension alone."""
    axis, data = node.integers(0), node.input(1)
    rank = max(len(data.shape), 1) if data else 1
    return require(
        bool(axis) and axis is not None and axis[0] % rank != 0,
        "splits the batch dimension, or along an axis computed at run time",
        "split along another, constant axis",
    )


def one_dimensional_alpha(node: Node) -> Refusal | None:
    """PRELU has one slope a channel."""
    alpha = node.input(1)
    return require(
        alpha is not None and prod(alpha.shape[:-1]) == 1,
        "alpha is not one-dimensional",
        "share the slopes: PReLU(shared_axes=[1, 2])",
    )


def short_softmax(node: Node) -> Refusal | None:
    """SOFTMAX takes up to 16,000 elements."""
    count = node.outputs[0].elements if node.outputs else 0
    return require(count <= SOFTMAX_MAX_ELEMENTS, f"{count:,} elements; it takes up to {SOFTMAX_MAX_ELEMENTS:,}")


def large_enough_resize(node: Node) -> Refusal | None:
    """RESIZE_BILINEAR from a single row is not mapped."""
    rank, data = 4, node.input(0)
    height = data.shape[1] if data is not None and len(data.shape) == rank else 0
    return require(
        height > 1,
        f"resizes from a height of {height}",
        "tile or broadcast instead, or leave it to the host with cut: auto",
    )


def small_enough_resize(node: Node) -> Refusal | None:
    """RESIZE_BILINEAR to very large outputs is not mapped, to avoid loss of precision."""
    count = node.outputs[0].elements if node.outputs else 0
    return require(
        count <= RESIZE_MAX_OUTPUT_ELEMENTS,
        f"resizes to {count:,} elements; above {RESIZE_MAX_OUTPUT_ELEMENTS:,} it stays on the CPU",
        "resize to a smaller output",
    )


def leading_ones_only(node: Node) -> Refusal | None:
    """SQUEEZE removes leading dimensions only, so that nothing moves in memory."""
    data, out = node.input(0), node.outputs[0] if node.outputs else None
    kept = data.shape[len(data.shape) - len(out.shape) :] if data is not None and out is not None else None
    return require(
        kept is not None and out is not None and kept == out.shape, "squeezes inner dimensions", "use RESHAPE instead"
    )


def unit_strides(node: Node) -> Refusal | None:
    """STRIDED_SLICE steps by one and has no ellipsis and no new axis."""
    strides = node.integers(3)
    masks = node.option("ellipsisMask", 0) or node.option("newAxisMask", 0)
    return require(
        strides is not None and set(strides) <= {1} and not masks,
        "strides other than 1, an ellipsis or a new axis",
        "slice with constant strides of 1",
    )


_EVERY: Final[tuple[Rule, ...]] = (eight_bit_activations, integer_constants, static_sizes, three_inner_dimensions)

_RULES: Final[Rules] = {
    "ADD": (),
    "AVERAGE_POOL_2D": (no_fused_activation,),
    "CONCATENATION": (no_fused_activation, zero_constant_only),
    "CONV_2D": (constant_parameters, equal_dilation),
    "DEPTHWISE_CONV_2D": (constant_parameters, equal_dilation),
    "EXPAND_DIMS": (),
    "FULLY_CONNECTED": (constant_parameters, default_weights_format, one_dimensional_output),
    "L2_NORMALIZATION": (),
    "LOGISTIC": (),
    "LSTM": (),
    "MAXIMUM": (),
    "MAX_POOL_2D": (no_fused_activation,),
    "MEAN": (keeps_batch, mean_in_multiples_of_four),
    "MINIMUM": (),
    "MUL": (),
    "PACK": (joins_no_batch,),
    "PAD": (pads_no_batch,),
    "PRELU": (one_dimensional_alpha,),
    "QUANTIZE": (),
    "REDUCE_MAX": (keeps_batch,),
    "REDUCE_MIN": (keeps_batch,),
    "RELU": (),
    "RELU6": (),
    "RELU_N1_TO_1": (),
    "RESHAPE": (),
    "RESIZE_BILINEAR": (large_enough_resize, small_enough_resize),
    "RESIZE_NEAREST_NEIGHBOR": (small_enough_resize,),
    "RSQRT": (),
    "SLICE": (),
    "SOFTMAX": (one_dimensional_output, short_softmax),
    "SPACE_TO_DEPTH": (),
    "SPLIT": (splits_no_batch,),
    "SQUARED_DIFFERENCE": (),
    "SQUEEZE": (leading_ones_only,),
    "STRIDED_SLICE": (unit_strides,),
    "SUB": (),
    "SUM": (keeps_batch,),
    "TANH": (),
    "TRANSPOSE": (),
    "TRANSPOSE_CONV": (constant_kernel,),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": (),
}

TABLE: Final = Table(rules=_RULES, every=_EVERY, unknown=unknown_operator, source=SOURCE)
