"""What each node of a model takes by ai-edge-litert's profiler: a file that is pushed to a device, as the runner is.

    python litert_profiler.py '{"model": "m.tflite", "runs": 100, "warmup_runs": 10, "nonce": "4f"}'

Needs Python 3.7 and ai-edge-litert of the one version whose C interface this is written for, which has no promise to
stay: see `VERSION`. On stdout stands one line that starts with `RESULT` and goes on as JSON; or with `ERROR`, and then
the exit code is 1. Its `nodes` are each node's name, the index of its operator, and its us, in the order they ran;
what a delegate runs in the place of operators has no index. The profiler drops what is less than a whole microsecond.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import sys
from typing import Any

VERSION = "2.3.0"
RESULT = "EDGEBUILD-RESULT "
ERROR = "EDGEBUILD-ERROR "
_CPU = 1
# ref: LiteRT's litert_profiler_event.h: what the interpreter ran by itself, and what a delegate ran within its node.
_OPERATOR, _DELEGATED = 2, 8
_HANDLE = ctypes.c_void_p
_MOST_DIMENSIONS = 8


class _Layout(ctypes.Structure):
    _fields_ = (
        ("rank", ctypes.c_uint32),
        ("dimensions", ctypes.c_int32 * _MOST_DIMENSIONS),
        ("strides", ctypes.c_uint32 * _MOST_DIMENSIONS),
    )


class _Type(ctypes.Structure):
    _fields_ = (("element", ctypes.c_int), ("layout", _Layout))


class _Event(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("kind", ctypes.c_int),
        ("start_us", ctypes.c_uint64),
        ("elapsed_us", ctypes.c_uint64),
        ("memory", ctypes.c_uint64 * 6),
        ("node", ctypes.c_int64),
        ("subgraph", ctypes.c_int64),
        ("source", ctypes.c_int),
    )


class _Model:
    """A model that is ready to run, with its profiler."""

    def __init__(self, library: Any, path: str) -> None:
        self._library = library
        options, graph, index = _HANDLE(), _HANDLE(), ctypes.c_size_t()
        self._environment, self._file, self._compiled, self.profiler = _HANDLE(), _HANDLE(), _HANDLE(), _HANDLE()
        self("CreateEnvironment", 0, None, ctypes.byref(self._environment))
        self("CreateModelFromFile", self._environment, path.encode(), ctypes.byref(self._file))
        self("CreateOptions", ctypes.byref(options))
        self("SetOptionsHardwareAccelerators", options, _CPU)
        self("AddOpaqueOptions", options, self._profiling())
        self("CreateCompiledModel", self._environment, self._file, options, ctypes.byref(self._compiled))
        self("CompiledModelGetProfiler", self._compiled, ctypes.byref(self.profiler))
        self("GetMainModelSubgraphIndex", self._file, ctypes.byref(index))
        self("GetModelSubgraph", self._file, index, ctypes.byref(graph))
        self._inputs, self._outputs = self._buffers("Input", graph), self._buffers("Output", graph)

    def __call__(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, "LiteRt" + name)(*arguments)
        if status:
            raise RuntimeError(f"LiteRt{name} gave status {status}")

    def run(self) -> None:
        ends = [end for buffers in (self._inputs, self._outputs) for end in (ctypes.c_size_t(len(buffers)), buffers)]
        self("RunCompiledModel", self._compiled, ctypes.c_size_t(0), *ends)

    def profiled(self) -> list[tuple[str, int | None, int]]:
        """Name, operator and us of each node in one inference."""
        count = ctypes.c_int()
        self("ResetProfiler", self.profiler)
        self("StartProfiler", self.profiler)
        self.run()
        self("StopProfiler", self.profiler)
        self("GetNumProfilerEvents", self.profiler, ctypes.byref(count))
        events = (_Event * count.value)()
        self("GetProfilerEvents", self.profiler, count, events)
        nodes = [event for event in events if event.kind in (_OPERATOR, _DELEGATED)]
        return [(e.name.decode(), e.node if e.kind == _OPERATOR else None, e.elapsed_us) for e in nodes]

    def _profiling(self) -> Any:
        made = _HANDLE()
        self._text = ctypes.create_string_buffer(b"enable_profiling = true\n")
        self._keep = ctypes.CFUNCTYPE(None, _HANDLE)(lambda _: None)  # The text is ours, and stays as long as we do.
        text = ctypes.cast(self._text, _HANDLE)
        self("CreateOpaqueOptions", b"runtime_options_string", text, self._keep, ctypes.byref(made))
        return made

    def _buffers(self, end: str, graph: Any) -> Any:
        count = ctypes.c_size_t()
        self(f"GetNumSubgraph{end}s", graph, ctypes.byref(count))
        return (_HANDLE * count.value)(*(self._buffer(end, graph, place).value for place in range(count.value)))

    def _buffer(self, end: str, graph: Any, place: int) -> Any:
        tensor, kind, needs, made = _HANDLE(), _Type(), _HANDLE(), _HANDLE()
        index = ctypes.c_size_t(place)
        self(f"GetSubgraph{end}", graph, index, ctypes.byref(tensor))
        self("GetRankedTensorType", tensor, ctypes.byref(kind))
        self(f"GetCompiledModel{end}BufferRequirements", self._compiled, ctypes.c_size_t(0), index, ctypes.byref(needs))
        arguments = (self._environment, ctypes.byref(kind), needs, ctypes.byref(made))
        self("CreateManagedTensorBufferFromRequirements", *arguments)
        return made


def profile(request: dict[str, Any]) -> dict[str, Any]:
    """Run the request's model and say what its nodes took."""
    model = _Model(_library(), request["model"])
    for _ in range(request["warmup_runs"]):
        model.run()
    runs = [model.profiled() for _ in range(request["runs"])]
    order = [(name, node) for name, node, _ in runs[0]]
    if any([(name, node) for name, node, _ in run] != order for run in runs):
        raise RuntimeError("the nodes of one inference are not those of another")
    means = [_middle([run[place][2] for run in runs]) for place in range(len(order))]
    with open(request["model"], "rb") as file:  # noqa: PTH123 - as the runner does
        digest = hashlib.sha256(file.read()).hexdigest()
    nodes = [[name, node, mean] for (name, node), mean in zip(order, means)]  # noqa: B905 - Python 3.7 has no strict
    return {"nonce": request["nonce"], "model_sha256": digest, "runtime": f"ai_edge_litert {VERSION}", "nodes": nodes}


def _middle(values: list[int]) -> float:
    """The mean of the middle half: a median of whole microseconds is coarse, and a mean hears every interruption."""
    quarter = len(values) // 4
    kept = sorted(values)[quarter : len(values) - quarter]
    return sum(kept) / len(kept)


def _library() -> Any:
    import ai_edge_litert

    if ai_edge_litert.__version__ != VERSION:
        raise ImportError(f"the profiler of ai-edge-litert is known for {VERSION}, not {ai_edge_litert.__version__}")
    return ctypes.CDLL(os.path.join(os.path.dirname(ai_edge_litert.__file__), "libLiteRt.so"))  # noqa: PTH118, PTH120


def main(arguments: list[str]) -> int:
    """Answer the request in the only argument with one line."""
    try:
        line = RESULT + json.dumps(profile(json.loads(arguments[0])), sort_keys=True)
    except (AttributeError, IndexError, KeyError, ImportError, OSError, RuntimeError, TypeError, ValueError) as e:
        line = ERROR + json.dumps({"message": f"{type(e).__name__}: {e}"})
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
    return 1 if line.startswith(ERROR) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
