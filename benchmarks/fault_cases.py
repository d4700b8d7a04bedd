"""The parts of the benchmark: each disturbs builds in one way, and gives a case for every one and for what followed.

A part takes the ground, how often to disturb, and the seconds of an undisturbed build, to choose moments in.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from fault_builds import ALL, SOME, TAG, Ground, Place, begin, build, chosen, ended, start_up
from fault_damage import cut, flip, swap
from fault_verdicts import wrong_alive, wrong_end, wrong_finish, wrong_halves, wrong_left, wrong_store
from local_cluster import local_cluster

from edgebuild.pipeline import config, planner
from edgebuild.pipeline.storage.store import Store

KILLS_A_ROUND: Final = 6
PUBLISHING_SHARE: Final = 1 / 6  # Publishing takes milliseconds, which a random moment would hardly ever hit.
RESUMED: Final = 0.75  # Of a build's seconds, what the next one on the same store takes.
SMALL_DISKS: Final = ("64k", "192k", "448k")  # The demo's store holds about 550 kB: full early, halfway, at the end.
LOST_WORKERS: Final = 2
MADE: Final = "EDGEBUILD_FAULTS_MADE"
_COUNTING: Final = f"""\
    def counted(stage):
        def function(parameters, inputs, out):
            with open(os.environ["{MADE}"], "a") as made:
                made.write(out.name[:8] + "\\n")  # The first of its key.
            stage.function(parameters, inputs, out)
        return replace(stage, function=function)
    STAGES.update({{name: counted(stage) for name, stage in STAGES.items()}})
"""
_MISBEHAVING: Final = """\
    STAGES["calibrate"] = replace(STAGES["calibrate"], function=lambda *_: {call})
"""


class SkippedError(Exception):
    """This machine does not allow what a part needs; its text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One disturbance or what followed it, and all that ended otherwise than promised."""

    kind: str
    told: str
    wrong: tuple[str, ...]


def kills(ground: Ground, count: int, seconds: float) -> Iterator[Case]:
    """SIGKILL at a random moment, the same build again and again until one ends.

    A resumed build has less to do, so its moments come earlier; some strike just as a build publishes.
    """
    struck = 0
    while struck < count:
        place = ground.fresh()
        for stroke in range(min(KILLS_A_ROUND, count - struck)):
            process = build(ground, place)
            publishing = ground.chance.random() < PUBLISHING_SHARE
            told = _strike(ground, process, place, None if publishing else seconds * RESUMED**stroke)
            if process.wait() != -signal.SIGKILL:  # It was quicker.
                break
            struck += 1
            wrong = (*wrong_alive(ground), *wrong_store(place), *wrong_halves(ground, place.out))
            yield Case(kind="kill", told=told, wrong=wrong)
        else:
            process = build(ground, place)
        yield Case(kind="finishing build", told="", wrong=wrong_finish(ground, place, ended(process)))


def _strike(ground: Ground, process: subprocess.Popen[bytes], place: Place, seconds: float | None) -> str:
    """Kill at a moment within the seconds of a build, or without any, just after it began to publish."""
    if seconds is not None:
        moment = ground.chance.uniform(0, seconds)
        with suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        process.kill()
        return f"after {moment:.2f} s"
    while process.poll() is None and not (place.out / ".claim.json").exists():
        time.sleep(0.0005)
    time.sleep(ground.chance.uniform(0, 0.06))
    process.kill()
    return "while it published"


def pairs(ground: Ground, count: int, seconds: float) -> Iterator[Case]:
    """Two builds on one new store, the second up to a whole build later; every other one for fewer targets."""
    for number in range(count):
        targets = SOME if number % 2 else ALL
        first = ground.fresh()
        second, made = ground.fresh(first.store), first.out.with_suffix(".made")
        variables = start_up(ground, _COUNTING) | {MADE: str(made)}
        delay = ground.chance.random() * ground.chance.choice((0.5, seconds))
        one = build(ground, first, **variables)
        time.sleep(delay)
        other = build(ground, second, *chosen(targets), **variables)
        codes = ended(one), ended(other)
        wrong = (
            *wrong_finish(ground, first, codes[0]),
            *wrong_finish(ground, second, codes[1], targets),
            *_wrong_counts(made.read_text().split(), Store(first.store)),
        )
        waits = sum("another build is making it" in line for line in _lines(first, second))
        told = f"{' '.join(targets) or 'all'} {delay:.2f} s later, {waits} waits"
        yield Case(kind="pair", told=told, wrong=wrong)


def _lines(*places: Place) -> Iterator[str]:
    for place in places:
        yield from place.complained.splitlines()


def _wrong_counts(made: Sequence[str], store: Store) -> Iterator[str]:
    """Every entry of the store was made, and once."""
    times = Counter(made)
    for key in tuple(store.keys()):
        if times[key[:8]] != 1:
            yield f"entry {key[:8]} was made {times[key[:8]]} times"


def corruptions(ground: Ground, count: int, _: float) -> Iterator[Case]:
    """A flipped byte, a cut file, or two files that changed places, in a store that was whole."""
    tasks = planner.make(config.load(ground.project / "edgebuild.yaml")).tasks
    for number in range(count):
        place = ground.fresh()
        shutil.copytree(ground.whole.store, place.store)
        harm = (flip, cut, swap)[number % 3]
        keys, told = harm(ground.chance, Store(place.store))
        named = ended(begin(ground, place, "cache", "verify", "--keep"))
        wrong = [] if named == 1 else [f"cache verify ended with {named}"]
        wrong += [f"cache verify does not name {key}" for key in keys if f"damaged, kept: {key}" not in place.said]
        wrong += ["cache verify names others"] if place.said.count("damaged, kept: ") != len(keys) else []
        for key in _needing(tasks, keys) - keys:  # A build looks up what it needs, and nothing else.
            shutil.rmtree(Store(place.store).place(key))
        code = ended(build(ground, place))
        titles = [tasks[key].title for key in keys]
        wrong += [f"the build does not name {title}" for title in titles if _damaged(title) not in place.complained]
        yield Case(kind=harm.__name__, told=told, wrong=(*wrong, *wrong_finish(ground, place, code)))


def _damaged(title: str) -> str:
    return f"! {title}: its entry in the store is damaged, it is made again"


def _needing(tasks: Mapping[str, Any], keys: set[str]) -> set[str]:
    """The keys of all tasks that come after these."""
    found = {key for key, task in tasks.items() if keys & {*task.inputs.values()}}
    return found | _needing(tasks, found) if found else found


def full_disks(ground: Ground, _: int, __: float) -> Iterator[Case]:
    """A file system that fills up at three moments of a build; then there is room."""
    for size in SMALL_DISKS:
        place = ground.fresh()
        with _disk(place.store, size):
            code = ended(build(ground, place))
            wrong = (
                *wrong_end(place, code, 2, "No space left", "  do: free space", str(place.store)),
                *wrong_store(place),
                *wrong_halves(ground, place.out),
                *wrong_alive(ground),
            )
            yield Case(kind="full", told=size, wrong=wrong)
            _mount("remount,size=256m", place.store)
            yield Case(kind="with room", told=size, wrong=wrong_finish(ground, place, ended(build(ground, place))))


@contextmanager
def _disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir()
    _mount(f"size={size}", folder)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S607 - of the system


def _mount(options: str, folder: Path) -> None:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as e:
        reason = e.stderr.strip() if isinstance(e, subprocess.CalledProcessError) else str(e)
        raise SkippedError(f"a small file system can't be mounted here: {reason}") from e


def segfaults(ground: Ground, count: int, _: float) -> Iterator[Case]:
    """Native code reads address 0 while it calibrates."""
    yield from _misbehaving(ground, count, "ctypes.string_at(0)", ("by SIGSEGV", "native code crashed"))


def hangs(ground: Ground, count: int, _: float) -> Iterator[Case]:
    """Calibrating never ends."""
    words = ("did not end within 3 s", "raise limits.stage_s")
    yield from _misbehaving(ground, count, "time.sleep(86400)", words, "--set", "limits.stage_s=3")


def _misbehaving(ground: Ground, count: int, call: str, words: tuple[str, ...], *arguments: str) -> Iterator[Case]:
    """What needs no calibration is built, what needs it fails by name, and the next build knows nothing of it."""
    variables = start_up(ground, _MISBEHAVING.format(call=call))
    for _ in range(count):
        place, jobs = ground.fresh(), ground.chance.choice("124")
        code = ended(build(ground, place, "-j", jobs, *arguments, **variables))
        wrong = (
            *wrong_end(place, code, 3, "calibrate: its process was ended", "  do: ", *words),
            *([] if (place.out / "gpu").is_dir() else ["gpu/ is not there"]),
            *wrong_halves(ground, place.out, allowed=["gpu"]),
            *wrong_left(ground, place),
            *wrong_store(place),
        )
        yield Case(kind="misbehaving", told=f"{jobs} jobs", wrong=wrong)
        yield Case(kind="next build", told="", wrong=wrong_finish(ground, place, ended(build(ground, place))))


def lost_workers(ground: Ground, _: int, seconds: float) -> Iterator[Case]:
    """SIGKILL to one of two Dask workers in the middle of a build."""
    if find_spec("distributed") is None:
        raise SkippedError("Dask is not installed: pip install -c constraints.txt 'edgebuild[distributed]'")
    variables = {TAG: ground.home.name, "DASK_TEMPORARY_DIRECTORY": str(ground.home)}
    for _number in range(LOST_WORKERS):
        place = ground.fresh()
        with local_cluster(**variables) as (address, workers):
            process = build(ground, place, "--scheduler", address)
            while process.poll() is None and "  + " not in place.complained:
                time.sleep(0.01)
            moment = ground.chance.uniform(0, seconds / 4)
            time.sleep(moment)
            was_building = process.poll() is None
            os.kill(ground.chance.choice(workers), signal.SIGKILL)
            code = ended(process)
        wrong = () if was_building else ("the build had ended before a worker was lost",)
        told = f"{moment:.2f} s after the first result"
        yield Case(kind="lost worker", told=told, wrong=(*wrong, *wrong_finish(ground, place, code)))


Part = Callable[[Ground, int, float], Iterator[Case]]
PARTS: Final[dict[str, Part]] = {
    "kills": kills,
    "pairs": pairs,
    "corruptions": corruptions,
    "full_disks": full_disks,
    "segfaults": segfaults,
    "hangs": hangs,
    "lost_workers": lost_workers,
}
