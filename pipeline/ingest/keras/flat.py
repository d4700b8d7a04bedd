"""A program of Keras calls as one flat tf_keras model: layer by layer where tf_keras has an equal, else by operators.

A layer or operation without an equal is traced to a graph, and `graph` makes layers of that: its weights stay live
where they belong to a convolution or the like.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest.graph.names import numbered
from edgebuild.pipeline.ingest.keras import trace as keras_trace
from edgebuild.pipeline.ingest.keras import unroll as keras_unroll
from edgebuild.pipeline.ingest.keras.program import Call, Fold, Program, Unfold, Value, replaced, values_in

_SHOWN: Final = 5
Masks: TypeAlias = Literal["carried", "given"]  # By tf_keras along its own tensors, or as the source's arguments say.


class NoEqualError(Exception):
    """tf_keras has no layer that does what this one does; says why. Never leaves this folder's Keras files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """How one Keras is said in tf_keras.

    `equal` makes the equal of a layer under a name, yet unbuilt, or raises `NoEqualError`; `copy_weights` fills it once
    it was called. `autograph`: whether Python's `if` and `for` in a layer's call may depend on tensors.
    """

    is_layer: Callable[[Any], bool]
    equal: Callable[[Any, str], Any]
    copy_weights: Callable[[Any, Any], None]
    autograph: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Flat:
    """The model, which of its tensors stands for which value of the program, and what came in as operators.

    `carried`: whether a mask was left to tf_keras.
    """

    model: Any
    tensors: Mapping[Value, Any]
    notes: tuple[str, ...]
    carried: bool


def build(program: Program, language: Language, name: str, masks: Masks = "carried") -> Flat:
    """The program as a tf_keras functional model with flat lists of inputs and outputs, in the program's order.

    Where a layer is given a mask, tf_keras mostly carries the same one along itself. With `given` masks, all that are
    given are given.

    Raises:
        ModelError: a layer has no equal and can't be traced either; names it.
    """
    import tf_keras

    builder = _Builder(language, program, masks)
    for call in program.calls:
        builder.add(call)
    outputs = [builder.tensor(value) for value in program.outputs.values()]
    inputs = [builder.tensors[value] for value, _ in program.inputs.values()]
    model = tf_keras.Model(inputs, outputs, name=name)
    return Flat(model=model, tensors=builder.tensors, notes=tuple(builder.notes()), carried=builder.carried)


@dataclass(slots=True)
class _Builder:
    """Builds one flat model, call by call.

    `_pending` are operations outside layers that nothing has needed yet, with their order; `_equals` tf_keras layers by
    the ids of the source's; `_reasons` why a layer or operation was traced; `_loops` notes on loops that stayed.
    """

    language: Language
    program: Program
    masks: Masks
    carried: bool = False
    tensors: dict[Value, Any] = field(default_factory=dict)
    _pending: dict[Value, tuple[int, Call]] = field(default_factory=dict)
    _equals: dict[int, Any] = field(default_factory=dict)
    _traced: keras_trace.Tracer = field(init=False)
    _reasons: dict[int, tuple[Call, str]] = field(default_factory=dict)
    _names: set[str] = field(default_factory=set)
    _loops: list[str] = field(default_factory=list)
    _name_of: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import tf_keras

        self._traced = keras_trace.Tracer(autograph=self.language.autograph)
        for name, (value, tensor) in self.program.inputs.items():
            shape = tuple(tensor.shape)
            self.tensors[value] = tf_keras.Input(batch_shape=shape, dtype=tensor.dtype, name=self._unique(name))

    def add(self, call: Call) -> None:
        """Call the layer's equal. Operations outside layers wait: those that only compute masks nobody may need."""
        if not self.language.is_layer(call.layer):
            self._pending |= dict.fromkeys(call.results, (len(self._pending), call))
            return
        if id(call.layer) not in self._reasons:
            try:
                self._call_equal(call)
            except NoEqualError as e:
                self._reasons[id(call.layer)] = call, str(e)
            else:
                return
        self._trace(call)

    def tensor(self, value: Value) -> Any:
        """The tensor of a value, for which operations that wait are done now."""
        waiting: dict[int, Call] = {}
        wanted = [value]
        while wanted:
            if (each := wanted.pop()) not in self.tensors:
                order, call = self._pending[each]
                if order not in waiting:
                    waiting[order] = call
                    wanted += values_in((call.args, call.kwargs))
        for _, call in sorted(waiting.items(), key=lambda pair: pair[0]):
            self._reasons[id(call.layer)] = call, "it is an operation outside any layer"
            self._trace(call)
        return self.tensors[value]

    def notes(self) -> Iterator[str]:
        """What the user should know of layers and operations that came in as operators."""
        for title in self._loops:
            yield f"{title}: beyond {keras_unroll.MOST_STEPS}, it can't be quantized to int8 and runs on the cpu alone"
        traced = [call for call, _ in self._reasons.values() if not isinstance(call.layer, Fold | Unfold)]
        if operations := [call.name for call in traced if not self.language.is_layer(call.layer)]:
            yield f"operations outside layers, {len(operations)} in number, came in as such: {_listed(operations)}"
        for call in traced:
            if not self.language.is_layer(call.layer):
                continue
            title = f"layer '{call.name}' ({type(call.layer).__name__})"
            yield f"{title} was traced into plain layers and operators: {self._reasons[id(call.layer)][1]}"
            if held := self._traced.held_by_operators(call.layer):
                yield f"{title} holds {held:,} weights that can't be pruned, clustered or quantization-aware trained"

    def _call_equal(self, call: Call) -> None:
        first = id(call.layer) not in self._equals
        equal = self._equal(call) if first else self._equals[id(call.layer)]
        args, kwargs = self._arguments(call, equal)
        try:
            results = equal(*args, **kwargs)
        except (TypeError, ValueError) as e:
            raise NoEqualError(f"it can't be called the same way: {e}".splitlines()[0]) from e
        if first:
            self.language.copy_weights(call.layer, equal)
            self._equals[id(call.layer)] = equal
        self._keep(call, _flat(results))

    def _equal(self, call: Call) -> Any:
        equal = self.language.equal(call.layer, self._named(call))
        first = next((self._known(value) for value in values_in(call.args)), None)
        if first is None or not keras_unroll.loops(equal):
            return equal
        steps = keras_unroll.steps_of(equal, first)
        if steps is not None and steps <= keras_unroll.MOST_STEPS:
            return keras_unroll.unrolled(equal)
        self._loops.append(f"layer '{call.name}' ({type(call.layer).__name__}) keeps its loop over {steps} steps")
        return equal

    def _arguments(self, call: Call, equal: Any) -> tuple[Any, dict[str, Any]]:
        """What the equal is called with, without the masks that tf_keras carries along itself."""
        taken = keras_trace.parameters_of(equal)
        given = {
            key: value
            for key, value in call.kwargs.items()
            if key != "training" and (value is not None or keras_trace.takes(taken, key))
        }
        kwargs = {key: value for key, value in given.items() if not self._is_carried(key, value, call, taken)}
        args, rest = replaced((call.args, kwargs), self._known)
        return args, rest

    def _is_carried(self, key: str, mask: Any, call: Call, taken: Mapping[str, Any]) -> bool:
        if key != "mask" and not key.endswith("_mask"):
            return False
        values = list(values_in(mask))
        if not values or any(value in self.tensors for value in values):
            return False
        if self.masks == "carried" and any(_has_mask(self._known(value)) for value in values_in(call.args)):
            self.carried = True
            return True
        if not keras_trace.takes(taken, key):
            raise NoEqualError(f"its {key} can't be given in tf_keras")
        return False

    def _known(self, leaf: Any) -> Any:
        return self.tensor(leaf) if isinstance(leaf, Value) else leaf

    def _trace(self, call: Call) -> None:
        given = {value: self.tensor(value) for value in values_in((call.args, call.kwargs))}
        if isinstance(call.layer, Fold | Unfold):
            self._keep(call, [_reshaped(call.layer, self._named(call), *given.values())])
            return
        self._keep(call, self._traced.inlined(call, given, self._named(call)))

    def _keep(self, call: Call, results: list[Any]) -> None:
        if len(results) != len(call.results):
            raise ModelError(
                f"layer '{call.name}' ({type(call.layer).__name__}) gives {len(results)} tensors in tf_keras",
                cause=f"its source gives {len(call.results)}",
                action="replace that layer",
            )
        self.tensors |= dict(zip(call.results, results, strict=True))

    def _named(self, call: Call) -> str:
        """A layer's one name, however often it is called."""
        if id(call.layer) not in self._name_of:
            self._name_of[id(call.layer)] = self._unique(call.name)
        return self._name_of[id(call.layer)]

    def _unique(self, name: str) -> str:
        found = numbered(name, self._names)
        self._names.add(found)
        return found


def _reshaped(operation: Fold | Unfold, name: str, x: Any) -> Any:
    """As a layer of its own, not by a graph: there a batch is one of samples, and here it may be one of steps."""
    import tensorflow as tf
    from tf_keras.src.layers.core.tf_op_layer import TFOpLambda

    return TFOpLambda(tf.reshape, name=name)(x, operation.shape(x))


def _has_mask(tensor: Any) -> bool:
    return getattr(tensor, "_keras_mask", None) is not None


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def _flat(results: Any) -> list[Any]:
    import tensorflow as tf

    return list(tf.nest.flatten(results))
