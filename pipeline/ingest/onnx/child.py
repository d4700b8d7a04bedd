"""The child process that converts ONNX: native code of four packages, which may crash on a model or never end.

Reads `source.onnx` and `request.json` from a folder and leaves there a frozen graph of TensorFlow that
computes what onnxruntime computes, `references.npz`, the data that shows it, and `answer.json`, which names the graph.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from edgebuild.export.errors import ModelError
from edgebuild.pipeline.ingest import apart, parity
from edgebuild.pipeline.ingest.onnx import runtime as onnx_runtime
from edgebuild.pipeline.ingest.onnx.check import Input
from edgebuild.pipeline.ingest.onnx.conversion import Conversion, exports, graph_def, matches
from edgebuild.pipeline.ingest.onnx.match import Match
from edgebuild.pipeline.ingest.onnx.prepare import prepare, simplified
from edgebuild.pipeline.ingest.onnx.runtime import References

RUNTIME: Final = "onnxruntime itself"
FOLDING: Final = "folding constants"


def convert(folder: Path) -> None:
    """Answer one request: the first way whose results are the runtime's own, or why there is none."""
    import tensorflow as tf

    # What turns a division into a product, or fuses operators, makes halves round the other way now and then.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    request = json.loads((folder / "request.json").read_bytes())
    try:
        answer = _converted(folder, request)
    except ModelError as e:
        answer = {"refused": {"what": e.what, "cause": e.cause, "action": e.action}}
    faulthandler.cancel_dump_traceback_later()
    (folder / "answer.json").write_text(json.dumps(answer))


def _converted(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    inputs = tuple(Input(**entry | {"shape": tuple(entry["shape"])}) for entry in request["inputs"])
    model = _prepared(folder, inputs)
    inputs = tuple(replace(entry, shape=entry.shape or (1,)) for entry in inputs)  # As `prepare` has them.
    _begin(folder, RUNTIME, request["way_s"])
    references = onnx_runtime.references(model, inputs)
    _require_fixed(model, references)
    outputs = [array for _, arrays in references for array in arrays]
    batched = all(entry.batched for entry in inputs) and all(array.shape[:1] == (1,) for array in outputs)
    search = _Search(folder, references, dict(request["failed"]), request["way_s"], batched=batched)
    return search.answer(model)


def _prepared(folder: Path, inputs: Sequence[Input]) -> Any:
    import onnx

    try:
        return prepare(onnx.load(folder / "source.onnx"), inputs)
    except Exception as e:  # the package's errors have no common base
        raise ModelError("the graph is not sound", cause=_why(e), action="export the model again") from e


def _begin(folder: Path, what: str, seconds: float) -> None:
    """Write down which step begins, so that the parent knows it if this process dies; end the process if it hangs.

    `seconds` is the step's own limit; native code does not notice the signal that enforces it, and gets twice as long.
    """
    (folder / "way").write_text(what)
    faulthandler.dump_traceback_later(2 * seconds, exit=True)


def _require_fixed(model: Any, references: References) -> None:
    """Refuse a model whose values decide its sizes: a flatbuffer's are fixed. Names the node where it begins."""
    if len({tuple(array.shape for array in outputs) for _, outputs in references}) == 1:
        return
    from edgebuild.pipeline.ingest.onnx.parting import first_of_open_size

    raise ModelError(
        f"{first_of_open_size(model, [arrays for arrays, _ in references])} gives another size for other values",
        cause="the sizes of a flatbuffer are fixed",
        action="leave that node, and what comes behind it, outside the model",
    )


class _Search:
    """Tries the ways of converting in turn, keeping why each failed.

    Where none succeeds wholly, the first that computes right serves, though no flatbuffer can be made of it.
    """

    def __init__(
        self, folder: Path, references: References, failed: dict[str, str], way_s: float, *, batched: bool
    ) -> None:
        self._folder, self._references, self._failed = folder, references, failed
        self._way_s, self._batched = way_s, batched
        self._tried = list(failed.items())
        self._parted = ""
        self._second_best: dict[str, Any] | None = None

    def answer(self, model: Any) -> dict[str, Any]:
        """The first way that succeeds, or else the first that computes right: it can still be inspected and trained.

        Raises:
            ModelError: every way fails; says each reason once, with the ways it holds for.
        """
        for name, source, way in _ways(model, self._folded(model)):
            found = None if name in self._failed else self._try(name, source, way)
            if found:
                return found
        if self._second_best:
            return self._second_best
        raise ModelError("no way of converting it computes the same", cause=self._parted + _reasons(self._tried))

    def _folded(self, model: Any) -> Any:
        if FOLDING in self._failed:
            return model
        _begin(self._folder, FOLDING, self._way_s)
        return simplified(model)

    def _try(self, name: str, source: Any, way: Callable[[], Conversion]) -> dict[str, Any] | None:
        _begin(self._folder, name, self._way_s)
        try:
            with _no_longer_than(self._way_s):
                conversion = way()
            found = matches(conversion, self._references, batched=self._batched)
        except Exception as e:  # noqa: BLE001 - onnx2tf and TensorFlow raise what they run into; there are other ways
            self._tried.append((name, _why(e)))
            return None
        error = max(match.error for match in found)
        if error > parity.MAX_RELATIVE_ERROR:
            self._tried.append((name, f"off by {error:.2g} of the outputs' range"))
            self._parted = self._parted or _parting(source, conversion, self._references[0][0], name)
            return None
        if exports(conversion):
            return self._kept(name, conversion, found)
        self._second_best = self._second_best or self._kept(name, conversion, found)
        return None

    def _kept(self, name: str, conversion: Conversion, found: list[Match]) -> dict[str, Any]:
        """The answer, and the files it speaks of under the way's own names."""
        graph = f"{len(self._tried)}.pb"
        encoded = graph_def(conversion.function, batched=self._batched).SerializeToString()
        (self._folder / graph).write_bytes(encoded)
        _save(self._folder, self._references)
        return _answer(name, conversion, found, batched=self._batched) | {"graph": graph}


def _parting(model: Any, conversion: Conversion, arrays: list[Any], name: str) -> str:
    """Where the first way that ran parts from onnxruntime, for the refusal to say; empty where no node shows it."""
    from edgebuild.pipeline.ingest.onnx.parting import first_difference

    try:
        node = first_difference(model, conversion, arrays)
    except Exception as e:  # noqa: BLE001 - it is only to say more; the refusal stands either way
        return f"by {name} they part, and where can't be told ({_why(e)}); "
    return f"by {name} they part at {node}; " if node else ""


def _ways(model: Any, small: Any) -> list[tuple[str, Any, Callable[[], Conversion]]]:
    """The ways of converting in the order they are tried: name, the model each converts, and the call that does it."""
    from edgebuild.pipeline.ingest.onnx.direct import convert as directly
    from edgebuild.pipeline.ingest.onnx.to_tf import convert as by_onnx2tf
    from edgebuild.pipeline.ingest.onnx.to_tf import kept_inputs

    every = frozenset(value.name for value in model.graph.input)
    none: frozenset[str] = frozenset()
    fitting = kept_inputs(small)
    return [
        ("onnx2tf", small, lambda: by_onnx2tf(small, fitting, disable_strict_mode=True)),
        ("onnx2tf, all inputs channels last", small, lambda: by_onnx2tf(small, none, disable_strict_mode=True)),
        ("onnx2tf, all inputs as they are", small, lambda: by_onnx2tf(small, every, disable_strict_mode=True)),
        ("operator by operator", small, lambda: directly(small)),
        ("operator by operator, constants unfolded", model, lambda: directly(model)),
    ]


def _reasons(tried: Sequence[tuple[str, str]]) -> str:
    ways: dict[str, list[str]] = {}
    for name, why in tried:
        ways.setdefault(why, []).append(name)
    return "; ".join(f"{' and '.join(names)}: {why}" for why, names in ways.items())


def _why(error: Exception) -> str:
    if isinstance(error, ModelError):
        return f"{error.what}: {error.cause}" if error.cause else error.what
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


@contextlib.contextmanager
def _no_longer_than(seconds: float) -> Iterator[None]:
    """Interrupt what takes longer, every 0.2 s until it ends: onnx2tf swallows errors in places."""
    message = f"it takes longer than {seconds:g} s"

    def interrupt(*_: object) -> None:
        raise ModelError(message)

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _save(folder: Path, references: References) -> None:
    import numpy as np

    arrays = {
        f"{number}/{kind}/{i}": array
        for number, (ins, outs) in enumerate(references)
        for kind, arrays in (("in", ins), ("out", outs))
        for i, array in enumerate(arrays)
    }
    np.savez(folder / "references.npz", **arrays)


def _answer(name: str, conversion: Conversion, found: Sequence[Match], *, batched: bool) -> dict[str, Any]:
    ends = zip(conversion.function.inputs, conversion.input_axes, strict=True)
    outputs = zip(conversion.function.outputs, found, strict=True)
    return {
        "way": name,
        "batched": batched,
        "inputs": [{"tensor": t.name, "shape": list(t.shape), "dtype": t.dtype.name, "axes": a} for t, a in ends],
        "outputs": [{"tensor": tensor.name, **asdict(match)} for tensor, match in outputs],
    }


if __name__ == "__main__":
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    apart.confine()
    convert(Path(sys.argv[1]))
