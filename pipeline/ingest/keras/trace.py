"""One call of a Keras layer or operation, at inference, as layers that `graph` makes of its operators."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest.keras.program import Call, Value, replaced, written_out

_COLOURS: Final = re.compile(r"\x1b\[\d+m")


@dataclass(slots=True)
class Tracer:
    """Traces calls; a layer that is called again with tensors of the same kinds gives the same layers, called again.

    `autograph`: whether Python's `if` and `for` in a layer's call may depend on tensors.
    """

    autograph: bool
    _models: dict[tuple[object, ...], Any] = field(default_factory=dict)

    def inlined(self, call: Call, given: Mapping[Value, Any], name: str) -> list[Any]:
        """What the call gives on tf_keras tensors, under layers whose names begin with `name`.

        Raises:
            ModelError: the call can't be traced, or does what no float model may; names the layer.
        """
        kinds = tuple((tuple(tensor.shape), tensor.dtype.name) for tensor in given.values())
        key = (id(call.layer), kinds, tuple(_static(call, list(given))))
        if key not in self._models:
            self._models[key] = _traced(call, given, name, autograph=self.autograph)
        return _called(self._models[key], list(given.values()))

    def held_by_operators(self, layer: Any) -> int:
        """How many of a traced layer's weights ended in operators rather than in layers of Keras's own."""
        from edgebuild.pipeline.ingest.graph.layers import Operator

        models = [model for key, model in self._models.items() if key[0] == id(layer)]
        parts = [part for model in models for part in model.layers if isinstance(part, Operator)]
        held = sum(int(part.count_params()) for part in parts)
        return min(held, sum(int(weight.shape.num_elements()) for weight in getattr(layer, "weights", ())))


def parameters_of(layer: Any) -> Mapping[str, inspect.Parameter]:
    """What a layer can be called with."""
    return inspect.signature(layer.call).parameters if hasattr(layer, "call") else {}


def takes(parameters: Mapping[str, inspect.Parameter], key: str) -> bool:
    """Whether a call with these parameters takes an argument of that name."""
    return key in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


def run(call: Call, given: Mapping[Value, Any]) -> list[Any]:
    """Do the call at inference, on the tensors of its own Keras."""
    import tensorflow as tf

    def known(leaf: Any) -> Any:
        return given[leaf] if isinstance(leaf, Value) else leaf

    args, kwargs = replaced((call.args, dict(call.kwargs)), known)
    if "training" in parameters_of(call.layer):
        kwargs["training"] = False
    return list(tf.nest.flatten(call.layer(*args, **kwargs)))


def _static(call: Call, given: list[Value]) -> Iterator[object]:
    """All that a call says besides its tensors, and which tensor it says where."""

    def word(leaf: Any) -> object:
        if isinstance(leaf, Value):
            return given.index(leaf)
        return repr(leaf) if isinstance(leaf, bool | int | float | str | None) else id(leaf)

    yield repr(replaced((call.args, dict(call.kwargs)), word))


def _traced(call: Call, given: Mapping[Value, Any], name: str, *, autograph: bool) -> Any:
    """A tf_keras model of one call, on inputs of its own."""
    import tf_keras

    from edgebuild.pipeline.ingest.graph import graph

    inputs = [tf_keras.Input(batch_shape=tuple(tensor.shape), dtype=tensor.dtype) for tensor in given.values()]
    with _tracing(call):
        frozen = _frozen(call, given, autograph=autograph)
        feeds = dict(zip([tensor.name for tensor in frozen.inputs], inputs, strict=True))
        fetches = [tensor.name for tensor in frozen.outputs]
        return tf_keras.Model(inputs, graph.call(frozen.graph.as_graph_def(), feeds, fetches, prefix=f"{name}/"))


@contextmanager
def _tracing(call: Call) -> Iterator[None]:
    """Say of which layer TensorFlow complains; the user's own code may raise anything."""
    try:
        yield
    except ModelError as e:
        raise _untraceable(call, f"{e.what}: {e.cause}") from e
    except Exception as e:
        raise _untraceable(call, f"{type(e).__name__}: {_said(e)}") from e


def _said(error: Exception) -> str:
    """The last line of an error before both Kerases list the arguments: the first ones only say where it was."""
    text = _COLOURS.sub("", re.split(r"(?:Call a|A)rguments received by", str(error))[0])
    return ([line.strip() for line in text.splitlines() if line.strip()] or [""])[-1]


def _untraceable(call: Call, cause: str) -> ModelError:
    return ModelError(
        f"layer '{call.name}' ({type(call.layer).__name__}) has no equal in tf_keras and can't be traced either",
        cause=cause,
        action="let its call use TensorFlow's or Keras's operations alone, or replace it",
    )


def _frozen(call: Call, given: Mapping[Value, Any], *, autograph: bool) -> Any:
    """The call as a TensorFlow function without variables."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    specs = [tf.TensorSpec(tuple(tensor.shape), tensor.dtype) for tensor in given.values()]
    function = tf.function(lambda *tensors: run(call, dict(zip(given, tensors, strict=True))), autograph=autograph)
    return convert_variables_to_constants_v2(function.get_concrete_function(*specs), lower_control_flow=False)


def _called(model: Any, given: Sequence[Any]) -> list[Any]:
    """The model's layers called on other tensors: what calling the model gives, without a model inside a model."""
    import tensorflow as tf

    from edgebuild.pipeline.ingest.keras.keras2_graph import graph_of

    program = written_out(graph_of(model))
    tensors = dict(zip([value for value, _ in program.inputs.values()], given, strict=True))

    def known(leaf: Any) -> Any:
        return tensors[leaf] if isinstance(leaf, Value) else leaf

    for call in program.calls:
        args, kwargs = replaced((call.args, dict(call.kwargs)), known)
        tensors |= dict(zip(call.results, tf.nest.flatten(call.layer(*args, **kwargs)), strict=True))
    return [tensors[value] for value in program.outputs.values()]
