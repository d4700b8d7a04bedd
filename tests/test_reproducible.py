"""The same project gives the same bytes, whoever builds it, where, when and in whatever order.

Three builds from empty stores: each differs from the first in many ways at once. Where one gives other bytes,
`benchmarks/reproducible.py` says which way it is.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import edgebuild, listing

from edgebuild.pipeline import demo

TIMED = {"report.json", "report.html"}  # They hold a latency and when it was measured.


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    demo.lay_out(folder / "demo")
    ended = edgebuild(
        *("-j", "1"),
        cwd=folder / "demo",
        cache=folder / "cache",
        TZ="UTC",
        LC_ALL="C.UTF-8",
        HOME=str(folder),
        USER="ada",
        PYTHONHASHSEED="0",
    )
    assert ended.code == 0, ended.stderr
    return folder / "demo" / "build"


def require_same(one: Path, other: Path) -> None:
    assert listing(one) == listing(other)
    differ = [path for path in listing(one) if (one / path).read_bytes() != (other / path).read_bytes()]
    assert set(differ) <= TIMED
    assert untimed(one) == untimed(other)


def untimed(out: Path) -> dict[str, Any]:
    """The report without what a clock decides."""
    report: dict[str, Any] = json.loads((out / "report.json").read_bytes())
    for target in report["targets"].values():
        del target["latency"], target["twin"]
        target["notes"] = [note for note in target["notes"] if "slower than float32" not in note]
    return report


def test_another_person_at_another_place_and_hour_gets_the_same_bytes(first: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a döner's project; 2" / "deep"
    demo.lay_out(folder)
    for file in folder.iterdir():
        os.utime(file, (1, 1))
    ended = edgebuild(
        *("-j", "2"),
        cwd=folder,
        cache=tmp_path / "another store",
        TZ="Asia/Kathmandu",
        LC_ALL="C",
        HOME=str(tmp_path),
        USER="bob",
        PYTHONHASHSEED="4242",
    )
    assert ended.code == 0, ended.stderr
    require_same(first, folder / "build")


def test_another_order_of_keys_and_targets_gives_the_same_bytes(first: Path, tmp_path: Path) -> None:
    demo.lay_out(tmp_path / "demo")
    config = yaml.safe_load((tmp_path / "demo/edgebuild.yaml").read_text())
    turned = {key: config[key] for key in reversed(config)}
    turned["targets"] = {name: config["targets"][name] for name in reversed(config["targets"])}
    (tmp_path / "demo/edgebuild.yaml").write_text("# another comment\n" + yaml.safe_dump(turned, sort_keys=False))
    order = [option for name in ("edgetpu", "mcu", "cpu", "gpu") for option in ("-t", name)]
    ended = edgebuild(*order, "-c", "demo/edgebuild.yaml", "-o", "out", cwd=tmp_path, cache=tmp_path / "cache")
    assert ended.code == 0, ended.stderr
    require_same(first, tmp_path / "out")
