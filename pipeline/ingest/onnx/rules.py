"""The rules that replay ONNX's operators, by the operator's name.

A rule is called with the node and a value for each of its inputs: a tensor, an array where constants decide it, a list
for a sequence, None where it is absent. It gives one result, or a tuple of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from edgebuild.pipeline.ingest.onnx.rules_activations import RULES as ACTIVATIONS
from edgebuild.pipeline.ingest.onnx.rules_arithmetic import RULES as ARITHMETIC
from edgebuild.pipeline.ingest.onnx.rules_recurrent import RULES as RECURRENT
from edgebuild.pipeline.ingest.onnx.rules_sampling import RULES as SAMPLING
from edgebuild.pipeline.ingest.onnx.rules_sequences import RULES as SEQUENCES
from edgebuild.pipeline.ingest.onnx.rules_shape import RULES as SHAPE
from edgebuild.pipeline.ingest.onnx.rules_windows import RULES as WINDOWS

RULES: Final[Mapping[str, Callable[..., Any]]] = {
    **ARITHMETIC,
    **ACTIVATIONS,
    **SHAPE,
    **SEQUENCES,
    **WINDOWS,
    **SAMPLING,
    **RECURRENT,
}
