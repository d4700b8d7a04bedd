"""Disturb builds on purpose, and see that none of them lies and none loses anything.

    .venv/bin/python benchmarks/faults.py [--kills 60] [--pairs 10] [--corruptions 20] [--segfaults 5] [--hangs 5]
                                          [--seed 0] [--only NAME] [--json FILE]

An undisturbed build of the demo gives the bytes that every other one has to end with: artifacts, manifest, statements.
Then builds are killed, run against each other, given a damaged store, a full disk, native code that crashes or hangs,
and a cluster that loses a worker. Prints a table; exits with 1 where anything ended otherwise than promised.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import count as numbers
from pathlib import Path
from typing import Any, Final

from edgebuild.pipeline import config, demo, plan
from edgebuild.pipeline.store import ENTRY, Store, digest_file

EDGEBUILD: Final = str(Path(sys.executable).with_name("edgebuild"))
TARGETS: Final = ("cpu", "gpu", "edgetpu", "mcu")
ALL: Final[tuple[str, ...]] = ()
SOME: Final = ("edgetpu", "gpu")  # Shares the model, the data, int8's ranges and one conversion with all four.
TIMED: Final = ("report.json", "report.html")
KILLS_A_ROUND: Final = 6
PUBLISHING_SHARE: Final = 1 / 6
RESUMED: Final = 0.75
LONGEST_S: Final = 240.0
GONE_WITHIN_S: Final = 15.0  # A worker whose parent dies before it could ask for a signal imports TensorFlow first.
SMALL_DISKS: Final = ("64k", "192k", "448k")
LOST_WORKERS: Final = 2
TAG: Final = "EDGEBUILD_FAULTS_TAG"
MADE: Final = "EDGEBUILD_FAULTS_MADE"

# Start-up files for worker processes alone: Python runs a `sitecustomize.py` that it finds on its path.
_IN_WORKERS: Final = """\
import sys
if any("edgebuild.pipeline.worker" in argument for argument in sys.orig_argv):
    import ctypes, os, time
    from dataclasses import replace
    from edgebuild.pipeline.stages import STAGES
"""
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
_CLUSTER: Final = """\
import json, os, sys
from distributed import LocalCluster
if __name__ == "__main__":
    options = dict(threads_per_worker=1, dashboard_address=None, worker_dashboard_address=None, host="127.0.0.1")
    with LocalCluster(n_workers=2, **options) as cluster, cluster.get_client() as client:
        print(json.dumps([cluster.scheduler_address, *client.run(os.getpid).values()]), flush=True)
        sys.stdin.read()
"""


class SkippedError(Exception):
    """This machine does not allow what a part needs; its text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One disturbance or what followed it, and all that ended otherwise than promised."""

    kind: str
    told: str
    wrong: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one build works. Builds may share a store."""

    out: Path
    store: Path

    @property
    def said(self) -> str:
        """What the last command here printed on stdout."""
        return self.out.with_suffix(".stdout").read_text()

    @property
    def complained(self) -> str:
        """And on stderr."""
        return self.out.with_suffix(".stderr").read_text()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """The project, and what an undisturbed build makes of it: digests by path for each choice of targets, seconds."""

    home: Path
    chance: random.Random
    numbers: Iterator[int]
    reference: dict[tuple[str, ...], Mapping[str, str]]

    @property
    def project(self) -> Path:
        """The demo's folder."""
        return self.home / "project"

    @property
    def whole(self) -> Place:
        """The undisturbed build's, whose store holds everything."""
        return Place(out=self.home / "whole", store=self.home / "whole-store")

    def fresh(self, store: Path | None = None) -> Place:
        """A new place, with a new store unless one is given."""
        number = next(self.numbers)
        return Place(out=self.home / f"out-{number}", store=store or self.home / f"store-{number}")


# Running


def begin(ground: Ground, place: Place, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
    """Start `edgebuild` in the project's folder; every process below it carries the tag of this run."""
    environment = os.environ | {"EDGEBUILD_CACHE": str(place.store), TAG: ground.home.name} | variables
    with place.out.with_suffix(".stdout").open("wb") as out, place.out.with_suffix(".stderr").open("wb") as errors:
        return subprocess.Popen([EDGEBUILD, *arguments], cwd=ground.project, env=environment, stdout=out, stderr=errors)


def build(ground: Ground, place: Place, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
    """Start a build."""
    return begin(ground, place, "build", "-o", str(place.out), *arguments, **variables)


def ended(process: subprocess.Popen[bytes]) -> int:
    """The exit status; one that hangs is killed, and -9 is what nobody expects."""
    try:
        return process.wait(LONGEST_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def chosen(targets: Iterable[str]) -> list[str]:
    """Targets on the command line."""
    return [word for target in targets for word in ("-t", target)]


def start_up(ground: Ground, body: str) -> dict[str, str]:
    """The environment that has worker processes run `body` as they start."""
    folder = ground.home / f"start-up-{hashlib.sha256(body.encode()).hexdigest()[:8]}"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(_IN_WORKERS + body)
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))}


# Judging: each gives what is wrong, and nothing where all is as promised


def files(out: Path) -> dict[str, str]:
    """The sha256 of everything in a build's folder but the reports, which hold latencies."""
    found = (file for file in sorted(out.rglob("*")) if file.is_file() and file.name not in TIMED)
    return {file.relative_to(out).as_posix(): digest_file(file) for file in found}


def wrong_end(place: Place, code: int, expected: int, *words: str) -> Iterator[str]:
    """The exit status, no traceback, and the words that a message must hold."""
    told = place.complained
    if code != expected:
        yield f"exit {code} instead of {expected}: {told.strip()[-600:]}"
    if "Traceback" in told:
        yield f"a traceback: {told.strip()[-600:]}"
    yield from (f"nothing said of '{word}': {told.strip()[-600:]}" for word in words if word not in told)


def wrong_bytes(ground: Ground, out: Path, targets: tuple[str, ...] = ALL) -> Iterator[str]:
    """Anything in a finished build's folder that an undisturbed one would not have left."""
    expected, found = ground.reference[targets], files(out)
    names = sorted(expected.keys() | found.keys())
    yield from (f"{name} is not the reference's" for name in names if expected.get(name) != found.get(name))


def wrong_halves(ground: Ground, out: Path, allowed: Sequence[str] = TARGETS) -> Iterator[str]:
    """A target's folder that is there and not whole, or that may not be there."""
    for target in TARGETS:
        found = {name: digest for name, digest in files(out).items() if name.startswith(f"{target}/")}
        expected = {name: digest for name, digest in ground.reference[ALL].items() if name.startswith(f"{target}/")}
        if found and (found != expected or target not in allowed):
            yield f"{target}/ is there and is not whole" if target in allowed else f"{target}/ is there"


def wrong_store(place: Place) -> Iterator[str]:
    """An entry that is there and not whole."""
    store = Store(place.store)
    yield from (f"entry {key}: {fault}" for key in tuple(store.keys()) for fault in store.faults(key) or ())


def wrong_left(ground: Ground, place: Place) -> Iterator[str]:
    """Processes, leases and unfinished files that outlive all builds; a lock's empty file locks nothing by itself."""
    yield from wrong_alive(ground)
    for name in ("staging", "leases"):
        yield from (f"{name}/{left.name} is left in the store" for left in (place.store / name).glob("*"))


def wrong_alive(ground: Ground) -> Iterator[str]:
    """Processes that go on without their build."""
    deadline = time.monotonic() + GONE_WITHIN_S
    while (left := _tagged(ground.home.name)) and time.monotonic() < deadline:
        time.sleep(0.05)
    yield from (f"process {process} is left" for process in left)


def _tagged(tag: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{TAG}={tag}".encode() in (folder / "environ").read_bytes():
                found.append(f"{folder.name} {(folder / 'cmdline').read_bytes()[-80:]!r}")
    return found


def wrong_finish(ground: Ground, place: Place, code: int, targets: tuple[str, ...] = ALL) -> tuple[str, ...]:
    """All that is promised of a build that ends well."""
    return (
        *wrong_end(place, code, 0),
        *wrong_bytes(ground, place.out, targets),
        *wrong_left(ground, place),
        *wrong_store(place),
    )


# The parts


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
    tasks = plan.make(config.load(ground.project / "edgebuild.yaml")).tasks
    for number in range(count):
        place = ground.fresh()
        shutil.copytree(ground.whole.store, place.store)
        harm = (_flip, _cut, _swap)[number % 3]
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
        yield Case(kind=harm.__name__[1:], told=told, wrong=(*wrong, *wrong_finish(ground, place, code)))


def _damaged(title: str) -> str:
    return f"! {title}: its entry in the store is damaged, it is made again"


def _needing(tasks: Mapping[str, Any], keys: set[str]) -> set[str]:
    """The keys of all tasks that come after these."""
    found = {key for key, task in tasks.items() if keys & {*task.inputs.values()}}
    return found | _needing(tasks, found) if found else found


def _some_file(chance: random.Random, store: Store) -> tuple[str, Path]:
    key = chance.choice(list(store.keys()))
    return key, chance.choice(sorted(file for file in store.place(key).rglob("*") if file.is_file()))


def _name(store: Store, file: Path) -> str:
    return str(file.relative_to(store.root))[3:]


def _flip(chance: random.Random, store: Store) -> tuple[set[str], str]:
    """A bit of a byte; in a listing, a byte of a digest, since its blanks and its description decide nothing."""
    key, file = _some_file(chance, store)
    content = bytearray(file.read_bytes())
    where = content.rindex(b'"') - chance.randint(1, 64) if file.name == ENTRY else chance.randrange(len(content))
    content[where] ^= 1 << chance.randrange(8)
    file.write_bytes(content)
    return {key}, f"{_name(store, file)} at {where}"


def _cut(chance: random.Random, store: Store) -> tuple[set[str], str]:
    key, file = _some_file(chance, store)
    length = chance.randrange(file.stat().st_size)
    os.truncate(file, length)
    return {key}, f"{_name(store, file)} to {length}"


def _swap(chance: random.Random, store: Store) -> tuple[set[str], str]:
    """Two that differ: packages hold copies of what was converted."""
    while True:
        (one, left), (other, right) = _some_file(chance, store), _some_file(chance, store)
        contents = left.read_bytes(), right.read_bytes()
        if one != other and contents[0] != contents[1]:
            right.write_bytes(contents[0])
            left.write_bytes(contents[1])
            return {one, other}, f"{_name(store, left)} with {_name(store, right)}"


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
    for _number in range(LOST_WORKERS):
        place = ground.fresh()
        with _cluster(ground) as (address, workers):
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


@contextmanager
def _cluster(ground: Ground) -> Iterator[tuple[str, list[int]]]:
    """A scheduler with two worker processes; its address and theirs."""
    environment = os.environ | {TAG: ground.home.name, "DASK_TEMPORARY_DIRECTORY": str(ground.home)}
    script = ground.home / "cluster.py"
    script.write_text(_CLUSTER)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    address, *workers = json.loads(process.stdout.readline())
    try:
        yield address, workers
    finally:
        process.communicate(timeout=60)


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
COUNTS: Final = {"kills": 60, "pairs": 10, "corruptions": 20, "segfaults": 5, "hangs": 5}


# The whole


def undisturbed(ground: Ground) -> float:
    """Build all targets from nothing, and some of them from the store; the seconds of the first."""
    demo.lay_out(ground.project)
    began = time.monotonic()
    _refer(ground, ground.whole, ALL)
    seconds = time.monotonic() - began
    _refer(ground, ground.fresh(ground.whole.store), SOME)
    return seconds


def _refer(ground: Ground, place: Place, targets: tuple[str, ...]) -> None:
    code = ended(build(ground, place, *chosen(targets)))
    if code != 0:
        sys.exit(f"an undisturbed build ended with {code}:\n{place.complained}")
    ground.reference[targets] = files(place.out)


def tried(name: str, ground: Ground, count: int, seconds: float) -> dict[str, Any]:
    """Run one part and print its line."""
    began, cases, skipped = time.monotonic(), [], ""
    try:
        for case in PARTS[name](ground, count, seconds):
            cases.append(case)
            for wrong in case.wrong:
                print(f"  {name}, {case.kind} {case.told}: {wrong}", file=sys.stderr, flush=True)
    except SkippedError as e:
        skipped = str(e)
    held = sum(not case.wrong for case in cases)
    kinds = Counter(case.kind for case in cases)
    told = f"skipped: {skipped}" if skipped else ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    took = time.monotonic() - began
    print(f"{name:<14}{len(cases):>6}{held:>6}{took:>8.0f}  {told}", flush=True)
    return {"held": held, "seconds": round(took, 1), "skipped": skipped, "cases": [asdict(case) for case in cases]}


def main() -> None:
    """Disturb, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in COUNTS.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=PARTS, help="repeatable; default: all")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "faults.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgebuild-faults-") as home:
        chance = random.Random(arguments.seed)  # noqa: S311 - moments and places, not secrets
        ground = Ground(home=Path(home), chance=chance, numbers=numbers(), reference={})
        seconds = undisturbed(ground)
        print(f"an undisturbed build takes {seconds:.1f} s and leaves {len(ground.reference[ALL])} files", flush=True)
        print(f"{'part':<14}{'cases':>6}{'held':>6}{'s':>8}", flush=True)
        parts = arguments.only or PARTS
        found = {name: tried(name, ground, getattr(arguments, name, 0), seconds) for name in parts}
    settings = {"seed": arguments.seed, "undisturbed_s": round(seconds, 1), "reference": ground.reference[ALL]}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(settings | {"parts": found}, indent=1) + "\n")
    sys.exit(any(case["wrong"] for part in found.values() for case in part["cases"]))


if __name__ == "__main__":
    main()
