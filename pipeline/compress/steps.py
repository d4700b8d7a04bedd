"""The techniques by name; each makes a float model of another, that keeps what those before it made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgebuild.pipeline.compress import cluster, prune, structure, work
from edgebuild.pipeline.compress.finetune import Epoch
from edgebuild.pipeline.compress.settings import Cluster, Compression, Prune
from edgebuild.pipeline.compress.work import Work
from edgebuild.pipeline.ingest import float_model

STEP: Final = "step.json"
_TECHNIQUES: Final[Mapping[type, Callable[[Any, Work], tuple[Epoch, ...]]]] = {
    Prune: prune.apply,
    Cluster: cluster.apply,
}


def apply(step: Compression, inputs: Mapping[str, Path], out: Path) -> None:
    """`model`, `source` (uncompressed), perhaps `samples` -> a float model, `structure.npz` and `step.json`."""
    opened = work.start(step, inputs)
    history = _TECHNIQUES[type(step.technique)](step.technique, opened)
    float_model.save_changed(opened.model, float_model.describe(inputs["model"]), out)
    structure.save(out / work.STRUCTURE, opened.structures)
    (out / STEP).write_text(json.dumps(_record(opened, history), indent=1, sort_keys=True) + "\n")


def _record(done: Work, history: Sequence[Epoch]) -> dict[str, Any]:
    """What the step left in the float model: a line a kernel, the course of training, and what a user should know."""
    kernels = [
        {
            "layer": kernel.layer,
            "kernel": kernel.name,
            "weights": int(kernel.value.size),
            "zeros": int((kernel.value == 0).sum()),
            "unique": len(np.unique(kernel.value)),
        }
        for kernel in done.kernels.values()
    ]
    return {"kernels": kernels, "history": [asdict(epoch) for epoch in history], "notes": done.notes}
