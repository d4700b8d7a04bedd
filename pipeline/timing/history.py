"""Every latency that was measured here, kept in the store for whoever asks what became of a model over the weeks.

A series is one path of a model on one device, runtime and way to run it: `<store>/history/<series>.jsonl`, a line each
time. No build ever reads it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from edgebuild.device_tests.latency import Latency

FOLDER: Final = "history"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What the file at `path`, of this digest, took at the time that `latency` says."""

    path: str
    sha256: str
    latency: Latency


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """All latencies of one path, measured in one way on one device, oldest first."""

    path: str
    device: str
    runtime: str
    threads: int
    delegate: str
    records: tuple[Record, ...]


def place(model: Path) -> str:
    """The path of a model as history knows it, from the root and without detours."""
    return os.path.abspath(model)  # noqa: PTH100 - resolve() follows links, and absolute() leaves `..` in


def add(root: Path, record: Record) -> None:
    """Remember a latency in the store at `root`; a store that can't be written loses that, and no more.

    A line is written in one piece, so that two who write at once spoil nothing.
    """
    with suppress(OSError):
        (root / FOLDER).mkdir(parents=True, exist_ok=True)
        with (root / FOLDER / f"{_name(record)}.jsonl").open("ab", buffering=0) as file:
            file.write(f"{json.dumps(asdict(record))}\n".encode())


def of(root: Path, model: Path) -> tuple[Series, ...]:
    """What the store at `root` holds of a model, by its path or its content; what was measured last is first."""
    path, digest = place(model), _digest(model)
    found = [records for file in sorted((root / FOLDER).glob("*.jsonl")) if (records := tuple(_read(file)))]
    ours = [records for records in found if path == records[0].path or digest in {one.sha256 for one in records}]
    ours.sort(key=lambda records: records[-1].latency.measured_at, reverse=True)
    return tuple(map(_series, ours))


def _series(records: tuple[Record, ...]) -> Series:
    latency = records[0].latency
    return Series(
        path=records[0].path,
        device=latency.device,
        runtime=latency.runtime,
        threads=latency.threads,
        delegate=latency.delegate,
        records=tuple(sorted(records, key=lambda record: record.latency.measured_at)),
    )


def _name(record: Record) -> str:
    latency = record.latency
    key = (record.path, latency.device, latency.runtime, latency.threads, latency.delegate)
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()


def _read(file: Path) -> Iterator[Record]:
    """The records in a file, without lines that are none."""
    from pydantic import TypeAdapter

    adapter = TypeAdapter(Record)
    for line in file.read_bytes().splitlines():
        with suppress(ValueError):
            yield adapter.validate_json(line)


def _digest(model: Path) -> str:
    from edgebuild.pipeline.storage.digests import digest_file

    return digest_file(model) if model.is_file() else ""
