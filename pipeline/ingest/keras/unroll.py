"""Recurrent layers without a loop.

Of the targets only the cpu takes loops, and calibrating one for int8 takes the process down (tensorflow#62281). Data
has a fixed number of steps here, so that the steps can stand one after the other.
"""

from __future__ import annotations

from typing import Any, Final

MOST_STEPS: Final = 512  # A step is some ten operators; conversion and size grow with them.
_LOOPING: Final = frozenset({"Bidirectional", "GRU", "LSTM", "RNN", "SimpleRNN"})


def loops(layer: Any) -> bool:
    """Whether a tf_keras layer would become a loop."""
    parts = [getattr(layer, key, None) for key in ("forward_layer", "backward_layer")]
    wrapped = type(layer).__name__ == "Bidirectional"
    return any(loops(part) for part in parts) if wrapped else type(layer).__name__ in _LOOPING and not layer.unroll


def steps_of(layer: Any, tensor: Any) -> int | None:
    """How many steps a recurrent layer takes on a tensor; None where that is open."""
    time_major = getattr(getattr(layer, "forward_layer", layer), "time_major", False)
    steps: int | None = tensor.shape[0 if time_major else 1]
    return steps


def unrolled(layer: Any) -> Any:
    """An unbuilt tf_keras layer that computes the same without a loop."""
    config = layer.get_config()
    inner = [config[key]["config"] for key in ("layer", "backward_layer") if key in config]
    for part in (config, *inner):
        if "unroll" in part:
            part["unroll"] = True
    return type(layer).from_config(config)
