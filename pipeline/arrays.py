"""Arrays by name in an .npz file, as stages hand them to each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

_PREFIX: Final = ":"  # numpy takes arrays as keywords, and a model may name an input `file`.


def load_arrays(path: Path) -> dict[str, Any]:
    """The arrays of an .npz file that `save_arrays` wrote."""
    import numpy as np

    with np.load(path, allow_pickle=False) as archive:
        return {name.removeprefix(_PREFIX): archive[name] for name in archive.files}


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays under names of any kind; equal arrays give equal bytes."""
    import numpy as np

    np.savez(path, **{_PREFIX + name: array for name, array in arrays.items()})
