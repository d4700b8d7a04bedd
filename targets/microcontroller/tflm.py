"""TFLite Micro's own interpreter on the host, always in a child process: it can crash on models it does not like."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from edgebuild.export.errors import ModelError
from edgebuild.targets.evidence import Figure, unavailable
from edgebuild.targets.tools import python_module

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edgebuild.targets.target import Artifact

    Vectors: TypeAlias = tuple[tuple[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]], ...]

TIMEOUT_S: Final = 120
HOST_NOTE: Final = "the smallest arena TFLM runs in on this host, with 64-bit pointers"
MISSING: Final = "tflite-micro is not installed; pip install 'edgebuild[mcu]' (Linux x86-64, Python 3.11)"


def installed() -> bool:
    """Whether the optional wheel is here."""
    return find_spec("tflite_micro") is not None


def arena(model: bytes) -> Figure:
    """The smallest arena the model runs in, in bytes, or why it can't be told."""
    return _measured_arena(model) if installed() else unavailable(MISSING)


# The memory gate and the firmware files ask for the same model within one build.
@lru_cache(maxsize=4)
def _measured_arena(model: bytes) -> Figure:
    answer, why = _child("edgebuild.targets.microcontroller.arena", model=model)
    if why:
        return unavailable(why)
    return Figure(value=int(json.loads(answer)["arena_bytes"]), evidence="simulated", note=HOST_NOTE)


def golden(artifact: Artifact) -> tuple[Vectors, str]:
    """Test vectors with the outputs TFLM gives, and the name of the runtime that gave them.

    TFLM is not bit-equal to tflite-runtime, so a board can match its own runtime's outputs only. Where TFLM can't run
    here the vectors keep the outputs of tflite-runtime.
    """
    if not artifact.vectors:
        return (), "no runtime: there are none"
    if not installed():
        return artifact.vectors, _origin("tflite-micro is not installed")
    with tempfile.TemporaryDirectory() as folder:
        _write_inputs(artifact, Path(folder))
        _, why = _child("edgebuild.targets.microcontroller.vectors", folder)
        if why:
            return artifact.vectors, _origin(why)
        return _read_outputs(artifact, Path(folder)), "TFLite Micro on the host"


def _origin(why: str) -> str:
    return f"tflite-runtime, from which TFLite Micro may differ by some steps of the scale ({why})"


def _write_inputs(artifact: Artifact, folder: Path) -> None:
    import numpy as np

    model = artifact.flatbuffer
    arrays: dict[str, Any] = {
        f"{vector}_{model.main.inputs.index(tensor.index)}": inputs[name]
        for vector, (inputs, _) in enumerate(artifact.vectors)
        for name, tensor in model.inputs.items()
    }
    counts = {"vectors": len(artifact.vectors), "inputs": len(model.main.inputs), "outputs": len(model.main.outputs)}
    (folder / "model.tflite").write_bytes(artifact.data)
    np.savez(folder / "inputs.npz", **arrays, **{name: np.asarray(count) for name, count in counts.items()})


def _read_outputs(artifact: Artifact, folder: Path) -> Vectors:
    import numpy as np

    model = artifact.flatbuffer
    with np.load(folder / "outputs.npz") as outputs:
        return tuple(
            (
                inputs,
                {
                    name: outputs[f"{vector}_{model.main.outputs.index(tensor.index)}"]
                    for name, tensor in model.outputs.items()
                },
            )
            for vector, (inputs, _) in enumerate(artifact.vectors)
        )


def _child(module: str, *arguments: str, model: bytes = b"") -> tuple[bytes, str]:
    """Run one of our modules apart; what it printed, and why TFLM refused (empty where it did not).

    Raises:
        ModelError: it took too long or was killed, which says more of this machine's load than of the model.
    """
    try:
        done = subprocess.run(
            python_module(module, *arguments), input=model, capture_output=True, check=False, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired as e:
        raise _unfinished(f"it did not finish within {TIMEOUT_S} s") from e
    if done.returncode == -signal.SIGKILL:
        raise _unfinished("it was killed: the machine may be out of memory")
    return done.stdout, _cause(done.returncode, done.stderr.decode("utf-8", "replace")) if done.returncode else ""


def _unfinished(cause: str) -> ModelError:
    return ModelError("TFLite Micro could not be asked about the model", cause=cause, action="build again")


def _cause(returncode: int, stderr: str) -> str:
    """One line: how the child ended, and what TFLM said first."""
    said = next((line.strip() for line in stderr.splitlines() if line.strip()), "it gave no reason")
    if returncode < 0:
        return f"TFLite Micro crashed ({signal.Signals(-returncode).name}): {said}"
    return f"TFLite Micro can't run the model: {said}"
