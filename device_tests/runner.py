"""Time one .tflite model in this process: the one file that is pushed to a device.

    python runner.py '{"model": "m.tflite", "threads": 1, "min_warmup_s": 0.03, "min_warmup_runs": 3,
                       "min_time_s": 0.1, "min_runs": 20, "max_time_s": 10, "nonce": "4f", "seed": 0,
                       "delegate": "default", "delegate_options": {}, "inputs": null}'

Needs Python 3.7, numpy and one of `RUNTIMES`, and no other file of this project. On stdout stands exactly one line
that starts with `RESULT` and goes on as JSON; or with `ERROR`, and then the exit code is 1.

`delegate` is `default`, what the runtime does by itself; `none`; `xnnpack`; `edgetpu`; or a delegate library's path,
and `delegate_options` are for that library. `inputs` names an .npz file with one array `[N, *shape]` for each of the
model's inputs, in their order and called `0`, `1`, ...: the outputs for them come back in the answer.
"""

from __future__ import annotations

import base64
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
EDGETPU = "libedgetpu.so.1"
SYS = "/sys"
PROC = "/proc"
_CHUNK_BYTES = 1 << 20
_INDEX_BYTES = 4
_MOST_OUTPUT_BYTES = 8 << 20  # They come back in one line.
_DELEGATE = "DELEGATE"  # What the runtime calls the node that stands for those that a delegate has taken.
_HOTTEST_C = 150  # A zone that says more is no thermometer.


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Load, warm up and time the request's model; times in ms and us, memory in KiB."""
    load_before = _load_average()
    imported = _Watch()
    runtime, module = _import_runtime()
    import_ms = imported.ms()

    loaded = _Watch()
    interpreter = module.Interpreter(request["model"], **_settings(module, request))
    load_ms = loaded.ms()
    # A library's delegate has taken its share by now, the runtime's own comes when tensors are allocated.
    placement = _placement(interpreter) if _is_library(request["delegate"]) else None
    allocated = _Watch()
    interpreter.allocate_tensors()
    allocate_ms = allocated.ms()

    _fill_inputs(interpreter, request["seed"])
    first_ns = _repeat(interpreter.invoke, 0.0, 1, 0.0)
    # Taken after the first invocation: a stateful model answers differently the second time.
    outputs_sha256 = _outputs_digest(interpreter)
    _repeat(interpreter.invoke, request["min_warmup_s"], request["min_warmup_runs"], request["max_time_s"])
    before = _state()
    samples_ns = _repeat(interpreter.invoke, request["min_time_s"], request["min_runs"], request["max_time_s"])
    after = _state()
    peak_rss_kib = _peak_rss_kib()

    operators, delegated = placement or _placement(interpreter)
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
        "peak_rss_kib": peak_rss_kib,
        "load_before": load_before,
        "load_after": _load_average(),
        "outputs_sha256": outputs_sha256,
        "operators": operators,
        "delegated": delegated,
        "outputs": _answers(interpreter, request["inputs"]) if request["inputs"] else None,
        "before": before,
        "after": after,
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
    """The first runtime that can be imported: its name with its version, and its module with Interpreter."""
    refusals = []
    for package, name in RUNTIMES:
        try:
            module = importlib.import_module(name)
        except ImportError as e:  # noqa: PERF203 - three turns, each an import
            refusals.append(f"{package}: {e}")
        else:
            version = getattr(importlib.import_module(package), "__version__", "of unknown version")
            return f"{package} {version}", module
    raise ImportError("no TFLite runtime can be imported; " + "; ".join(refusals))


def _is_library(delegate: str) -> bool:
    return delegate not in ("default", "none", "xnnpack")


def _settings(module: Any, request: dict[str, Any]) -> dict[str, Any]:
    """The interpreter's arguments; the least that say it, since each runtime knows others."""
    delegate, settings = request["delegate"], {"num_threads": request["threads"]}
    if delegate == "none":
        settings["experimental_op_resolver_type"] = module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    if _is_library(delegate):
        library = EDGETPU if delegate == "edgetpu" else delegate
        settings["experimental_delegates"] = [module.load_delegate(library, request["delegate_options"])]
    return settings


def _placement(interpreter: Any) -> tuple[int | None, int | None]:
    """The model's operators, and how many of them delegates have taken; None where the runtime doesn't tell.

    A delegate's node is appended to those that it replaces, with the tensors that go in and come out: its own are
    the operators that lie between.
    """
    if not hasattr(interpreter, "_get_ops_details"):
        return None, None
    nodes = interpreter._get_ops_details()  # noqa: SLF001 - there is no public way
    model = [node for node in nodes if node["op_name"] != _DELEGATE]
    maker = {tensor: node["index"] for node in model for tensor in node["outputs"].tolist()}
    inputs = {node["index"]: node["inputs"].tolist() for node in model}
    taken: set[int] = set()
    for node in nodes[len(model) :]:
        wanted, given = node["outputs"].tolist(), set(node["inputs"].tolist())
        while wanted:
            tensor = wanted.pop()
            if tensor in maker and tensor not in given and maker[tensor] not in taken:
                taken.add(maker[tensor])
                wanted += inputs[maker[tensor]]
    return len(model), len(taken)


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


def _answers(interpreter: Any, path: str) -> list[dict[str, Any]]:
    """For each output the answers to all given inputs, `[N, *shape]`, their bytes in base64."""
    import numpy as np

    details = interpreter.get_output_details()
    answers: list[list[Any]] = [[] for _ in details]
    with np.load(path) as given:
        samples = [given[str(i)] for i in range(len(interpreter.get_input_details()))]
    for sample in zip(*samples):  # noqa: B905 - Python 3.7 has no strict
        for detail, values in zip(interpreter.get_input_details(), sample):  # noqa: B905
            interpreter.set_tensor(detail["index"], values)
        interpreter.invoke()
        for detail, found in zip(details, answers):  # noqa: B905
            found.append(interpreter.get_tensor(detail["index"]))
    return _packed([np.stack(found) for found in answers])


def _packed(arrays: list[Any]) -> list[dict[str, Any]]:
    size = sum(array.nbytes for array in arrays)
    if size > _MOST_OUTPUT_BYTES:
        raise ValueError(f"outputs of {size} bytes are too many for one answer; give fewer inputs at once")
    return [
        {"dtype": array.dtype.str, "shape": array.shape, "data": base64.b64encode(array.tobytes()).decode("ascii")}
        for array in arrays
    ]


def _file_digest(path: str) -> str:
    """In pieces, and after the runs: a whole copy would show in the peak memory."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:  # noqa: PTH123 - saves a small device the import of pathlib
        for chunk in iter(lambda: file.read(_CHUNK_BYTES), b""):
            digest.update(chunk)
    return digest.hexdigest()


def _peak_rss_kib() -> int | None:
    """The high-water mark of this program; `getrusage` would count what its parent held before `exec`, too."""
    lines = (_text(f"{PROC}/self/status") or "").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)


def _load_average() -> float | None:
    """Of the last minute; None where the system keeps none."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return None


def _state() -> dict[str, Any]:
    """What the device's state is just now; None for what it doesn't tell.

    The clock is that of the core that we run on: what idle ones do says nothing of the measured code.
    """
    cpu = f"{SYS}/devices/system/cpu/cpu{_core()}/cpufreq/"
    hottest, limit = max(_zones(), key=lambda zone: zone[0], default=(None, None))
    return {
        "temperature_c": hottest,
        "temperature_limit_c": limit,
        "frequency_khz": _number(cpu + "scaling_cur_freq"),
        "frequency_max_khz": _number(cpu + "cpuinfo_max_freq"),
        "governor": _text(cpu + "scaling_governor"),
        "swapped_pages": _swapped_pages(),
    }


def _core() -> str:
    """The number of the core that we run on. ref: proc_pid_stat(5), field 39; the name may hold spaces."""
    fields = (_text(f"{PROC}/self/stat") or "").rpartition(")")[2].split()
    return fields[36] if len(fields) > 36 else "0"


def _zones() -> list[tuple[float, float | None]]:
    """Each thermal zone's temperature, and where it begins to slow the device down, in Celsius."""
    zones = [(_number(f"{zone}/temp"), zone) for zone in _listed(f"{SYS}/class/thermal", "thermal_zone")]
    return [(t / 1e3, _passive_c(zone)) for t, zone in zones if t is not None and 0 < t / 1e3 < _HOTTEST_C]


def _passive_c(zone: str) -> float | None:
    """The lowest of a zone's passive trip points. ref: https://docs.kernel.org/driver-api/thermal/sysfs-api.html."""
    types = [name for name in _listed(zone, "trip_point_") if name.endswith("_type") and _text(name) == "passive"]
    points = [_number(name[: -len("type")] + "temp") for name in types]
    return min((point / 1e3 for point in points if point is not None), default=None)


def _listed(folder: str, start: str) -> list[str]:
    try:
        return [f"{folder}/{name}" for name in sorted(os.listdir(folder)) if name.startswith(start)]  # noqa: PTH208
    except OSError:
        return []


def _swapped_pages() -> int | None:
    """Pages that went to swap or came from there since the system started. ref: proc_vmstat(5)."""
    lines = (_text(f"{PROC}/vmstat") or "").splitlines()
    counts = [int(line.split()[1]) for line in lines if line.startswith(("pswpin ", "pswpout "))]
    return sum(counts) if counts else None


def _number(path: str) -> float | None:
    try:
        return float(_text(path) or "")
    except ValueError:
        return None


def _text(path: str) -> str | None:
    try:
        with open(path, encoding="ascii", errors="replace") as file:  # noqa: PTH123
            return file.read().strip()
    except OSError:
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
