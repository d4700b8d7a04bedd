"""Every way a build can go wrong: the exit code, one clear message, no traceback, nothing half-written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import Ended

from edgebuild.pipeline import cli, demo
from edgebuild.pipeline.commands import building

Run = Callable[..., Ended]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The demo's files, not yet built."""
    demo.lay_out(tmp_path)
    return tmp_path


def change(project: Path, **settings: Any) -> None:
    config = yaml.safe_load((project / "edgebuild.yaml").read_text())
    (project / "edgebuild.yaml").write_text(yaml.safe_dump(config | settings))


def expect(ended: Ended, code: int, *words: str) -> None:
    """The code, the words, an action, and no traceback."""
    assert ended.code == code, ended.stderr
    assert "Traceback" not in ended.stderr
    for word in words:
        assert word in ended.stderr, ended.stderr


def refused(run: Run, project: Path, code: int, *words: str) -> None:
    """The build ends so, and leaves no artifact."""
    expect(run(cwd=project), code, *words, "  do: ")
    assert not list(project.glob("build/*/*"))


def test_no_configuration(run: Run, tmp_path: Path) -> None:
    refused(run, tmp_path, 2, "there is no edgebuild.yaml", "edgebuild init MODEL")


def test_yaml_that_is_none(run: Run, project: Path) -> None:
    (project / "edgebuild.yaml").write_text("model: [")
    refused(run, project, 2, "can't be read")


def test_unknown_key(run: Run, project: Path) -> None:
    change(project, gates={"max_metric_dorp": 0.1})
    refused(run, project, 2, "gates.max_metric_dorp: unknown key; did you mean max_metric_drop?")


def test_wrong_type(run: Run, project: Path) -> None:
    change(project, gates={"min_metric": "high"})
    refused(run, project, 2, "gates.min_metric", "'high'")


def test_missing_files(run: Run, project: Path) -> None:
    (project / "calibration.npz").unlink()
    refused(run, project, 2, "data.calibration", "calibration.npz")


def test_missing_model(run: Run, project: Path) -> None:
    change(project, model="nowhere.h5")
    refused(run, project, 2, "model: there is nothing at", "nowhere.h5")


def test_a_folder_that_is_no_saved_model_is_refused_before_it_is_read(run: Run, project: Path) -> None:
    """It may be a whole disk: `model: /` must not be hashed."""
    change(project, model="/")
    refused(run, project, 3, "a folder without a saved_model.pb")
    assert not (project / "build").exists()


def test_unknown_target_on_the_command_line(run: Run, project: Path) -> None:
    expect(run("--target", "edgtpu", cwd=project), 2, "edgtpu", "edgetpu")


def test_unknown_option_and_stage(run: Run, project: Path) -> None:
    expect(run("--frobnicate", cwd=project), 2, "--frobnicate")
    expect(run("--until", "lunch", cwd=project), 2, "lunch", "ingest")


def test_quantized_target_without_calibration_data(run: Run, project: Path) -> None:
    change(project, data={"evaluation": "evaluation.npz"})
    refused(run, project, 2, "data.calibration: required", "precision: float32")


def test_nan_in_the_data(run: Run, project: Path) -> None:
    image = np.load(project / "calibration.npz")["image"]
    image[3, 2, 1, 0] = np.nan
    np.savez(project / "calibration.npz", image=image)
    ended = run("--json", cwd=project)
    expect(ended, 2, "calibration.npz", "'image'", "nan at index [3, 2, 1, 0]")
    assert set(ended.report["failures"]) == {"cpu", "edgetpu", "mcu"}
    assert set(ended.report["targets"]) == {"gpu"}, "float16 needs no calibration"


def test_data_of_another_shape(run: Run, project: Path) -> None:
    np.savez(project / "evaluation.npz", image=np.zeros((5, 64), np.float32), labels=np.zeros(5, int))
    refused(run, project, 2, "evaluation.npz", "[5, 64]", "[N, 8, 8, 1]")


def test_data_without_labels(run: Run, project: Path) -> None:
    shutil.copyfile(project / "calibration.npz", project / "evaluation.npz")
    refused(run, project, 2, "evaluation.npz holds no array 'labels'")


def test_a_function_that_fails(run: Run, project: Path) -> None:
    (project / "mine.py").write_text("def data():\n    raise RuntimeError('no disk today')\n")
    change(project, data={"calibration": "mine:data", "evaluation": "evaluation.npz"}, targets={"cpu": {}})
    refused(run, project, 2, "mine:data failed", "no disk today")


def test_a_function_of_the_users_own_serves_as_data_and_metric(run: Run, project: Path) -> None:
    (project / "mine.py").write_text(
        "import numpy as np\n"
        "def data():\n"
        "    images = np.load('calibration.npz')['image']\n"
        "    return ({'image': images[i:i + 50]} for i in range(0, 200, 50))\n"
        "def errors(outputs, labels):\n"
        "    return float((outputs['digit'].argmax(1) != labels).sum())\n"
    )
    change(
        project,
        data={"calibration": "mine:data", "evaluation": "evaluation.npz"},
        metric={"name": "mine:errors", "higher_is_better": False},
        targets={"cpu": {}},
        gates={"max_metric_drop": 6},
    )
    ended = run("--json", cwd=project)
    expect(ended, 0)
    assert ended.report["targets"]["cpu"]["metric"]["float"] == 4.0


def test_the_metric_of_several_outputs_is_taken_by_name(run: Run, tmp_path: Path) -> None:
    """The flatbuffer orders outputs by name, the model as it was built: here the other way round."""
    import tf_keras as keras

    keras.utils.set_random_seed(5)
    inputs = keras.Input((6,), name="x")
    hidden = keras.layers.Dense(16, activation="relu")(inputs)
    scores = keras.layers.Dense(4, activation="softmax", name="scores")(hidden)
    model = keras.Model(inputs, [scores, keras.layers.Dense(7, name="aux")(hidden)])
    model.save(tmp_path / "two.h5")
    x = np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, labels=model(x)[0].numpy().argmax(1))
    config = {"model": "two.h5", "data": {"evaluation": "data.npz"}, "targets": {"cpu": {"precision": "float32"}}}
    (tmp_path / "edgebuild.yaml").write_text(yaml.safe_dump(config))
    expect(run(cwd=tmp_path), 2, "the metric does not say of which output", "scores, aux")
    ended = run("--json", "--set", "metric={name: top1, output: scores}", cwd=tmp_path)
    expect(ended, 0)
    metric = ended.report["targets"]["cpu"]["metric"]
    assert (metric["float"], metric["target"]) == (1.0, 1.0)


def test_files_of_the_users_own_are_never_replaced(run: Run, project: Path) -> None:
    assert run("-t", "gpu", cwd=project).code == 0
    (project / "build/gpu/notes.txt").write_text("mine")
    (project / "build/mcu").mkdir()
    (project / "build/mcu/main.c").write_text("mine too")
    expect(run("-t", "cpu", cwd=project), 2, "which edgebuild did not make", "choose another --out")
    assert (project / "build/gpu/notes.txt").read_text() == "mine"
    assert (project / "build/mcu/main.c").read_text() == "mine too"


def test_a_folder_of_a_build_that_was_cut_short_is_made_whole(run: Run, project: Path) -> None:
    assert run("-t", "gpu", cwd=project).code == 0
    wanted = (project / "build/gpu/model.tflite").read_bytes()
    (project / "build/gpu/model.tflite").write_bytes(b"half")
    (project / "build/report.html").unlink()
    assert run("-t", "gpu", cwd=project).code == 0
    assert (project / "build/gpu/model.tflite").read_bytes() == wanted
    assert (project / "build/report.html").exists()


def test_what_lies_in_the_current_folder_is_not_imported(project: Path) -> None:
    (project / "random.py").write_text("raise SystemExit('imported')\n")
    (project / "numpy.py").write_text("raise SystemExit('imported')\n")
    command = [str(Path(sys.executable).with_name("edgebuild")), "-t", "gpu"]  # `python -m` would look here by itself.
    environment = os.environ | {"EDGEBUILD_CACHE": str(project / "cache")}
    ended = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_a_report_is_written_whatever_the_locale(run: Run, project: Path) -> None:
    expect(run("-t", "gpu", cwd=project, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"), 0)
    assert "charset" in (project / "build/report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.keras", b"PK", "no whole .keras archive"),
        ("model.onnx", b"", "holds no ONNX graph"),
        ("model.pth", b"", "is a pickle"),
        ("model.h5", b"not hdf5 at all", "not a readable HDF5 file"),
        ("model.txt", b"", "no known model format"),
    ],
)
def test_a_model_that_cannot_be_read(run: Run, project: Path, name: str, content: bytes, words: str) -> None:
    (project / name).write_bytes(content)
    change(project, model=name)
    refused(run, project, 3, words)


def test_a_missing_metric_is_inconclusive_and_never_passes(run: Run, project: Path) -> None:
    change(project, data={"calibration": "calibration.npz"}, targets={"gpu": {}})
    expect(run(cwd=project), 4, "gate min_metric: inconclusive", "no evaluation data")


@pytest.mark.parametrize(
    ("targets", "gates", "code", "words"),
    [
        ({"gpu": {}}, {"min_metric": 0.9999}, 4, "gpu: gate min_metric: fail"),
        ({"gpu": {}}, {"max_size_kib": 1}, 5, "gpu: gate max_size_kib: fail"),
        ({"mcu": {"max_arena_kib": 1}}, {}, 5, "mcu: gate max_arena_kib: fail"),
        ({"mcu": {"max_flash_kib": 1}}, {}, 5, "mcu: gate max_flash_kib: fail"),
        ({"cpu": {"max_latency_ms": 0.000001}}, {}, 6, "cpu: gate max_latency_ms: fail"),
        ({"gpu": {"max_latency_ms": 100}}, {}, 8, "gpu: gate max_latency_ms: inconclusive"),
        ({"gpu": {"max_arena_kib": 64}}, {}, 5, "gpu: gate max_arena_kib: inconclusive"),
        ({"cpu": {"max_latency_ms": 0.000001}, "mcu": {"max_arena_kib": 1}}, {}, 5, "cpu: gate max_latency_ms: fail"),
    ],
)
def test_a_gate_that_does_not_pass(
    run: Run, project: Path, targets: dict[str, Any], gates: dict[str, Any], code: int, words: str
) -> None:
    change(project, targets=targets, gates=gates)
    expect(run(cwd=project), code, words)
    assert (project / "build/report.json").exists(), "what failed a gate can be looked at"


def test_an_unwritable_output(run: Run, project: Path) -> None:
    (project / "taken").write_text("a file")
    expect(run("-t", "gpu", "-o", "taken", cwd=project), 2, "taken can't be written")


def test_an_unusable_store(run: Run, project: Path) -> None:
    (project / "taken").write_text("a file")
    expect(run("-t", "gpu", cwd=project, EDGEBUILD_CACHE=str(project / "taken")), 2, "store", "EDGEBUILD_CACHE")


def test_a_model_that_crashes_the_calibrator_fails_alone(run: Run, tmp_path: Path) -> None:
    """An int8 GRU in a loop, too long to unroll, takes the process down (tensorflow#62281); float16 needs no ranges."""
    import tf_keras as keras

    keras.utils.set_random_seed(1)
    inputs = keras.Input((600, 4), name="steps")
    keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GRU(8)(inputs))).save(tmp_path / "gru.h5")
    np.savez(tmp_path / "data.npz", steps=np.random.default_rng(0).normal(size=(20, 600, 4)).astype(np.float32))
    config = {"model": "gru.h5", "data": {"calibration": "data.npz"}, "targets": {"cpu": {}, "gpu": {}}}
    (tmp_path / "edgebuild.yaml").write_text(yaml.safe_dump(config))
    ended = run("--json", cwd=tmp_path)
    expect(ended, 3, "SIG", "calibrate", "unroll=True")
    assert list(ended.report["targets"]) == ["gpu"]
    assert list(ended.report["failures"]) == ["cpu"]


def test_debug_shows_what_happened_underneath(run: Run, project: Path) -> None:
    (project / "model.h5").write_bytes(b"not hdf5 at all")
    change(project, model="model.h5")
    ended = run("--debug", cwd=project)
    assert ended.code == 3
    assert re.search(r"Traceback .*\n(.*\n)*.*ModelError", ended.stderr)


@pytest.mark.parametrize(("option", "kept"), [("-q", True), ("--no-cache", False)])
def test_an_interrupt_promises_what_is_true(
    option: str, *, kept: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "build", interrupted)
    assert cli.run(["build", option]) == 130
    said = capsys.readouterr().err
    assert "interrupted" in said
    assert ("in the store" in said) == kept


def test_quiet_tells_failures_alone(run: Run, project: Path) -> None:
    assert run("-q", "-t", "gpu", cwd=project).stderr == ""
    ended = run("-q", "-t", "gpu", "--set", "gates.min_metric=0.9999", cwd=project)
    assert ended.stderr.strip().startswith("gpu: gate min_metric: fail")
