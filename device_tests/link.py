"""A way to one device: commands and files, and nothing of models.

A command's success is never the client's exit code: `ssh` gives 255 for a lost link and for a command that ended so,
and `adb shell` gives 0 where the device died half-way. So every script runs inside `guarded`, which says on its last
line how it ended; without that line the link was lost. The guard also ends the script with its children when the time
is up and when we are gone, which the device sees as the end of its standard input.
"""

from __future__ import annotations

import math
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Protocol, cast

from edgebuild.device_tests.errors import DeviceError

_ENDED: Final = "EDGEBUILD-ENDED"
_KILLED: Final = 128 + signal.SIGKILL
_GRACE_S: Final = 15.0  # For the way there and back, before a client that says nothing is given up.
_FULL: Final = ("No space left", "File too large", "File size limit", "quota exceeded")
_LINES: Final = 3
# Those that `ssh` starts for jump hosts know nothing of its BatchMode. ref: ssh(1), ENVIRONMENT
_UNASKED: Final = {"SSH_ASKPASS_REQUIRE": "never"}
_SETSID: Final = "import os, sys; os.setsid(); os.execvp(sys.argv[1], sys.argv[1:])"

# `end` takes the whole process group; where nothing there makes one, a script's children are left to their own ends.
# `timeout 9 true` fails where it is an old busybox's, whose options are others. The watcher reads rather than runs
# `cat`: killed, it leaves no child of its own. Once it has begun, it is waited for.
_GUARD: Final = """\
trap '' HUP
exec 3<&0
if timeout 9 true 2>/dev/null; then bound='timeout -s KILL {seconds}'; else bound=; fi
apart() {{
    if command -v setsid >/dev/null; then exec setsid "$@"; fi
    if command -v python3 >/dev/null; then exec python3 -c {setsid} "$@"; fi
    exec "$@"
}}
apart $bound sh -c {script} </dev/null 3<&- &
job=$!
end() {{ kill -9 -$job || kill -9 $job; }} 2>/dev/null
(while read -r line; do :; done <&3; trap '' TERM; end; {lost}
) >/dev/null 2>&1 &
watcher=$!
if [ -z "$bound" ]; then (sleep {seconds} & trap "kill $!" TERM; wait; end) >/dev/null 2>&1 3<&- & fi
sleeper=$!
{{ wait $job; }} 2>/dev/null
code=$?
kill $watcher $sleeper 2>/dev/null
{{ wait $watcher $sleeper; }} 2>/dev/null
end
printf '\\n{mark} %s\\n' $code
"""


class LinkLostError(DeviceError):
    """A link that was there and broke or froze: what was asked may be asked once more, where that does no harm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a script on a device ended: its exit status as a shell gives it, and what it said.

    `timed_out` where the device killed it because its time was up; `code` is 137 then.
    """

    code: int
    stdout: str
    stderr: str
    timed_out: bool = False


class Link(Protocol):
    """What a link provides. It may connect at its first use, and again after a loss."""

    @property
    def uri(self) -> str:
        """The device as a user names it: `ssh://pi@host:22`, `adb://SERIAL`."""

    def run(self, script: str, timeout_s: float, *, lost: str = "") -> Ended:
        """Run a POSIX sh script there, in a process group of its own that ends with it, with us, or with its time.

        `lost` is a second script, for the device to run by itself when we are gone before the first has ended.

        Raises:
            DeviceError: the device can't be reached.
            LinkLostError: the link was lost, or is frozen.
        """

    def push(self, source: Path, target: str) -> None:
        """Copy a file there, whole or not at all.

        Raises:
            DeviceError: as `run`; or the device can't keep the file, as when its disk is full.
        """

    def pull(self, source: str, target: Path) -> None:
        """Copy a file here.

        Raises:
            DeviceError: as `run`; or the device has no such file.
        """

    def close(self) -> None:
        """Give up the connection; a link that is closed already stays so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a client program (`ssh`, `adb`) gave back; `code` is None where it had to be given up."""

    code: int | None
    stdout: bytes
    stderr: bytes
    seconds: float


def guarded(script: str, timeout_s: float, *, nonce: str, lost: str = "") -> str:
    """The script for the device's `sh`, to be read by `bootstrap`, whose standard input must then stay open."""
    return _GUARD.format(
        script=shlex.quote(script),
        seconds=math.ceil(timeout_s),
        lost=lost,
        setsid=shlex.quote(_SETSID),
        mark=f"{_ENDED} {nonce}",
    )


def bootstrap(script: str) -> str:
    """The command that reads a script of this length from standard input, and no byte more, and runs it.

    It says the same to every login shell: sh, csh and fish differ in what they make of the script itself.
    """
    return f"exec sh -c 's=$(dd bs=1 count={len(script.encode())} 2>/dev/null); eval \"$s\"'"


def ended(said: Said, timeout_s: float, *, nonce: str) -> Ended | None:
    """How a guarded script ended, or None where the link was lost before it said so."""
    answer = answered(said, nonce=nonce)
    if answer is None:
        return None
    stdout, code = answer
    return Ended(
        code=code,
        stdout=stdout.decode("utf-8", "replace"),
        stderr=said.stderr.decode("utf-8", "replace"),
        timed_out=code == _KILLED and said.seconds >= timeout_s,
    )


def answered(said: Said, *, nonce: str) -> tuple[bytes, int] | None:
    """What a script printed before its last line, and the exit status on that line; None where it is missing."""
    stdout, mark, code = said.stdout.rpartition(f"\n{_ENDED} {nonce} ".encode())
    return (stdout, int(code)) if mark and code.strip().isdigit() else None


def keeping(target: str, size_bytes: int, *, nonce: str) -> str:
    """The script that keeps what follows it on standard input as a file, whole or not at all."""
    part = shlex.quote(f"{target}.part")
    return (
        f"umask 077; if cat >{part} && [ $(wc -c <{part}) -eq {size_bytes} ] && mv -f {part} {shlex.quote(target)}; "
        f"then code=0; else code=1; rm -f {part}; fi; printf '\\n{_ENDED} {nonce} %s\\n' $code\n"
    )


def giving(source: str, *, nonce: str) -> str:
    """The script that prints a file as it is."""
    return f"cat {shlex.quote(source)}; printf '\\n{_ENDED} {nonce} %s\\n' $?\n"


def refused(what: str, stderr: str) -> DeviceError:
    """The device's own words on a file or folder that it can't make, and what helps."""
    full = any(sign in stderr for sign in _FULL)
    return DeviceError(
        what,
        cause="its disk is full, or a quota or limit is reached" if full else last_words(stderr),
        action="free some space there" if full else "see that its folders can be written by this user",
    )


def last_words(text: str) -> str:
    """The last lines of what a program complained of."""
    return " / ".join(text.strip().splitlines()[-_LINES:]) or "it gave no reason"


def talk(command: Sequence[str], script: str, timeout_s: float, *, content: bytes | None = None) -> Said:
    """Run a client program with a script, shorter than a pipe's 64 KiB, on its standard input.

    That stays open until the program ends; whatever ends us closes it too, and so tells the device. With `content`,
    that follows the script, and then comes the end. The program has no terminal to ask for passwords on, and is not
    among those that Ctrl-C reaches.
    """
    started = time.monotonic()
    code: int | None = None
    with piped(command) as client, ExitStack() as kept:
        given = None if content is None else script.encode() + content
        if given is None:
            kept.enter_context(_fed(client, script.encode()))
        try:
            stdout, stderr = client.communicate(given, timeout=timeout_s + _GRACE_S)
            code = client.returncode
        except subprocess.TimeoutExpired as e:
            stdout, stderr = e.stdout or b"", e.stderr or b""
        finally:
            client.kill()
    return Said(code=code, stdout=stdout, stderr=stderr, seconds=time.monotonic() - started)


def piped(command: Sequence[str], *, errors: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    """Start a client program, apart from the terminal, with pipes to it; its complaints go to `errors` where given."""
    return subprocess.Popen(
        command,
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors or subprocess.PIPE,
        start_new_session=True,
        env=os.environ | _UNASKED,
    )


def _fed(client: subprocess.Popen[bytes], script: bytes) -> IO[bytes]:
    """A program's standard input with a script in it, taken away from `communicate`, which would close it."""
    stdin, client.stdin = cast("IO[bytes]", client.stdin), None
    with suppress(BrokenPipeError):
        stdin.write(script)
    return stdin
