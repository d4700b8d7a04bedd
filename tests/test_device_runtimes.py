"""One model across runtimes: real ones, out of wheels made of what is installed here, so without a network."""

from __future__ import annotations

import sys
import zipfile
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from flatbuffers_made import chain
from packaging.requirements import Requirement

from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.packages import installed
from edgebuild.device_tests.runtimes import RuntimeReport, sentinel
from edgebuild.device_tests.transport import RunRequest
from edgebuild.export.errors import ModelError

OLD: Final = f"tflite-runtime=={metadata.version('tflite-runtime')}"
NEW: Final = f"ai-edge-litert=={metadata.version('ai-edge-litert')}"
ABSENT: Final = "tflite-runtime==0.0.1"
BROKEN: Final = "broken-runtime==1.0"
EMPTY: Final = "no-runtime==1.0"
REQUEST: Final = RunRequest(min_warmup_s=0.0, min_warmup_runs=1, min_time_s=0.0, min_runs=3, delegate="none")
# A runtime that loads any model and can run none, under the name that comes second.
BROKEN_INTERPRETER: Final = """
class OpResolverType:
    BUILTIN_WITHOUT_DEFAULT_DELEGATES = 0
class Interpreter:
    def __init__(self, model, **settings):
        raise RuntimeError("out of order")
"""

# Looking for its module would import setuptools.
HAS_PIP: Final = any(metadata.distributions(name="pip"))
pytestmark = pytest.mark.skipif(not HAS_PIP, reason="this Python has no pip")


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of wheels: two runtimes, what they need, a runtime that is broken, and a package that is none."""
    folder = tmp_path_factory.mktemp("wheels")
    for name in sorted(needed("tflite-runtime") | needed("ai-edge-litert")):
        repack(metadata.distribution(name), folder)
    broken = {"ai_edge_litert/__init__.py": "", "ai_edge_litert/interpreter.py": BROKEN_INTERPRETER}
    write_wheel(folder, "broken_runtime", broken)
    write_wheel(folder, "no_runtime", {"no_runtime.py": ""})
    return folder


def needed(name: str) -> set[str]:
    """A package and all that it needs here."""
    wanted = [Requirement(line) for line in metadata.requires(name) or ()]
    here = [each.name for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    return {name}.union(*map(needed, here))


def repack(package: metadata.Distribution, folder: Path) -> None:
    """The wheel that a package was installed from, but for its tests and what was compiled since."""
    tag = max(line.split()[1] for line in str(package.read_text("WHEEL")).splitlines() if line.startswith("Tag:"))
    name = package.metadata["Name"].replace("-", "_").replace(".", "_")
    with zipfile.ZipFile(folder / f"{name}-{package.version}-{tag}.whl", "w") as wheel:
        for path in package.files or ():
            if not {"..", "tests", "__pycache__"} & set(path.parts) and Path(str(path.locate())).is_file():
                wheel.write(str(path.locate()), str(path))


def write_wheel(folder: Path, name: str, files: dict[str, str]) -> None:
    about = f"{name}-1.0.dist-info"
    files = files | {
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": "",
    }
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runtimes")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "relu.tflite").write_bytes(chain(2))
    return tmp_path / "relu.tflite"


def complaint(report: RuntimeReport) -> str:
    assert (report.latency, report.ratio, report.outputs) == (None, None, None)
    return str(report.failure)


def test_runtimes_are_measured_in_turns_and_held_against_the_first(model: Path, wheels: Path, cache: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    samples = {"t0": np.array([[1.0, -1.0, 2.0, 0.5]])}
    old, new = sentinel(
        model,
        [OLD, NEW],
        samples=samples,
        request=REQUEST,
        wheels=wheels,
        cache=cache,
        hear=lambda *step: heard.append(step),
    )
    assert (old.requirement, old.failure, old.ratio, old.outputs) == (OLD, None, None, None)
    assert old.latency is not None
    assert new.latency is not None
    assert [told(OLD), told(NEW)] == [old.latency.runtime, new.latency.runtime]
    assert new.ratio is not None
    assert 0 < new.ratio.low <= new.ratio.median <= new.ratio.high < np.inf
    assert new.outputs is not None
    assert (new.outputs.verdict, new.outputs.promised_exact, new.outputs.n) == ("equal", False, 1)
    assert heard[:2] == [(OLD, 0, 6), (NEW, 0, 6)]
    rounds = [{name for name, _, _ in heard[i : i + 2]} for i in range(2, 14, 2)]
    assert rounds == [{OLD, NEW}] * 6
    assert len(heard) == 14


def told(requirement: str) -> str:
    """A runtime in its own words."""
    return requirement.replace("-", "_").replace("==", " ")


def test_a_runtime_that_fails_is_told_and_costs_the_others_nothing(model: Path, wheels: Path, cache: Path) -> None:
    requirements = [ABSENT, BROKEN, EMPTY, NEW, "tflite-runtime", "--index-url=http://nowhere", NEW]
    reports = sentinel(model, requirements, request=REQUEST, processes=1, wheels=wheels, cache=cache)
    assert [report.requirement for report in reports] == requirements
    absent, broken, empty, first, unpinned, option, second = reports
    assert "tflite-runtime==0.0.1 can't be had for Python" in complaint(absent)
    assert str(wheels) in complaint(absent)
    assert "RuntimeError: out of order" in complaint(broken)
    assert "no-runtime==1.0 brings no runtime" in complaint(empty)
    assert "names no version" in complaint(unpinned)
    assert "names no version" in complaint(option)
    assert (first.failure, first.ratio) == (None, None)
    assert second.ratio is not None
    assert (second.ratio.low, second.ratio.high) == (0.0, np.inf)


def test_a_model_that_no_runtime_takes_is_told_of_each(model: Path, wheels: Path, cache: Path) -> None:
    request = replace(REQUEST, delegate="/nowhere/delegate.so")
    reports = sentinel(model, [OLD, NEW], request=request, wheels=wheels, cache=cache)
    assert all("/nowhere/delegate.so" in complaint(report) for report in reports)


def test_packages_are_made_once_and_nothing_else_is_left(wheels: Path, cache: Path) -> None:
    first = installed(OLD, wheels=wheels, cache=cache)
    made = (first / "tflite_runtime" / "__init__.py").stat().st_mtime_ns
    with pytest.raises(DeviceError):
        installed(ABSENT, wheels=wheels, cache=cache)
    assert installed(OLD, wheels=wheels, cache=cache) == first
    assert (first / "tflite_runtime" / "__init__.py").stat().st_mtime_ns == made
    assert not list(cache.glob("part-*"))


def test_a_cache_that_cannot_be_written_is_a_device_error(tmp_path: Path, wheels: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DeviceError, match="can't hold no-runtime"):
        installed(EMPTY, wheels=wheels, cache=tmp_path / "file" / "below")


def test_who_comes_second_takes_what_the_first_has_made(
    tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that make one folder at the same time: the other's is there when ours is ready."""
    from edgebuild.device_tests import packages

    def made_by_another(requirement: str, folder: Path, wheels: Path | None) -> Path:
        (folder / "ours").mkdir()
        monkeypatch.setattr(packages, "_made", made)
        (installed(requirement, wheels=wheels, cache=tmp_path) / "theirs").touch()
        return folder / "ours"

    def made(_requirement: str, folder: Path, _wheels: Path | None) -> Path:
        (folder / "0").mkdir()
        (folder / "0" / "numpy").touch()
        return folder / "0"

    monkeypatch.setattr(packages, "_made", made_by_another)
    kept = installed(OLD, wheels=wheels, cache=tmp_path)
    assert sorted(path.name for path in kept.iterdir()) == ["numpy", "theirs"]
    assert list(tmp_path.iterdir()) == [kept]


def test_another_folder_of_wheels_makes_other_packages(tmp_path: Path, wheels: Path, cache: Path) -> None:
    installed(OLD, wheels=wheels, cache=cache)
    with pytest.raises(DeviceError, match=f"for Python {sys.version_info.major}"):
        installed(OLD, wheels=tmp_path, cache=cache)


def test_there_must_be_a_process(model: Path) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        sentinel(model, [OLD], processes=0)


def test_a_missing_model_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere\.tflite"):
        sentinel(tmp_path / "nowhere.tflite", [OLD])
