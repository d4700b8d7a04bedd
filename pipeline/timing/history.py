"""Every latency that was measured here, kept in the store for whoever asks what became of a model over the weeks.

A series is one path of a model, measured in one way on one device: `<store>/history/<series>.jsonl`, a line each time.
No build ever reads it.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from edgebuild.device_tests.latency import Latency, Setup
from edgebuild.pipeline.storage.digests import digest_file

FOLDER: Final = "history"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What the file at `path`, of this digest, took at the time that `latency` says, on the device with that URI."""

    path: str
    address: str
    sha256: str
    latency: Latency


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """All latencies of one path, measured in one way on one device, oldest first."""

    path: str
    address: str
    setup: Setup
    records: tuple[Record, ...]


def remember(store: Path, model: Path, place: Path, address: str, latency: Latency) -> None:
    """Remember the latency of a model on the device with that URI, as that of the file at `place`.

    A store that can't be written loses that, and no more. A line is written in one piece, so that two who write at once
    spoil nothing.
    """
    record = Record(path=_absolute(place), address=address, sha256=digest_file(model), latency=latency)
    with suppress(OSError):
        (store / FOLDER).mkdir(parents=True, exist_ok=True)
        with (store / FOLDER / f"{_name(record)}.jsonl").open("ab", buffering=0) as file:
            file.write(f"{json.dumps(asdict(record))}\n".encode())


def series(store: Path, model: Path) -> tuple[Series, ...]:
    """What the store holds of a model, by its path or its content; what was measured last is first."""
    path, digest = _absolute(model), digest_file(model) if model.is_file() else ""
    found = [records for file in (store / FOLDER).glob("*.jsonl") if (records := _read(file))]
    ours = [records for records in found if path == records[0].path or digest in {one.sha256 for one in records}]
    ours.sort(key=lambda records: records[-1].latency.measured_at, reverse=True)
    return tuple(
        Series(path=one[0].path, address=one[0].address, setup=one[0].latency.setup, records=one) for one in ours
    )


def _absolute(model: Path) -> str:
    return os.path.abspath(model)  # noqa: PTH100 - resolve() follows links, and absolute() leaves `..` in


def _name(record: Record) -> str:
    key = (record.path, record.address, asdict(record.latency.setup))
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()


def _read(file: Path) -> tuple[Record, ...]:
    """The records in a file, oldest first, without lines that are none."""
    from pydantic import TypeAdapter

    adapter, found = TypeAdapter(Record), list[Record]()
    for line in file.read_bytes().splitlines():
        with suppress(ValueError):
            record = adapter.validate_json(line)
            datetime.fromisoformat(record.latency.measured_at)
            found.append(record)
    return tuple(sorted(found, key=lambda record: record.latency.measured_at))
