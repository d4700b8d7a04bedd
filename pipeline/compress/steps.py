"""The techniques by name; each makes a float model of another, that keeps what those before it made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgebuild.pipeline.compress import cluster, prune, qat, structure, team, tf_config, work
from edgebuild.pipeline.compress.checkpoint import Epoch
from edgebuild.pipeline.compress.kernels import Kernel
from edgebuild.pipeline.compress.settings import Cluster, Compression, Prune, Qat
from edgebuild.pipeline.compress.structure import Structure
from edgebuild.pipeline.compress.work import Work
from edgebuild.pipeline.ingest import float_model

STEP: Final = "step.json"
_TECHNIQUES: Final[Mapping[type, Callable[[Any, Work], tuple[Epoch, ...]]]] = {
    Prune: prune.apply,
    Cluster: cluster.apply,
    Qat: qat.apply,
}


def apply(step: Compression, inputs: Mapping[str, Path], out: Path) -> None:
    """`model`, `source` (uncompressed), perhaps `samples` -> a float model, `structure.npz` and `step.json`.

    Where several machines train it together, this process must be new to TensorFlow, and the folder `progress` be named
    by the key of the result: it tells that they are about the same.
    """
    if not step.technique.is_joint:
        _apply(step, inputs, out)
        return
    with team.joined(tf_config.here(), inputs["progress"].name) as met:
        _apply(step, inputs, out, met)


def _apply(step: Compression, inputs: Mapping[str, Path], out: Path, met: team.Team | None = None) -> None:
    opened = work.start(step, inputs, met)
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
            **_shared(kernel, done.structures.get(name)),
        }
        for name, kernel in done.kernels.items()
    ]
    return {
        "kernels": kernels,
        "history": [asdict(epoch) for epoch in history],
        "learned": asdict(done.learned) if done.learned else None,
        "search": asdict(done.search) if done.search else None,
        "notes": done.notes,
    }


def _shared(kernel: Kernel, found: Structure | None) -> dict[str, int | None]:
    """How many values the weights share, over all and in the channel that has most."""
    if found is None or found.groups is None:
        return {"shared": None, "shared_per_channel": None}
    groups = np.where(found.kept, found.groups, structure.ZERO)
    channels = np.moveaxis(groups, kernel.channel_axes, range(len(kernel.channel_axes)))
    rows = channels.reshape(int(np.prod(channels.shape[: len(kernel.channel_axes)])), -1)
    return {"shared": len(np.unique(groups)), "shared_per_channel": max(len(np.unique(row)) for row in rows)}
