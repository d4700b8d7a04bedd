"""C++ literals, comments and types for what comes out of a model: no name can break out of its place."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from edgebuild.targets.errors import PlacementError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgebuild.export.flatbuffer import Tensor

_ROW: Final = 16

_TYPES: Final = {
    "bool": "bool",
    "float32": "float",
    "float64": "double",
    **{f"{sign}int{bits}": f"std::{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


def element_type(tensor: Tensor) -> str:
    """The C++ type of a tensor's elements.

    Raises:
        PlacementError: there is none.
    """
    try:
        return _TYPES[tensor.dtype]
    except KeyError as e:
        raise PlacementError(
            f"{tensor.name} is {tensor.dtype}, which firmware can't hold",
            action="give the model inputs and outputs of int8, int16 or float32",
        ) from e


def array(symbol: str, kind: str, values: Iterable[str], size: int) -> str:
    """The definition of a constant array."""
    return f"inline constexpr std::array<{kind}, {size}> {symbol} = {{{{{wrapped(values)}}}}};"


def wrapped(values: Iterable[str]) -> str:
    """Literals in rows."""
    found = list(values)
    return ",\n        ".join(", ".join(found[i : i + _ROW]) for i in range(0, len(found), _ROW))


def number(value: float, kind: str) -> str:
    """A literal that reads back as the same value."""
    if kind == "bool":
        return "true" if value else "false"
    if kind not in ("float", "double"):
        # The smallest int64 has no literal of its own: its positive part overflows.
        return "(-9223372036854775807 - 1)" if value == -(2**63) else f"{value}{'u' if value >= 2**63 else ''}"
    if math.isnan(value):
        return f"std::numeric_limits<{kind}>::quiet_NaN()"
    if math.isinf(value):
        return f"{'-' if value < 0 else ''}std::numeric_limits<{kind}>::infinity()"
    return f"{value:.8e}f" if kind == "float" else f"{value:.16e}"


def string(text: str) -> str:
    """A string literal; what is not plain ASCII goes as octal bytes, which end after three digits whatever follows."""
    plain = {ord("\\"): "\\\\", ord('"'): '\\"', ord("?"): "\\?"}
    escaped = (plain.get(byte) or (chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}") for byte in text.encode())
    return f'"{"".join(escaped)}"'


def comment(text: str) -> str:
    """One comment line: no line break and no trailing backslash can end or extend it."""
    return f"// {' '.join(text.split()).rstrip(chr(92))}"
