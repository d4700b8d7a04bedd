"""Our stay on a device: a private folder there, while nobody else measures, and nothing left afterwards.

Who stays holds a lock with a lease by the device's own clock, which every step renews. The device gives both up by
itself when it loses us in the middle of a step; what it could not give up, the next who comes sweeps away.
"""

from __future__ import annotations

import getpass
import math
import os
import secrets
import shlex
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.link import Ended, Link, LinkLostError, refused

_Result = TypeVar("_Result")

_BUSY: Final = 75  # ref: sysexits.h, EX_TEMPFAIL
_STEP_S: Final = 60.0  # For the device to make a folder or look at a lock, however busy it is.
_SLACK_S: Final = 120.0  # Between two steps, and for copying a file.
_WAIT_S: Final = 900.0
_TURN_S: Final = 1.0
_RECONNECTIONS: Final = 2
_TRIES: Final = 6
_NOTICE_S: Final = 10.0  # For the device to notice that a link is gone, and to tidy up after it.

BASE: Final = """\
base=${TMPDIR:-/data/local/tmp}
case $base in *[!A-Za-z0-9/._-]*) base=/tmp; esac
[ -w $base ] || base=/tmp"""
"""The shell's way to the folder for temporary files there: `$base`, which needs no quotes. Android has no /tmp."""

# A lock is a folder that holds the file of its holder, and no other. That comes by `mv`, so it is never half a file;
# a lock without one is nobody's, for whoever takes it and loses it meanwhile fails at `mv`. Other folders of the kind
# are leftovers as soon as the lock is ours: who was about to come fails, too, wherever that was. What fails for such a
# reason won't fail again and again, so it is tried `_TRIES` times. `cat` says why it can't write, as `echo` doesn't.
_ENTER: Final = """\
{base}
lock=$base/edgebuild.lock; mine=$lock/{nonce}; room=$base/edgebuild-run-{nonce}
now=$(date +%s)
[ -d $room ] || mkdir -m 700 $room || exit 1
echo $((now + {lease_s})) {who} | cat >$room/holder || {{ rm -rf $room; exit 1; }}
if [ ! -e $mine ]; then
    for held in $lock/*; do
        read -r until who <$held && [ $now -gt $until ] && rm -f $held
    done 2>/dev/null
    rmdir $lock 2>/dev/null
    mkdir $lock 2>/dev/null
fi
mv -f $room/holder $mine || {{
    rm -rf $room
    cat $lock/* 2>/dev/null && exit {busy}
    rmdir $lock
    exit 1
}}
set -- $lock/*
if [ $# -gt 1 ]; then
    rm -rf $mine $room
    cat $lock/* 2>/dev/null
    exit {busy}
fi
for other in $base/edgebuild-run-*; do [ $other = $room ] || rm -rf $other; done 2>/dev/null
echo $room
ls $room
"""
_LEAVE: Final = """\
{base}
rm -rf $base/edgebuild-run-{nonce} $base/edgebuild.lock/{nonce}
rmdir $base/edgebuild.lock 2>/dev/null
"""


class Stay:
    """Our stay on the device at the end of a link.

    `on_wait` hears once of each other user whom we wait for, in their own words.
    """

    def __init__(self, link: Link, *, on_wait: Callable[[str], None] | None = None, wait_s: float = _WAIT_S) -> None:
        self.link = link
        self._on_wait = on_wait
        self._wait_s = wait_s
        self._nonce = secrets.token_hex(8)
        self._room = ""
        self._files: set[str] = set()

    def ready(self, files: dict[str, Path], timeout_s: float) -> str:
        """Make sure that we have the device for the next `timeout_s`, and these files there by name; their folder.

        Raises:
            DeviceError: the device can't be reached, or can't keep the files; or somebody else has it for too long.
        """
        return self._ready(files, timeout_s, self._wait_s, self._on_wait)

    def run(self, script: str, timeout_s: float, *, lost: str = "") -> Ended:
        """Run a script there, in our folder; if we are lost meanwhile, the device runs `lost` and ends our stay.

        Raises:
            DeviceError: see `Link.run`.
        """
        return self.link.run(f"cd {self._room} || exit 1\n{script}", timeout_s, lost=f"{lost}\n{self._leave}")

    def run_anew(self, files: dict[str, Path], script: str, timeout_s: float) -> Ended:
        """Run a script that may be begun anew, with these files there: once more where the link is lost meanwhile.

        The device must have ended the first attempt by itself before, so that never two run at once; and what is lost
        twice may be what takes the device down.

        Raises:
            DeviceError: see `ready` and `run`.
        """
        self.ready(files, timeout_s)
        try:
            return self.run(script, timeout_s)
        except LinkLostError as lost:
            self._start_over(files, timeout_s, lost)
        try:
            return self.run(script, timeout_s)
        except LinkLostError as e:
            raise LinkLostError(
                f"{self.link.uri} was lost twice in the middle of the same run",
                cause=e.cause or e.what,
                action="see whether the device itself went down: a model can do that to a weak board",
            ) from e

    def close(self) -> None:
        """End the stay and the link."""
        # Where the device is out of reach it has done this by itself, or the next who comes does it.
        with suppress(DeviceError):
            if self._room:
                self.link.run(self._leave, _STEP_S)
        self._room = ""
        self.link.close()

    def _start_over(self, files: dict[str, Path], timeout_s: float, lost: LinkLostError) -> None:
        """Come again as somebody new, whose folder the device does not take away with the old one.

        Raises:
            LinkLostError: `lost`, where the device is away, or still has not noticed.
        """
        self._nonce, self._room = secrets.token_hex(8), ""
        try:
            self._ready(files, timeout_s, _NOTICE_S, None)
        except DeviceError as e:
            raise lost from e

    @property
    def _leave(self) -> str:
        return _LEAVE.format(base=BASE, nonce=self._nonce)

    def _ready(
        self, files: dict[str, Path], timeout_s: float, wait_s: float, on_wait: Callable[[str], None] | None
    ) -> str:
        def once() -> str:
            self._enter(timeout_s, wait_s, on_wait)
            for name in sorted(files.keys() - self._files):
                self.link.push(files[name], f"{self._room}/{name}")
                self._files.add(name)
            return self._room

        return _again(once)

    def _enter(self, timeout_s: float, wait_s: float, on_wait: Callable[[str], None] | None) -> None:
        told, until, failures = "", time.monotonic() + wait_s, 0
        while (ended := self._asked(timeout_s)).code or not ended.stdout.strip():
            if ended.code != _BUSY:
                failures += 1
                if failures == _TRIES or ended.timed_out:
                    raise refused(f"{self.link.uri} can't make a private folder", ended.stderr)
                time.sleep(failures * _TURN_S / 10)
                continue
            holder = holder_in(ended.stdout) or "somebody"
            if time.monotonic() >= until:
                raise DeviceError(
                    f"{self.link.uri} was in use for {wait_s:g} s",
                    cause=f"{holder} measures there",
                    action="try again later, or ask them",
                )
            if holder != told and on_wait is not None:
                on_wait(holder)
            told, failures = holder, 0
            time.sleep(_TURN_S)
        self._room, *files = ended.stdout.split()
        self._files = set(files)

    def _asked(self, timeout_s: float) -> Ended:
        who = f"{getpass.getuser()}@{socket.gethostname()}, process {os.getpid()}"
        lease_s = math.ceil(timeout_s + _SLACK_S)
        script = _ENTER.format(base=BASE, nonce=self._nonce, lease_s=lease_s, who=shlex.quote(who), busy=_BUSY)
        return self.link.run(script, _STEP_S, lost=self._leave)


def holder_in(lock: str) -> str | None:
    """Who holds a lock, of whose file this is the text: other users of the device write there what they like."""
    _, _, who = lock.strip().partition(" ")
    return "".join(character for character in who if character.isprintable()) or None


def _again(step: Callable[[], _Result]) -> _Result:
    """Do what can be done twice without harm, again after each lost link, up to `_RECONNECTIONS` times."""
    for turn in range(_RECONNECTIONS):
        try:
            return step()
        except LinkLostError:  # noqa: PERF203 - each turn goes over the network
            time.sleep(turn * _TURN_S)
    return step()
