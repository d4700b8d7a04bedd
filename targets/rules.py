"""The vocabulary of placement rules: a node, a refusal, and tables of rules by operator kind.

A target states what it takes as data, in a `Table`: a kind has a tuple of constraints, a kind that is
missing from the table is not taken, and `EVERY` holds for all of them. A rule is a small pure function from a `Node`
to a `Refusal`, or to None where the operator is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from edgebuild.targets.placement import Unmapped

if TYPE_CHECKING:
    from edgebuild.export.flatbuffer import Flatbuffer, Operator, Option, Tensor

_MOST_INTEGERS: Final = 1024  # Axes and paddings are a few. Many operators may share one long list, and each is asked.


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a target does not take an operator, and what the user can change; `collateral` where others are the cause."""

    reason: str
    suggestion: str = ""
    collateral: bool = False


@dataclass(frozen=True, slots=True)
class Node:
    """An operator with its tensors; `folded` are tensors that are constant once constants are dequantized.

    `zeros` is what is known of constants by tensor: nodes of a graph share it, so that a constant is read once.
    """

    operator: Operator
    tensors: tuple[Tensor, ...]
    folded: frozenset[int] = frozenset()
    zeros: dict[int, bool] = field(default_factory=dict, compare=False, repr=False)

    @property
    def kind(self) -> str:
        """The operator's kind."""
        return self.operator.kind

    @property
    def key(self) -> str:
        """Where a table holds its rules: a custom operator can't pass for a builtin by taking its name."""
        return f"custom:{self.kind}" if self.operator.is_custom else self.kind

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The inputs that are present."""
        return tuple(self.tensors[i] for i in self.operator.inputs if i >= 0)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The outputs."""
        return tuple(self.tensors[i] for i in self.operator.outputs if i >= 0)

    @property
    def activations(self) -> tuple[Tensor, ...]:
        """Inputs and outputs that are computed at run time."""
        return tuple(tensor for tensor in (*self.inputs, *self.outputs) if not self.is_constant(tensor))

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether its values are known before the model runs."""
        return tensor.is_constant or tensor.index in self.folded

    def input(self, position: int) -> Tensor | None:
        """The input at a position of the operator's signature, or None where it is absent."""
        present = position < len(self.operator.inputs) and self.operator.inputs[position] >= 0
        return self.tensors[self.operator.inputs[position]] if present else None

    def integers(self, position: int) -> tuple[int, ...] | None:
        """The constant integers at an input position (axes, paddings), flat; None where they are no such constant."""
        tensor = self.input(position)
        if tensor is None or not tensor.is_constant or "int" not in tensor.dtype or tensor.elements > _MOST_INTEGERS:
            return None
        return tuple(int(value) for value in tensor.values().reshape(-1))

    def is_real_zero(self, tensor: Tensor) -> bool:
        """Whether every value of a constant stands for 0.0, that is, equals the zero point."""
        if tensor.index not in self.zeros:
            zero_point = tensor.quantization.zero_point[0] if tensor.quantization else 0
            self.zeros[tensor.index] = bool((tensor.values() == zero_point).all())
        return self.zeros[tensor.index]

    def option(self, name: str, default: Option) -> Option:
        """One of the operator's attributes, in the schema's name."""
        return self.operator.options.get(name, default)


Rule: TypeAlias = Callable[[Node], Refusal | None]
Rules: TypeAlias = Mapping[str, tuple[Rule, ...]]


def require(condition: bool, reason: str, suggestion: str = "") -> Refusal | None:  # noqa: FBT001 - reads as a sentence
    """None where the condition holds, else the refusal."""
    return None if condition else Refusal(reason=reason, suggestion=suggestion)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """All that a target states: rules by kind, rules for every kind, the answer for kinds outside, and its source."""

    rules: Rules
    every: tuple[Rule, ...]
    unknown: Callable[[Node], Refusal]
    source: str

    def refused(self, model: Flatbuffer, folded: frozenset[int] = frozenset()) -> dict[int, Unmapped]:
        """Operators of the main subgraph that a rule refuses, by index."""
        zeros: dict[int, bool] = {}
        found = ((op, self.refusal(Node(op, model.main.tensors, folded, zeros))) for op in model.main.operators)
        return {op.index: unmapped(op, model, why) for op, why in found if why is not None}

    def refusal(self, node: Node) -> Refusal | None:
        """What the first rule that refuses an operator says."""
        if node.key not in self.rules:
            return self.unknown(node)
        return next((why for rule in (*self.every, *self.rules[node.key]) if (why := rule(node)) is not None), None)


def unmapped(operator: Operator, model: Flatbuffer, why: Refusal) -> Unmapped:
    """The refusal in the words of a placement."""
    return Unmapped(
        operator=operator.index,
        kind=operator.kind,
        tensor=next((model.main.tensors[i].name for i in operator.outputs if i >= 0), ""),
        reason=why.reason,
        suggestion=why.suggestion,
        collateral=why.collateral,
    )
