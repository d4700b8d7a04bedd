"""Edit a finished flatbuffer, and hold every edit to the file before, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from numpy.typing import NDArray

from edgebuild.calibration import samples as loader
from edgebuild.export import cut, flatbuffer
from edgebuild.export.errors import ModelError
from edgebuild.export.interpreter import Interpreter, encoded
from edgebuild.export.surgery import Surgeon
from edgebuild.pipeline.fitting.edits import BY_NAME
from edgebuild.pipeline.fitting.records import Taken

PROOF_SAMPLES: Final = 16  # At most: each runs twice an edit.


def reform(data: bytes, names: Sequence[str], samples: Mapping[str, NDArray[Any]]) -> tuple[bytes, tuple[Taken, ...]]:
    """The model after all edits of flatbuffers that found something and hold, and a record of each.

    `samples` are real inputs by name, `[N, ...]`. An edit with which any bit of an output differs is not taken.
    """
    records = list[Taken]()
    for edit in (BY_NAME[name] for name in names):
        surgeon = Surgeon(data)
        where = edit.reform(flatbuffer.read(data), surgeon) if edit.reform else ()
        if not where:
            continue
        edited = surgeon.data()
        refused = _difference(data, edited, samples)
        records.append(edit.taken(where, None if refused else 0.0, refused))
        data = data if refused else edited
    return data, tuple(records)


def _difference(data: bytes, edited: bytes, samples: Mapping[str, NDArray[Any]]) -> str:
    """Why an edit does not hold; empty where it does."""
    before = Interpreter(data)
    rows = list(encoded(before.flatbuffer, loader.choose(dict(samples), PROOF_SAMPLES)))
    try:
        cut.prove(before, [Interpreter(edited)], rows)
    except ModelError as e:
        return e.what
    return ""
