"""A link by the system's `adb`: to Android devices, and to Linux boards that run its daemon.

The user's own adb server and keys carry it. Nothing that `adb` exits with is believed: it gives 0 for a connection that
failed and for a device that died half-way, and a copy of half a file may look whole.

ref: https://developer.android.com/tools/adb
"""

from __future__ import annotations

import hashlib
import re
import secrets
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.link import Ended, LinkLostError, Said, bootstrap, ended, guarded, last_words, refused, talk

_URI: Final = re.compile(r"adb://(?P<serial>(?!-)[^/\s]*)/?")
_ADDRESS: Final = re.compile(r".+:\d{1,5}")
_CONNECT_S: Final = 10.0  # adb's own patience with a host that takes the connection and says nothing.
_QUERY_S: Final = 5.0
_LOOK_S: Final = 120.0  # For the digest of a large file on a small device.
_SLOWEST_BYTES_PER_S: Final = 256 * 1024  # USB 1.1 carries four times as much.
# What the oldest daemons take as one message. The server of `adb` 29 aborts on more, with everybody's links.
_OLD_MESSAGE_BYTES: Final = 4096
_SIZE_AND_DIGEST: Final = "wc -c <{0} && if command -v sha256sum >/dev/null; then sha256sum <{0}; fi"

# Cause and action by what `adb devices` says of a device. ref: adb's own `connection_state_name`
_STATES: Final[Mapping[str, tuple[str, str]]] = {
    "unauthorized": (
        "it does not trust this machine's adb key",
        "allow this machine on its screen; a board without one needs ~/.android/adbkey.pub in /data/misc/adb/adb_keys",
    ),
    "offline": (
        "adb knows it, but its daemon does not answer: it sleeps, restarts or hangs",
        "wake it, plug it in again, or restart adbd on it",
    ),
    "no permissions": (
        "this user may not open the USB device",
        "add a udev rule for it (Debian: apt-get install android-sdk-platform-tools-common), or join group plugdev",
    ),
    "recovery": ("it has started into recovery", "restart it: adb reboot"),
    "sideload": ("it waits for a system update", "restart it: adb reboot"),
    "bootloader": ("it has stopped in its bootloader", "restart it: fastboot reboot"),
}


class AdbLink:
    """A link to `adb://SERIAL` or `adb://host:port`, or by `adb://` to the only device there is."""

    def __init__(self, uri: str, *, program: str = "adb") -> None:
        """Connects at its first use.

        Raises:
            DeviceError: the URI names no device.
        """
        if not (parts := _URI.fullmatch(uri)):
            raise DeviceError(f"{uri} names no device", action="give adb://SERIAL as `adb devices` says it")
        self._serial = parts["serial"]
        self._program = program
        self._device = ""  # Its serial while the link stands.
        self._is_address = bool(_ADDRESS.fullmatch(self._serial))
        self._ours: bool | None = None  # Whether adb knows its address through us; None before the first use.
        self._separate = True  # Whether its daemon keeps a command's two streams apart.

    @property
    def uri(self) -> str:
        """See `Link.uri`."""
        return f"adb://{self._device or self._serial}"

    def run(self, script: str, timeout_s: float, *, lost: str = "") -> Ended:
        """See `Link.run`; a daemon without shell_v2 gives both streams as `stdout`."""
        self._connect()
        nonce = secrets.token_hex(8)
        said = self._shell(guarded(script, timeout_s, nonce=nonce, lost=lost), timeout_s)
        found = ended(said, timeout_s, nonce=nonce)
        if found is None:
            raise self._lost(said)
        return found

    def push(self, source: Path, target: str) -> None:
        """See `Link.push`: what arrived is measured there, and only then takes its name."""
        self._connect()
        part = f"{target}.part"
        try:
            complaint = self._copy("push", str(source.absolute()), part, size_bytes=source.stat().st_size)
            if complaint:
                raise refused(f"{self.uri} can't keep {source.name}", complaint)
            self._compare(part, source)
        except DeviceError:
            if self._device:  # Half a file may be what fills the disk.
                self.run(f"rm -f {shlex.quote(part)}", _LOOK_S)
            raise
        moved = self.run(f"mv -f {shlex.quote(part)} {shlex.quote(target)}", _LOOK_S)
        if moved.code:
            raise refused(f"{self.uri} can't keep {source.name}", moved.stderr or moved.stdout)

    def pull(self, source: str, target: Path) -> None:
        """See `Link.pull`; what came is compared with what is there."""
        size_bytes, _ = self._size_and_digest(source)
        part = target.with_name(f"{target.name}.part")
        try:
            complaint = self._copy("pull", source, str(part.absolute()), size_bytes=size_bytes)
            if complaint:
                raise DeviceError(
                    f"{source} can't be copied from {self.uri} to {target}",
                    cause=last_words(complaint),
                    action="see that this machine has the space for it, and lets this user write there",
                )
            self._compare(source, part)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def close(self) -> None:
        """See `Link.close`; a connection that was there before us stays."""
        if self._ours:
            self._adb("disconnect", self._serial)
        self._device, self._ours = "", None

    def _connect(self) -> None:
        if self._device:
            return
        states, answer = self._states(), ""
        if self._ours is None:
            self._ours = self._is_address and self._serial not in states
        if self._is_address and states.get(self._serial) != "device":
            self._adb("disconnect", self._serial)  # Where adb holds a dead connection, it says "already connected".
            answer = _text(self._adb("connect", self._serial, timeout_s=_CONNECT_S))
            states = self._states()
        device = self._serial or _only(states)
        if states.get(device) != "device":
            raise _unusable(device, states, answer)
        self._device = device
        features = self._adb("-s", device, "features")
        if features.code is None:
            raise self._lost(features)
        self._separate = "shell_v2" in _text(features).split()

    def _states(self) -> dict[str, str]:
        """What adb knows, by serial. Starts the user's adb server where none runs."""
        said = self._adb("devices", timeout_s=_CONNECT_S)
        _, header, listed = said.stdout.decode("utf-8", "replace").partition("List of devices attached")
        if not header:
            raise DeviceError(
                f"{self.uri} can't be reached: adb's server does not run",
                cause=last_words(_text(said)),
                action="see what `adb devices` says",
            )
        return {serial: state for serial, _, state in (line.partition("\t") for line in listed.splitlines()) if state}

    def _shell(self, script: str, timeout_s: float) -> Said:
        if self._separate:
            return self._adb("-s", self._device, "shell", "-T", bootstrap(script), given=script, timeout_s=timeout_s)
        if len(script.encode()) > _OLD_MESSAGE_BYTES - len("exec:\0"):
            raise DeviceError(
                f"{self.uri} has an adb daemon too old for this command",
                cause=f"without shell_v2 it takes messages of {_OLD_MESSAGE_BYTES} bytes, not {len(script.encode())}",
                action="update adbd on the device, or reach it by ssh",
            )
        return self._adb("-s", self._device, "exec-out", script, timeout_s=timeout_s)

    def _copy(self, direction: str, source: str, target: str, *, size_bytes: int) -> str:
        """Copy a file; what adb complained of, where it failed and the link stands."""
        timeout_s = _QUERY_S + size_bytes / _SLOWEST_BYTES_PER_S
        said = self._adb("-s", self._device, direction, source, target, timeout_s=timeout_s)
        if said.code == 0:
            return ""
        if said.code is None or self._states().get(self._device) != "device":
            raise self._lost(said)
        complaints = [line for line in _text(said).splitlines() if line.startswith("adb: error:")]
        return "\n".join(complaints) or _text(said)

    def _compare(self, there: str, here: Path) -> None:
        """Hold a copy to its original."""
        content = here.read_bytes()
        size_bytes, digest = self._size_and_digest(there)
        if size_bytes != len(content) or digest not in ("", hashlib.sha256(content).hexdigest()):
            raise DeviceError(
                f"{there} on {self.uri} is not what {here} is here ({size_bytes} and {len(content)} bytes)",
                cause="a broken transfer, or a full or failing disk, of which adb said nothing",
                action="see how much space is left there, and try once more",
            )

    def _size_and_digest(self, path: str) -> tuple[int, str]:
        """In bytes, and the sha256, or "" where the device has no tool for it."""
        measured = self.run(_SIZE_AND_DIGEST.format(shlex.quote(path)), _LOOK_S)
        size, _, digest = measured.stdout.strip().partition("\n")
        if measured.code or not size.isdecimal():
            raise DeviceError(
                f"{path} can't be read on {self.uri}",
                cause=last_words(measured.stderr or measured.stdout),
                action="see that it is there, and that this user may read it",
            )
        return int(size), digest.partition(" ")[0]

    def _lost(self, said: Said) -> LinkLostError:
        """The link was lost: adb ended without the proof we wait for, or did not end."""
        uri, state, self._device = self.uri, self._states().get(self._device, "gone"), ""
        if said.code is None:
            if self._is_address:  # Or adb keeps to a connection whose other end may be no more.
                self._adb("disconnect", self._serial)
            return LinkLostError(
                f"{uri} is frozen: it said nothing for {said.seconds:.0f} s",
                cause="the device hangs, or the network between drops what is sent",
                action="restart the device, or allow more time if the command is a slow one",
            )
        complaint = said.stderr.decode("utf-8", "replace").strip()
        return LinkLostError(
            f"the link to {uri} was lost half-way",
            cause=f"adb lists it as {state} now" + (f" / {last_words(complaint)}" if complaint else ""),
            action="see that it is powered, plugged in and listed by `adb devices`",
        )

    def _adb(self, *arguments: str, given: str = "", timeout_s: float = _QUERY_S) -> Said:
        try:
            return talk([self._program, *arguments], given, timeout_s)
        except FileNotFoundError as e:
            raise DeviceError(
                f"{self.uri} can't be reached: there is no {self._program} on this machine",
                cause="adb is no part of edgebuild",
                action="install it (Debian: apt-get install adb) and see that it is on the PATH",
            ) from e


def _only(states: Mapping[str, str]) -> str:
    if len(states) > 1:
        raise DeviceError(
            f"adb:// means the only device, and adb has {len(states)}: {', '.join(sorted(states))}",
            cause="several devices are plugged in or connected",
            action=f"name one, such as adb://{min(states)}",
        )
    return next(iter(states), "")


def _unusable(device: str, states: Mapping[str, str], answer: str) -> DeviceError:
    """Why adb has no link to the device; `answer` is what it said when asked to connect."""
    state = states.get(device)
    if state is None:
        return DeviceError(
            f"adb://{device} can't be reached: adb has no {'such ' if device else ''}device",
            cause=answer.strip() or f"adb has {', '.join(sorted(states)) or 'none at all'}",
            action="see that it is powered and plugged in, and allows debugging; on a network give adb://host:port",
        )
    known = next((told for name, told in _STATES.items() if state.startswith(name)), None)
    cause, action = known or (f"adb says: {state}", "wait until `adb devices` lists it as device")
    name = state.partition(";")[0].partition(" (")[0]
    return DeviceError(f"adb://{device} can't be used: its state is {name}", cause=cause, action=action)


def _text(said: Said) -> str:
    return (said.stdout + said.stderr).decode("utf-8", "replace")
