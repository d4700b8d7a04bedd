"""A model that asks for more weights than its file holds is refused before they are allocated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, Final

from edgebuild.export.errors import ModelError

_ALLOWANCE: Final = 2**20  # Values that no file keeps: seeds, counters, tables of positions.


@contextmanager
def at_most(held: int, path: Path) -> Iterator[None]:
    """Within it, no model takes more values than its file holds.

    A configuration is a few bytes that may ask for any size: `{"units": 1099511627776}`. Both kinds of Keras make
    their variables through TensorFlow, which asks here first.

    Raises:
        ModelError: within it; a variable exceeds the limit.
    """
    import tensorflow as tf

    made = 0

    def create(make: Callable[..., Any], **arguments: Any) -> Any:
        nonlocal made
        shape = _shape(arguments)
        made += prod(shape)
        if made > held + _ALLOWANCE:
            raise ModelError(
                f"{path}: its configuration asks for more weights than the file holds",
                cause=f"with '{arguments.get('name')}' of shape {list(shape)} they are {made:,}, against {held:,}",
                action="save the whole model again; its configuration and its weights are not of one model",
            )
        return make(**arguments)

    with tf.variable_creator_scope(create):
        yield


def _shape(arguments: dict[str, Any]) -> tuple[int, ...]:
    """The shape of a variable to be, without its values: an initializer only runs symbolically."""
    import tensorflow as tf

    initial, shape = arguments["initial_value"], arguments.get("shape")
    if shape is not None and tf.TensorShape(shape).is_fully_defined():
        return tuple(tf.TensorShape(shape))
    if not callable(initial):
        return tuple(tf.convert_to_tensor(initial).shape)
    with tf.Graph().as_default():
        return tuple(tf.convert_to_tensor(initial()).shape)
