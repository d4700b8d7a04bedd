"""What the Edge TPU compiler can't read: one such operator, and it takes nothing of the model.

Before it maps anything it loads the model into the TFLite it was built with. That one is of mid-2021: compiler 16.0
was seen to refuse CONV_2D 6, EXP 2, QUANTIZE 3, TRANSPOSE_CONV 4 and operator code 151, which came with TensorFlow 2.7
to 2.13. So what TensorFlow 2.6 had is taken to be known.
ref: tensorflow/lite/tools/versioning/runtime_version.cc; github.com/google-coral/edgetpu/issues: 631, 845, 862, 879
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgebuild.targets.rules import Node, Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgebuild.export.flatbuffer import Flatbuffer

VERSIONS: Final[Mapping[str, int]] = {
    "ABS": 4,
    "ADD": 4,
    "ADD_N": 1,
    "ARG_MAX": 2,
    "ARG_MIN": 2,
    "AVERAGE_POOL_2D": 3,
    "BATCH_MATMUL": 4,
    "BATCH_TO_SPACE_ND": 3,
    "BROADCAST_TO": 3,
    "CAST": 1,
    "CONCATENATION": 3,
    "CONV_2D": 5,
    "CONV_3D": 1,
    "CUMSUM": 1,
    "DEPTHWISE_CONV_2D": 6,
    "DEPTH_TO_SPACE": 2,
    "DEQUANTIZE": 4,
    "DIV": 2,
    "EQUAL": 3,
    "EXP": 1,
    "EXPAND_DIMS": 1,
    "FILL": 3,
    "FLOOR": 1,
    "FLOOR_DIV": 2,
    "FLOOR_MOD": 1,
    "FULLY_CONNECTED": 9,
    "GATHER": 5,
    "GATHER_ND": 3,
    "GREATER": 2,
    "GREATER_EQUAL": 2,
    "HARD_SWISH": 1,
    "L2_NORMALIZATION": 2,
    "LEAKY_RELU": 2,
    "LESS": 2,
    "LESS_EQUAL": 2,
    "LOGISTIC": 3,
    "LOG_SOFTMAX": 2,
    "LSTM": 4,
    "MAXIMUM": 4,
    "MAX_POOL_2D": 3,
    "MEAN": 3,
    "MINIMUM": 4,
    "MIRROR_PAD": 2,
    "MUL": 5,
    "PACK": 3,
    "PAD": 4,
    "PADV2": 4,
    "PRELU": 1,
    "QUANTIZE": 2,
    "REDUCE_MAX": 3,
    "REDUCE_MIN": 3,
    "RELU": 3,
    "RELU6": 3,
    "RELU_N1_TO_1": 1,
    "RESHAPE": 1,
    "RESIZE_BILINEAR": 4,
    "RESIZE_NEAREST_NEIGHBOR": 4,
    "REVERSE_V2": 3,
    "RSQRT": 2,
    "SELECT": 2,
    "SELECT_V2": 1,
    "SHAPE": 1,
    "SLICE": 5,
    "SOFTMAX": 3,
    "SPACE_TO_BATCH_ND": 3,
    "SPACE_TO_DEPTH": 2,
    "SPLIT": 4,
    "SPLIT_V": 2,
    "SQUARED_DIFFERENCE": 2,
    "SQUEEZE": 2,
    "STRIDED_SLICE": 6,
    "SUB": 5,
    "SUM": 2,
    "TANH": 3,
    "TILE": 2,
    "TOPK_V2": 2,
    "TRANSPOSE": 5,
    "TRANSPOSE_CONV": 3,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": 3,
    "UNPACK": 4,
}

# Operators younger than TensorFlow 2.6; those of StableHLO are all younger.
YOUNGER: Final = frozenset(
    {
        "ATAN2",
        "BITCAST",
        "BITWISE_XOR",
        "BUCKETIZE",
        "DILATE",
        "DYNAMIC_UPDATE_SLICE",
        "GELU",
        "MULTINOMIAL",
        "RANDOM_STANDARD_NORMAL",
        "RANDOM_UNIFORM",
        "REDUCE_WINDOW",
        "RELU_0_TO_1",
        "RIGHT_SHIFT",
        "SIGN",
        "UNSORTED_SEGMENT_MAX",
        "UNSORTED_SEGMENT_MIN",
        "UNSORTED_SEGMENT_PROD",
        "UNSORTED_SEGMENT_SUM",
    }
)

# Inputs that say how large the output is: where one is computed, so is the size, and the compiler refuses the graph.
# ref: Prepare in tensorflow/lite/kernels/{reshape,transpose_conv,resize_*,fill,pad,tile,broadcast_to,slice,…}.cc
_SIZES: Final[Mapping[str, tuple[int, ...]]] = {
    "BROADCAST_TO": (1,),
    "FILL": (0,),
    "MIRROR_PAD": (1,),
    "PAD": (1,),
    "PADV2": (1,),
    "RESHAPE": (1,),
    "RESIZE_BILINEAR": (1,),
    "RESIZE_NEAREST_NEIGHBOR": (1,),
    "SLICE": (1, 2),
    "STRIDED_SLICE": (1, 2, 3),
    "TILE": (1,),
    "TRANSPOSE_CONV": (0,),
}


def unreadable(model: Flatbuffer) -> dict[int, Refusal]:
    """Operators that keep the compiler from taking anything, by index; none, where it can read the model."""
    nodes = (Node(operator, model.main.tensors) for operator in model.main.operators)
    return {node.operator.index: why for node in nodes if (why := _refusal(node)) is not None}


def _refusal(node: Node) -> Refusal | None:
    kind, version = node.kind, node.operator.version
    if node.operator.is_custom:
        return _tensorflow_only(kind) if kind.startswith("Flex") else None
    if kind in YOUNGER or kind.startswith("STABLEHLO_"):
        return Refusal(
            reason=f"{kind} is younger than the compiler, which does not read a model that holds it",
            suggestion="replace it by older operators, or leave it out and run it on the CPU after the model",
        )
    if version > VERSIONS.get(kind, version):
        return Refusal(
            reason=f"{kind} is of version {version}; the compiler knows {VERSIONS[kind]}, and does not read the model",
            suggestion=f"replace the layer: what it does with {kind} is younger than the compiler",
        )
    if any((size := node.input(i)) is not None and not size.is_constant for i in _SIZES.get(kind, ())):
        return Refusal(
            reason="the size of what it gives is computed at run time; the compiler refuses a model that does so",
            suggestion="fix every size of the model's inputs, the batch to 1, before converting",
        )
    return None


def _tensorflow_only(kind: str) -> Refusal:
    return Refusal(
        reason=f"{kind} is TensorFlow's own operator, which the compiler's TFLite lacks: it does not read the model",
        suggestion="replace it by TFLite operators",
    )
