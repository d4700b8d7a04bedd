"""The house's rules about imports, enforced."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgebuild.pipeline import task

ROOT = Path(__file__).resolve().parents[1]
STAIR = ["calibration", "export", "targets", "device_tests", "pipeline"]
DOORS = {  # The files that may import a package that crashes, leaks or changes its face.
    "tflite_runtime": {"export/interpreter.py", "device_tests/runner.py", "targets/gpu/probe.py"},
    "ai_edge_litert": {
        "export/flatbuffer.py",
        "export/object_tree.py",
        "export/surgery.py",
        "device_tests/litert_profiler.py",
        "device_tests/runner.py",
        "targets/gpu/probe.py",
    },
    "distributed": {"pipeline/execution/cluster.py", "pipeline/execution/cluster_worker.py"},
    "fsspec": {"pipeline/storage/shared_store.py"},
    "tflite_micro": {
        "targets/microcontroller/arena.py",
        "targets/microcontroller/lut_child.py",
        "targets/microcontroller/outputs.py",
    },
    "tensorflow_model_optimization": {"pipeline/compress/tfmot.py"},
    "onnx2tf": {"pipeline/ingest/onnx/to_tf.py"},
    "onnxruntime": {"pipeline/ingest/onnx/runtime.py"},
    "onnxsim": {"pipeline/ingest/onnx/prepare.py"},
    "torch": {"pipeline/ingest/torch/child.py"},
}
# Tables of TensorFlow's functions and layers: they import it at their top, and are imported inside functions alone.
LATE = {
    f"pipeline/{module}.py"
    for room, modules in {
        "ingest/graph": "control graph layers proof reading replay rules rules_weighted",
        "ingest/onnx": "direct rules rules_activations rules_arithmetic rules_recurrent rules_sampling rules_sequences "
        "rules_shape rules_windows",
        "compress": "automatic finetune fold gradients losses qat rounding steps tfmot trainer work",
    }.items()
    for module in (f"{room}/{name}" for name in modules.split())
}
ROOMS = {  # What a room of the pipeline knows of the rest of it.
    "storage": {"errors"},
    "timing": {
        "arrays",
        "assemble",
        "config",
        "device_settings",
        "devices",
        "errors",
        "execution",
        "exports",
        "page",
        "plan",
        "report",
        "settings",
        "storage",
        "target_settings",
        "timed",
    },
    "stages": {
        "arrays",
        "class_names",
        "compress",
        "figures",
        "fitting",
        "frozen",
        "headway",
        "ingest",
        "intervals",
        "metrics",
        "placing",
        "task",
    },
    "execution": {"errors", "headway", "stages", "storage", "task"},
    "fitting": {"ingest", "storage"},
    "compress": {"arrays", "errors", "headway", "ingest", "metrics", "record"},
}
HEAVY = {
    "tensorflow",
    "keras",
    "tf_keras",
    "scipy",
    "tflite_runtime",
    "onnx",
    "onnx2tf",
    "onnxruntime",
    "onnxsim",
    "torch",
}


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    return names | {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}


def members(path: Path) -> set[str]:
    """What a file imports from elsewhere, by its full name."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return {f"{node.module}.{alias.name}" for node in nodes for alias in node.names}


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("folder", STAIR)
def test_imports_only_what_stands_below(folder: str) -> None:
    allowed = STAIR[: STAIR.index(folder) + 1]
    for path in sources(folder):
        for name in imports(path):
            top, _, rest = name.partition(".")
            assert top != "edgebuild" or rest.split(".")[0] in allowed, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_knows_only_what_it_stands_on(room: str) -> None:
    files = sources(f"pipeline/{room}")
    assert files
    for path in files:
        found = {name.split(".")[2] for name in members(path) if name.startswith("edgebuild.pipeline.")}
        assert found <= ROOMS[room] | {room}, path


def test_what_stages_stand_on_is_in_the_digest_of_their_code() -> None:
    listed = {name.removeprefix("pipeline/").removesuffix(".py") for name in task._STAGE_CODE}
    assert ROOMS["stages"] - {"headway", "task"} <= listed  # Which say something, and decide nothing.
    assert all((ROOT / name).exists() for name in task._STAGE_CODE)


@pytest.mark.parametrize("folder", STAIR)
def test_no_module_imports_a_heavy_package_at_its_top(folder: str) -> None:
    for path in sources(folder):
        if path.name == "train.py" or path.relative_to(ROOT).as_posix() in LATE:
            continue
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {a.name for n in top if isinstance(n, ast.Import) for a in n.names}
        names |= {f"{n.module}.{a.name}" for n in top if isinstance(n, ast.ImportFrom) for a in n.names}
        names |= {n.module or "" for n in top if isinstance(n, ast.ImportFrom)}
        assert not {name.split(".")[0] for name in names} & HEAVY, path
        assert not {f"{name.removeprefix('edgebuild.').replace('.', '/')}.py" for name in names} & LATE, path


@pytest.mark.parametrize("package", DOORS)
def test_only_door_files_import_a_heavy_package(package: str) -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in STAIR
        for path in sources(folder)
        if path.name != "train.py" and any(name.split(".")[0] == package for name in imports(path))
    }
    assert found <= DOORS[package]


def loaded_by(code: str, *, cwd: Path, **variables: str) -> set[str]:
    """The modules a fresh interpreter holds after running `code`."""
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)), file=sys.__stdout__)",
        ],
        cwd=cwd,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return set(json.loads(ended.stdout.splitlines()[-1]))


def test_help_imports_click_and_nothing_of_weight(tmp_path: Path) -> None:
    modules = loaded_by("from edgebuild.pipeline.cli import run; run(['--help'])", cwd=tmp_path)
    assert not modules & (HEAVY | {"numpy", "pydantic", "yaml", "rich"})


def test_a_build_that_finds_all_in_the_store_imports_nothing_of_weight(digits: object, cache: Path) -> None:
    folder = digits.folder  # type: ignore[attr-defined]
    code = "from edgebuild.pipeline.cli import run; assert run(['-q']) == 0"
    assert not loaded_by(code, cwd=folder, EDGEBUILD_CACHE=str(cache)) & HEAVY
