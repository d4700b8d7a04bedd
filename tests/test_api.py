"""docs/api.md: its example runs and type-checks, and what it calls stable is there as it says."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from conftest import Build

from edgebuild.pipeline import demo

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = (ROOT / "docs/api.md").read_text(encoding="utf-8")
EXAMPLE, STABLE = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
RECORDS: Final = re.findall(r"^\| `([\w.]+)` \| (.+) \|$", PAGE, re.MULTILINE)


def stable_functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """Each function's module, from the comment above it, and its declaration."""
    for module, declarations in re.findall(r"^# ([\w.]+)\n((?:[^#\n].*\n)+)", STABLE, re.MULTILINE):
        for declaration in ast.parse(declarations).body:
            assert isinstance(declaration, ast.FunctionDef)
            yield module, declaration


FUNCTIONS: Final = list(stable_functions())


def test_the_example_runs_as_a_users_script(tmp_path: Path, digits: Build, cache: Path) -> None:
    demo.lay_out(tmp_path)
    (tmp_path / "example.py").write_text(EXAMPLE)
    ended = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env=os.environ | {"EDGEBUILD_CACHE": str(cache)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    size = digits.ended.stdout.split("cpu ")[1].split()[1].replace(",", "")
    assert ended.stdout.startswith(f"cpu {size} B, 0.98")
    assert "\nmcu " in ended.stdout
    assert "  agreement: pass\n" in ended.stdout
    assert "\n0.8181818181818182 of the operators on an Edge TPU\n" in ended.stdout  # Not its float ends: 9 of 11.
    assert "did you mean min_metric?" in ended.stdout
    assert {path.name for path in (tmp_path / "build").iterdir() if path.is_dir()} == {"cpu", "mcu"}


def test_the_example_passes_a_strict_type_check(tmp_path: Path) -> None:
    head, *end = EXAMPLE.partition("raise SystemExit")
    (tmp_path / "example.py").write_text("".join((head, "reveal_type(target.size_bytes.value)\n", *end)))
    (tmp_path / "types").mkdir()
    (tmp_path / "types/edgebuild").symlink_to(ROOT)  # mypy follows no editable install's finder.
    settings = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(tmp_path / "cache")]
    ended = subprocess.run(
        [sys.executable, "-m", "mypy", *settings, "example.py"],
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": "types"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    assert 'Revealed type is "float | int | None"' in ended.stdout  # Not Any: the types are found.


def test_every_package_is_marked_as_typed() -> None:
    for folder in ("calibration", "device_tests", "export", "pipeline", "targets"):
        assert (ROOT / folder / "py.typed").is_file(), folder


def test_the_page_lists_functions_and_records() -> None:
    assert {declaration.name for _, declaration in FUNCTIONS} >= {"load", "build", "inspect", "check", "compare"}
    assert "edgebuild.pipeline.build.BuildResult" in dict(RECORDS)
    assert STABLE.count("def ") == len(FUNCTIONS)


@pytest.mark.parametrize(("module", "stable"), FUNCTIONS, ids=lambda value: getattr(value, "name", value))
def test_stable_functions_take_what_the_page_says(module: str, stable: ast.FunctionDef) -> None:
    signature = inspect.signature(getattr(importlib.import_module(module), stable.name))
    real = signature.parameters.values()
    given = {p.name: (p.annotation, p.default) for p in real}
    positional = [p.name for p in real if p.kind is p.POSITIONAL_OR_KEYWORD]
    told = stable.args.args
    assert [argument.arg for argument in told] == positional[: len(told)]
    defaults = [None] * (len(told) - len(stable.args.defaults)) + list(stable.args.defaults)
    for argument, default in [
        *zip(told, defaults, strict=True),
        *zip(stable.args.kwonlyargs, stable.args.kw_defaults, strict=True),
    ]:
        assert argument.annotation is not None
        expected = inspect.Parameter.empty if default is None else ast.literal_eval(default)
        assert given[argument.arg] == (ast.unparse(argument.annotation), expected)
    promised = {argument.arg for argument in (*told, *stable.args.kwonlyargs)}
    assert all(p.default is not p.empty for p in real if p.name not in promised), "a call as the page says must do"
    assert stable.returns is not None
    assert signature.return_annotation == ast.unparse(stable.returns)


@pytest.mark.parametrize(("name", "held"), RECORDS)
def test_stable_records_hold_what_the_page_says(name: str, held: str) -> None:
    module, _, attribute = name.rpartition(".")
    record: Any = getattr(importlib.import_module(module), attribute)
    names = {field.name for field in fields(record)} if is_dataclass(record) else set(vars(record("what")))
    names |= {key for key, value in inspect.getmembers(record) if isinstance(value, property)}
    assert set(re.findall(r"`(\w+)`", held)) <= names
