"""What TFLite's GPU delegate takes, by its source: a table from operator kind to constraints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgebuild.targets.rules import Node, Refusal, Rule, Rules, Table, require

if TYPE_CHECKING:
    from edgebuild.export.flatbuffer import Tensor

SOURCE: Final = (
    "https://github.com/tensorflow/tensorflow/blob/v2.19.0/tensorflow/lite/tools/versioning/gpu_compatibility.cc "
    "(CheckGpuDelegateCompatibility); default delegate options"
)

FOLDED: Final = frozenset({"DEQUANTIZE", "DENSIFY"})

FLOAT: Final = frozenset({"float16", "float32"})
COMPUTED: Final = FLOAT | {"int8", "uint8"}
# Kinds that read or write something else as well. ref: tensorflow/lite/delegates/gpu/common/model_builder.cc.
EXTRA_TYPES: Final[dict[str, frozenset[str]]] = {
    "CAST": frozenset({"bool", "int32"}),
    "DYNAMIC_UPDATE_SLICE": frozenset({"int32"}),
    "EMBEDDING_LOOKUP": frozenset({"int32"}),
    "GATHER": frozenset({"int32"}),
    "ONE_HOT": frozenset({"int32"}),
    "SELECT": frozenset({"bool"}),
    "SELECT_V2": frozenset({"bool"}),
    **dict.fromkeys(
        ("EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "LOGICAL_AND", "NOT_EQUAL"), frozenset({"bool"})
    ),
}
SUPPORTED_ACTIVATIONS: Final = frozenset({"NONE", "RELU", "RELU_N1_TO_1", "RELU6", "TANH", "SIGMOID"})
IMAGE_RANK: Final = 4
MATRIX_RANK: Final = 2
OPERANDS: Final = 2
SLICE_RANKS: Final = (3, 4)


def unknown_operator(node: Node) -> Refusal:
    """Answer for kinds outside the table."""
    kind = f"custom operator {node.kind}" if node.operator.is_custom else node.kind
    return Refusal(
        reason=f"{kind} is not among the operators the GPU delegate takes",
        suggestion="replace it by supported operators",
    )


def computed_types(node: Node) -> Refusal | None:
    """Activations are floating point or 8-bit; a few operators handle indices and truth values."""
    allowed = COMPUTED | EXTRA_TYPES.get(node.kind, frozenset())
    others = [t for t in node.activations if t.dtype not in allowed]
    return require(
        not others,
        f"tensor of {others[0].dtype if others else ''}",
        "use float16 or float32 precision, and keep integer arithmetic outside the model",
    )


def one_to_four_dimensions(node: Node) -> Refusal | None:
    """No tensor has more than four dimensions, and none that is computed has none: preparing the delegate would fail.

    ref: model_builder.cc, IsAllAllowedTensors; model_builder_helper.cc, ExtractTensorShape.
    """
    if any(not tensor.shape for tensor in node.activations):
        return Refusal(
            reason="a computed value without dimensions",
            suggestion="keep dimensions: keepdims=True where it is reduced",
        )
    deepest = max((len(tensor.shape) for tensor in (*node.inputs, *node.outputs)), default=0)
    return require(
        deepest <= IMAGE_RANK, f"a tensor of {deepest} dimensions", "fold some together, so that four remain"
    )


def takes(runtime_inputs: int, outputs: int = 1) -> Rule:
    """Exactly so many inputs computed at run time, and outputs."""

    def rule(node: Node) -> Refusal | None:
        computed = sum(not node.is_constant(t) for t in node.inputs)
        return require(
            computed == runtime_inputs and len(node.outputs) == outputs,
            f"{computed} computed inputs and {len(node.outputs)} outputs; it takes {runtime_inputs} and {outputs}",
            "make the other inputs constants",
        )

    return rule


def inputs(*counts: int) -> Rule:
    """So many inputs that are present, constant or not."""

    def rule(node: Node) -> Refusal | None:
        found = len(node.inputs)
        return require(found in counts, f"{found} inputs; it takes {' or '.join(map(str, counts))}")

    return rule


def one_or_two_operands(node: Node) -> Refusal | None:
    """Two computed operands, or a computed and a constant one."""
    constants = sum(node.is_constant(t) for t in node.inputs)
    computed = len(node.inputs) - constants
    return require(
        (computed, constants) in {(2, 0), (1, 1)} and len(node.outputs) == 1,
        f"{computed} computed and {constants} constant operands",
        "combine two tensors, or one with a constant",
    )


def convolution_inputs(node: Node) -> Refusal | None:
    """At most two computed inputs, and a filter."""
    computed = sum(not node.is_constant(t) for t in node.inputs)
    return require(
        1 <= computed <= OPERANDS <= len(node.inputs),
        f"{computed} of {len(node.inputs)} inputs are computed at run time",
        "make weights and biases constants of the model",
    )


def supported_activation(node: Node) -> Refusal | None:
    """Every fused activation but SIGN_BIT."""
    fused = node.option("fusedActivationFunction", "NONE")
    return require(fused in SUPPORTED_ACTIVATIONS, f"fused activation {fused}", "make the activation its own layer")


def multiplier_of_one(node: Node) -> Refusal | None:
    """DEPTHWISE_CONV_2D is 4-D and multiplies channels only where there is a single one."""
    tensors = [node.input(0), node.input(1), *node.outputs[:1]]
    if any(t is None or len(t.shape) != IMAGE_RANK for t in tensors):
        return Refusal(reason="a depthwise convolution that is not 4-dimensional", suggestion="use NHWC tensors")
    multiplier, channels = node.option("depthMultiplier", 1), node.inputs[0].shape[3]
    return require(
        multiplier == 1 or channels == 1,
        f"depth multiplier {multiplier} over {channels} channels",
        "use a depth multiplier of 1, or CONV_2D",
    )


def broadcastable(node: Node) -> Refusal | None:
    """ADD and MUL broadcast to 4-D only from 3-D, from [1, 1], or from [batch, channels]."""
    shapes = sorted((t.shape for t in node.inputs), key=len)
    short, long = shapes[0], shapes[-1]
    if len(short) <= 1 or len(short) == len(long):
        return None
    fits = len(long) == IMAGE_RANK and (
        (len(short) == IMAGE_RANK - 1 and long[0] == 1)
        or (short == (1, 1) and long[0] == 1)
        or (short == (long[0], long[3]))
    )
    return require(fits, f"broadcasts {list(short)} to {list(long)}", "reshape both operands to the same rank")


def one_operand_covers(node: Node) -> Refusal | None:
    """MUL of equal ranks: one operand is not smaller in any dimension."""
    a, b = (t.shape for t in node.inputs[:2])
    crossed = (
        len(a) == len(b)
        and any(x < y for x, y in zip(a, b, strict=True))
        and any(x > y for x, y in zip(a, b, strict=True))
    )
    return require(not crossed, f"outer product of {list(a)} and {list(b)}", "use a convolution or BATCH_MATMUL")


def castable(node: Node) -> Refusal | None:
    """CAST between truth values and floats, or between float32 and int32."""
    pair = (node.inputs[0].dtype, node.outputs[0].dtype)
    fits = (pair[0] == "bool" and pair[1] in FLOAT) or (pair[0] in FLOAT and pair[1] == "bool")
    return require(fits or set(pair) <= {"float32", "int32"}, f"casts {pair[0]} to {pair[1]}", "keep to float32")


def float_with_constant_axis(node: Node) -> Refusal | None:
    """CUMSUM over floats along a constant axis."""
    data, axis = node.input(0), node.input(1)
    fits = data is not None and axis is not None and data.dtype in FLOAT and axis.is_constant and axis.dtype == "int32"
    return require(fits, "sums integers, or along an axis computed at run time", "use floats and a constant axis")


def block_above_one(node: Node) -> Refusal | None:
    """Depth and space trade places in blocks above 1."""
    block = node.option("blockSize", 0)
    return require(isinstance(block, int) and block > 1, f"block size {block}", "remove the operator: it does nothing")


def not_from_int16(node: Node) -> Refusal | None:
    """DEQUANTIZE reads everything but int16."""
    return require(
        len(node.inputs) == 1 and node.inputs[0].dtype != "int16", "dequantizes int16", "use float16 precision"
    )


def embedding_table(node: Node) -> Refusal | None:
    """EMBEDDING_LOOKUP of a list of ids in a table of int8, int4 or float32."""
    ids, table = node.input(0), node.input(1)
    fits = ids is not None and table is not None and len(ids.shape) == 1 and len(table.shape) > 1
    return require(
        fits and table is not None and table.dtype in {"int8", "int4", "float32"},
        "an embedding of another shape or type",
        "look up 1-D ids in a float32 or int8 table",
    )


def updates_one_sample(node: Node) -> Refusal | None:
    """DYNAMIC_UPDATE_SLICE of one sample at 1-D int32 indices."""
    operand, start = node.input(0), node.input(2)
    if operand is None or start is None or start.dtype != "int32" or len(start.shape) != 1:
        return Refusal(reason="start indices that are not 1-D int32")
    batch = operand.shape[0] if len(operand.shape) == IMAGE_RANK else 1
    return require(batch == 1, f"updates a batch of {batch}", "use batch size 1")


def plain_fully_connected(node: Node) -> Refusal | None:
    """FULLY_CONNECTED of a computed input, plain weights, and no change of rank when it keeps dimensions."""
    data = node.input(0)
    if data is None or node.is_constant(data) or node.option("weightsFormat", 0) != 0:
        return Refusal(reason="constant input or shuffled weights", suggestion="convert with the default format")
    same_rank = len(data.shape) == len(node.outputs[0].shape) if node.outputs else False
    return require(same_rank or not node.option("keepNumDims", default=False), "keeps dimensions but changes the rank")


def gathers_by_list(node: Node) -> Refusal | None:
    """GATHER by 1-D int32 indices, out of anything but int32."""
    data, indices = node.input(0), node.input(1)
    fits = data is not None and indices is not None and data.dtype != "int32" and indices.dtype == "int32"
    return require(
        fits and indices is not None and len(indices.shape) == 1,
        "gathers out of int32, or by indices that are not 1-D int32",
        "reshape the indices to one dimension and cast them to int32",
    )


def known_lstm(node: Node) -> Refusal | None:
    """LSTM with 20 or 24 inputs, or the basic kernel without clipping."""
    basic = node.option("kernelType", 0) == 1
    clipped = node.option("cellClip", 0.0) != 0 or node.option("projClip", 0.0) != 0
    fits = not clipped if basic else len(node.operator.inputs) in {20, 24}
    allowed = {"TANH"} if basic else {"TANH", "SIGMOID"}
    return require(
        fits and node.option("fusedActivationFunction", "NONE") in allowed, "an LSTM of another form", "unroll it"
    )


def constant_axes(node: Node) -> Refusal | None:
    """Reductions along axes that stand in the file, as int32."""
    axes = node.input(1)
    return require(
        axes is not None and axes.is_constant and axes.dtype == "int32",
        "the reduced axes are computed at run time, or not int32",
        "make them an int32 constant",
    )


def paddings_of_images(node: Node) -> Refusal | None:
    """Paddings for three or four dimensions."""
    shape = paddings.shape if (paddings := node.input(1)) is not None else ()
    return require(shape in {(3, 2), (4, 2)}, f"paddings of shape {list(shape)}", "pad 3-D or 4-D tensors")


def reflecting(node: Node) -> Refusal | None:
    """MIRROR_PAD by reflection."""
    return require(node.option("mode", 0) == 0, "symmetric padding", "use REFLECT")


def float_one_hot(node: Node) -> Refusal | None:
    """ONE_HOT of int32 indices, batch and channels alone above 1, into constant float32 scalars."""
    ids, values = node.input(0), [node.input(2), node.input(3)]
    scalars = all(t is not None and t.dtype == "float32" and t.is_constant and _is_single(t) for t in values)
    flat = ids is not None and all(size == 1 for size in ids.shape[int(len(ids.shape) == IMAGE_RANK) : -1])
    return require(
        ids is not None and ids.dtype == "int32" and flat and scalars and node.option("axis", -1) == -1,
        "indices that are not int32, or of several dimensions, or on and off values that are not constant float32",
        "use a row of int32 indices, the last axis and float32 values",
    )


def float_choice(node: Node) -> Refusal | None:
    """SELECT by truth values or floats between floats of the output's shape, or single values; no constant matrix."""
    condition, *choices = node.inputs
    shape = node.outputs[0].shape if node.outputs else ()
    fits = condition.dtype in FLOAT | {"bool"} and all(
        t.dtype in FLOAT and (t.shape == shape or _is_single(t)) and not (t.is_constant and len(t.shape) == MATRIX_RANK)
        for t in choices
    )
    return require(
        fits,
        "chooses between integers, broadcasts, or holds a constant matrix",
        "select between floats of the output's shape",
    )


def _is_single(tensor: Tensor) -> bool:
    """One value in no dimension, or in one."""
    return tensor.elements == 1 and len(tensor.shape) <= 1


def not_both_alignments(node: Node) -> Refusal | None:
    """RESIZE_BILINEAR aligns corners or centres, not both."""
    both = node.option("alignCorners", default=False) and node.option("halfPixelCenters", default=False)
    return require(not both, "aligns corners and half-pixel centres at once")


def sliceable_rank(node: Node) -> Refusal | None:
    """Slices of 3-D and 4-D tensors."""
    rank = len(data.shape) if (data := node.input(0)) is not None else 0
    return require(rank in SLICE_RANKS, f"slices a {rank}-D tensor", "reshape to 3-D or 4-D before slicing")


def no_axis_masks(node: Node) -> Refusal | None:
    """STRIDED_SLICE without ellipsis, new axis and shrunk axis."""
    masks = [name for name in ("ellipsisMask", "newAxisMask", "shrinkAxisMask") if node.option(name, 0)]
    return require(not masks, f"uses {', '.join(masks)}", "slice with x[a:b] and reshape afterwards")


def beta_of_one(node: Node) -> Refusal | None:
    """SOFTMAX with beta 1."""
    beta = node.option("beta", 1.0)
    return require(beta == 1, f"beta {beta}", "multiply by beta before the softmax")


_EVERY: Final[tuple[Rule, ...]] = (computed_types, one_to_four_dimensions)

# fmt: off
_UNARY: Final = (
    "ABS", "CEIL", "COS", "ELU", "EXP", "FLOOR", "GELU", "HARD_SWISH", "LOG", "LOGISTIC", "NEG", "QUANTIZE", "RESHAPE",
    "RESIZE_NEAREST_NEIGHBOR", "RSQRT", "SIGN", "SIN", "SQRT", "SQUARE", "TANH", "TILE", "TRANSPOSE",
)
_BINARY: Final = (
    "ATAN2", "DIV", "EQUAL", "FLOOR_DIV", "FLOOR_MOD", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "LOGICAL_AND",
    "MAXIMUM", "MINIMUM", "NOT_EQUAL", "POW", "SQUARED_DIFFERENCE", "SUB",
)
_ANY: Final = (
    "CONCATENATION", "LEAKY_RELU", "PACK", "PRELU", "RELU", "RELU6", "RELU_N1_TO_1", "SPLIT", "SPLIT_V",
)
# fmt: on

_RULES: Final[Rules] = {
    **dict.fromkeys(_ANY, ()),
    **dict.fromkeys(_UNARY, (takes(1),)),
    **dict.fromkeys(_BINARY, (one_or_two_operands, supported_activation)),
    **dict.fromkeys(("MEAN", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "SUM"), (takes(1), constant_axes)),
    **dict.fromkeys(("AVERAGE_POOL_2D", "MAX_POOL_2D"), (takes(1), supported_activation)),
    **dict.fromkeys(("DEPTH_TO_SPACE", "SPACE_TO_DEPTH"), (takes(1), block_above_one)),
    **dict.fromkeys(("PAD", "PADV2"), (takes(1), paddings_of_images)),
    **dict.fromkeys(("SELECT", "SELECT_V2"), (inputs(3), float_choice)),
    "ADD": (inputs(2), broadcastable),
    "ADD_N": (inputs(2),),
    "BATCH_MATMUL": (inputs(2),),
    "CAST": (takes(1), castable),
    "CONV_2D": (convolution_inputs, supported_activation),
    "CUMSUM": (inputs(2), float_with_constant_axis),
    "DENSIFY": (takes(0),),
    "DEPTHWISE_CONV_2D": (convolution_inputs, supported_activation, multiplier_of_one),
    "DEQUANTIZE": (not_from_int16,),
    "DYNAMIC_UPDATE_SLICE": (inputs(3), updates_one_sample),
    "EMBEDDING_LOOKUP": (inputs(2), embedding_table),
    "FULLY_CONNECTED": (convolution_inputs, plain_fully_connected),
    "GATHER": (one_or_two_operands, gathers_by_list),
    "LSTM": (known_lstm,),
    "MIRROR_PAD": (takes(1), paddings_of_images, reflecting),
    "MUL": (inputs(2), broadcastable, one_operand_covers, supported_activation),
    "ONE_HOT": (inputs(4), float_one_hot),
    "RESIZE_BILINEAR": (takes(1), not_both_alignments),
    "SLICE": (inputs(3), sliceable_rank),
    "SOFTMAX": (beta_of_one,),
    "STRIDED_SLICE": (inputs(4), no_axis_masks, sliceable_rank),
    "TRANSPOSE_CONV": (convolution_inputs,),
    "custom:Convolution2DTransposeBias": (),
    "custom:MaxPoolingWithArgmax2D": (takes(1, outputs=2), supported_activation),
    "custom:MaxUnpooling2D": (takes(2),),
    "custom:Resampler": (takes(2),),
}

TABLE: Final = Table(rules=_RULES, every=_EVERY, unknown=unknown_operator, source=SOURCE)
