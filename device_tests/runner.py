"""Time one .tflite model in this process: the one file that is pushed to a device.

    python runner.py '{"model": "m.tflite", "threads": 1, "min_warmup_s": 0.03, "min_warmup_runs": 3,
                       "min_time_s": 0.1, "min_runs": 20, "max_time_s": 10, "nonce": "4f", "seed": 0}'

Needs Python 3.7, numpy and one of `RUNTIMES`, and no other file of this project. On stdout stands exactly one line
that starts with `RESULT` and goes on as JSON; or with `ERROR`, and then the exit code is 1.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import platform
import sys
import time
from typing import Any, Callable  # noqa: UP035 - collections.abc's Callable can't be subscripted on Python 3.7

RESULT = "EDGEBUILD-RESULT "
ERROR = "EDGEBUILD-ERROR "
# The package, and its module that holds Interpreter; first come, first used: what ships on devices before the rest.
RUNTIMES = (
    ("tflite_runtime", "tflite_runtime.interpreter"),
    ("ai_edge_litert", "ai_edge_litert.interpreter"),
    ("tensorflow", "tensorflow.lite.python.interpreter"),
)
_CHUNK_BYTES = 1 << 20
_INDEX_BYTES = 4


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Load, warm up and time the request's model; times in ms and us, memory in KiB."""
    load_before = _load_average()
    imported = _Watch()
    runtime, interpreter_type = _import_runtime()
    import_ms = imported.ms()

    loaded = _Watch()
    interpreter = interpreter_type(model_path=request["model"], num_threads=request["threads"])
    load_ms = loaded.ms()
    allocated = _Watch()
    interpreter.allocate_tensors()
    allocate_ms = allocated.ms()

    _fill_inputs(interpreter, request["seed"])
    first_ns = _repeat(interpreter.invoke, 0.0, 1, 0.0)
    # Taken after the first invocation: a stateful model answers differently the second time.
    outputs_sha256 = _outputs_digest(interpreter)
    _repeat(interpreter.invoke, request["min_warmup_s"], request["min_warmup_runs"], request["max_time_s"])
    samples_ns = _repeat(interpreter.invoke, request["min_time_s"], request["min_runs"], request["max_time_s"])

    report = {
        "nonce": request["nonce"],
        "model_sha256": _file_digest(request["model"]),
        "runtime": runtime,
        "python": platform.python_version(),
        "machine": " ".join(platform.uname()[i] for i in (0, 2, 4)),
        "import_ms": import_ms,
        "load_ms": load_ms,
        "allocate_ms": allocate_ms,
        "first_us": first_ns[0] / 1e3,
        "runs": len(samples_ns),
        "peak_rss_kib": _peak_rss_kib(),
        "load_before": load_before,
        "load_after": _load_average(),
        "outputs_sha256": outputs_sha256,
    }
    report.update(_statistics_us(samples_ns))
    return report


class _Watch:
    """A stop-watch that runs from its making."""

    def __init__(self) -> None:
        self._start_ns = time.perf_counter_ns()

    def ms(self) -> float:
        return (time.perf_counter_ns() - self._start_ns) / 1e6


def _import_runtime() -> tuple[str, Any]:
    """The first runtime that can be imported: its name with its version, and its Interpreter."""
    refusals = []
    for package, module in RUNTIMES:
        try:
            interpreter_type = importlib.import_module(module).Interpreter
        except ImportError as e:  # noqa: PERF203 - three turns, each an import
            refusals.append(f"{package}: {e}")
        else:
            version = getattr(importlib.import_module(package), "__version__", "of unknown version")
            return f"{package} {version}", interpreter_type
    raise ImportError("no TFLite runtime can be imported; " + "; ".join(refusals))


def _fill_inputs(interpreter: Any, seed: int) -> None:
    import numpy as np

    # RandomState's stream is frozen for ever, default_rng's may change between numpy versions.
    rng = np.random.RandomState(seed)
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], _made_up(detail, rng))


def _made_up(detail: dict[str, Any], rng: Any) -> Any:
    """Values of the input's own type: 0..1 for floats, the whole range for 8 and 16 bits, 0 or 1 for the rest.

    Wider integers are indices as a rule, and 0 and 1 lie within any table worth looking up.
    """
    import numpy as np

    shape, dtype = detail["shape"], np.dtype(detail["dtype"])
    if dtype.kind == "f":
        return rng.random_sample(shape).astype(dtype)
    if dtype.kind in "iu" and dtype.itemsize < _INDEX_BYTES:
        limits = np.iinfo(dtype)
        return rng.randint(limits.min, limits.max + 1, shape, dtype)
    if dtype.kind in "iub":
        return rng.randint(0, 2, shape).astype(dtype)
    raise ValueError(f"can't make up values of type {dtype} for input {detail['name']}")


def _repeat(invoke: Callable[[], None], min_time_s: float, min_runs: int, max_time_s: float) -> list[int]:
    """Nanoseconds of each run: at least one, until both minima are reached or the maximum has passed."""
    clock = time.perf_counter_ns
    samples: list[int] = []
    begin = clock()
    least, most = begin + int(min_time_s * 1e9), begin + int(max_time_s * 1e9)
    while True:
        start = clock()
        invoke()
        end = clock()
        samples.append(end - start)
        if end >= most or (end >= least and len(samples) >= min_runs):
            return samples


def _statistics_us(samples_ns: list[int]) -> dict[str, float]:
    import numpy as np

    samples_us = np.asarray(samples_ns) / 1e3
    minimum, median, p90, p99 = np.percentile(samples_us, (0, 50, 90, 99)).tolist()
    return {"min_us": minimum, "median_us": median, "p90_us": p90, "p99_us": p99, "mean_us": float(samples_us.mean())}


def _outputs_digest(interpreter: Any) -> str:
    digest = hashlib.sha256()
    for detail in interpreter.get_output_details():
        values = interpreter.get_tensor(detail["index"])
        digest.update(f"{values.dtype.str} {values.shape} ".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _file_digest(path: str) -> str:
    """In pieces, and after the runs: a whole copy would show in the peak memory."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:  # noqa: PTH123 - saves a small device the import of pathlib
        for chunk in iter(lambda: file.read(_CHUNK_BYTES), b""):
            digest.update(chunk)
    return digest.hexdigest()


def _peak_rss_kib() -> int | None:
    """The high-water mark of this program; `getrusage` would count what its parent held before `exec`, too."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:  # noqa: PTH123
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return None


def _load_average() -> float | None:
    """Of the last minute; None where the system keeps none."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def main(arguments: list[str]) -> int:
    """Answer the request in the only argument with one line."""
    try:
        line = RESULT + json.dumps(measure(json.loads(arguments[0])), sort_keys=True)
    # What an unusable request, model or runtime raises; anything else is a bug and shows its traceback.
    except (IndexError, KeyError, ImportError, OSError, RuntimeError, TypeError, ValueError, MemoryError) as e:
        line = ERROR + json.dumps({"message": f"{type(e).__name__}: {e}"})
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
    return 1 if line.startswith(ERROR) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
