"""Warm processes that put one case after the other to a tool; one that hangs, crashes or eats memory is replaced."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import resource
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from pathlib import Path
from typing import IO, Any, Final, Literal

import numpy as np
from onnx_cases import Case, equal

LIMIT_S: Final = 120
MEMORY_BYTES: Final = 8 * 2**30
CASES_EACH: Final = 50  # Then a fresh process: converting leaks memory.
_WAY_S: Final = 20.0
_KINDS: Final = (  # A pattern to find in a refusal, and what to count it as.
    (r"somebody's own operators: ai\.onnx\.ml", "an operator of ai.onnx.ml"),
    (r"\((\w+)\) gives another size for other values", "{0}: its result's size depends on values that are inputs"),
    (r"Scale value should be greater than 0", "Resize: its result's size depends on values that are inputs"),
    (r"Depth is negative", "OneHot: its result's size depends on values that are inputs"),
    (r"is constant: it does not depend", "an output is constant"),
    (r"unfolded: node .* \((\w+)\) can't be replayed: (.*)", "{0}: {1}"),
    (r"(TensorFlow's converter refuses)", "{0}"),
)
_COLOURS: Final = re.compile(r"\x1b\[[\d;]*m")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of a case; `kind` is the reason without names and numbers, for counting."""

    verdict: Literal["right", "refused", "wrong"]
    reason: str = ""
    kind: str = ""

    def record(self) -> dict[str, str]:
        """As plain data."""
        return asdict(self)


def run(todo: Sequence[tuple[str, Case]], workers: int) -> Iterator[tuple[str, Case, Verdict]]:
    """Put each (tool, case) to one of so many workers, and give the verdicts in the order they come."""
    waiting: queue.SimpleQueue[tuple[str, Case]] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[str, Case, Verdict]] = queue.SimpleQueue()
    for item in todo:
        waiting.put(item)
    threads = [
        threading.Thread(target=_keep_one_busy, args=(waiting, done), daemon=True)
        for _ in range(min(workers, len(todo)))
    ]
    for thread in threads:
        thread.start()
    for _ in todo:
        yield done.get()
    for thread in threads:
        thread.join()


def _keep_one_busy(waiting: queue.SimpleQueue[Any], done: queue.SimpleQueue[Any]) -> None:
    """Ask one worker until nothing waits; a fresh one after `CASES_EACH`, or where one did not answer."""
    process: subprocess.Popen[str] | None = None
    count = 0
    for tool, case in iter(lambda: _next(waiting), None):
        if process is None or count >= CASES_EACH:
            _end(process)
            process, count = _start(), 0
        count += 1
        verdict = _ask(process, tool, case)
        if verdict is None:
            verdict, process = _silent(_end(process)), None
        done.put((tool, case, verdict))
    _end(process)


def _next(waiting: queue.SimpleQueue[Any]) -> Any:
    try:
        return waiting.get_nowait()
    except queue.Empty:
        return None


def _silent(code: int) -> Verdict:
    how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
    return Verdict(verdict="refused", reason=f"the process {how}, or took over {LIMIT_S} s", kind="crash or hang")


def _start() -> subprocess.Popen[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # onnx2tf starts onnxsim as a command.
    variables = {"PATH": path, "TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
    return subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | variables,
        start_new_session=True,
    )


def _ask(process: subprocess.Popen[str], tool: str, case: Case) -> Verdict | None:
    """The worker's verdict, or None where it did not answer."""
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the worker has no pipes")
    try:
        process.stdin.write(json.dumps([tool, case.name, str(case.folder)]) + "\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], LIMIT_S)
        line = process.stdout.readline() if ready else ""
    except BrokenPipeError:
        return None
    return Verdict(**json.loads(line)) if line else None


def _end(process: subprocess.Popen[str] | None) -> int:
    """End a worker with all it started; returns the exit status it had by itself, or that of being killed."""
    if process is None:
        return 0
    code = process.poll()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    ended = process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(BrokenPipeError):  # What it was sent last, it never read.
            if pipe is not None:
                pipe.close()
    return ended if code is None else code


def serve(answers: IO[str]) -> None:
    """Answer cases from standard input until it closes."""
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    tools = {"edgebuild": edgebuild, "onnx2tf": onnx2tf}
    for line in sys.stdin:
        tool, name, folder = json.loads(line)
        try:
            verdict = tools[tool](Case(name=name, folder=Path(folder)))
        except (Exception, SystemExit) as e:  # noqa: BLE001 - a tool's failure on a case is a result
            verdict = Verdict(verdict="refused", reason=_reason(f"{type(e).__name__}: {e}"), kind=type(e).__name__)
        answers.write(json.dumps(verdict.record()) + "\n")
        answers.flush()


def _reason(text: str) -> str:
    """On one line, of a fair length, and without this machine's places."""
    places = (sysconfig.get_path("purelib"), str(Path(__file__).resolve().parents[1]), tempfile.gettempdir())
    for place in places:
        text = text.replace(f"{place}/", "")
    return " ".join(_COLOURS.sub("", text).split())[:400]


def edgebuild(case: Case) -> Verdict:
    """Ingest, float32, tflite-runtime; what the build's own gates refuse is refused."""
    from edgebuild.calibration.errors import Failure

    try:
        return _edgebuild(case)
    except Failure as e:
        told = f"{e.what.partition(f'{case.model}: ')[2] or e.what}: {e.cause}"
        return Verdict(verdict="refused", reason=_reason(told), kind=_kind(told))


def _kind(told: str) -> str:
    """What went wrong in the last way, without names of nodes and numbers, for counting."""
    text = " ".join(told.split())
    for pattern, kind in _KINDS:
        found = re.search(pattern, text)
        if found:
            return kind.format(*found.groups())
    return text[:80]


def _edgebuild(case: Case) -> Verdict:
    import tf_keras

    from edgebuild.export import convert
    from edgebuild.export.interpreter import Interpreter
    from edgebuild.pipeline.ingest import float_model
    from edgebuild.pipeline.ingest.onnx import child as onnx_child
    from edgebuild.pipeline.ingest.onnx import model as onnx_model
    from edgebuild.pipeline.ingest.source import Options

    tf_keras.backend.clear_session()
    reading = onnx_model.read(case.model, Options(), onnx_child.convert, _WAY_S)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        float_model.save(reading, "ONNX", folder)
        model, described = float_model.rebuild(folder), float_model.describe(folder)
        convert.freeze(model, described.inputs, described.outputs, folder / "frozen", batched=described.batched)
        interpreter = Interpreter(convert.to_float(folder / "frozen", "float32"))
    verdicts = (_held_to(reading, model, interpreter, inputs, outputs) for inputs, outputs in case.data())
    right = Verdict(verdict="right", reason="; ".join(reading.notes))
    return next((verdict for verdict in verdicts if verdict is not None), right)


def _held_to(reading: Any, model: Any, interpreter: Any, inputs: list[Any], outputs: list[Any]) -> Verdict | None:
    """What is amiss with one set of stored data; None where nothing is."""
    from edgebuild.pipeline.gates import AGREEMENT_LIMITS
    from edgebuild.pipeline.ingest import parity

    numbered = [array if array.ndim else array[None] for array in inputs]  # A single number is a list of one.
    given = [_turned(array, port.axes) for array, port in zip(numbered, reading.inputs, strict=True)]
    wanted = [_turned(array, port.axes) for array, port in zip(outputs, reading.outputs, strict=True)]
    got = interpreter.run(dict(zip((port.name for port in reading.inputs), given, strict=True)))
    results = [got[port.name] for port in reading.outputs]
    error = parity.relative_error(parity.outputs(model, given), results)
    if not error <= AGREEMENT_LIMITS["float32"]:
        reason = f"the flatbuffer differs from the float model by {error:.2g}"
        return Verdict(verdict="refused", reason=reason, kind="the flatbuffer does not agree with the float model")
    if not equal(wanted, results):
        return Verdict(verdict="wrong", reason=f"off by {parity.relative_error(wanted, results):.2g}", kind="wrong")
    return None


def _turned(array: Any, axes: Sequence[int]) -> Any:
    return np.ascontiguousarray(array.transpose(axes)) if axes else array


def onnx2tf(case: Case) -> Verdict:
    """Plain onnx2tf, with its defaults."""
    import onnx2tf as tool
    import tf_keras

    tf_keras.backend.clear_session()
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(case.model.read_bytes())
        images = np.random.default_rng(0).random((20, 128, 128, 3), np.float32)
        np.save(folder / "calibration_image_sample_data_20x128x128x3_float32.npy", images)  # It would fetch one.
        os.chdir(folder)
        try:
            tool.convert(input_onnx_file_path="model.onnx", output_folder_path="out", non_verbose=True)
            data = (folder / "out" / "model_float32.tflite").read_bytes()
        finally:
            os.chdir(before)
    return _judged(data, case)


def _judged(data: bytes, case: Case) -> Verdict:
    import onnx
    from tflite_runtime.interpreter import Interpreter

    graph = onnx.load(case.model, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    names = [value.name for value in graph.input if value.name not in constants]
    runtime = Interpreter(model_content=data, num_threads=1)
    runtime.allocate_tensors()
    for inputs, outputs in case.data():
        for tensor, array in zip(_in_order(runtime.get_input_details(), names), inputs, strict=True):
            order = {3: (0, 2, 1), 4: (0, 2, 3, 1), 5: (0, 2, 3, 4, 1)}.get(array.ndim, tuple(range(array.ndim)))
            runtime.set_tensor(tensor["index"], np.ascontiguousarray(array.transpose(order)))
        runtime.invoke()
        got = [runtime.get_tensor(tensor["index"]) for tensor in runtime.get_output_details()]
        if not any(_fits(outputs, list(chosen)) for chosen in permutations(got)):
            return Verdict(verdict="wrong", reason="no order of outputs and axes fits", kind="wrong")
    return Verdict(verdict="right")


def _in_order(details: list[dict[str, Any]], names: list[str]) -> list[dict[str, Any]]:
    """Its inputs in the model's order, by name where the names are kept."""
    by_name = {str(detail["name"]).removeprefix("serving_default_").partition(":")[0]: detail for detail in details}
    return [by_name[name] for name in names] if sorted(by_name) == sorted(names) else details


def _fits(wanted: list[Any], got: list[Any]) -> bool:
    return len(wanted) == len(got) and all(
        any(equal([array.transpose(axes)], [result]) for axes in permutations(range(array.ndim)))
        for array, result in zip(wanted, got, strict=True)
    )


if __name__ == "__main__":
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Libraries print where they like.
    serve(pipe)
