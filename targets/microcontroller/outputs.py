"""A child process that runs a model in TFLM on the host: `python -m edgebuild.targets.microcontroller.outputs`.

Its arguments are a folder and the number of outputs. The folder holds `model.tflite` and `inputs.npz`, an array
`[N, ...]` for each input under its position, in the model's own types; `outputs.npz` is written beside them, with the
outputs in the same way.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from edgebuild.targets.microcontroller.arena import CANNOT_RUN, CEILING_BYTES


def main(folder: Path, outputs: int) -> int:
    """Run every sample in order, in one interpreter as on the device."""
    from tflite_micro import runtime

    with np.load(folder / "inputs.npz") as archive:
        inputs = {int(position): archive[position] for position in archive.files}
    try:
        interpreter = runtime.Interpreter.from_bytes((folder / "model.tflite").read_bytes(), arena_size=CEILING_BYTES)
        rows = []
        for row in range(len(next(iter(inputs.values())))):
            for position, array in inputs.items():
                interpreter.set_input(array[row], position)
            interpreter.invoke()
            rows.append([interpreter.get_output(position) for position in range(outputs)])
    except RuntimeError:
        return CANNOT_RUN
    np.savez(folder / "outputs.npz", **{str(i): np.stack(column) for i, column in enumerate(zip(*rows, strict=True))})
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
