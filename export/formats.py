"""The number formats a flatbuffer can be made in."""

from __future__ import annotations

from typing import Literal, TypeAlias

Precision: TypeAlias = Literal["float32", "float16", "dynamic", "int8", "int16x8"]
IoType: TypeAlias = Literal["float32", "int8", "uint8"]
