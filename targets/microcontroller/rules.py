"""What TFLite Micro runs: the operators it registers, and the types their kernels take."""

from __future__ import annotations

from typing import Final

from edgebuild.targets.microcontroller.operators import BUILTIN_METHOD, CUSTOM_METHOD, SOURCE
from edgebuild.targets.rules import Node, Refusal, Rule, Rules, Table, require

WEIGHTED: Final = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")

# What TFLM 0.dev20261023182759 refused, of float32, int8, int16, uint8 and int32, when it was given each kind of
# operator in each type.
LACKING: Final[dict[str, frozenset[str]]] = {
    kind: frozenset(types.split())
    for types, kinds in {
        "int8 int16 uint8 int32": "CEIL COS EXP FLOOR FLOOR_DIV FLOOR_MOD L2_POOL_2D LOG NEG ROUND SIN SQRT SQUARE",
        "int16 uint8 int32": "ADD_N ARG_MAX ARG_MIN BATCH_TO_SPACE_ND CUMSUM DEPTH_TO_SPACE ELU EMBEDDING_LOOKUP "
        "GATHER GATHER_ND HARD_SWISH L2_NORMALIZATION LOG_SOFTMAX MIRROR_PAD PRELU REDUCE_MAX REDUCE_MIN "
        "RESIZE_BILINEAR SPACE_TO_BATCH_ND SPACE_TO_DEPTH SVDF",
        "int16 uint8": "DIV EQUAL FILL GREATER_EQUAL LESS LESS_EQUAL NOT_EQUAL ZEROS_LIKE",
        "uint8 int32": "ABS AVERAGE_POOL_2D BATCH_MATMUL CONV_2D DEPTHWISE_CONV_2D EXPAND_DIMS FULLY_CONNECTED "
        "LEAKY_RELU LOGISTIC MAX_POOL_2D MEAN RELU RELU6 RESIZE_NEAREST_NEIGHBOR RSQRT SELECT_V2 SOFTMAX SUM TANH "
        "TRANSPOSE TRANSPOSE_CONV",
        "uint8": "ADD CAST CONCATENATION DYNAMIC_UPDATE_SLICE GREATER MAXIMUM MINIMUM MUL PACK PAD PADV2 SLICE SPLIT "
        "SPLIT_V SQUARED_DIFFERENCE STRIDED_SLICE SUB UNPACK",
    }.items()
    for kind in kinds.split()
}
# Which input holds the data, where it is not the first.
_DATA: Final = {"EMBEDDING_LOOKUP": 1, "FILL": 1, "SELECT_V2": 1, "SPLIT": 1, "TRANSPOSE_CONV": 2}
# What does the same, or nearly, for operators that models often hold and TFLM lacks.
INSTEAD: Final = {
    "GELU": "RELU or HARD_SWISH",
    "LSTM": "UNIDIRECTIONAL_SEQUENCE_LSTM",
    "ONE_HOT": "EQUAL",
    "POW": "MUL",
    "RELU_0_TO_1": "MINIMUM and MAXIMUM",
    "RELU_N1_TO_1": "MINIMUM and MAXIMUM",
    "SELECT": "SELECT_V2",
    "TILE": "BROADCAST_TO or CONCATENATION",
    "TOPK_V2": "ARG_MAX",
    "WHERE": "SELECT_V2",
}


def unknown_operator(node: Node) -> Refusal:
    """Answer for operators that TFLM does not register; a microcontroller has nothing to fall back on."""
    kind = f"custom operator {node.kind}" if node.operator.is_custom else node.kind
    instead = None if node.operator.is_custom else INSTEAD.get(node.kind)
    return Refusal(
        reason=f"TFLite Micro has no {kind}",
        suggestion=f"replace it by {instead or 'operators that TFLite Micro has'}",
    )


def no_half_floats(node: Node) -> Refusal | None:
    """No kernel reads float16, not even DEQUANTIZE."""
    half = any(t.dtype == "float16" for t in (*node.inputs, *node.outputs))
    return require(not half, "float16 weights, which no kernel reads", "use int8 precision")


def is_hybrid(node: Node) -> bool:
    """Whether activations are floating point and weights integers."""
    if node.key not in WEIGHTED:
        return False
    data, weights = node.input(_DATA.get(node.kind, 0)), node.input(1)
    return data is not None and weights is not None and data.dtype == "float32" and weights.dtype != "float32"


def no_hybrids(node: Node) -> Refusal | None:
    """Activations and weights are both floating point, or both integers."""
    mixed = is_hybrid(node)
    return require(not mixed, "hybrid: float activations with integer weights", "use int8 instead of dynamic precision")


def kernel_types(node: Node) -> Refusal | None:
    """The kernel computes in the type of the operator's data."""
    data, lacking = node.input(_DATA.get(node.kind, 0)), LACKING[node.kind]
    if data is None or data.dtype not in lacking:
        return None
    taken = [dtype for dtype in ("int8", "int16", "float32") if dtype not in lacking]
    does = "quantize to int8" if "int8" in taken else "replace it, or leave it to the firmware"
    return Refusal(reason=f"{data.dtype} arithmetic; the kernel takes {', '.join(taken)} alone", suggestion=does)


def signed_from_floats(node: Node) -> Refusal | None:
    """QUANTIZE makes int8, int16 and int32 of floats, but uint8 of integers alone."""
    data, made = node.input(0), node.outputs[0] if node.outputs else None
    floats = data is not None and data.dtype == "float32" and made is not None and made.dtype == "uint8"
    return require(not floats, "float32 to uint8; the kernel makes int8 of floats", "quantize to int8")


_EVERY: Final[tuple[Rule, ...]] = (no_half_floats,)

_RULES: Final[Rules] = {
    **dict.fromkeys(BUILTIN_METHOD, ()),
    **dict.fromkeys((f"custom:{name}" for name in CUSTOM_METHOD), ()),
    **dict.fromkeys(LACKING, (kernel_types,)),
    **dict.fromkeys(WEIGHTED, (no_hybrids, kernel_types)),
    "QUANTIZE": (signed_from_floats,),
}

TABLE: Final = Table(rules=_RULES, every=_EVERY, unknown=unknown_operator, source=SOURCE)
