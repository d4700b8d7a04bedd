"""The runner and its transport: what counts as an answer, and what becomes of everything else."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from ctypes.util import find_library
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tflite_runtime.interpreter import Interpreter

from edgebuild.device_tests import runner
from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.local import LocalTransport
from edgebuild.device_tests.runner import ERROR, RESULT
from edgebuild.device_tests.sample import ProcessSample
from edgebuild.device_tests.transport import RUNNER, RunRequest, cpu_model
from edgebuild.export.errors import ModelError

FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures"
MODELS = ("kws/ref_int8.tflite", "ad01_toycar/ad01_fp32.tflite", "coral/mobilenet_v1_0.25_128_quant.tflite")
REQUEST = RunRequest(min_warmup_s=0.0, min_warmup_runs=1, min_time_s=0.0, min_runs=3)
TIMEOUT_S = 60.0
PREAMBLE = "import hashlib, json, os, sys, time\nrequest = json.loads(sys.argv[1])\n"
REPORT = """
report = {"nonce": request["nonce"], "model_sha256": hashlib.sha256(open(request["model"], "rb").read()).hexdigest(),
          "runtime": "fake 1", "python": "3.7", "machine": "Linux", "import_ms": 1, "load_ms": 1.0, "allocate_ms": 1.0,
          "first_us": 9.0, "min_us": 4.0, "median_us": 5.0, "p90_us": 6.0, "p99_us": 7.0, "mean_us": 5.0, "runs": 3,
          "peak_rss_kib": None, "load_before": None, "load_after": 0.5, "outputs_sha256": "00"}
"""
SAY = f"print({RESULT!r} + json.dumps(report))\n"


RESNET = "resnet8_cifar10/pretrainedResnet.tflite"
# A delegate as TFLite loads one from a library, which is content with no operator at all.
IDLE_DELEGATE = """
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
struct delegate {
  void *data;
  int (*prepare)(void *, struct delegate *);
  void *other[3];
  int64_t flags;
  void *builder;
};
static int take_nothing(void *context, struct delegate *self) { return 0; }
struct delegate *tflite_plugin_create_delegate(char **keys, char **values, size_t n, void (*report)(const char *)) {
  for (size_t i = 0; i < n; i++)
    if (!strcmp(keys[i], "device")) { report(values[i]); return NULL; }
  struct delegate *made = calloc(1, sizeof *made);
  made->prepare = take_nothing;
  return made;
}
void tflite_plugin_destroy_delegate(struct delegate *made) { free(made); }
"""


def fixture(name: str) -> Path:
    path = FIXTURES / name
    if not path.exists():
        pytest.skip(f"the fixture {name} is not here")
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file that fake runners hash and never load."""
    path = tmp_path / "model.tflite"
    path.write_bytes(b"not a model")
    return path


def run_fake(tmp_path: Path, model: Path, script: str, timeout_s: float = TIMEOUT_S) -> ProcessSample:
    fake = tmp_path / "fake_runner.py"
    fake.write_text(PREAMBLE + script, encoding="utf-8")
    return LocalTransport(runner=fake).run(model, REQUEST, timeout_s)


@pytest.mark.parametrize("name", MODELS)
def test_measures_a_real_model(name: str) -> None:
    model = fixture(name)
    sample = LocalTransport().run(model, REQUEST, TIMEOUT_S)
    assert sample.model_sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    assert sample.runs == REQUEST.min_runs
    assert 0 < sample.min_us <= sample.median_us <= sample.p90_us <= sample.p99_us
    assert sample.min_us <= sample.mean_us
    assert sample.first_us > 0


def test_same_seed_gives_same_outputs_and_another_seed_others() -> None:
    model = fixture(MODELS[0])
    seeds = (0, 0, 1)
    digests = [LocalTransport().run(model, RunRequest(min_runs=1, seed=s), TIMEOUT_S).outputs_sha256 for s in seeds]
    assert digests[0] == digests[1] != digests[2]


def test_stops_at_max_time_with_one_run() -> None:
    request = RunRequest(min_time_s=1e9, min_runs=10**9, max_time_s=0.0)
    assert LocalTransport().run(fixture(MODELS[0]), request, TIMEOUT_S).runs == 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_peak_memory_is_the_runners_own_and_not_its_parents() -> None:
    model = fixture(MODELS[0])
    held = bytearray(b"\x01") * (256 << 20)  # `getrusage` would hand it down to a child.
    sample = LocalTransport().run(model, REQUEST, TIMEOUT_S)
    assert sample.peak_rss_kib is not None
    assert sample.peak_rss_kib * 1024 < len(held)


def test_prints_one_result_line_on_stdout() -> None:
    argument = REQUEST.argument(model=str(fixture(MODELS[0])), nonce="4f")
    done = subprocess.run([sys.executable, RUNNER, argument], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    assert json.loads(done.stdout[len(RESULT) :])["nonce"] == "4f"


@pytest.mark.parametrize("argument", ["{}", "no json", '{"model": "/nowhere.tflite", "threads": 1}'])
def test_unusable_request_is_an_error_line_and_exit_code_1(argument: str) -> None:
    done = subprocess.run([sys.executable, RUNNER, argument], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith(ERROR)
    assert json.loads(done.stdout[len(ERROR) :])["message"]


def test_runner_is_python_3_7_and_imports_nothing_of_ours() -> None:
    tree = ast.parse(RUNNER.read_text(encoding="utf-8"), feature_version=(3, 7))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names | {"numpy"}


@pytest.fixture
def idle_delegate(tmp_path: Path) -> str:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler: apt-get install gcc")
    library = tmp_path / "libidle.so"
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-o", str(library), "-"]
    subprocess.run(command, input=IDLE_DELEGATE, text=True, check=True)
    return str(library)


@pytest.mark.parametrize(("delegate", "delegated"), [("default", 16), ("xnnpack", 16), ("none", 0)])
def test_counts_the_operators_that_xnnpack_takes(delegate: str, delegated: int) -> None:
    sample = LocalTransport().run(fixture(RESNET), replace(REQUEST, delegate=delegate), TIMEOUT_S)
    assert (sample.operators, sample.delegated) == (16, delegated)


def test_counts_the_operators_of_a_partly_delegated_model() -> None:
    sample = LocalTransport().run(fixture("kws/ref_dynrange.tflite"), REQUEST, TIMEOUT_S)
    assert sample.operators is not None
    assert sample.delegated is not None
    assert 0 < sample.delegated < sample.operators == 13


def test_a_delegate_that_takes_nothing_is_not_credited_with_xnnpacks_share(idle_delegate: str) -> None:
    sample = LocalTransport().run(fixture(RESNET), replace(REQUEST, delegate=idle_delegate), TIMEOUT_S)
    assert (sample.operators, sample.delegated) == (16, 0)


def test_a_delegate_gets_its_options_and_its_refusal_is_reported(idle_delegate: str) -> None:
    request = replace(REQUEST, delegate=idle_delegate, delegate_options={"device": "no such device usb:7"})
    with pytest.raises(DeviceError, match="no such device usb:7"):
        LocalTransport().run(fixture(RESNET), request, TIMEOUT_S)


@pytest.mark.skipif(find_library("edgetpu") is not None, reason="has the Edge TPU's library")
def test_a_missing_edge_tpu_library_is_named() -> None:
    with pytest.raises(DeviceError, match=r"libedgetpu\.so\.1"):
        LocalTransport().run(fixture(MODELS[0]), replace(REQUEST, delegate="edgetpu"), TIMEOUT_S)


def test_answers_given_inputs_as_the_interpreter_here_does(tmp_path: Path) -> None:
    model = fixture(MODELS[0])
    here = Interpreter(str(model), num_threads=1)
    here.allocate_tensors()
    ask, tell = here.get_input_details()[0], here.get_output_details()[0]
    samples = np.random.default_rng(3).integers(-128, 128, (4, *ask["shape"]), np.int8)
    np.savez(tmp_path / "inputs.npz", **{"0": samples})
    expected = []
    for sample in samples:
        here.set_tensor(ask["index"], sample)
        here.invoke()
        expected.append(here.get_tensor(tell["index"]))
    answers = LocalTransport().run(model, replace(REQUEST, inputs=tmp_path / "inputs.npz"), TIMEOUT_S).outputs
    assert answers is not None
    np.testing.assert_array_equal(answers[0].values(), np.stack(expected), strict=True)


@pytest.mark.parametrize("arrays", [{"1": np.zeros((1, 1, 49, 10, 1), np.int8)}, {"0": np.zeros((1, 3), np.int8)}])
def test_inputs_that_do_not_fit_the_model_are_a_device_error(tmp_path: Path, arrays: dict[str, Any]) -> None:
    np.savez(tmp_path / "inputs.npz", **arrays)
    with pytest.raises(DeviceError, match="can't run the model"):
        LocalTransport().run(fixture(MODELS[0]), replace(REQUEST, inputs=tmp_path / "inputs.npz"), TIMEOUT_S)


def test_more_outputs_than_one_line_should_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_MOST_OUTPUT_BYTES", 99)
    with pytest.raises(ValueError, match="outputs of 100 bytes are too many"):
        runner._packed([np.zeros(50, np.int8), np.zeros(50, np.int8)])


def tell(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def test_reads_the_state_of_a_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "SYS", str(tmp_path / "sys"))
    monkeypatch.setattr(runner, "PROC", str(tmp_path / "proc"))
    thermal, clock = tmp_path / "sys/class/thermal", tmp_path / "sys/devices/system/cpu/cpu3/cpufreq"
    for zone, millidegrees in enumerate(("51000", "64500", "200000", "-273000", "none")):
        tell(thermal / f"thermal_zone{zone}/temp", millidegrees)
    for point, (kind, millidegrees) in enumerate((("critical", "95000"), ("passive", "85000"), ("passive", "75000"))):
        tell(thermal / f"thermal_zone1/trip_point_{point}_type", kind)
        tell(thermal / f"thermal_zone1/trip_point_{point}_temp", millidegrees)
    for name, value in (("scaling_cur_freq", 600000), ("cpuinfo_max_freq", 1800000), ("scaling_governor", "ondemand")):
        tell(clock / name, str(value))
    tell(tmp_path / "proc/self/stat", "9 (a b) c) R " + " ".join(["0"] * 35) + " 3 0 0")
    tell(tmp_path / "proc/vmstat", "pgin 1\npswpin 7\npswpout 5")
    assert runner._state() == {
        "temperature_c": 64.5,
        "temperature_limit_c": 75.0,
        "frequency_khz": 600000.0,
        "frequency_max_khz": 1800000.0,
        "governor": "ondemand",
        "swapped_pages": 12,
    }


def test_a_device_that_tells_nothing_of_its_state_is_measured_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "SYS", str(tmp_path))
    monkeypatch.setattr(runner, "PROC", str(tmp_path))
    assert set(runner._state().values()) == {None}
    assert runner._peak_rss_kib() is None


def test_refuses_a_model_with_an_unknown_custom_operator() -> None:
    with pytest.raises(DeviceError, match="edgetpu-custom-op"):
        LocalTransport().run(fixture("coral/keras_lstm_mnist_ptq_edgetpu.tflite"), REQUEST, TIMEOUT_S)


def test_refuses_a_file_that_is_no_model(model: Path) -> None:
    with pytest.raises(DeviceError, match=r"model\.tflite: the device can't run the model"):
        LocalTransport().run(model, REQUEST, TIMEOUT_S)


def test_missing_model_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere\.tflite"):
        LocalTransport().run(tmp_path / "nowhere.tflite", REQUEST, TIMEOUT_S)


def test_accepts_a_complete_answer_whatever_the_exit_code(tmp_path: Path, model: Path) -> None:
    sample = run_fake(tmp_path, model, REPORT + SAY + "sys.exit(3)")
    assert (sample.median_us, sample.runtime, sample.peak_rss_kib) == (5.0, "fake 1", None)


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        (REPORT + "report['nonce'] = 'x'\n" + SAY, "nonce is 'x'.*another run"),
        (REPORT + "report['model_sha256'] = 'x'\n" + SAY, "model_sha256 is 'x'.*another file"),
        (REPORT + "report['median_us'] = 'fast'\n" + SAY, "median_us is 'fast', not float.*another version"),
        (REPORT + "report['median_us'] = float('nan')\n" + SAY, "median of nan us"),
        (REPORT + "report['runs'] = 0\n" + SAY, "over 0 runs"),
        (REPORT + "del report['load_before']\n" + SAY, "load_before is None"),
        (REPORT + SAY + SAY, "2 result lines instead of one"),
        (REPORT + "report['after'] = 'cold'\n" + SAY, "after is 'cold', not DeviceState"),
        (REPORT + "report['after'] = {'governor': 7}\n" + SAY, "governor is 7, not str"),
        (REPORT + "report['outputs'] = [{'dtype': '|i1', 'shape': [2], 'data': 'AA=='}]\n" + SAY, "no sense"),
        (REPORT + "report['outputs'] = [7]\n" + SAY, "no sense"),
        ("", "0 result lines instead of one.*said nothing"),
        ("raise RuntimeError('out of luck')", "0 result lines instead of one.*out of luck"),
        (f"print({RESULT!r} + '{{half')", "no JSON"),
        (f"print({RESULT!r} + '[]')", "no JSON object"),
        (f"print({ERROR!r} + json.dumps({{'message': 'no such op'}})); sys.exit(1)", "can't run the model.*no such op"),
    ],
)
def test_anything_less_than_an_answer_is_a_device_error(
    tmp_path: Path, model: Path, script: str, complaint: str
) -> None:
    with pytest.raises(DeviceError, match=f"(?s){complaint}"):
        run_fake(tmp_path, model, script)


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGKILL"])
def test_crash_names_the_signal_and_the_model(tmp_path: Path, model: Path, name: str) -> None:
    with pytest.raises(DeviceError, match=rf"model\.tflite crashed the runtime with {name}"):
        run_fake(tmp_path, model, f"import signal\nos.kill(os.getpid(), signal.{name})")


def test_hang_ends_at_the_timeout_with_all_its_children(tmp_path: Path, model: Path) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    script = f"pid = os.fork()\nif pid: open({str(pids)!r} + '/' + str(pid), 'w').close()\ntime.sleep(60)"
    with pytest.raises(DeviceError, match=r"model\.tflite was not measured within 1 s"):
        run_fake(tmp_path, model, script, timeout_s=1.0)
    assert all(ends(int(file.name)) for file in pids.iterdir())


def ends(pid: int, within_s: float = 10.0) -> bool:
    """Whether a process is gone, or dead and only waits to be collected, within a while."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.02)
    return False


def test_environment_and_input_are_clean(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    seen = "(os.environ.get('PYTHONPATH'), os.environ['OMP_NUM_THREADS'], sys.stdin.read())"
    script = f"report['runtime'] = repr({seen})\n"
    assert run_fake(tmp_path, model, REPORT + script + SAY).runtime == "(None, '1', '')"


def test_standard_library_is_not_hidden_by_our_modules(tmp_path: Path, model: Path) -> None:
    script = "import profile\nreport['runtime'] = profile.__file__\n"
    assert "edgebuild" not in run_fake(tmp_path, model, REPORT + script + SAY).runtime


def test_a_run_makes_no_folder_and_sees_nothing_of_the_one_we_are_in(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))  # What we make outlives us where we are killed.
    (tmp_path / "profile.py").write_text("raise ImportError('hidden')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    script = "import profile\nreport['runtime'] = repr((sys.argv[0], len(sys.argv)))\n"
    assert run_fake(tmp_path, model, REPORT + script + SAY).runtime == repr((str(tmp_path / "fake_runner.py"), 2))


def test_local_fingerprint_is_stable_and_says_what_it_is() -> None:
    transport = LocalTransport()
    assert str(transport.fingerprint()) == str(transport.fingerprint())
    assert str(os.cpu_count()) in str(transport.fingerprint())


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ("processor\t: 0\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n", "AMD EPYC"),
        ("CPU part\t: 0xd0b\n\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n", "Raspberry Pi 5 Model B Rev 1.0"),
        ("processor\t: 0\nCPU part\t: 0xd03\n", "0xd03"),
        ("", "unknown CPU"),
    ],
)
def test_reads_the_cpu_model(cpuinfo: str, name: str) -> None:
    assert cpu_model(cpuinfo) == name


@pytest.mark.parametrize("settings", [{"threads": 0}, {"min_runs": 0}])
def test_rejects_a_request_for_nothing(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be at least 1, got"):
        RunRequest(**settings)
