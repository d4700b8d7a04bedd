"""The flatbuffer that Vela makes: calls of the NPU, what they hold, and the operators of the model that are left.

A call is a custom operator, `ethos-u`, over its commands, its constants and the arena. The arena is a tensor that
nothing makes, so that our reader of models refuses such a file, and its tree is read instead.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Final

from edgebuild.export import object_tree

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

_CALL: Final = b"ethos-u"
# Where a call has what. ref: tensorflow/lite/micro/kernels/ethos_u in TFLM
_COMMANDS, _CONSTANTS, _ARENA = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What Vela's file holds. Calls share one arena and one tensor of constants; each has commands of its own.

    `file_bytes` lie in flash: beside constants and commands it holds tables, and the constants of what is left to the
    CPU.
    """

    file_bytes: int
    calls: int
    commands_bytes: int
    constants_bytes: int
    arena_bytes: int


def read(made: bytes, model: bytes) -> tuple[Output, tuple[int, ...]]:
    """What was made of a model, and the model's operators that are in it still, by index.

    Raises:
        ModelError: one of the two is damaged.
    """
    tree = object_tree.unpack(made)
    graph = tree.subgraphs[0]
    calls = [operator for operator in graph.operators if _is_call(tree, operator)]
    waiting = Counter(_identity(tree, operator) for operator in graph.operators if not _is_call(tree, operator))
    output = Output(
        file_bytes=len(made),
        calls=len(calls),
        commands_bytes=sum(_bytes(graph, call, _COMMANDS) for call in calls),
        constants_bytes=max((_bytes(graph, call, _CONSTANTS) for call in calls), default=0),
        arena_bytes=max((_bytes(graph, call, _ARENA) for call in calls), default=0),
    )
    return output, tuple(_left(object_tree.unpack(model), waiting))


def _left(model: Any, waiting: Counter[Hashable]) -> Iterator[int]:
    """Operators in the order of the model, so that those without names of their own are told apart by their place."""
    for index, operator in enumerate(model.subgraphs[0].operators):
        identity = _identity(model, operator)
        if waiting[identity]:
            waiting[identity] -= 1
            yield index


def _identity(tree: Any, operator: Any) -> Hashable:
    """What an operator keeps on its way through Vela: its kind, and the names of what it gives."""
    code = _code(tree, operator)
    given = object_tree.tensor_lists(operator).get("outputs", ())
    names = tuple(tree.subgraphs[0].tensors[i].name for i in given if i >= 0)
    return max(code.builtinCode, code.deprecatedBuiltinCode), code.customCode, names


def _is_call(tree: Any, operator: Any) -> bool:
    """A model may have an operator of that name of its own."""
    taken = object_tree.tensor_lists(operator).get("inputs", ())
    return _code(tree, operator).customCode == _CALL and len(taken) > _ARENA


def _code(tree: Any, operator: Any) -> Any:
    return tree.operatorCodes[operator.opcodeIndex]


def _bytes(graph: Any, call: Any, place: int) -> int:
    shape = graph.tensors[call.inputs[place]].shape
    return 0 if shape is None else prod(int(size) for size in shape)
