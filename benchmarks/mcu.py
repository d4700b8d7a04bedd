"""Build packages for microcontrollers: what each takes of a board, and how long it takes to make.

    .venv/bin/python benchmarks/mcu.py [--table docs/microcontroller.md]

Time counts from the moment the flatbuffer exists: a first command builds up to it, a second, which is timed, does all
the rest: makes it ready, runs the evaluation data in TFLM, finds the smallest arena, writes the package and reports.
Where TFLM_LIBRARY names a libtensorflow-microlite.a, TFLM_INCLUDE its include folders (with `:` between them) and
TFLM_MACHINE the machine it is for, the package runs in QEMU too, outside of the time, and instructions and code are
what was linked and counted. Vela's figures are those for an Ethos-U55 of 128 MACs. Exits with 1 where a package takes
longer than the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import fixtures
import yaml
from fixtures import Fixture
from pages import write_table
from timed import EDGEBUILD, seconds

LIMIT_S: Final = 6.0
BOARD: Final = "stm32l4r5zi"
NPU: Final = "cortex-m55-ethos-u55-128"
MODELS: Final[Mapping[str, Callable[[], Fixture]]] = {
    "kws": fixtures.kws,
    "resnet8": fixtures.resnet8,
    "ad01": fixtures.ad01,
    "str_ww": fixtures.str_ww,
    "demo": fixtures.demo,
}
HEADER: Final = (
    "model",
    "flash of the model, B",
    "code, B",
    "smallest arena, B",
    "with its margin, B",
    "steps from tflite-runtime",
    "instructions",
    "Ethos-U55-128: cycles",
    "SRAM, KiB",
    "s to build",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packaged:
    """A package's figures, as its report has them, and the seconds it took from the flatbuffer on."""

    name: str
    target: Mapping[str, Any]
    npu: Mapping[str, Any]
    took_s: float

    @property
    def row(self) -> tuple[str, ...]:
        """A line of the table."""
        memory, firmware = self.target["memory"], self.target["firmware"]
        emulated, vela = firmware["emulation"], self.npu["firmware"]["ethos_u"]["summary"]
        flash, size = memory["flash_bytes"]["value"], self.target["size_bytes"]["value"]
        return (
            self.name,
            f"{size:,}",
            f"{flash - size:,}",
            f"{memory['least_arena_bytes']['value']:,}",
            f"{memory['arena_bytes']['value']:,}",
            f"{firmware['difference']['max_steps']:g}",
            "" if emulated is None else f"{emulated['instructions']:,}",
            f"{vela['cycles']['total']:,}",
            f"{vela['sram_kib']:.1f}",
            f"{self.took_s:.1f}",
        )


def package(name: str, fixture: Fixture, folder: Path) -> Packaged:
    """Build one model: up to its flatbuffer, then the rest of it, timed, and in QEMU and through Vela."""
    fixtures.lay_out(fixture, folder)
    config = folder / "edgebuild.yaml"
    plain = yaml.safe_load(config.read_text()) | {"targets": {"mcu": {"board": BOARD}}, "metric": fixture.metric}
    config.write_text(yaml.safe_dump(plain))
    store = {"EDGEBUILD_CACHE": str(folder / "cache")}
    seconds([EDGEBUILD, "--until", "convert"], folder, **store)
    took_s = seconds([EDGEBUILD], folder, **store)
    if emulated := _tflm():
        seconds([EDGEBUILD, "--set", f"targets.mcu.tflm={json.dumps(emulated)}"], folder, **store)
    target = _target(folder / "build")
    seconds([EDGEBUILD, "-o", "npu", "--set", f"targets.mcu.board={NPU}"], folder, **store)
    return Packaged(name=name, target=target, npu=_target(folder / "npu"), took_s=took_s)


def _target(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_text())["targets"]["mcu"]
    return found


def _tflm() -> dict[str, Any]:
    """What the environment says of a TFLM for an emulated core."""
    if "TFLM_LIBRARY" not in os.environ:
        return {}
    machine = os.environ.get("TFLM_MACHINE", "mps2-an386")
    return {
        "library": os.environ["TFLM_LIBRARY"],
        "include": os.environ["TFLM_INCLUDE"].split(":"),
        "machine": machine,
    }


def main() -> None:
    """Build, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--table", type=Path, help="a Markdown file to write the table into")
    arguments = parser.parse_args()
    fixtures.require()
    rows = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for name, make in MODELS.items():
            rows.append(package(name, make(), Path(folder) / name))
            print(f"{name}: {rows[-1].took_s:.1f} s ({time.monotonic() - began:.0f} s in all)", flush=True)
    lines = [HEADER, ("---",) * len(HEADER), *(row.row for row in rows)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    print(text)
    if arguments.table:
        write_table(arguments.table, "mcu", text)
    slow = [row.name for row in rows if row.took_s > LIMIT_S]
    print(f"time to build: limit {LIMIT_S} s {'ABOVE: ' + ', '.join(slow) if slow else 'ok'}")
    sys.exit(1 if slow else 0)


if __name__ == "__main__":
    main()
