"""One layer of Keras 3 as the same layer of tf_keras: its configuration, its activation, its weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from edgebuild.pipeline.ingest.keras import keras3_gates
from edgebuild.pipeline.ingest.keras.custom_code import names_own
from edgebuild.pipeline.ingest.keras.flat import NoEqualError

_RENAMED: Final = {"batch_shape": "batch_input_shape"}
_RENAMED_OF: Final = {"LeakyReLU": {"negative_slope": "alpha"}}
# Keys tf_keras lacks that change nothing at inference; any other must stand at Keras 3's default.
_NO_MATTER: Final = frozenset(
    "data_format flash_attention lora_alpha lora_rank quantization_config renorm_momentum seed use_cudnn".split()  # noqa: SIM905 - shorter
)


def twin_of(layer: Any, name: str) -> Any:
    """The tf_keras twin of a Keras 3 layer, yet unbuilt: a layer, or a layer and the activation behind it.

    Raises:
        NoEqualError: tf_keras has no such layer, or not with this configuration.
    """
    activation = _later_activation(layer)
    if activation is None:
        return _twin_layer(layer, {"name": name})
    if hasattr(layer, "cell"):
        raise NoEqualError(f"tf_keras has no activation {_config(layer)['activation']}, or another")
    if type(layer).__name__ == "Activation":
        return activation(name)
    bare = {"activation": "linear", "name": f"{name}_linear"}
    return _Activated(_twin_layer(layer, bare), activation(name))


def copy_weights(layer: Any, twin: Any) -> None:
    """Give the twin its source's weights: of equal shape, each with the longest common end of its path.

    Raises:
        NoEqualError: the two have different weights.
    """
    built: Any = twin.layer if isinstance(twin, _Activated) else twin
    left = list(layer.weights)
    values = []
    for weight in getattr(built, "weights", []):
        fitting = [other for other in left if tuple(other.shape) == tuple(weight.shape)]
        if not fitting:
            raise NoEqualError(f"in tf_keras it has a weight {weight.name} more")
        best = max(fitting, key=lambda other: _common_end(other.path, weight.name))
        left = [other for other in left if other is not best]
        values.append(keras3_gates.rescaled(layer, best))
    if left:
        raise NoEqualError(f"in tf_keras nothing takes its weight {left[0].path}")
    if values:
        built.set_weights(values)


class _Activated:
    """A layer and the activation that Keras 3 had inside it."""

    def __init__(self, layer: Any, activation: Callable[[Any], Any]) -> None:
        self.layer = layer
        self._activation = activation

    @property
    def call(self) -> Callable[..., Any]:
        return self.layer.call  # type: ignore[no-any-return]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._activation(self.layer(*args, **kwargs))


class _HardSigmoid:
    """`relu6(x + 3) / 6`, the hard sigmoid of Keras 3; that of tf_keras is `clip(0.2 x + 0.5, 0, 1)`.

    Written as tf_keras's MobileNetV3 writes it, so that the converter finds HARD_SWISH.
    """

    def __init__(self, name: str) -> None:
        import tensorflow as tf
        import tf_keras

        self._add = _operation(tf.add, f"{name}_add")
        self._relu6 = tf_keras.layers.ReLU(6.0, name=f"{name}_relu6")
        self._multiply = _operation(tf.multiply, name)

    def __call__(self, x: Any) -> Any:
        return self._multiply(self._relu6(self._add(x, 3.0)), 1.0 / 6.0)


class _HardSilu:
    """`x hard_sigmoid(x)`, also known as hard swish."""

    def __init__(self, name: str) -> None:
        import tf_keras

        self._gate = _HardSigmoid(f"{name}_gate")
        self._multiply = tf_keras.layers.Multiply(name=name)

    def __call__(self, x: Any) -> Any:
        return self._multiply([x, self._gate(x)])


def _relu6(name: str) -> Any:
    import tf_keras

    return tf_keras.layers.ReLU(6.0, name=name)


_LATER: Final[dict[str, Callable[[str], Callable[[Any], Any]]]] = {
    "hard_sigmoid": _HardSigmoid,
    "hard_silu": _HardSilu,
    "hard_swish": _HardSilu,
    "relu6": _relu6,
}


def _operation(function: Callable[..., Any], name: str) -> Any:
    """A TensorFlow function as a layer under a name of ours: Keras's own numbering would depend on the process."""
    from tf_keras.src.layers.core.tf_op_layer import TFOpLambda

    return TFOpLambda(function, name=name)


def _later_activation(layer: Any) -> Callable[[str], Callable[[Any], Any]] | None:
    """What has to follow the twin because tf_keras has no such activation, or another of that name."""
    return _LATER.get(str(_config(layer).get("activation")))


def _twin_layer(layer: Any, changes: Mapping[str, Any]) -> Any:
    import tf_keras

    kind = type(layer).__name__
    cls = getattr(tf_keras.layers, kind, None)
    if cls is None or kind == "Lambda" or not type(layer).__module__.startswith("keras.src.layers."):
        raise NoEqualError("tf_keras has no such layer")
    if names_own(layer.get_config()):
        raise NoEqualError("it uses a function of the user's own")
    arguments = {**dict(_arguments(layer, cls)), **changes}
    if arguments.get("activation") == "hard_sigmoid":
        raise NoEqualError("hard_sigmoid is another function in tf_keras")
    with _making():
        return cls(**arguments)


@contextmanager
def _making() -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as e:
        raise NoEqualError(f"tf_keras refuses it: {e}".splitlines()[0]) from e


def _arguments(layer: Any, cls: type) -> Iterator[tuple[str, Any]]:
    """The layer's configuration in tf_keras's words."""
    renamed = _RENAMED | _RENAMED_OF.get(type(layer).__name__, {})
    accepted, defaults = _accepted(cls), inspect.signature(type(layer).__init__).parameters
    for key, value in _config(layer).items():
        name = renamed.get(key, key)
        if key.endswith("_initializer") or key in _NO_MATTER - accepted:
            continue  # Weights are copied, so what they began as never matters.
        if name in accepted:
            yield name, _value(layer, key, value)
        elif value and not (key in defaults and value == defaults[key].default):
            raise NoEqualError(f"tf_keras does not know its {key}={value!r}")


def _config(layer: Any) -> dict[str, Any]:
    return dict(layer.get_config()) if hasattr(layer, "get_config") else {}


def _value(layer: Any, key: str, value: Any) -> Any:
    import keras

    inner = getattr(layer, "forward_layer" if key == "layer" and hasattr(layer, "forward_layer") else key, None)
    if isinstance(inner, keras.Layer):
        return _inner(inner)
    if isinstance(value, list) and any(isinstance(part, Mapping) and "module" in part for part in value):
        raise NoEqualError(f"its {key} are layers")
    if isinstance(value, Mapping) and value.get("class_name") == "DTypePolicy":
        return value["config"]["name"]
    if isinstance(value, Mapping) and "class_name" in value:
        return {"class_name": value["class_name"], "config": value["config"]}
    return value


def _inner(layer: Any) -> Any:
    """The twin of the layer that a wrapper wraps: it must be one layer."""
    import keras

    if isinstance(layer, keras.Model):
        raise NoEqualError(f"it wraps the model '{layer.name}'")
    twin = twin_of(layer, layer.name)
    if isinstance(twin, _Activated | _HardSigmoid | _HardSilu):
        raise NoEqualError(f"it wraps '{layer.name}', whose activation tf_keras lacks")
    return twin


def _accepted(cls: type) -> set[str]:
    """Every argument a tf_keras layer's constructor takes, through the bases it passes `**kwargs` on to."""
    names = {"name", "trainable", "dtype", "batch_input_shape"}
    names |= {"zero_output_for_mask"} if hasattr(cls, "reset_states") else set()  # Recurrent layers pop it unseen.
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters  # type: ignore[misc]
            names |= {key for key, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
            if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
                break
    return names - {"self"}


def _common_end(path: str, name: str) -> int:
    """How many parts two paths have in common, from the end; 0 where even the last differs."""
    pairs = list(zip(path.split("/")[::-1], name.partition(":")[0].split("/")[::-1], strict=False))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
