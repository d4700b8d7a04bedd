"""The float model as a SavedModel with constant weights: made once in a worker, read by every conversion."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path

from edgebuild.export import convert
from edgebuild.pipeline.ingest import float_model


@lru_cache(maxsize=2)
def frozen(folder: Path) -> Path:
    """A temporary SavedModel of the float model in `folder`.

    It is no stage of its own: TensorFlow numbers the functions inside by what the process did before, so its bytes
    are not reproducible, while the flatbuffers made from it are.
    """
    place = Path(tempfile.mkdtemp(prefix="frozen-"))  # In the worker's own scratch folder.
    described = float_model.describe(folder)
    convert.freeze(float_model.load(folder), described.inputs, described.outputs, place, batched=described.batched)
    return place
