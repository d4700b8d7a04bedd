"""What a compressed kernel must keep while its weights are trained: which are zero, and which are equal.

Both are linear conditions, so training under them is projected gradient descent: after each step of the optimizer the
weights go back to the nearest ones that hold them. The nearest to weights that must be equal is their mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

ZERO: Final = -1
FREE: Final = np.float32("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """The conditions on one kernel.

    A weight is `scale` times its group's value. `groups` is int32 in the kernel's shape, `ZERO` where the weight is
    zero; None where the others are free. `scale` is float32 and broadcasts to the kernel. `pinned` is float32 a group:
    the value it keeps, or `FREE`; no value goes beyond the largest that is kept.
    """

    kept: NDArray[np.bool_]
    groups: NDArray[np.int32] | None = None
    scale: NDArray[np.float32] | None = None
    pinned: NDArray[np.float32] | None = None

    def projection(self) -> Any:
        """A function from weights to the nearest that hold the conditions; a Keras constraint."""
        import tensorflow as tf

        if self.groups is None or self.scale is None or self.pinned is None:
            kept = tf.constant(self.kept)
            return lambda weights: tf.where(kept, weights, tf.zeros_like(weights))
        groups = tf.constant(np.where(self.kept, self.groups, 0).ravel())
        scale = tf.constant(np.where(self.kept, self.scale, 0).astype(np.float32))
        power = np.bincount(groups.numpy(), np.square(scale.numpy()).ravel(), len(self.pinned))
        inverse = tf.constant(1 / np.maximum(power, np.finfo(np.float32).tiny), tf.float32)
        free, pinned = tf.constant(np.isnan(self.pinned)), tf.constant(np.nan_to_num(self.pinned))
        bound = float(np.nanmax(np.abs(self.pinned))) if not np.isnan(self.pinned).all() else np.inf

        def project(weights: Any) -> Any:
            sums = tf.math.unsorted_segment_sum(tf.reshape(weights * scale, [-1]), groups, len(pinned))
            values = tf.where(free, tf.clip_by_value(sums * inverse, -bound, bound), pinned)
            return tf.reshape(tf.gather(values, groups), weights.shape) * scale + 0.0  # No zero is a negative one.

        return project


def save(path: Path, structures: Mapping[str, Structure]) -> None:
    """Write structures by kernel name as plain arrays; equal ones give equal bytes."""
    np.savez_compressed(path, **arrays(structures))


def load(path: Path) -> dict[str, Structure]:
    """Structures by kernel name; none where there is no file."""
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as archive:
        return of_arrays({name: archive[name] for name in archive.files})


def arrays(structures: Mapping[str, Structure]) -> dict[str, NDArray[Any]]:
    """Structures by kernel name as plain arrays, named `<kernel>:<part>`."""
    parts = ("kept", "groups", "scale", "pinned")
    found = {f"{name}:{part}": getattr(held, part) for name, held in structures.items() for part in parts}
    return {name: array for name, array in found.items() if array is not None}


def of_arrays(found: Mapping[str, NDArray[Any]]) -> dict[str, Structure]:
    """What `arrays` was given."""
    parts: dict[str, dict[str, Any]] = {}
    for key, array in found.items():
        name, _, part = key.rpartition(":")
        parts.setdefault(name, {})[part] = array
    return {name: Structure(**held) for name, held in parts.items()}
