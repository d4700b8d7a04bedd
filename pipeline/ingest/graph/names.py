"""Names of layers, made of the names of a graph's nodes: safe for Keras, each used once, always the same."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from typing import Final

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.-]+")
# What Keras calls the one operator that matters in a layer: `dense/MatMul` is `dense`.
_REDUNDANT: Final = frozenset({"Conv2D", "MatMul", "depthwise", "FusedBatchNormV3", "BiasAdd", "conv2d_transpose"})


def safe(name: str) -> str:
    """The name with what Keras takes; it may be empty."""
    return _UNSAFE.sub("_", name).lstrip("_.-")


def unique(names: Sequence[str]) -> list[str]:
    """The names, with a number behind each that came before."""
    found: dict[str, None] = {}
    for name in names:
        found[numbered(name, found)] = None
    return list(found)


def numbered(name: str, taken: Container[str]) -> str:
    """The name, with the first number that is free where it is taken."""
    found, number = name, 1
    while found in taken:
        found, number = f"{name}_{number}", number + 1
    return found


def of_node(name: str, scope: str) -> str:
    """A layer's name from that of a node, which may begin with a scope that says nothing."""
    parts = name.removeprefix(scope).split("/")
    if len(parts) > 1 and parts[-1] in _REDUNDANT:
        parts.pop()
    return safe("_".join(parts)) or "layer"


def common_scope(names: Sequence[str]) -> str:
    """What all names begin with, up to a slash: the model's own name, and calls that were inlined."""
    if len(names) < 2:  # A lone name would be all scope.
        return ""
    first, last = min(names), max(names)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[: first.rfind("/", 0, same) + 1]
