"""Damaged .tflite files through `edgebuild check`, in child processes with limits of time and memory.

A child checks one file after the other and says its exit code. It is ended where a file takes too long, and another
takes its place; one that ends by itself was brought down by the file it had.
"""

from __future__ import annotations

import random
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fixtures import FIXTURES
from mutations import mutated

LIMIT_S: Final = 10.0
LIMIT_BYTES: Final = 2 * 2**30
TARGETS: Final = ("edgetpu", "gpu", "cpu", "mcu")
_CHILD: Final = """
import os, sys
from edgebuild.pipeline.cli import run
out = os.dup(1)
sys.stdout = sys.stderr = open(os.devnull, "w")
for line in sys.stdin:
    target, path = line.rstrip("\\n").split(" ", 1)
    code = run(["check", path, "-t", target, "--svg", os.devnull, "--sarif", os.devnull])
    os.write(out, f"{code}\\n".encode())
"""
_WORDS: Final = {0: "read", 3: "refused", 7: "read"}


def damaged(number: int, seed: int) -> tuple[str, bytes]:
    """One of the fixtures, and what a mutation made of it."""
    files = sorted(FIXTURES.rglob("*.tflite"))
    chance = random.Random(f"{seed}/{number}")  # noqa: S311 - to be repeated, not secret
    file = files[number % len(files)]
    return file.relative_to(FIXTURES).as_posix(), mutated(chance, file.read_bytes(), ".tflite")


def verdicts(count: int, seed: int, folder: Path) -> Iterator[tuple[str, str, float]]:
    """What became of each damaged file: its source, `read`, `refused`, `fault`, `crash` or `hang`, and the seconds."""
    child = _started()
    try:
        for number in range(count):
            name, data = damaged(number, seed)
            path = folder / f"{number}.tflite"
            path.write_bytes(data)
            began = time.monotonic()
            verdict = _asked(child, f"{TARGETS[number % len(TARGETS)]} {path}")
            took_s = time.monotonic() - began
            path.unlink()
            if verdict in ("crash", "hang"):
                _ended(child)
                child = _started()
            yield f"{name} {number}", verdict, took_s
    finally:
        _ended(child)


def _started() -> subprocess.Popen[bytes]:
    """A child that has imported what it needs."""
    limit = (LIMIT_BYTES, LIMIT_BYTES)
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit),  # noqa: PLW1509 - this process has one thread
    )
    _asked(child, f"cpu {next(FIXTURES.rglob('*.tflite'))}")
    return child


def _asked(child: subprocess.Popen[bytes], line: str) -> str:
    """The verdict on a file."""
    if child.stdin is None or child.stdout is None:
        return "crash"
    try:
        child.stdin.write(f"{line}\n".encode())
    except BrokenPipeError:
        return "crash"
    if not select.select([child.stdout], [], [], LIMIT_S)[0]:
        return "hang"
    answer = child.stdout.readline()
    return _WORDS.get(int(answer), "fault") if answer else "crash"


def _ended(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.communicate()


def survived(count: int, seed: int) -> bool:
    """Print how the files ended, and say whether each was read or refused."""
    with tempfile.TemporaryDirectory(prefix="edgebuild-hostile-") as folder:
        found = list(verdicts(count, seed, Path(folder)))
    for name, verdict, took_s in found:
        if verdict not in ("read", "refused"):
            print(f"{name}: {verdict} after {took_s:.1f} s", file=sys.stderr)
    counts = Counter(verdict for _, verdict, _ in found)
    print(f"{count} damaged files: {dict(counts)}; slowest {max((s for *_, s in found), default=0):.1f} s")
    return set(counts) <= {"read", "refused"}
