"""A child process that runs a model in TFLM on the host: `python -m edgebuild.targets.microcontroller.vectors FOLDER`.

The folder holds `model.tflite` and `inputs.npz` with arrays `{vector}_{input}`; `outputs.npz` is written beside them,
with arrays `{vector}_{output}`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgebuild.targets.microcontroller.arena import CANNOT_RUN, CEILING_BYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray


def main(folder: Path) -> int:
    """Run every vector in order, in one interpreter as on the device."""
    from tflite_micro import runtime

    try:
        interpreter = runtime.Interpreter.from_bytes((folder / "model.tflite").read_bytes(), arena_size=CEILING_BYTES)
        inputs = np.load(folder / "inputs.npz")
        count = int(inputs["outputs"])
        outputs: dict[str, NDArray[Any]] = {}
        for vector in range(int(inputs["vectors"])):
            for position in range(int(inputs["inputs"])):
                interpreter.set_input(inputs[f"{vector}_{position}"], position)
            interpreter.invoke()
            outputs |= {f"{vector}_{position}": interpreter.get_output(position) for position in range(count)}
    except RuntimeError:
        return CANNOT_RUN
    np.savez(folder / "outputs.npz", **outputs)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
