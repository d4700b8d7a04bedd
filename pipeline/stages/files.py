"""What several stages read and write alike."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from edgebuild.pipeline.arrays import load_arrays

NAMED: Final = "named.tflite"  # A flatbuffer before its names were stripped, beside the one without them.


def write_json(path: Path, value: object) -> None:
    """Write plain data; equal data gives equal bytes."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def model_inputs(inputs: Mapping[str, Path]) -> dict[str, Any]:
    """The samples that a stage was given, `[N, ...]` by input name, without labels."""
    arrays = load_arrays(inputs["samples"] / "samples.npz")
    arrays.pop("labels", None)
    return arrays


def named(pairs: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, Any]:
    """Known answers, pairs of inputs and outputs, as one file holds them: `0/in/<name>`, `0/out/<name>`."""
    vectors: dict[str, Any] = {}
    for row, (given, results) in enumerate(pairs):
        vectors |= {f"{row}/in/{name}": value for name, value in given.items()}
        vectors |= {f"{row}/out/{name}": value for name, value in results.items()}
    return vectors


def pairs(vectors: Mapping[str, Any]) -> tuple[tuple[dict[str, Any], dict[str, Any]], ...]:
    """Known answers out of what `named` made."""
    rows: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
    for key, value in vectors.items():
        row, side, name = key.split("/", 2)
        rows.setdefault(int(row), ({}, {}))[side == "out"][name] = value
    return tuple(rows[row] for row in sorted(rows))
