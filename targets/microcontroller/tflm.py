"""TFLite Micro's own interpreter on the host, always in a child process: it can crash on models it does not like."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgebuild.export.errors import ModelError
from edgebuild.targets import leash
from edgebuild.targets.evidence import Figure, unavailable
from edgebuild.targets.tools import python_module

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from edgebuild.export.flatbuffer import Flatbuffer


TIMEOUT_S: Final = 120
MEMORY_BYTES: Final = 2**30  # Sixteen times the largest arena that is tried.
SLICE: Final = 100  # Samples to a child: few enough to say how far it is, many enough to hide its start.
_MOST_CHILDREN: Final = min(4, len(os.sched_getaffinity(0)))
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
    answer, why = child("edgebuild.targets.microcontroller.arena", model=model)
    if why:
        return unavailable(why)
    return Figure(value=int(json.loads(answer)["arena_bytes"]), evidence="simulated", note=HOST_NOTE)


def outputs(
    model: bytes, described: Flatbuffer, rows: Sequence[Mapping[str, NDArray[Any]]]
) -> Iterator[list[dict[str, NDArray[Any]]]]:
    """What TFLM gives for samples in the model's own types, by name, some at a time and in order.

    Raises:
        ModelError: TFLM can't run the model, in its own words; or it took too long.
    """
    remembers = any(tensor.is_variable for graph in described.subgraphs for tensor in graph.tensors)
    size = len(rows) if remembers else SLICE  # What one sample leaves behind, the next one must find.
    slices = [rows[start : start + size] for start in range(0, len(rows), max(size, 1))]
    with ThreadPoolExecutor(min(len(slices) or 1, _MOST_CHILDREN)) as pool:
        yield from pool.map(partial(_outputs, model, described), slices)


def _outputs(
    model: bytes, described: Flatbuffer, rows: Sequence[Mapping[str, NDArray[Any]]]
) -> list[dict[str, NDArray[Any]]]:
    import numpy as np

    arrays = {
        str(described.main.inputs.index(tensor.index)): np.stack([row[name] for row in rows])
        for name, tensor in described.inputs.items()
    }
    with tempfile.TemporaryDirectory(prefix="edgebuild-") as name:
        folder = Path(name)
        (folder / "model.tflite").write_bytes(model)
        np.savez(folder / "inputs.npz", **arrays)
        _, why = child("edgebuild.targets.microcontroller.outputs", name, str(len(described.main.outputs)))
        if why:
            raise ModelError(
                "TFLite Micro can't run the model", cause=why, action="change the layer it names, or its inputs"
            )
        with np.load(folder / "outputs.npz") as found:
            columns = {
                name: found[str(described.main.outputs.index(tensor.index))]
                for name, tensor in described.outputs.items()
            }
    return [{name: column[row] for name, column in columns.items()} for row in range(len(rows))]


def child(module: str, *arguments: str, model: bytes = b"") -> tuple[bytes, str]:
    """Run one of our modules apart; what it printed, and why TFLM refused (empty where it did not).

    Raises:
        ModelError: it took too long or was killed, which says more of this machine's load than of the model.
        ToolMissingError: this machine can't bound a program.
    """
    command = python_module(module, *arguments)
    done = leash.run(
        command,
        seconds=TIMEOUT_S,
        memory_bytes=MEMORY_BYTES,
        folder=Path(tempfile.gettempdir()),
        given=model,
        apart=True,
    )
    if done.returncode == leash.TIMED_OUT:
        raise _unfinished(f"it did not finish within {TIMEOUT_S} s")
    signalled = done.returncode - 128
    if signalled == signal.SIGKILL:
        raise _unfinished("it was killed: the machine may be out of memory")
    ended = -signalled if signalled in set(signal.Signals) else done.returncode
    return done.stdout, _cause(ended, done.stderr.decode("utf-8", "replace")) if ended else ""


def _unfinished(cause: str) -> ModelError:
    return ModelError("TFLite Micro could not be asked about the model", cause=cause, action="build again")


def _cause(returncode: int, stderr: str) -> str:
    """One line: how the child ended, and what TFLM said first."""
    said = next((line.strip() for line in stderr.splitlines() if line.strip()), "it gave no reason")
    if returncode < 0:
        return f"TFLite Micro crashed ({signal.Signals(-returncode).name}): {said}"
    return f"TFLite Micro can't run the model: {said}"
