"""The commands around a build, as a user calls them."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import jsonschema
import numpy as np
import projects
import pytest
import yaml
from conftest import Build, Ended, listing
from rich.console import Console

from edgebuild.pipeline import config, demo, starter
from edgebuild.pipeline.commands import models
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.ingest import fitness
from edgebuild.pipeline.inspection import Node, Summary
from edgebuild.pipeline.plan import UNTIL

Run = Callable[..., Ended]


def test_the_demo_builds_all_targets_and_passes_every_gate(digits: Build) -> None:
    report = json.loads((digits.out / "report.json").read_text())
    assert report["exit_code"] == 0
    assert list(report["targets"]) == ["cpu", "gpu", "edgetpu", "mcu"]
    for target in report["targets"].values():
        assert target["metric"]["target"] >= 0.95
        assert all(gate["verdict"] == "pass" for gate in target["gates"])
        assert target["placement"]["mapped"] == target["placement"]["operators"]


def test_the_demo_runs_nothing_the_second_time(digits: Build, run: Run) -> None:
    before = {path: (digits.out / path).stat().st_mtime_ns for path in listing(digits.out)}
    ended = run("demo", digits.folder, cwd=digits.folder)
    assert ended.code == 0
    assert " + " not in ended.stderr
    assert {path: (digits.out / path).stat().st_mtime_ns for path in listing(digits.out)} == before


def test_the_demo_keeps_what_the_user_edited(tmp_path: Path) -> None:
    demo.lay_out(tmp_path)
    (tmp_path / "edgebuild.yaml").write_text("mine")
    demo.lay_out(tmp_path)
    assert (tmp_path / "edgebuild.yaml").read_text() == "mine"


def test_the_demo_leaves_another_project_alone(tmp_path: Path) -> None:
    (tmp_path / "edgebuild.yaml").write_text("another project's")
    with pytest.raises(ConfigError, match="another project"):
        demo.lay_out(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["edgebuild.yaml"]


def test_the_demos_files_stay_small() -> None:
    folder = Path(demo.__file__).parent
    assert sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) < 300_000


def test_a_build_is_plain_lines_where_there_is_no_terminal(digits: Build) -> None:
    assert "\x1b" not in digits.ended.stderr
    assert "\n  + measure cpu latency beside float32's in 6 processes\n" in digits.ended.stderr
    assert digits.ended.stdout.startswith("target ")
    assert "target " not in digits.ended.stderr


def test_colours_are_honoured_and_refused(digits: Build, run: Run) -> None:
    coloured = run(cwd=digits.folder, FORCE_COLOR="1")
    assert "\x1b[" in coloured.stderr
    plain = run(cwd=digits.folder, FORCE_COLOR="1", NO_COLOR="1")
    assert "\x1b[3" not in plain.stderr


def test_init_writes_a_configuration_that_builds_at_once(tmp_path: Path, run: Run) -> None:
    demo.lay_out(tmp_path)
    (tmp_path / "edgebuild.yaml").unlink()
    ended = run("init", "digits.h5", "--calibration", "calibration.npz", "--evaluation", "evaluation.npz", cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    text = (tmp_path / "edgebuild.yaml").read_text()
    assert "image: float32 [N, 8, 8, 1]" in text
    assert run("-t", "gpu", cwd=tmp_path).code == 0


def test_init_keeps_what_it_was_told_of_the_model(tmp_path: Path, run: Run) -> None:
    import tensorflow as tf

    rows = [tf.TensorSpec(shape, tf.float32, name="x") for shape in ((None, 3), (None, None))]
    halved = tf.function(lambda x: {"y": 0.5 * x}, input_signature=rows[:1])
    doubled = tf.function(lambda x: {"y": 2.0 * x}, input_signature=rows[1:])
    signatures = {"serving_default": halved, "doubled": doubled}
    tf.saved_model.save(tf.Module(), str(tmp_path / "model"), signatures=signatures)
    ended = run("init", "model", "--signature", "doubled", "--input-shape", "x=1,4", cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    model = yaml.safe_load((tmp_path / "edgebuild.yaml").read_text())["model"]
    assert model == {"path": "model", "signature": "doubled", "input_shapes": {"x": [1, 4]}}


def test_init_never_replaces_a_file_unasked(tmp_path: Path, run: Run) -> None:
    demo.lay_out(tmp_path)
    before = (tmp_path / "edgebuild.yaml").read_text()
    ended = run("init", "digits.h5", cwd=tmp_path)
    assert ended.code == 2
    assert "--force" in ended.stderr
    assert (tmp_path / "edgebuild.yaml").read_text() == before
    assert run("init", "digits.h5", "--force", cwd=tmp_path).code == 0


def test_a_first_configuration_is_written_by_a_function_too(tmp_path: Path) -> None:
    out = tmp_path / config.NAME
    np.savez(tmp_path / "samples.npz", x=np.zeros((1, 49, 10, 1), np.float32), labels=[0])
    starter.write(projects.shared("kws/ref_int8.tflite"), out, evaluation=str(tmp_path / "samples.npz"))
    assert list(config.load(out).config.targets) == ["cpu", "edgetpu", "mcu"], "the GPU delegate wants float16"
    with pytest.raises(ConfigError, match="is there already"):
        starter.write(projects.shared("kws/ref_int8.tflite"), out)
    with pytest.raises(ConfigError, match="--calibration: there is nothing at"):
        starter.write(projects.shared("kws/ref_int8.tflite"), out, calibration="missing.npz", force=True)


def test_init_guesses_the_metric_from_the_ends(tmp_path: Path, run: Run) -> None:
    assert run("init", projects.shared("ad01_toycar/ad01.h5"), cwd=tmp_path).code == 0
    assert yaml.safe_load((tmp_path / "edgebuild.yaml").read_text())["metric"] == "mse"


def test_inspect_tells_the_same_work_of_a_model_and_of_its_flatbuffer(kws: Build, run: Run) -> None:
    source = json.loads(run("inspect", projects.shared("kws/saved_model"), "--json", cwd=kws.folder).stdout)
    artifact = json.loads(run("inspect", "build/mcu/model.tflite", "--json", cwd=kws.folder).stdout)
    assert source["macs"] == artifact["macs"] == 2_656_768
    assert source["parameters"] == 24_908
    assert source["parameters"] - source["folding_parameters"] == artifact["parameters"] == 22_604
    assert [end["name"] for end in source["inputs"]] == [end["name"] for end in artifact["inputs"]] == ["input_1"]
    shown = run("inspect", "build/mcu/model.tflite", cwd=kws.folder).stdout
    assert "DEPTHWISE_CONV_2D" in shown


@pytest.mark.parametrize("option", [("--signature", "main"), ("--input-shape", "input_1=1,49,10,1")])
@pytest.mark.parametrize("command", ["inspect", "init"])
def test_a_flatbuffer_leaves_nothing_to_choose(command: str, option: tuple[str, str], tmp_path: Path, run: Run) -> None:
    ended = run(command, projects.shared("kws/ref_int8.tflite"), *option, cwd=tmp_path)
    assert ended.code == 2
    assert "leaves no choice of" in ended.stderr
    assert not list(tmp_path.iterdir())


def test_formats_that_may_be_given_are_named_for_one_that_may_not(tmp_path: Path, run: Run) -> None:
    (tmp_path / "model.zip").touch()
    ended = run("inspect", "model.zip", cwd=tmp_path)
    assert ended.code == 3
    assert ".tflite" in ended.stderr


def test_names_of_layers_are_shown_as_they_are() -> None:
    fit = fitness.of("Bidirectional", 4)
    node = Node(index=0, name="[bold]x[/]", kind="Bidirectional", shape=(-1, 4), parameters=4, macs=0, fitness=fit)
    whole = Summary(format="Keras", inputs=(), outputs=(), nodes=(node,), parameters=4, macs=0, prunable_parameters=0)
    shown = Console(file=StringIO(), width=20)
    models._show_reasons(whole, shown)
    assert isinstance(shown.file, StringIO)
    first = shown.file.getvalue().splitlines()[0]
    assert first == "[bold]x[/]: not pruned: TF-MOT has no rule for Bidirectional"


def test_help_names_every_stage(run: Run, tmp_path: Path) -> None:
    shown = " ".join(run("build", "--help", cwd=tmp_path).stdout.split())
    *first, last = UNTIL
    assert f"Stop after {', '.join(first)} or {last}." in shown


def test_inspect_refuses_what_is_no_model(tmp_path: Path, run: Run) -> None:
    (tmp_path / "broken.tflite").write_bytes(b"\x00" * 64)
    for name in ("broken.tflite", "missing.tflite", "missing.h5"):
        ended = run("inspect", name, cwd=tmp_path)
        assert ended.code == 3, name
        assert "Traceback" not in ended.stderr


def test_profile_measures_a_flatbuffer_here(digits: Build, run: Run) -> None:
    ended = run("profile", "build/cpu/model.tflite", "--processes", "2", "--json", cwd=digits.folder)
    assert ended.code == 0
    latency = json.loads(ended.stdout)["latency"]
    assert latency["evidence"] == "measured"
    assert latency["median_us"] > 0
    assert len(latency["process_medians_us"]) == 2


def test_profile_names_devices_it_does_not_know(digits: Build, run: Run) -> None:
    ended = run("profile", "build/cpu/model.tflite", "--device", "pi", cwd=digits.folder)
    assert ended.code == 2
    assert "local" in ended.stderr


def test_targets_lists_them_and_shows_profiles_with_sources(tmp_path: Path, run: Run) -> None:
    listed = run("targets", cwd=tmp_path).stdout
    assert all(name in listed for name in ("cpu", "gpu", "edgetpu", "mcu"))
    shown = run("targets", "show", "cortex-m4", cwd=tmp_path)
    assert "https://" in shown.stdout
    assert run("targets", "show", "cortex-m5", cwd=tmp_path).code == 2


def test_doctor_finds_this_environment_whole(tmp_path: Path, run: Run) -> None:
    findings = json.loads(run("doctor", "--json", cwd=tmp_path).stdout)
    assert {finding["name"]: finding["status"] for finding in findings}["tensorflow"] == "ok"
    assert not [finding for finding in findings if finding["status"] == "missing"]


def test_doctor_names_what_is_missing_and_the_fix(tmp_path: Path, run: Run) -> None:
    (tmp_path / "taken").write_text("a file")
    ended = run("doctor", cwd=tmp_path, EDGEBUILD_CACHE=str(tmp_path / "taken/cache"))
    assert ended.code == 9
    assert "missing store" in ended.stdout
    assert "fix: set EDGEBUILD_CACHE" in ended.stdout


@pytest.mark.parametrize("name", ["config", "report", "manifest"])
def test_schemas_are_valid_json_schemas(name: str, tmp_path: Path, run: Run) -> None:
    schema = json.loads(run("schema", name, cwd=tmp_path).stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["properties"]


def test_the_demos_configuration_follows_the_published_schema(tmp_path: Path, run: Run) -> None:
    demo.lay_out(tmp_path)
    schema = json.loads(run("schema", cwd=tmp_path).stdout)
    jsonschema.Draft202012Validator(schema).validate(yaml.safe_load((tmp_path / "edgebuild.yaml").read_text()))


def test_until_stops_after_a_stage_and_publishes_nothing(tmp_path: Path, run: Run) -> None:
    demo.lay_out(tmp_path)
    ended = run("--until", "samples", cwd=tmp_path, EDGEBUILD_CACHE=str(tmp_path / "cache"))
    assert ended.code == 0, ended.stderr
    assert "load evaluation data" in ended.stderr
    assert "convert" not in ended.stderr
    assert not (tmp_path / "build").exists()
