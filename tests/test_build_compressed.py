"""A whole build that prunes and clusters: what reaches the files, the report and the person who reads it."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Ended
from projects import lay_out

from edgebuild.export import flatbuffer, weights
from edgebuild.pipeline import page, report

STEPS = [
    {"prune": {"sparsity": 0.5, "finetune": {"epochs": 12, "batch": 50}}},
    {"cluster": {"clusters": 16, "finetune": {"epochs": 6, "batch": 50}}},
]
TARGETS = {"cpu": {"precision": "int8", "io": "int8"}, "gpu": {}, "mcu": {"board": "cortex-m4"}}
Run = Callable[..., Ended]


@pytest.fixture(scope="session")
def compressed(tmp_path_factory: pytest.TempPathFactory, run: Run) -> tuple[Path, Ended]:
    """Keyword spotting, pruned and clustered on its calibration rows alone, and how the build ended."""
    folder = tmp_path_factory.mktemp("compressed")
    lay_out(folder, "kws", compress=STEPS, targets=TARGETS)
    return folder, run("--json", cwd=folder)


def stored(folder: Path, target: str) -> list[weights.Weights]:
    model = flatbuffer.read((folder / "build" / target / "model.tflite").read_bytes())
    return [found for found in weights.measure(model) if found.operator != "DEPTHWISE_CONV_2D"]


def test_zeros_and_shared_values_reach_the_file(compressed: tuple[Path, Ended]) -> None:
    folder, ended = compressed
    assert ended.code == 0, ended.stderr
    for found in stored(folder, "cpu"):
        assert found.zeros >= found.weights // 2
        assert found.unique <= 16, "one table over all channels, for all their scales"
    assert all(found.zeros >= found.weights // 2 for found in stored(folder, "gpu"))


def test_the_ledger_holds_every_step_of_every_target(compressed: tuple[Path, Ended]) -> None:
    _, ended = compressed
    for target in ended.report["targets"].values():
        assert [entry["step"] for entry in target["ledger"]] == ["as it is", "prune 50 %", "cluster 16"]
        sizes = [entry["gzip_bytes"] for entry in target["ledger"]]
        assert sizes == sorted(sizes, reverse=True)
        assert target["ledger"][-1]["gzip_bytes"] == target["gzip_bytes"]["value"]
        assert target["ledger"][0]["sparsity"]["value"] < 0.1


def test_a_pruned_file_is_smaller_where_its_zeros_are_not_stored(
    compressed: tuple[Path, Ended], tmp_path: Path, run: Run
) -> None:
    """Training comes from the store; only what is converted is new."""
    lay_out(tmp_path, "kws", compress=STEPS, targets={"cpu": {"precision": "float32", "sparse": True}})
    ended = run("--json", cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    first, *_, last = ended.report["targets"]["cpu"]["ledger"]
    assert last["size_bytes"] < 0.9 * first["size_bytes"]
    assert last["sparsity"]["value"] == pytest.approx(
        compressed[1].report["targets"]["gpu"]["ledger"][-1]["sparsity"]["value"], abs=0.01
    )
    assert ended.report["targets"]["cpu"]["agreement"]["relative_rmse"] < 1e-4


def test_every_metric_stands_with_its_interval_and_n(compressed: tuple[Path, Ended]) -> None:
    for entry in compressed[1].report["targets"]["cpu"]["ledger"]:
        low, high = entry["metric"]["interval"]
        assert low < entry["metric"]["target"] < high
        assert entry["metric"]["n"] == 300


def test_training_on_calibration_rows_alone_recovers_what_pruning_took(
    compressed: tuple[Path, Ended], tmp_path: Path, run: Run
) -> None:
    """One-shot, the same pruning leaves about 0.4 of 0.91."""
    lay_out(tmp_path, "kws", compress=[{"prune": {"sparsity": 0.5}}], targets={"cpu": TARGETS["cpu"]})
    one_shot = run("--json", cwd=tmp_path).report["targets"]["cpu"]["metric"]["target"]
    pruned = compressed[1].report["targets"]["cpu"]["ledger"][1]["metric"]["target"]
    assert pruned > one_shot + 0.2


def test_a_person_is_told_in_a_line_a_step_and_that_a_microcontroller_gains_nothing(
    compressed: tuple[Path, Ended], run: Run
) -> None:
    told = run(cwd=compressed[0]).stderr
    lines = [line for line in told.splitlines() if line.startswith(("prune 50 %:", "cluster 16:"))]
    assert len(lines) == 2
    assert all("mcu nothing" in line and "% gzip" in line for line in lines)
    assert "  learned from the uncompressed model's outputs (kl) on 200 rows; 12 epochs" in told.splitlines()
    assert "batch normalization was folded" in told


def test_the_next_build_trains_nothing(compressed: tuple[Path, Ended], run: Run) -> None:
    planned = run("--dry-run", cwd=compressed[0]).stdout
    assert "stored" in planned
    assert "to run" not in planned
    again = run("--json", cwd=compressed[0])
    wanted = compressed[1].report["targets"]["gpu"]
    assert again.report["targets"]["gpu"]["sha256"] == wanted["sha256"]


def test_the_drop_is_held_against_the_source_and_agreement_against_what_was_converted(
    compressed: tuple[Path, Ended],
) -> None:
    target = compressed[1].report["targets"]["gpu"]
    assert target["metric"]["float"] == pytest.approx(0.91)
    assert target["agreement"]["relative_rmse"] < 0.05


def test_the_page_shows_the_ledger_and_reads_back(compressed: tuple[Path, Ended]) -> None:
    found = report.from_json((compressed[0] / "build" / "report.json").read_bytes())
    shown = page.render(found)
    assert shown == (compressed[0] / "build" / "report.html").read_text()
    assert "What compression bought" in shown
    assert found.compression is not None
    assert [len(step.losses) for step in found.compression.steps] == [12, 6]
    for step in found.compression.steps:
        assert f"{step.learned}."[1:] in html.unescape(shown), "it begins with a capital there"
        for word in (f"{max(step.losses):.4g}", "0", "epoch 1", f"{len(step.losses)}"):
            assert f">{word}</text>" in shown
    assert "the uncompressed model's outputs (kl)" in str(found.compression.steps[0].learned)


def test_a_flatbuffer_is_not_compressed_and_the_reason_is_told(
    compressed: tuple[Path, Ended], tmp_path: Path, run: Run
) -> None:
    model = compressed[0] / "build" / "cpu" / "model.tflite"
    np.savez(tmp_path / "calibration.npz", input_1=np.zeros((3, 49, 10, 1), np.float32))
    config: dict[str, Any] = {"model": str(model), "data": {"calibration": "calibration.npz"}, "compress": STEPS}
    (tmp_path / "edgebuild.yaml").write_text(json.dumps(config | {"targets": {"cpu": TARGETS["cpu"]}}))
    ended = run(cwd=tmp_path)
    assert ended.code == 2
    assert "can't be compressed" in ended.stderr
    assert "constants" in ended.stderr


def test_a_rebuild_from_the_manifest_gives_the_same_bytes(compressed: tuple[Path, Ended], run: Run) -> None:
    ended = run("verify", "build", "--rebuild", cwd=compressed[0])
    assert ended.code == 0, ended.stderr
