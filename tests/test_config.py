"""`edgebuild.yaml`: what it may say, and how each mistake is told."""

from __future__ import annotations

import inspect
from pathlib import Path
from textwrap import dedent
from typing import Any, get_args

import jsonschema
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from edgebuild.export.formats import IoType, Precision
from edgebuild.pipeline import config
from edgebuild.pipeline.compress import settings as compression
from edgebuild.pipeline.compression import doubts
from edgebuild.pipeline.config import Project, json_schema, load, parse
from edgebuild.pipeline.errors import ConfigError, exit_code
from edgebuild.pipeline.settings import METRICS, DataSource, Gates
from edgebuild.pipeline.target_settings import Board
from edgebuild.targets.registry import TARGETS

SMALLEST: dict[str, Any] = {"model": "model.h5", "targets": {"cpu": {}}}
SCHEMA = jsonschema.Draft202012Validator(json_schema())


def problem(**settings: Any) -> str:
    """What is said of the smallest configuration with these settings, without its address and advice."""
    with pytest.raises(ConfigError) as caught:
        parse(SMALLEST | settings)
    assert exit_code(caught.value) == 2
    return caught.value.cause or caught.value.what.removeprefix("edgebuild.yaml can't be used: ")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model, data and the smallest configuration."""
    (tmp_path / "model.h5").touch()
    np.savez(tmp_path / "data.npz", x=np.zeros(3))
    write(tmp_path, SMALLEST | {"data": {"calibration": "data.npz"}})
    return tmp_path


def write(folder: Path, raw: object) -> Path:
    path = folder / config.NAME
    path.write_text(raw if isinstance(raw, str) else yaml.safe_dump(raw))
    return path


def load_from(folder: Path, *overrides: str) -> Project:
    return load(folder / config.NAME, overrides)


def refusal(folder: Path, *overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_from(folder, *overrides)
    return caught.value


# What it may say


def example() -> str:
    return dedent(inspect.getdoc(config).split("::\n\n", 1)[1])  # type: ignore[union-attr]


def test_the_documented_example_parses_and_follows_the_schema() -> None:
    raw = yaml.safe_load(example())
    parsed = parse(raw)
    SCHEMA.validate(raw)
    assert list(parsed.targets) == ["cpu", "gpu", "edgetpu", "mcu"]
    assert (parsed.targets["edgetpu"].io, parsed.targets["edgetpu"].min_mapped) == ("uint8", 0.95)
    assert (parsed.targets["mcu"].board, parsed.targets["mcu"].max_arena_kib) == ("cortex-m4", 64)
    assert (parsed.gates.max_metric_drop, parsed.gates.min_metric) == (0.01, 0.9)
    assert parsed.data.calibration == DataSource(source="calibration.npz")


def test_the_smallest_configuration_has_defaults() -> None:
    parsed = parse(SMALLEST)
    assert (parsed.metric.name, parsed.seed, parsed.devices) == ("top1", 0, {})
    assert parsed.gates == Gates()


def test_empty_settings_are_settings() -> None:
    assert parse({"model": "m", "targets": {"cpu": None}}) == parse({"model": "m", "targets": {"cpu": {}}})


def test_a_source_and_a_metric_have_short_and_long_forms() -> None:
    short = parse(SMALLEST | {"data": {"evaluation": "e.npz"}, "metric": "auc"})
    long = parse(SMALLEST | {"data": {"evaluation": {"source": "e.npz"}}, "metric": {"name": "auc"}})
    assert short == long


@pytest.mark.parametrize(
    ("source", "is_function"),
    [
        ("recordings:windows", True),
        ("package.module:function", True),
        ("data.npz", False),
        ("folder/data.npz", False),
        ("C:/data.npz", False),
        ("recordings:", False),
        (":windows", False),
        ("a b:windows", False),
    ],
)
def test_function_references_are_told_from_paths(source: str, is_function: bool) -> None:  # noqa: FBT001 - a table
    assert DataSource(source=source).function == (source if is_function else None)


def test_a_board_may_be_of_ones_own() -> None:
    parsed = parse(SMALLEST | {"targets": {"mcu": {"board": {"flash_kib": 512, "ram_kib": 96.5}}}})
    assert parsed.targets["mcu"].board == Board(flash_kib=512, ram_kib=96.5)


def test_a_function_of_ones_own_says_which_way_is_better() -> None:
    errors = {"name": "mine:word_errors", "higher_is_better": False}
    assert parse(SMALLEST | {"metric": errors}).metric.higher_is_better is False
    assert "only for package.module:function" in problem(metric={"name": "mse", "higher_is_better": True})


def test_an_interval_is_asked_for_of_a_function_of_ones_own_alone() -> None:
    errors = {"name": "mine:word_errors", "higher_is_better": False, "interval": True}
    assert parse(SMALLEST | {"metric": errors}).metric.interval is True
    assert "interval is only for package.module:function" in problem(metric={"name": "mse", "interval": True})


# Mistakes


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"gats": {}}, "gats: unknown key; did you mean gates?"),
        ({"data": {"calibraton": "x"}}, "data.calibraton: unknown key; did you mean calibration?"),
        (
            {"data": {"calibration": {"source": "x", "sampels": 3}}},
            "data.calibration.sampels: unknown key; did you mean samples?",
        ),
        ({"metric": {"nam": "top1"}}, "metric.nam: unknown key; did you mean name?"),
        ({"targets": {"cpu": {"precison": "int8"}}}, "targets.cpu.precison: unknown key; did you mean precision?"),
        (
            {"targets": {"mcu": {"board": {"flsh_kib": 1, "flash_kib": 1, "ram_kib": 1}}}},
            "targets.mcu.board.flsh_kib: unknown key; did you mean flash_kib?",
        ),
        ({"gates": {"min_metrc": 0.9}}, "gates.min_metrc: unknown key; did you mean min_metric?"),
        ({"devices": {"pi": {"hots": "pi.lan"}}}, "devices.pi.hots: unknown key; did you mean host?"),
        ({"devices": {"metric": {"hots": "pi.lan"}}}, "devices.metric.hots: unknown key; did you mean host?"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_one(settings: dict[str, Any], told: str) -> None:
    assert problem(**settings) == told


def test_a_key_like_no_other_comes_with_all_there_are() -> None:
    told = "gates.zzz: unknown key; there are max_metric_drop, min_metric, max_size_kib, latency"
    assert problem(gates={"zzz": 1}) == told


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model": 3}, "model: Input should be a text or keys, not 3"),
        ({"seed": "1"}, "seed: Input should be a valid integer, not '1'"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0, not -1"),
        ({"seed": 2**32}, f"seed: Input should be less than or equal to {2**32 - 1}, not {2**32}"),
        ({"seed": True}, "seed: Input should be a valid integer, not True"),
        ({"gates": {"max_size_kib": 0}}, "gates.max_size_kib: Input should be greater than 0, not 0"),
        ({"gates": {"max_size_kib": True}}, "gates.max_size_kib: Input should be a valid number, not True"),
        ({"gates": {"min_metric": "0.9"}}, "gates.min_metric: Input should be a valid number, not '0.9'"),
        ({"gates": {"min_metric": float("nan")}}, "gates.min_metric: Input should be a finite number, not nan"),
        ({"targets": {"cpu": {"min_mapped": 1.1}}}, "targets.cpu.min_mapped: Input should be less than or equal to 1"),
        ({"targets": {"cpu": 3}}, "targets.cpu: Input should be keys"),
        ({"targets": ["cpu"]}, "targets: Input should be a valid dictionary"),
        ({"targets": {}}, "targets: Dictionary should have at least 1 item"),
        ({"targets": {1: {}}}, "targets.1: Input should be a valid string, not 1"),
        ({"targets": {"cpu": {"precision": "int4"}}}, "targets.cpu.precision: Input should be 'float32', 'float16'"),
        ({"targets": {"mcu": {"board": 3}}}, "targets.mcu.board: Input should be a profile's name, or flash_kib and"),
        ({"data": {"calibration": {"samples": 3}}}, "data.calibration.source: required, and missing"),
        ({"data": {"calibration": {"source": "x", "samples": 0}}}, "data.calibration.samples: Input should be greater"),
        ({"metric": "top9"}, "metric.name: 'top9' is neither one of top1, top5, auc, mse, mae nor package.module"),
        ({"metric": "a b:c"}, "metric.name: 'a b:c' is neither one of"),
        ({"devices": {"pi": {"transport": "serial"}}}, "devices.pi.transport: Input should be 'local', 'ssh' or 'adb'"),
        ({"compress": [{"prun": {}}]}, "compress.0.prun: unknown key; did you mean prune?"),
        ({"compress": [{"prune": {"sparsty": 0.5}}]}, "compress.0.prune.sparsty: unknown key; did you mean sparsity?"),
        ({"compress": [{"prune": {"layers": {"fc*": 1.0}}}]}, "compress.0.prune.layers.fc*: Input should be less"),
        ({"compress": [{"prune": {}, "cluster": {}}]}, "compress.0: a step names one technique, one of prune, cluster"),
        ({"compress": [{}]}, "compress.0: a step names one technique"),
        ({"compress": [{"prune": {"m_by_n": "2:4", "block": "1x4"}}]}, "compress.0.prune: m_by_n: 2:4 and block: 1x4"),
        ({"compress": [{"prune": {"m_by_n": "2:4", "layers": {"fc": 0}}}]}, "compress.0.prune: m_by_n: 2:4 says how"),
        (
            {"compress": [{"prune": {"m_by_n": 242}}]},
            "compress.0.prune.m_by_n: Input should be 1:2, 1:4, 2:4, 3:4, not 242; YAML reads 4:2 without quotes as",
        ),
        (
            {"compress": [{"prune": {"m_by_n": 3}}]},
            "compress.0.prune.m_by_n: Input should be 1:2, 1:4, 2:4, 3:4, not 3",
        ),
        ({"compress": [{"prune": {"max_drop": 0.1}}]}, "compress.0.prune: max_drop is for `auto`"),
        ({"compress": {"cluster": {"clusters": 8}}}, "compress: steps are a list: write `- cluster: ...`"),
        ({"compress": "prune"}, "compress: steps are a list: write `- prune: ...`"),
        (
            {"compress": [{"prune": {"sparsity": "50%"}}]},
            "compress.0.prune.sparsity: Input should be a share such as 0.5, or auto, not '50%'",
        ),
        (
            {"compress": [{"cluster": {"clusters": "few"}}]},
            "compress.0.cluster.clusters: Input should be a number such as 16, or",
        ),
        ({"compress": [{"cluster": {"clusters": 1}}]}, "compress.0.cluster.clusters: Input should be greater"),
        (
            {"compress": [{"prune": {"finetune": {"epoch": 1}}}]},
            "compress.0.prune.finetune.epoch: unknown key; did you mean epochs?",
        ),
    ],
)
def test_a_wrong_value_is_named_with_what_is_wrong(settings: dict[str, Any], told: str) -> None:
    assert problem(**settings).startswith(told)


@pytest.mark.parametrize("raw", [None, [], "model.h5", 3])
def test_what_is_no_mapping_is_refused(raw: object) -> None:
    with pytest.raises(ConfigError, match=r"edgebuild\.yaml can't be used"):
        parse(raw)


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([{"prune": {}}, {"cluster": {}}, {"qat": {}}], []),
        (
            [{"qat": {}}, {"prune": {}}, {"cluster": {}}],
            ["compress: quantization-aware training comes last: what follows, prune 50 %, cluster 16, undoes"],
        ),
        ([{"cluster": {}}, {"prune": {}}], ["compress: prune 50 % comes before cluster 16"]),
        (
            [{"prune": {"sparsity": 0.7}}, {"prune": {"sparsity": 0.3}}],
            ["compress: prune 30 % after prune 70 % takes nothing more"],
        ),
        ([{"prune": {"sparsity": 0.3}}, {"prune": {"sparsity": 0.7}}], []),
        ([{"prune": {"sparsity": 0.7}}, {"prune": {"sparsity": 0.3, "depthwise": True}}], []),
        ([{"prune": {"sparsity": 0.7}}, {"prune": {"m_by_n": "2:4"}}], []),
        ([{"prune": {"sparsity": 0.7}}, {"prune": {"sparsity": "auto"}}], []),
    ],
)
def test_an_odd_order_of_steps_is_noted(steps: list[Any], told: list[str]) -> None:
    found = list(doubts(parse(SMALLEST | {"compress": steps})))
    assert len(found) == len(told)
    assert all(note.startswith(start) for note, start in zip(found, told, strict=True))


def test_required_keys_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        parse({})
    assert caught.value.cause.splitlines() == ["model: required, and missing", "targets: required, and missing"]


def test_every_problem_is_told_at_once() -> None:
    told = problem(
        model=3,
        metric="top9",
        targets={"edgtpu": {}, "cpux": {}, "gpu": {"precison": "float16"}},
        gates={"max_size_kib": -1},
        compress=[{"prun": {}}],
        seeds=1,
    ).splitlines()
    keys = ["model", "metric.name", "targets.edgtpu", "targets.cpux", "targets.gpu.precison"]
    assert sorted(line.split(":")[0] for line in told) == sorted(
        [*keys, "gates.max_size_kib", "compress.0.prun", "seeds"]
    )


def test_an_unknown_target_is_named_with_the_nearest_one() -> None:
    assert problem(targets={"edgtpu": {}}) == "targets.edgtpu: unknown target; did you mean edgetpu?"
    assert problem(targets={"fpga!": {}}).startswith("targets.fpga!: unknown target; ")


@pytest.mark.parametrize(
    ("target", "settings", "told"),
    [
        ("edgetpu", {"precision": "float32"}, "targets.edgetpu.precision: edgetpu takes int8, not float32"),
        ("mcu", {"precision": "float16"}, "targets.mcu.precision: mcu takes int8, int16x8, not float16"),
        ("gpu", {"io": "int8"}, "targets.gpu.io: gpu takes float32, not int8"),
        ("cpu", {"precision": "float16", "io": "int8"}, "targets.cpu.io: int8 is for int8 models; float16 ones keep"),
        ("cpu", {"board": "cortex-m4"}, "targets.cpu.board: only mcu takes it"),
        ("gpu", {"sparse": True}, "targets.gpu.sparse: only cpu takes it"),
        (
            "cpu",
            {"precision": "dynamic", "sparse": True},
            "targets.cpu.sparse: cpu takes it for float32, float16, int8",
        ),
        ("mcu", {"board": "cortex-m44"}, "targets.mcu.board: unknown board; did you mean cortex-m4?"),
    ],
)
def test_what_a_target_does_not_take_is_refused(target: str, settings: dict[str, Any], told: str) -> None:
    assert problem(targets={target: settings}).startswith(told)


def test_refusals_of_several_targets_come_together() -> None:
    told = problem(targets={"edgetpu": {"precision": "float32"}, "gpu": {"io": "int8"}, "cpu": {"board": "b"}})
    assert [line.split(":")[0] for line in told.splitlines()] == [
        "targets.edgetpu.precision",
        "targets.gpu.io",
        "targets.cpu.board",
    ]


# The file


def test_relative_paths_start_at_the_configurations_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    project = load(Path(folder.name) / config.NAME)
    assert project.folder == folder
    assert project.model == folder / "model.h5"
    assert project.config.data.calibration is not None
    assert project.data(project.config.data.calibration) == folder / "data.npz"


def test_absolute_paths_stay(folder: Path) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    write(elsewhere, SMALLEST | {"model": str(folder / "model.h5"), "data": {"calibration": str(folder / "data.npz")}})
    assert load_from(elsewhere).model == folder / "model.h5"


def test_a_missing_configuration_says_how_to_write_one(tmp_path: Path) -> None:
    error = refusal(tmp_path)
    assert error.what.startswith("there is no ")
    assert "edgebuild init" in error.action


@pytest.mark.parametrize(
    "text", ["model: [", "a: b: c", "\tmodel: x", "seed: 2024-13-01", "? {a: b}\n: c", "!!python/name:os.system x"]
)
def test_what_is_no_yaml_is_refused(folder: Path, text: str) -> None:
    write(folder, text)
    error = refusal(folder)
    assert error.what.endswith("can't be read")
    assert error.cause


def test_bytes_that_are_no_text_are_refused(folder: Path) -> None:
    (folder / config.NAME).write_bytes(b"model: \xff\xfe")
    assert refusal(folder).what.endswith("can't be read")


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / config.NAME).mkdir()
    error = refusal(tmp_path)
    assert error.what.endswith("can't be read")
    assert "mend" not in error.action, "there is no YAML to mend"


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "- model", "model.h5", "3"])
def test_a_file_without_settings_is_refused(folder: Path, text: str) -> None:
    write(folder, text)
    assert refusal(folder).what.endswith("holds no settings")


def test_every_missing_file_is_named_with_its_key(folder: Path) -> None:
    write(folder, {"model": "gone.h5", "targets": {"cpu": {}}, "data": {"calibration": "c.npz", "evaluation": "e.npz"}})
    error = refusal(folder)
    assert f"model: there is nothing at {folder / 'gone.h5'}" in error.what
    assert [line.split(":")[0] for line in error.cause.splitlines()] == ["data.calibration", "data.evaluation"]


def test_a_function_is_no_missing_file(folder: Path) -> None:
    write(folder, SMALLEST | {"data": {"calibration": "recordings:windows"}})
    assert load_from(folder).config.data.calibration == DataSource(source="recordings:windows")


@pytest.mark.parametrize("data", [{}, {"training": "data.npz"}])
def test_neither_calibration_nor_evaluation_is_refused(folder: Path, data: dict[str, str]) -> None:
    write(folder, SMALLEST | {"data": data})
    assert "give `calibration`, `evaluation` or both" in refusal(folder).what


# Overrides


def test_an_override_replaces_a_value(folder: Path) -> None:
    assert load_from(folder, "seed=7", "metric=auc").config.seed == 7


def test_an_override_may_make_keys_that_are_not_there(folder: Path) -> None:
    assert load_from(folder, "gates.min_metric=0.9").config.gates.min_metric == 0.9


@pytest.mark.parametrize("settings", [None, {}, {"precision": "float16"}])
def test_an_override_reaches_into_settings_empty_or_not(folder: Path, settings: dict[str, Any] | None) -> None:
    write(folder, {"model": "model.h5", "targets": {"cpu": settings}, "data": {"calibration": "data.npz"}})
    assert load_from(folder, "targets.cpu.precision=float32").config.targets["cpu"].precision == "float32"


def test_an_override_reads_numbers_as_the_file_does(folder: Path) -> None:
    assert load_from(folder, "gates.max_metric_drop=1e-3").config.gates.max_metric_drop == 0.001


def test_an_override_leaves_its_neighbours(folder: Path) -> None:
    write(folder, SMALLEST | {"data": {"calibration": "data.npz"}, "gates": {"min_metric": 0.5, "max_size_kib": 9}})
    gates = load_from(folder, "gates.min_metric=0.9", "gates.max_metric_drop=0.1").config.gates
    assert (gates.min_metric, gates.max_metric_drop, gates.max_size_kib) == (0.9, 0.1, 9)


def test_an_override_may_be_a_mapping_which_replaces_the_whole(folder: Path) -> None:
    write(folder, SMALLEST | {"data": {"calibration": "data.npz"}, "gates": {"min_metric": 0.5}})
    gates = load_from(folder, "gates={max_size_kib: 8}").config.gates
    assert (gates.min_metric, gates.max_size_kib) == (None, 8)


def test_of_two_overrides_of_one_key_the_last_holds(folder: Path) -> None:
    assert load_from(folder, "seed=1", "seed=2").config.seed == 2


def test_an_override_may_hold_an_equals_sign(folder: Path) -> None:
    (folder / "a=b.npz").touch()
    found = load_from(folder, "data.evaluation=a=b.npz").config.data.evaluation
    assert found == DataSource(source="a=b.npz")


def test_an_override_is_checked_like_the_file(folder: Path) -> None:
    assert "gates.min_metrc: unknown key" in refusal(folder, "gates.min_metrc=0.9").what
    assert "seed: Input should be a valid integer" in refusal(folder, "seed=many").what


@pytest.mark.parametrize("override", ["seed", "=1", "", ".seed=1", "gates.=1", "gates..min_metric=1"])
def test_an_override_without_key_and_value_is_refused(folder: Path, override: str) -> None:
    assert refusal(folder, override).what == f"--set {override} is not key.path=value"


def test_an_override_below_a_value_is_refused(folder: Path) -> None:
    assert refusal(folder, "model.path.deeper=1").what == "--set model.path.deeper=1: 'path' holds a value, not keys"


def test_an_override_may_go_below_a_shorthand(folder: Path) -> None:
    overrides = ["data.calibration.samples=9", "model.input_shapes.a.b=[1, 2]", "metric.output=x"]
    found = config.load(folder / config.NAME, overrides).config
    assert found.data.calibration is not None
    assert (found.data.calibration.source, found.data.calibration.samples) == ("data.npz", 9)
    assert (found.model.path, found.model.input_shapes) == ("model.h5", {"a.b": (1, 2)})
    assert (found.metric.name, found.metric.output) == ("top1", "x")


STEPS = {"compress": [{"prune": {"sparsity": 0.5}}, {"cluster": None}]}


def test_an_override_reaches_into_a_list_by_number(folder: Path) -> None:
    write(folder, SMALLEST | {"data": {"calibration": "data.npz"}} | STEPS)
    overrides = [
        "compress.0.prune.sparsity=0.4",
        "compress.0.prune.layers.conv.1/*=0.1",
        "compress.1.cluster.clusters=8",
    ]
    prune, cluster = (step.technique for step in load_from(folder, *overrides).config.compress)
    assert prune == compression.Prune(sparsity=0.4, layers={"conv.1/*": 0.1})
    assert cluster == compression.Cluster(clusters=8)
    replaced = load_from(folder, "compress.1={qat: {}}").config.compress
    assert [str(step.technique) for step in replaced] == ["prune 50 %", "quantization-aware training"]


@pytest.mark.parametrize("part", ["2", "-1", "prune"])
def test_an_override_of_an_item_that_is_not_there_names_those_that_are(folder: Path, part: str) -> None:
    write(folder, SMALLEST | {"data": {"calibration": "data.npz"}} | STEPS)
    error = refusal(folder, f"compress.{part}.sparsity=0.4")
    assert error.what == f"--set compress.{part}.sparsity=0.4: 'compress' is a list, and has no item {part}"
    assert error.cause == "items are named by their numbers: 0 (prune), 1 (cluster)"


def test_an_override_of_an_item_of_no_list_is_refused(folder: Path) -> None:
    assert refusal(folder, "compress.0.prune.sparsity=0.4").cause == "it is empty"


@pytest.mark.parametrize("value", ["[", "{a: b", "a: b: c", "2024-13-01", "!!python/name:os.system x"])
def test_an_override_that_is_no_yaml_is_refused(folder: Path, value: str) -> None:
    error = refusal(folder, f"seed={value}")
    assert error.what == f"--set seed={value}: the value is no YAML"
    assert error.cause


# The published schema

positive = st.floats(0.001, 1e6) | st.integers(1, 1000)
share = st.floats(0, 1) | st.integers(0, 1)
names = st.text("abcdefgh_", min_size=1)
sources = st.sampled_from(["data.npz", "folder", "module:function"])


def optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={name: st.none() | values for name, values in fields.items()})


def settings_of(target: str) -> st.SearchStrategy[dict[str, Any] | None]:
    limits = ("max_size_kib", "max_latency_ms", "max_arena_kib", "max_flash_kib")
    own = {"precision": st.sampled_from(TARGETS[target].PRECISIONS), "min_mapped": share}
    boards = st.just("cortex-m4") | st.fixed_dictionaries({"flash_kib": positive, "ram_kib": positive})
    board = {"board": boards} if target == "mcu" else {}
    return st.none() | optional(**own, **dict.fromkeys(limits, positive), **board)


valid = st.fixed_dictionaries(
    {
        "model": names,
        "targets": st.lists(st.sampled_from(list(TARGETS)), min_size=1, unique=True).flatmap(
            lambda chosen: st.fixed_dictionaries({name: settings_of(name) for name in chosen})
        ),
    },
    optional={
        "data": optional(
            **dict.fromkeys(
                ("calibration", "evaluation", "training"),
                sources | st.fixed_dictionaries({"source": sources}, optional={"samples": st.integers(1, 10**6)}),
            )
        ),
        "metric": st.sampled_from([*METRICS, {"name": "auc"}, {"name": "mse", "output": "y"}])
        | st.fixed_dictionaries({"name": st.just("a:b"), "higher_is_better": st.booleans()}),
        "gates": optional(max_metric_drop=positive, min_metric=st.floats(-1e6, 1e6), max_size_kib=positive),
        "devices": st.dictionaries(names, st.fixed_dictionaries({}, optional={"host": names})),
        "seed": st.integers(0, 2**32 - 1),
        "compress": st.just([]),
    },
)


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    assert json_schema()["title"] == "edgebuild.yaml"


@given(valid)
def test_the_schema_accepts_what_is_parsed_and_yaml_carries_it(raw: dict[str, Any]) -> None:
    parsed = parse(raw)
    SCHEMA.validate(raw)
    assert parse(yaml.safe_load(yaml.safe_dump(raw))) == parsed


@pytest.mark.parametrize(
    "settings",
    [
        {"gats": {}},
        {"targets": {}},
        {"targets": {"cpu": {"precison": "int8"}}},
        {"targets": {"cpu": {"precision": "int4"}}},
        {"targets": {"cpu": {"min_mapped": 2}}},
        {"data": {"calibration": 3}},
        {"gates": {"max_size_kib": 0}},
        {"seed": -1},
        {"model": None},
    ],
)
def test_the_schema_refuses_mistakes_that_an_editor_can_show(settings: dict[str, Any]) -> None:
    assert problem(**settings)
    assert not SCHEMA.is_valid(SMALLEST | settings)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("precision", get_args(Precision))
@pytest.mark.parametrize("io", get_args(IoType))
def test_every_choice_is_accepted_or_refused_by_name(target: str, precision: Precision, io: IoType) -> None:
    module = TARGETS[target]
    fits = precision in module.PRECISIONS and io in module.IO_TYPES and (precision == "int8" or io == "float32")
    settings = {target: {"precision": precision, "io": io}}
    if fits:
        assert parse({"model": "m", "targets": settings}).targets[target].precision == precision
    else:
        assert problem(targets=settings).startswith(f"targets.{target}.")


def test_the_example_of_compression_parses() -> None:
    example = dedent((compression.__doc__ or "").split("::\n", 1)[1])
    steps = parse(SMALLEST | yaml.safe_load(example)).compress
    assert [str(step.technique) for step in steps] == ["prune 50 %", "cluster 16", "quantization-aware training"]


@pytest.mark.parametrize("empty", [None, []])
def test_no_steps_compress_nothing(empty: object) -> None:
    assert parse(SMALLEST | {"compress": empty}).compress == ()


def test_a_technique_alone_has_its_defaults() -> None:
    (step,) = parse(SMALLEST | {"compress": [{"prune": None}]}).compress
    assert step.technique == compression.Prune()


@pytest.mark.parametrize(
    ("said", "trains", "epochs"), [(None, True, 10), (None, False, 0), (3, False, 3), (0, True, 0)]
)
def test_fine_tuning_follows_training_data_unless_told_otherwise(said: int | None, trains: bool, epochs: int) -> None:  # noqa: FBT001 - a row
    given = compression.Prune(finetune=None if said is None else compression.Finetune(epochs=said))
    settled = given.settled(trains=trains)
    assert settled.finetune is not None
    assert settled.finetune.epochs == epochs
    assert settled.needs_samples == bool(epochs)


def test_two_of_four_reads_as_yaml_has_it_and_as_it_is_written_down() -> None:
    """YAML 1.1 takes 2:4 for 124, in base 60; and a manifest's configuration is parsed again."""
    steps = yaml.safe_load("[{prune: {m_by_n: 2:4}}, {cluster: {clusters: auto}}, {qat: }]")
    found = parse(SMALLEST | {"compress": steps}).compress
    assert [str(step.technique) for step in found] == ["prune 2:4", "cluster auto", "quantization-aware training"]
    assert parse(SMALLEST | {"compress": [step.model_dump() for step in found]}).compress == found
