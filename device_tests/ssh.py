"""A link by the system's own `ssh`, with the user's configuration, keys and jump hosts.

One master connection carries all commands. It lasts as long as its standard input, which is a pipe from us: however
we end, it ends too, and the device sees that. Nothing is ever asked: neither for a password nor whether a key is right.
"""

from __future__ import annotations

import re
import secrets
import select
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Final, cast

from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.link import (
    Ended,
    LinkLostError,
    Said,
    answered,
    bootstrap,
    ended,
    giving,
    guarded,
    keeping,
    last_words,
    piped,
    refused,
    talk,
)

_URI: Final = re.compile(r"ssh://(?:(?P<user>\w[\w.-]*)@)?(?P<host>\w[\w.-]*|\[[\da-fA-F:.]+\])(?::(?P<port>\d+))?/?")
_OPTIONS: Final = (
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "ConnectTimeout=5",
    "ServerAliveInterval=2",
    "ServerAliveCountMax=2",
    "LogLevel=INFO",  # A quieter one of the user's would leave no word of a frozen device.
    # What a user sets for sessions of their own.
    "RemoteCommand=none",
    "RequestTTY=no",
    "ControlPersist=no",
    "ClearAllForwardings=yes",
    "ForwardX11=no",
    "ForwardAgent=no",
    "PermitLocalCommand=no",
)
_READY: Final = b"EDGEBUILD-READY"
_STAY: Final = f"exec sh -c 'echo {_READY.decode()}; while read -r line; do :; done'"
_CONNECT_S: Final = 30.0  # Several times ConnectTimeout: jump hosts each have their own.
_FILE_S: Final = 600.0
_LAST_S: Final = 2.0  # For the master to end as it should, or to say what it died of.
_LONGEST_FOLDER: Final = 60  # A socket's path has at most 104 bytes, and ssh appends 17 to the one it is given.
# The first that fits: a sign, what it means, its cause where that is not ssh's own last words, and the action.
# ref: https://github.com/openssh/openssh-portable, sshconnect.c, sshconnect2.c and misc.c
_REFUSALS: Final = (
    (
        r"[Hh]ost key for (\S+) has changed",
        "{uri} shows another host key than the one known here",
        "the device was installed anew, or something else answers in its place",
        "find out which; if it is the device, run ssh-keygen -R '{name}', then {scan} >> ~/.ssh/known_hosts",
    ),
    (
        r"host key is known for (\S+) and",
        "{uri} has a host key that is not known here",
        "nobody has connected to it from here before",
        "run {scan} >> ~/.ssh/known_hosts, and compare the key with the device's own in /etc/ssh",
    ),
    (
        "Host key verification failed",
        "the host key of {uri}, or of a host on the way there, is not accepted",
        "",
        "connect to each by hand once: ssh {uri}",
    ),
    (
        "Permission denied|Too many authentication failures|No more authentication methods",
        "{uri} lets this user in with none of the keys here",
        "",
        "put a key there with ssh-copy-id, or name it in ~/.ssh/config; a key with a passphrase goes into ssh-agent",
    ),
    (
        "Connection refused",
        "{uri} refuses connections",
        "the device is there, but no SSH server listens on that port",
        "start its SSH server, or give its port: ssh://user@host:port",
    ),
    (
        "Could not resolve hostname",
        "{uri} names a host that nobody knows",
        "",
        "check the name, or give the device's address",
    ),
    (
        "timed out|No route to host|[Uu]nreachable|Host is down",
        "{uri} can't be reached",
        "",
        "switch the device on, and check that it is on this network",
    ),
    (
        r"\A\s*\Z",
        "{uri} took the connection and says nothing",
        "its shell, or a host on the way, hangs",
        "try the same by hand: ssh {uri}",
    ),
)


class SshLink:
    """A link to `ssh://[user@]host[:port]`, where `host` may be an alias of the user's configuration."""

    def __init__(self, uri: str, *, config: Path | None = None) -> None:
        """Connects at its first use; `config` takes the place of the user's and the system's configuration.

        Raises:
            DeviceError: the URI names no device.
        """
        if not _URI.fullmatch(uri):
            raise DeviceError(
                f"{uri} names no device", action="give ssh://user@host:port; user and port may be left out"
            )
        self.uri = uri
        self._settings = ["-F", str(config)] if config else []
        self._master: _Master | None = None

    def run(self, script: str, timeout_s: float, *, lost: str = "") -> Ended:
        """See `Link.run`."""
        nonce = secrets.token_hex(8)
        said = self._said(guarded(script, timeout_s, nonce=nonce, lost=lost), timeout_s)
        answer = ended(said, timeout_s, nonce=nonce)
        if answer is None:
            raise self._lost(said)
        return answer

    def push(self, source: Path, target: str) -> None:
        """See `Link.push`."""
        content = source.read_bytes()
        nonce = secrets.token_hex(8)
        _, code, words = self._file(keeping(target, len(content), nonce=nonce), nonce, content)
        if code:
            raise refused(f"{self.uri} can't keep {source.name}", words)

    def pull(self, source: str, target: Path) -> None:
        """See `Link.pull`."""
        nonce = secrets.token_hex(8)
        content, code, words = self._file(giving(source, nonce=nonce), nonce, b"")
        if code:
            raise DeviceError(f"{self.uri} can't give {source}", cause=last_words(words))
        target.write_bytes(content)

    def close(self) -> None:
        """See `Link.close`."""
        master, self._master = self._master, None
        if master is not None:
            master.end()

    def _file(self, script: str, nonce: str, content: bytes) -> tuple[bytes, int, str]:
        said = self._said(script, _FILE_S, content)
        answer = answered(said, nonce=nonce)
        if answer is None:
            raise self._lost(said)
        return *answer, said.stderr.decode("utf-8", "replace")

    def _said(self, script: str, timeout_s: float, content: bytes | None = None) -> Said:
        if self._master is None or not self._master.lives():
            self.close()
            master = _Master(self.uri, self._settings)
            master.connect()
            self._master = master
        return talk(self._master.command(bootstrap(script)), script, timeout_s, content=content)

    def _lost(self, said: Said) -> LinkLostError:
        """Why the link was lost: the master knows, or else its client."""
        master, self._master = cast("_Master", self._master), None
        words = said.stderr.decode("utf-8", "replace") + master.end()
        if said.code is None or "Timeout, server" in words:
            return LinkLostError(
                f"{self.uri} is frozen: it no longer answers",
                cause="the device hangs or is overloaded, or its network is gone",
                action="look at the device and its network, restart it if need be, and try again",
            )
        return LinkLostError(
            f"the link to {self.uri} was lost in the middle",
            cause=last_words(words),
            action="see whether the device has restarted or run out of memory, and try again",
        )


class _Master:
    """The connection that all commands share, with its socket in a private folder."""

    def __init__(self, uri: str, settings: list[str]) -> None:
        self._uri = uri
        self._kept = ExitStack()
        near = None if len(tempfile.gettempdir()) < _LONGEST_FOLDER else "/tmp"  # noqa: S108 - mkdtemp makes it private
        folder = self._kept.enter_context(tempfile.TemporaryDirectory(prefix="edgebuild-", dir=near))
        self._options = [*settings, f"-oControlPath={folder}/s", *(f"-o{option}" for option in _OPTIONS)]
        self._errors: IO[bytes] = self._kept.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
        self._process: subprocess.Popen[bytes] | None = None

    def connect(self) -> None:
        """Connect, or say why not.

        Raises:
            DeviceError: there is no `ssh`; or the device refuses, is unknown, or doesn't answer.
        """
        command = ["ssh", *self._options, "-oControlMaster=yes", self._uri, _STAY]
        try:
            self._process = self._kept.enter_context(piped(command, errors=self._errors))
            ready = self._is_ready(cast("IO[bytes]", self._process.stdout))
        except FileNotFoundError as e:
            self.end()
            raise DeviceError("there is no ssh on this machine", action="install OpenSSH's client") from e
        except BaseException:
            self.end()
            raise
        if not ready:
            raise _refusal(self._uri, self.end())

    def command(self, script: str) -> list[str]:
        """The client that asks the master; where that is gone, it must fail and not connect by itself."""
        return ["ssh", *self._options, "-oControlMaster=no", "-oProxyCommand=false", self._uri, script]

    def lives(self) -> bool:
        """Whether it still runs."""
        return self._process is not None and self._process.poll() is None

    def end(self) -> str:
        """End it, once, and give back its own words; the shell that it keeps there ends before it."""
        if self._process is not None:
            cast("IO[bytes]", self._process.stdin).close()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_LAST_S)
            self._process.kill()
            self._process.wait()
        self._errors.seek(0)
        words = self._errors.read().decode("utf-8", "replace")
        self._kept.close()
        return words

    def _is_ready(self, stdout: IO[bytes]) -> bool:
        """Whether the device's shell has spoken, after all that its start-up files may print."""
        until, said = time.monotonic() + _CONNECT_S, b""
        while _READY not in said:
            if not select.select([stdout], [], [], max(0.0, until - time.monotonic()))[0]:
                return False
            piece = stdout.read(1 << 10)
            if not piece:
                return False
            said += piece
        return True


def _refusal(uri: str, words: str) -> DeviceError:
    """What `ssh` means by 255 before there is a connection, from its own words, which are in no other language."""
    for sign, *parts in _REFUSALS:
        if found := re.search(sign, words):
            name = found[1] if found.re.groups else ""
            host, _, port = name.strip("[").partition("]:")
            scan = f"ssh-keyscan {f'-p {port} ' if port else ''}{host}"
            what, cause, action = (part.format(uri=uri, name=name, scan=scan) for part in parts)
            return DeviceError(what, cause=cause or last_words(words), action=action)
    return DeviceError(f"{uri} can't be reached", cause=last_words(words), action=f"try the same by hand: ssh {uri}")
