"""A step of compression that two workers train together, as processes that a test starts. It imports no TensorFlow."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from servers import free_port

from edgebuild.calibration.errors import Failure
from edgebuild.pipeline.compress.settings import Compression, Finetune, Prune
from edgebuild.pipeline.compress.tf_config import VARIABLE
from edgebuild.pipeline.execution import engine, run_task
from edgebuild.pipeline.storage.store import Store
from edgebuild.pipeline.task import Task
from edgebuild.pipeline.user_code import source_at

KEY: Final = "4567" * 16
EPOCHS: Final = 4
AT_ONCE: Final = -1
# An odd batch, whose shares are not equal.
ALONE: Final = Finetune(epochs=EPOCHS, early_stop=EPOCHS, validation=0.2, batch=31, learning_rate=5e-3)
TOGETHER: Final = ALONE.model_copy(update={"strategy": "multi_worker"})


def task_over(folder: Path) -> Task:
    """Pruning of a project of `quarters.folder_of`."""
    sources = {name: source_at(folder / of) for name, of in _INPUTS.items()}
    parameters = Compression(technique=Prune(sparsity=0.7, finetune=TOGETHER), output="", seed=3)
    return Task(stage="compress", parameters=parameters, sources=sources, seed=3, title="prune", key=KEY)


_INPUTS: Final = {"model": "model", "source": "model", "samples": "samples"}


def addresses(count: int, host: str = "127.0.0.1") -> tuple[str, ...]:
    """Free ports of this machine, others each time."""
    return tuple(f"{host}:{free_port()}" for _ in range(count))


def config(workers: Sequence[str], index: int) -> str:
    """What TF_CONFIG says on one of them."""
    return json.dumps({"cluster": {"worker": list(workers)}, "task": {"type": "worker", "index": index}})


def build(root: str, folder: str) -> None:
    """Make the step as a build does."""
    outcome = engine.execute({KEY: task_over(Path(folder))}, [KEY], Store(Path(root)), jobs=1, on_event=lambda _: None)
    for failure in outcome.causes:
        raise failure


def rounds(folder: str, roots: Sequence[str], killed_after: Sequence[Sequence[int]]) -> None:
    """Begin the step again and again, in two processes each time, and print how each ended.

    They are killed after so many epochs, 0 for never, or when TensorFlow's servers start, `AT_ONCE`; together where all
    are killed after as many. TensorFlow is imported once, for all of them.
    """
    from edgebuild.pipeline.compress import steps, team  # noqa: F401 - each child would import them

    for each in killed_after:
        patience_s, team.START_S = team.START_S, 1 if AT_ONCE in each else team.START_S  # type: ignore[misc]
        where, together = addresses(len(roots)), len(set(each)) == 1
        children = [_begun(folder, root, config(where, i), each[i], together=together) for i, root in enumerate(roots)]
        for child, told in children:
            with os.fdopen(told) as pipe:
                said = pipe.read()
            print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said]), flush=True)  # noqa: T201
        team.START_S = patience_s  # type: ignore[misc]


def _begun(folder: str, root: str, told: str, killed_after: int, *, together: bool) -> tuple[int, int]:
    """A child, and where to read what it says."""
    reads, writes = os.pipe()
    child = os.fork()
    if child:
        os.close(writes)
        return child, reads
    status = 1
    try:
        os.environ[VARIABLE] = told
        os.write(writes, json.dumps(_end(Path(folder), Path(root), killed_after, together=together)).encode())
        status = 0
    except BaseException:  # noqa: BLE001 - whatever it is, a child must not go on as its parent
        traceback.print_exc()
    finally:
        os._exit(status)


def _end(folder: Path, root: Path, killed_after: int, *, together: bool) -> Any:
    """Run the step with a checkpoint each epoch; gives the steps that were taken, or what it failed by.

    Who is killed `together` with the others waits for them first: they may still need what it has.
    """
    from edgebuild.pipeline.compress import checkpoint, team, trainer

    if killed_after == AT_ONCE:
        team._strategy = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    save, train, saved, taken = checkpoint.Checkpoint.save, trainer.Trainer.train, [0], [0]

    def watched_save(kept: checkpoint.Checkpoint, *given: Any) -> None:
        save(kept, *given)
        saved[0] += 1
        if saved[0] == killed_after:
            if together and kept.team is not None:
                kept.team.barrier()
            os.kill(os.getpid(), signal.SIGKILL)

    def watched_train(*given: Any) -> float:
        taken[0] += 1
        return train(*given)

    checkpoint.Checkpoint.save = watched_save  # type: ignore[method-assign, assignment]
    trainer.Trainer.train = watched_train  # type: ignore[method-assign, assignment]
    checkpoint.EVERY_S = 0.0  # type: ignore[misc]
    try:
        run_task.run_task(task_over(folder), Store(root))
    except Failure as e:
        return f"{type(e).__name__}: {e.what}"
    return taken[0]


if __name__ == "__main__":
    calls: dict[str, Callable[..., None]] = {"build": build, "rounds": rounds}
    calls[sys.argv[1]](*json.loads(sys.argv[2]))
