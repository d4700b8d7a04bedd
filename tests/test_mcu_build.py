"""Packages for microcontrollers through the whole flow, held to TFLM asked in another way."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import projects
import pytest
from conftest import Build, Ended

pytestmark = pytest.mark.skipif(find_spec("tflite_micro") is None, reason="the optional wheel tflite-micro is not here")
NAMES = ("kws", "digits", "resnet8", "ad01", "str_ww")

# TFLM asked without any code of ours: the least arena by halving from below, and outputs of given inputs.
ASK = """
import json, os, sys
import numpy as np
from tflite_micro import runtime
model = open(sys.argv[1], "rb").read()
inputs = json.loads(sys.stdin.read())
def runs(size):
    child = os.fork()
    if not child:
        os.close(2)
        try:
            runtime.Interpreter.from_bytes(model, arena_size=size).invoke()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0
low, high = 1024, 1 << 22
while high - low > 16:
    middle = (low + high) // 32 * 16
    low, high = (low, middle) if runs(middle) else (middle, high)
interpreter = runtime.Interpreter.from_bytes(model, arena_size=1 << 24)
details, outputs = interpreter.get_input_details(0), []
for values in inputs:
    interpreter.set_input(np.array(values, details["dtype"]).reshape(details["shape"]), 0)
    interpreter.invoke()
    outputs.append(interpreter.get_output(0).ravel().tolist())
print(json.dumps({"least": high, "outputs": outputs}))
"""


@pytest.fixture(scope="module")
def packages(
    kws: Build, digits: Build, tmp_path_factory: pytest.TempPathFactory, run: Callable[..., Ended]
) -> dict[str, Path]:
    """Folders of builds: two that serve other tests too, and three for microcontrollers alone."""
    found = {"kws": kws.out, "digits": digits.out}
    for name in NAMES[2:]:
        folder = tmp_path_factory.mktemp(name)
        projects.lay_out(folder, name, targets={"mcu": {"board": "stm32l4r5zi"}})
        ended = run("-q", cwd=folder)
        assert ended.code == 0, ended.stderr
        found[name] = folder / "build"
    return found


def report(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_text())["targets"]["mcu"]
    return found


def vectors(package: Path, side: str) -> list[list[int]]:
    """What `test_vector.h` holds for the only input or output, a list of integers a vector."""
    text = (package / "test_vector.h").read_text().split(f"kVector{side}0 = ")[1].split("\n}};")[0]
    return [[int(value) for value in re.findall(r"-?\d+", row)] for row in re.findall(r"\{\{\{?([^}]*)\}\}", text)]


@pytest.mark.parametrize("name", NAMES)
def test_arena_and_golden_vectors_are_tflms_own(name: str, packages: dict[str, Path]) -> None:
    package, found = packages[name] / "mcu", report(packages[name])
    inputs, outputs = vectors(package, "Input"), vectors(package, "Output")
    assert len(inputs) == len(outputs) >= 3
    asked = subprocess.run(
        [sys.executable, "-c", ASK, str(package / "model.tflite")],
        input=json.dumps(inputs),
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    answer = json.loads(asked.stdout)
    assert outputs == answer["outputs"]
    least = found["memory"]["least_arena_bytes"]["value"]
    assert abs(least - answer["least"]) <= 16
    arena = int(re.findall(r"kArenaBytes = (\d+);", (package / "model_settings.h").read_text())[0])
    assert arena == found["memory"]["arena_bytes"]["value"] == -(-least * 115 // 100 // 16) * 16


@pytest.mark.parametrize("name", NAMES)
def test_the_array_holds_the_flatbuffer_byte_for_byte(name: str, packages: dict[str, Path]) -> None:
    package = packages[name] / "mcu"
    assert array(package) == (package / "model.tflite").read_bytes()


def test_quality_is_what_tflm_computes_and_its_difference_is_told(packages: dict[str, Path]) -> None:
    found = report(packages["kws"])
    assert found["firmware"]["runtime"] == "tflite-micro"
    assert found["firmware"]["difference"]["n"] == found["metric"]["n"] == 300
    assert found["metric"]["target"] >= 0.90
    assert found["metric"]["evidence"] == "simulated"
    assert "TFLite Micro" in found["metric"]["note"]


def test_what_no_interpreter_reads_is_stripped_and_ends_keep_their_names(packages: dict[str, Path]) -> None:
    package = packages["kws"] / "mcu"
    assert b"conv2d" not in (package / "model.tflite").read_bytes()
    assert '"input_1"' in (package / "model_settings.h").read_text()
    assert any("conv2d" in name for name in report(packages["kws"])["firmware"]["tensors"])


def test_explain_goes_by_the_names_that_the_file_no_longer_has(
    packages: dict[str, Path], run: Callable[..., Ended]
) -> None:
    shown = run("explain", "mcu", cwd=packages["kws"].parent)
    assert shown.code == 0
    assert "conv2d" in shown.stdout


def source(layer: Any, folder: Path) -> Path:
    """A small trained model around a layer, with calibration data beside it."""
    import tf_keras

    tf_keras.utils.set_random_seed(0)
    x = tf_keras.Input((4,), name="x")
    tf_keras.Model(x, tf_keras.layers.Dense(2)(layer(tf_keras.layers.Dense(8)(x)))).save(folder / "model.h5")
    np.savez(folder / "data.npz", x=np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32))
    return folder / "model.h5"


def refused(model: Path, folder: Path, run: Callable[..., Ended], board: str = "cortex-m4") -> Ended:
    if not (folder / "data.npz").exists():
        shape = (4, 640) if "ad01" in model.name else (4, 49, 10, 1)
        np.savez(folder / "data.npz", x=np.zeros(shape, np.float32))
    (folder / "edgebuild.yaml").write_text(
        f"model: {model}\ndata: {{calibration: data.npz}}\ntargets: {{mcu: {{board: {board}}}}}\n"
    )
    return run(cwd=folder)


@pytest.mark.parametrize("kind", ["GELU", "TILE"])
def test_an_operator_that_tflm_lacks_is_a_placement_failure(
    kind: str, tmp_path: Path, run: Callable[..., Ended]
) -> None:
    from tf_keras import layers

    layer = layers.Activation("gelu", name="odd") if kind == "GELU" else layers.RepeatVector(3, name="odd")
    ended = refused(source(layer, tmp_path), tmp_path, run)
    assert ended.code == 7, ended.stderr
    assert kind in ended.stderr
    assert "odd" in ended.stderr
    assert not (tmp_path / "build" / "mcu").exists()


@pytest.mark.parametrize(
    ("name", "told"),
    [("kws/ref_dynrange.tflite", "hybrid"), ("ad01_toycar/ad01_fp32.tflite", "float32")],
)
def test_weights_or_activations_in_floats_are_a_models_failure(
    name: str, told: str, tmp_path: Path, run: Callable[..., Ended]
) -> None:
    ended = refused(projects.shared(name), tmp_path, run)
    assert ended.code == 3, ended.stderr
    assert told in ended.stderr
    assert "operator " in ended.stderr
    assert "precision: int8" in ended.stderr


def test_a_board_too_small_is_a_memory_gate(packages: dict[str, Path], run: Callable[..., Ended]) -> None:
    folder = packages["kws"].parent
    ended = run("-t", "mcu", "-o", "small", "--set", "targets.mcu.board={flash_kib: 64, ram_kib: 16}", cwd=folder)
    assert ended.code == 5, ended.stderr
    assert "gate max_arena_kib: fail" in ended.stderr
    assert "gate max_flash_kib: fail" in ended.stderr


@pytest.fixture(scope="module")
def clustered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet-8 whose kernels share 16 values, without tuning: what it weighs counts here, not what it knows."""
    folder = tmp_path_factory.mktemp("clustered")
    few = {
        role: {"source": f"{role}.npz", "samples": 20} for role in ("calibration", "evaluation")
    }  # Enough for sizes.
    projects.lay_out(folder, "resnet8", targets={"mcu": {}}, compress=[{"cluster": {"clusters": 16}}], data=few)
    return folder


def array(package: Path) -> bytes:
    return bytes.fromhex("".join(re.findall(r"0x([0-9a-f]{2})", (package / "model.cc").read_text())))


@pytest.mark.skipif(find_spec("ethosu") is None, reason="the optional wheel ethos-u-vela is not here")
def test_clustering_lowers_the_flash_of_an_ethos_u(clustered: Path, run: Callable[..., Ended]) -> None:
    limits = ("max_cycles=150000", "max_sram_kib=40", "max_cpu_operators=0")
    settings = [item for limit in limits for item in ("--set", f"targets.mcu.{limit}")]
    ended = run("--json", "--set", "targets.mcu.board=cortex-m55-ethos-u55-128", *settings, cwd=clustered)
    found = ended.report["targets"]["mcu"]
    before, after = (entry["compiled_bytes"] for entry in found["ledger"])
    constants_kib = found["firmware"]["ethos_u"]["summary"]["off_chip_flash_kib"]
    assert constants_kib < 59.5  # Vela 5.2 packs TF-MOT's 16 clusters into so much, and the model without into 77.4.
    assert after < 0.8 * before
    package = clustered / "build" / "mcu"
    assert array(package) == (package / "model_vela.tflite").read_bytes()
    assert len(array(package)) == after
    assert "AddEthosU()" in (package / "op_resolver.h").read_text()
    gates = {gate["name"]: (gate["kind"], gate["verdict"]) for gate in found["gates"]}
    assert gates["max_cycles"] == ("latency", "fail")
    assert gates["max_sram_kib"] == ("memory", "fail")
    assert gates["max_cpu_operators"] == ("placement", "pass")
    assert ended.code == 5


def test_weights_in_tables_pay_for_their_decoder_or_are_left(clustered: Path, run: Callable[..., Ended]) -> None:
    ended = run("--json", "-o", "lut", "--set", "targets.mcu={board: stm32l4r5zi, lut: auto}", cwd=clustered)
    found = ended.report["targets"]["mcu"]
    package = clustered / "lut" / "mcu"
    tables = found["firmware"]["lut"]
    assert tables["applied"]
    assert tables["net_flash_bytes"] < 0
    assert tables["bit_equal"]
    assert array(package) == (package / "model_lut.tflite").read_bytes()
    assert "AddDecode()" in (package / "op_resolver.h").read_text()
    inputs = vectors(package, "Input")
    asked = subprocess.run(
        [sys.executable, "-c", ASK, str(package / "model_lut.tflite")],
        input=json.dumps(inputs),
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    assert vectors(package, "Output") == json.loads(asked.stdout)["outputs"]
    small = run("--json", "-o", "small", "--set", "targets.mcu={lut: auto, max_arena_kib: 66}", cwd=clustered)
    left = small.report["targets"]["mcu"]["firmware"]["lut"]
    assert not left["applied"]
    assert left["why"]
    assert left["net_flash_bytes"] is not None
    assert not (clustered / "small" / "mcu" / "model_lut.tflite").exists()


def test_class_names_ship_and_must_fit_the_output(
    packages: dict[str, Path], tmp_path: Path, run: Callable[..., Ended]
) -> None:
    folder = packages["kws"].parent
    (tmp_path / "labels.txt").write_text("".join(f"word {i}\n" for i in range(12)))
    named = ("-t", "mcu", "-o", tmp_path / "out", "--set", f"data.class_names={tmp_path / 'labels.txt'}")
    assert run(*named, cwd=folder).code == 0
    assert '"word 11"' in (tmp_path / "out" / "mcu" / "model_settings.h").read_text()
    assert (tmp_path / "out" / "mcu" / "labels.txt").read_text() == (tmp_path / "labels.txt").read_text()
    (tmp_path / "labels.txt").write_text("yes\nno\n")
    ended = run(*named, cwd=folder)
    assert ended.code == 2
    assert "has 2 lines" in ended.stderr


def test_without_tflm_its_figures_are_unavailable_and_gates_on_them_inconclusive(
    packages: dict[str, Path], tmp_path: Path, run: Callable[..., Ended]
) -> None:
    folder = packages["kws"].parent
    blind = "import importlib.util as u\nf = u.find_spec\n"
    blind += "u.find_spec = lambda n, *a: None if n == 'tflite_micro' else f(n, *a)"
    (tmp_path / "sitecustomize.py").write_text(blind)
    ended = run("-t", "mcu", "-o", tmp_path / "out", "--json", cwd=folder, PYTHONPATH=str(tmp_path))
    assert ended.code == 4, ended.stderr
    found = ended.report["targets"]["mcu"]
    assert found["metric"]["evidence"] == found["memory"]["arena_bytes"]["evidence"] == "unavailable"
    assert "edgebuild[mcu]" in found["metric"]["note"]
    verdicts = {gate["name"]: gate["verdict"] for gate in found["gates"]}
    assert verdicts["min_metric"] == verdicts["max_metric_drop"] == verdicts["max_arena_kib"] == "inconclusive"
