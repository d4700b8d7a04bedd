"""What every record of `edgebuild.yaml` is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Frozen, strict about keys and types; a limit of NaN would hold to nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def or_a(kind: str) -> Callable[[dict[str, Any]], None]:
    """Add to a record's JSON Schema the shorthand that its validator takes."""

    def extend(schema: dict[str, Any]) -> None:
        record = dict(schema)
        schema.clear()
        schema["anyOf"] = [{"type": kind}, record]

    return extend
