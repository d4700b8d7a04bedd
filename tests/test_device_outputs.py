"""Outputs of a device held against ours: what must be equal, what may differ and by how much, and what is wrong."""

from __future__ import annotations

import importlib.util
import re
import sysconfig
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from device_samples import SAMPLE
from flatbuffers_made import chain, model, operator, packed, tensor
from numpy.typing import NDArray

from edgebuild.device_tests import outputs
from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.local import LocalTransport
from edgebuild.device_tests.outputs import DeviceAgreement, Run, agreement, check, made_up, run, wrong
from edgebuild.device_tests.sample import Answer, ProcessSample
from edgebuild.device_tests.steps import MOST_STEPS, gap
from edgebuild.device_tests.transport import DeviceFingerprint, RunRequest
from edgebuild.export import flatbuffer
from edgebuild.export.errors import ModelError
from edgebuild.export.flatbuffer import Flatbuffer

FIXTURES: Final = Path(__file__).parents[2] / "shared" / "fixtures"
REQUEST: Final = RunRequest()
RAN: Final = replace(SAMPLE, operators=1, delegated=0)
# The real runtime under its own name, but for what it answers.
STAND_IN: Final = """
import importlib.util
spec = importlib.util.spec_from_file_location("tflite_runtime.right", {real!r} + "/interpreter.py")
right = importlib.util.module_from_spec(spec)
spec.loader.exec_module(right)
OpResolverType = right.OpResolverType
class Interpreter(right.Interpreter):
    def get_tensor(self, index):
        values = super().get_tensor(index)
        return {answer}
"""


def fixture(name: str) -> Path:
    path = FIXTURES / name
    if not path.exists():
        pytest.skip(f"the fixture {name} is not here")
    return path


def quantized(made: Any, scale: float = 0.5) -> Any:
    made.quantization = schema.QuantizationParametersT()
    made.quantization.scale, made.quantization.zeroPoint = [scale], [0]
    return made


def one_output(kind: str, *, scale: float | None = None) -> Flatbuffer:
    """A model whose only output is of this type, quantized if there is a scale."""
    made = [tensor("in", kind=kind), tensor("out", kind=kind)]
    if scale:
        made = [quantized(each, scale) for each in made]
    return flatbuffer.read(packed(model(made, [operator([0], [1])], outputs=[1])))


INT8: Final = one_output("INT8", scale=0.5)
FLOAT: Final = one_output("FLOAT32")
LABELS: Final = one_output("INT64")


def ran(*values: NDArray[Any], machine: str = "x86_64", **said: Any) -> Run:
    return Run(machine=machine, sample=replace(RAN, **said), outputs=values)


def elsewhere(made: Flatbuffer, ours: NDArray[Any], theirs: NDArray[Any]) -> DeviceAgreement:
    """Against another machine, where nothing is promised."""
    return agreement(made, ran(ours), ran(theirs, machine="aarch64"))


def classes(n: int = 100, count: int = 10) -> NDArray[np.int8]:
    """Plain decisions `[n, 1, count]`, a class after the other."""
    values = np.full((n, 1, count), -128, np.int8)
    values[np.arange(n), 0, np.arange(n) % count] = 100
    return values


def test_an_integer_model_is_equal_to_itself_where_that_is_promised() -> None:
    path = fixture("ad01_toycar/ad01_int8.tflite")
    found = check(LocalTransport(), path, REQUEST, made_up(outputs.read(path)))
    assert (found.verdict, found.exact, found.promised_exact, found.n) == ("equal", True, True, outputs.SAMPLES)


def test_xnnpack_is_close_and_not_equal() -> None:
    path = fixture("ad01_toycar/ad01_fp32.tflite")
    found = check(LocalTransport(), path, replace(REQUEST, delegate="xnnpack"), made_up(outputs.read(path)))
    assert (found.verdict, found.exact, found.promised_exact) == ("close", False, False)
    assert found.rms_steps is not None
    assert found.max_steps is not None
    assert 0 < found.rms_steps < found.max_steps < 0.1
    assert "10 of 10 operators delegated against" in found.note


@pytest.mark.parametrize("answer", ["values ^ 1", "-values", "values * 0", "values[..., ::-1]", "values.astype('i2')"])
def test_a_runtime_that_computes_wrong_fails(tmp_path: Path, answer: str) -> None:
    path = fixture("ad01_toycar/ad01_int8.tflite")
    found = check(stand_in(tmp_path, answer), path, REQUEST, made_up(outputs.read(path), n=4))
    assert (found.verdict, found.exact, found.promised_exact) == ("wrong", False, True)
    assert re.search(r"(?s)pi computes wrong.*values differ.*must be equal", str(wrong(found, "pi")))


def stand_in(folder: Path, answer: str) -> LocalTransport:
    """A device whose runtime gives something else for what the real one gives."""
    real = Path(str(importlib.util.find_spec("tflite_runtime").origin)).parent  # type: ignore[union-attr]
    package = folder / "tflite_runtime"
    package.mkdir()
    site = sysconfig.get_path("purelib")
    text = f"import sys\nsys.path.append({site!r})\n__path__.append({str(real)!r})\n__version__ = '2.14.0'\n"
    (package / "__init__.py").write_text(text, encoding="utf-8")
    (package / "interpreter.py").write_text(STAND_IN.format(real=str(real), answer=answer), encoding="utf-8")
    return LocalTransport(packages=folder)


def test_what_is_right_passes() -> None:
    assert wrong(elsewhere(INT8, classes(), classes()), "pi") is None


@pytest.mark.parametrize(
    ("there", "verdict"),
    [
        ({}, "wrong"),
        ({"machine": "aarch64"}, "close"),
        ({"runtime": "tflite_runtime 2.13.0"}, "close"),
        ({"delegated": 1}, "close"),
        ({"delegated": None}, "close"),
    ],
)
def test_equality_is_promised_for_integers_on_one_machine_by_one_runtime_without_delegate(
    there: dict[str, Any], verdict: str
) -> None:
    ours = classes()
    found = agreement(INT8, ran(ours), ran(ours ^ np.int8(1), **there))
    assert (found.verdict, found.promised_exact) == (verdict, verdict == "wrong")


def test_equality_of_floats_is_never_promised() -> None:
    ours = np.linspace(0, 1, 40, dtype=np.float32).reshape(4, 1, 10)
    found = agreement(FLOAT, ran(ours), ran(np.nextafter(ours, np.float32(2))))
    assert (found.verdict, found.promised_exact, found.differing) == ("close", False, 1.0)


def test_roundings_are_close_and_are_told() -> None:
    ours = classes()
    theirs = ours.copy()
    theirs[3, 0, 3] -= 30
    found = elsewhere(INT8, ours, theirs)
    assert (found.verdict, found.max_steps, found.differing, found.top1) == ("close", 30.0, 0.001, 1.0)
    assert found.rms_steps == pytest.approx(np.sqrt(30**2 / ours.size))


def test_differences_above_the_limit_are_wrong() -> None:
    ours = classes()
    found = elsewhere(INT8, ours, ours + np.int8(MOST_STEPS + 1))
    assert (found.verdict, found.top1, found.limit_steps) == ("wrong", 1.0, MOST_STEPS)
    assert elsewhere(INT8, ours, ours + np.int8(MOST_STEPS)).verdict == "close"


def test_another_samples_outputs_are_wrong_however_little_they_change() -> None:
    ours = np.random.default_rng(0).integers(0, 5, (50, 1, 10, 3), np.int8)
    found = elsewhere(INT8, ours, np.roll(ours, 1, axis=0))
    assert (found.verdict, found.top1) == ("wrong", None)
    assert found.max_steps is not None
    assert found.max_steps < MOST_STEPS


def test_classes_that_are_about_as_good_count_as_the_same() -> None:
    ours = classes()
    ours[:, 0, 4] = np.maximum(ours[:, 0, 4], 95)
    theirs = ours.copy()
    theirs[:, 0, 4] = 105
    assert elsewhere(INT8, ours, theirs).top1 == 1.0


@pytest.mark.parametrize(("n", "changed", "verdict"), [(1000, 70, "close"), (1000, 90, "wrong"), (8, 1, "close")])
def test_other_classes_are_wrong_where_they_are_more_than_chance(n: int, changed: int, verdict: str) -> None:
    ours = classes(n, 1000)  # So many that the steps hardly tell.
    theirs = ours.copy()
    theirs[:changed] = np.roll(theirs[:changed], 1, axis=2)
    found = elsewhere(INT8, ours, theirs)
    assert (found.verdict, found.top1) == (verdict, (n - changed) / n)
    assert found.rms_steps is not None
    assert found.rms_steps < found.limit_steps


def test_labels_count_by_how_many_are_equal() -> None:
    ours = np.arange(1000).reshape(10, 1, 100)
    near, far = ours.copy(), ours.copy()
    near[0, 0, :9] += 500
    far[:, 0, :40] += 1
    found = elsewhere(LABELS, ours, near)
    assert (found.verdict, found.top1, found.max_steps) == ("close", 0.991, 0.0)
    assert elsewhere(LABELS, ours, far).verdict == "wrong"


def test_numbers_that_are_none_must_be_none_on_both_sides() -> None:
    ours = np.linspace(0, 1, 40, dtype=np.float32).reshape(4, 1, 10)
    odd = ours.copy()
    odd[0, 0, :3] = np.nan, np.inf, -np.inf
    assert elsewhere(FLOAT, odd, odd.copy()).verdict == "equal"
    for one, other in ((ours, odd), (odd, ours)):
        found = elsewhere(FLOAT, one, other)
        assert (found.verdict, found.max_steps) == ("wrong", None)


def dequantizing() -> Flatbuffer:
    made = [quantized(tensor("in", kind="INT8"), 0.25), tensor("out")]
    return flatbuffer.read(packed(model(made, [operator([0], [1])], outputs=[1], kinds=["DEQUANTIZE"])))


def hybrid() -> Flatbuffer:
    weights = quantized(tensor("w", (4, 4), buffer=1, kind="INT8"))
    made = model(
        [tensor("in"), weights, tensor("out")],
        [operator([0, 1, -1], [2])],
        outputs=[2],
        kinds=["FULLY_CONNECTED"],
        contents=[bytes(range(16))],
    )
    return flatbuffer.read(packed(made))


@pytest.mark.parametrize(
    ("made", "step"), [(INT8, 1.0), (dequantizing(), 0.25), (hybrid(), 8 / 255), (FLOAT, 8 / 2048)]
)
def test_a_step_is_what_one_rounding_can_do(made: Flatbuffer, step: float) -> None:
    ours = np.array([[-8.0, 1.0], [4.0, 2.0]])
    theirs = np.array([[-8.0, 4.0], [4.0, 2.0]])
    assert gap(made, made.main.tensors[made.main.outputs[0]], ours, theirs).max_steps == pytest.approx(3 / step)


def test_outputs_of_another_shape_or_number_are_wrong() -> None:
    ours = classes()
    for theirs in (ran(ours[:-1]), ran(ours.astype(np.uint8)), ran(ours, ours), ran()):
        found = agreement(INT8, ran(ours), theirs)
        assert (found.verdict, found.max_steps, found.differing) == ("wrong", None, 1.0)
        assert "not ['int8 [100, 1, 10]']" in found.note


def test_the_worst_of_several_outputs_decides() -> None:
    made = two_by_two()
    good = np.linspace(0, 1, 30, dtype=np.float32).reshape(10, 3)
    bad = good.copy()
    bad[:, 2] = 0
    for theirs in ((good, bad), (bad, good)):
        found = agreement(made, ran(good, good), ran(*theirs, machine="aarch64"))
        assert (found.verdict, found.differing) == ("wrong", 10 / 60)
        assert found.rms_steps is not None
        assert found.rms_steps > found.limit_steps


def two_by_two() -> Flatbuffer:
    return flatbuffer.read(two_by_two_bytes())


def two_by_two_bytes() -> bytes:
    """Two inputs and two outputs of other shapes, the outputs in the inputs' opposite order."""
    made = [tensor("a"), tensor("b", (1, 2, 3)), tensor("positive_a"), tensor("positive_b", (1, 2, 3))]
    operators = [operator([0], [2]), operator([1], [3])]
    return packed(model(made, operators, inputs=[0, 1], outputs=[3, 2]))


@pytest.fixture
def two(tmp_path: Path) -> Path:
    (tmp_path / "two.tflite").write_bytes(two_by_two_bytes())
    return tmp_path / "two.tflite"


@pytest.mark.parametrize("bytes_at_once", [1, 4 << 20])
def test_several_inputs_and_outputs_keep_their_places(
    two: Path, bytes_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "_MOST_ANSWER_BYTES", bytes_at_once)
    rng = np.random.default_rng(1)
    given = {"b": rng.normal(size=(3, 2, 3)), "a": rng.normal(size=(3, 4))}
    b, a = run(LocalTransport(), two, REQUEST, given).outputs
    np.testing.assert_array_equal(a[:, 0], np.maximum(given["a"], 0).astype(np.float32))
    np.testing.assert_array_equal(b[:, 0], np.maximum(given["b"], 0).astype(np.float32))


def test_a_model_made_for_a_device_is_held_against_the_one_it_was_made_from(tmp_path: Path) -> None:
    for count in (1, 2):
        (tmp_path / f"{count}.tflite").write_bytes(chain(count))
    compiled, plain = tmp_path / "2.tflite", tmp_path / "1.tflite"
    host = Recorder()
    found = check(LocalTransport(), compiled, REQUEST, {"t0": np.ones((2, 4))}, reference=plain, host=host)
    assert found.verdict == "equal"
    assert host.seen == [(plain, "none")]


class Recorder:
    """This machine, and what it was asked for."""

    def __init__(self) -> None:
        self.seen: list[tuple[Path, str]] = []

    def fingerprint(self) -> DeviceFingerprint:
        return LocalTransport().fingerprint()

    def run(self, model: Path, request: RunRequest, timeout_s: float) -> ProcessSample:
        self.seen.append((model, request.delegate))
        return LocalTransport().run(model, request, timeout_s)


class Scripted(Recorder):
    """A device that gives these outputs, process by process."""

    def __init__(self, answers: Sequence[tuple[Answer, ...] | None]) -> None:
        super().__init__()
        self.answers = list(answers)

    def run(self, model: Path, request: RunRequest, timeout_s: float) -> ProcessSample:
        self.seen.append((model, request.delegate))
        assert timeout_s > 0
        return replace(RAN, outputs=self.answers.pop(0))


@pytest.mark.parametrize("nothing", [None, ()])
def test_an_answer_without_outputs_is_a_device_error(two: Path, nothing: tuple[Answer, ...] | None) -> None:
    with pytest.raises(DeviceError, match="gave no outputs of two"):
        run(Scripted([nothing]), two, REQUEST, made_up(two_by_two()))


def test_outputs_that_change_their_shape_are_a_device_error(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "_MOST_ANSWER_BYTES", 1)
    answers = [(Answer(dtype="|i1", shape=(1, n), data=bytes(n)),) for n in (2, 3)]
    with pytest.raises(DeviceError, match="change from sample to sample"):
        run(Scripted(answers), two, REQUEST, made_up(two_by_two(), n=2))


def test_without_samples_nothing_is_run(two: Path) -> None:
    with pytest.raises(ValueError, match="without a sample"):
        run(Scripted([]), two, REQUEST, made_up(two_by_two(), n=0))


def test_a_sample_that_lacks_an_input_is_a_model_error(two: Path) -> None:
    with pytest.raises(ModelError, match="input b is not given"):
        run(Scripted([]), two, REQUEST, {"a": np.ones((1, 4))})


def test_made_up_samples_fill_their_types() -> None:
    int8 = made_up(INT8, n=2000)["in"]
    assert (int8.shape, int8.min(), int8.max()) == ((2000, 4), -64.0, 63.5)
    floats = made_up(FLOAT, n=2000)["in"]
    assert 0 <= floats.min() < 0.01
    assert 0.99 < floats.max() < 1
    assert set(made_up(LABELS, n=2000)["in"].ravel().tolist()) == {0, 1}
    assert not np.array_equal(made_up(FLOAT, seed=1)["in"], made_up(FLOAT)["in"])


def test_a_type_that_has_no_numbers_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="'in' is of type string"):
        made_up(one_output("STRING"))


def test_a_missing_model_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere\.tflite"):
        check(LocalTransport(), tmp_path / "nowhere.tflite", REQUEST, {})
