"""What TFLite Micro runs: the operators it registers, and the types their kernels take."""

from __future__ import annotations

from typing import Final

from edgebuild.targets.microcontroller.operators import BUILTIN_METHOD, CUSTOM_METHOD, SOURCE
from edgebuild.targets.rules import Node, Refusal, Rule, Rules, Table, require

# What TFLM 0.dev20261023182759 answered when it was given such models.
WEIGHTED: Final = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
SIGNED_ONLY: Final = ("ADD", "AVERAGE_POOL_2D", "LOGISTIC", "MAX_POOL_2D", "MEAN", "MUL", "SOFTMAX", "SUB", "TANH")


def unknown_operator(node: Node) -> Refusal:
    """Answer for operators that TFLM does not register; a microcontroller has nothing to fall back on."""
    kind = f"custom operator {node.kind}" if node.operator.is_custom else node.kind
    return Refusal(reason=f"TFLite Micro has no {kind}", suggestion="replace it by operators that TFLite Micro has")


def no_half_floats(node: Node) -> Refusal | None:
    """No kernel reads float16, not even DEQUANTIZE."""
    half = any(t.dtype == "float16" for t in (*node.inputs, *node.outputs))
    return require(not half, "float16 weights, which no kernel reads", "use int8 precision")


def no_hybrids(node: Node) -> Refusal | None:
    """Activations and weights are both floating point, or both integers."""
    data, weights = node.input(0), node.input(1)
    mixed = data is not None and weights is not None and data.dtype == "float32" and weights.dtype != "float32"
    return require(not mixed, "hybrid: float activations with integer weights", "use int8 instead of dynamic precision")


def signed_types(node: Node) -> Refusal | None:
    """Quantized kernels take int8 and int16; only QUANTIZE and movers of data take uint8."""
    unsigned = any(t.dtype == "uint8" for t in node.activations)
    return require(not unsigned, "uint8 arithmetic; the kernels take int8 and int16", "quantize to int8")


_EVERY: Final[tuple[Rule, ...]] = (no_half_floats,)

_RULES: Final[Rules] = {
    **dict.fromkeys(BUILTIN_METHOD, ()),
    **dict.fromkeys((f"custom:{name}" for name in CUSTOM_METHOD), ()),
    **dict.fromkeys(SIGNED_ONLY, (signed_types,)),
    **dict.fromkeys(WEIGHTED, (no_hybrids, signed_types)),
}

TABLE: Final = Table(rules=_RULES, every=_EVERY, unknown=unknown_operator, source=SOURCE)
