"""Projects to plan and never to run: model and data are stand-ins, since a plan reads no more of them than digests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from edgebuild.pipeline import config, planner
from edgebuild.pipeline.plan import Plan
from edgebuild.targets.registry import TARGETS

EVERY_TARGET: Final[dict[str, Any]] = {name: {} for name in TARGETS}
FILES: Final = {
    "model/saved_model.pb": "no graph",
    "calibration.npz": "calibration: no archive",
    "evaluation.npz": "evaluation: no archive",
    # `judge` and `feed` are named by configurations; the others are what they import.
    "judge.py": "import shapes\nfrom deep.inner import scale\n\ndef score(outputs, labels): ...\n",
    "feed.py": "def windows():\n    import shapes\n",
    "shapes.py": "import importlib\n\nlate = importlib.import_module('late')\n",
    "late.py": "import numpy, judge  # A circle: it ends.\n",
    "deep/__init__.py": "",
    "deep/inner.py": "from . import outer\n",
    "deep/outer.py": "import json\n",
    "unused.py": "import shapes\n",
}


def settings(**changes: Any) -> dict[str, Any]:
    """A configuration for every target."""
    data = {"calibration": "calibration.npz", "evaluation": "evaluation.npz"}
    return {"model": "model", "data": data, "targets": EVERY_TARGET} | changes


def lay_out(folder: Path, raw: Mapping[str, Any] | None = None) -> Path:
    """Write the files, and a configuration with its keys in the order given."""
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    configure(folder, raw or settings())
    return folder


def configure(folder: Path, raw: Mapping[str, Any], comment: str = "") -> None:
    """Write the configuration."""
    (folder / config.NAME).write_text(comment + yaml.safe_dump(dict(raw), sort_keys=False))


def planned(folder: Path, *targets: str) -> Plan:
    """The plan of what lies in a folder."""
    return planner.make(config.load(folder / config.NAME), targets)
