"""Edit a float model so that an accelerator takes more of it, and hold every edit to the model before."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from edgebuild.export import agreement
from edgebuild.export.errors import ModelError
from edgebuild.pipeline.fitting.calls import Calls, every, normal
from edgebuild.pipeline.fitting.edits import BY_NAME, Edit
from edgebuild.pipeline.fitting.records import Taken
from edgebuild.pipeline.ingest import float_model
from edgebuild.pipeline.storage.store import ENTRY

_COPIED: Final = 1e-6  # Float32 rounding.
SAMPLES: Final = 64  # At most, evenly spread, that edits are held to.
Run = Callable[[Any], Mapping[str, NDArray[Any]]]


def fix(source: Path, out: Path, names: Sequence[str], samples: Mapping[str, NDArray[Any]]) -> tuple[Taken, ...]:
    """Write the float model in `source` into `out` with edits, by name, and give a record of each that found something.

    `samples` are real inputs by name, `[N, ...]`. A model whose samples have no batch axis stays as it is: edits count
    axes behind the batch.

    Raises:
        ModelError: what was written computes something else.
    """
    described = float_model.describe(source)

    def run(model: Any) -> Mapping[str, NDArray[Any]]:
        return float_model.outputs(model, described, samples)

    model = float_model.rebuild(source)
    fixed, records = edited(model, names, run) if described.batched else (model, ())
    if fixed is model:
        shutil.copytree(source, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(ENTRY))
        return records
    float_model.save_changed(fixed, described, out)
    error = agreement.compare(run(fixed), run(float_model.rebuild(out))).relative_rmse
    if not error <= _COPIED:
        raise ModelError(f"the edited model can't be kept as data: its copy differs by {error:.2g} (relative RMSE)")
    return records


def edited(model: Any, names: Sequence[str], run: Run) -> tuple[Any, tuple[Taken, ...]]:
    """The model after all edits that found something and hold, and a record of each; the model itself after none.

    `run` gives a model's outputs by name, `[N, ...]` each, on samples that are the same for all. An edit that moves
    them further than it may is not taken.
    """
    found, calls = model, Calls(normal(model))
    wanted, records = run(model), list[Taken]()
    for each in (BY_NAME[name] for name in names):
        replacements = dict(every(calls, each.find)) if each.find else {}
        if not replacements:
            continue
        after = calls.rewritten(replacements, each.name)
        where = tuple(calls.nodes[index].layer.name for index in sorted(replacements))
        got = run(after)
        error = agreement.compare(wanted, got).relative_rmse
        refused = _refusal(each, error)
        records.append(each.taken(where, error, refused))
        if not refused:
            found, calls, wanted = after, Calls(after), got
    return found, tuple(records)


def _refusal(edit: Edit, error: float) -> str:
    if error <= edit.max_error:
        return ""
    return f"outputs would differ by {error:.2g}, more than {edit.max_error:g} (relative RMSE)"
