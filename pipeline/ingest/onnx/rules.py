"""The rules that replay ONNX's operators, by the operator's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from edgebuild.pipeline.ingest.onnx.rules_arithmetic import RULES as ARITHMETIC
from edgebuild.pipeline.ingest.onnx.rules_recurrent import RULES as RECURRENT
from edgebuild.pipeline.ingest.onnx.rules_sampling import RULES as SAMPLING
from edgebuild.pipeline.ingest.onnx.rules_shape import RULES as SHAPE
from edgebuild.pipeline.ingest.onnx.rules_windows import RULES as WINDOWS

RULES: Final[Mapping[str, Callable[..., Any]]] = {**ARITHMETIC, **SHAPE, **WINDOWS, **SAMPLING, **RECURRENT}
