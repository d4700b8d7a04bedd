"""A device for the real `adb`: speaks what its server asks of a daemon, runs the commands and stores the files.

Commands run under /bin/sh in a folder that the test gives, and only below it are files taken. As on a device, a command
learns from a hang-up and the end of its input that the client, or the daemon itself, has gone, and may go on. Faults
come where a test asks for them, not after a time.

ref: https://android.googlesource.com/platform/packages/modules/adb/ (protocol.txt, SYNC.TXT, shell_protocol.h,
file_sync_protocol.h)
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Final, Literal, TypeAlias

from typing_extensions import Self

Fate: TypeAlias = Literal["die", "freeze"]

_VERSION: Final = 0x01000001  # From here on nobody looks at checksums.
_MAX_DATA: Final = 256 * 1024
_CHUNK: Final = 64 * 1024
_HEADER: Final = struct.Struct("<4s5I")  # Command, two arguments, length, checksum, and the command's complement.
_PACKET: Final = struct.Struct("<BI")  # Of a shell with the second protocol: kind, length.
_STDIN, _STDOUT, _EXIT, _CLOSE_STDIN = 0, 1, 3, 4
_SYNC: Final = struct.Struct("<4sI")
_STAT: Final = struct.Struct("<4s3I")  # Mode, size, time of change.
_STAT2: Final = struct.Struct("<4sIQQ4IQ3q")  # Error, device, inode, mode, links, owner, group, size, three times.
_AUTH_TOKEN: Final = 1
ANDROID: Final = b"/data/local/tmp"


@dataclass(kw_only=True)
class Faults:
    """What goes wrong, and where.

    `fate` comes when a command's output holds `at_said`, or when so many bytes of a file have come or gone. Of a pushed
    file only `keeps_bytes` are stored, or, where it `spoils`, all of them in another order: a disk that lies. `trusts`
    and `answers` are for the handshake.
    """

    fate: Fate = "die"
    at_said: bytes | None = None
    at_copied_bytes: int | None = None
    keeps_bytes: int | None = None
    spoils: bool = False
    disk_full: bool = False
    trusts: bool = True
    answers: bool = True


@dataclass(kw_only=True)
class AdbDaemon:
    """A daemon on the loopback while its `with` lasts; `path` is where its commands find their programs.

    `android` stands for Android's /data/local/tmp, in place of the chroot that needs a superuser. Its path is as long,
    for commands are sent with their length.
    """

    root: Path
    path: str = os.environ["PATH"]
    features: tuple[str, ...] = ("shell_v2", "cmd", "stat_v2")
    faults: Faults = field(default_factory=Faults)
    port: int = 0
    android: Path | None = None
    commands: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _links: list[_Link] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)
    awake: threading.Event = field(default_factory=threading.Event)

    @property
    def address(self) -> str:
        """For `adb connect`."""
        return f"127.0.0.1:{self.port}"

    @property
    def running(self) -> list[str]:
        """Commands that have not ended, whoever asked for them."""
        return [str(command.args) for command in self.commands if command.poll() is None]

    @property
    def variables(self) -> dict[str, str]:
        """The environment of its commands; their own folder for what is temporary, unless it is Android's."""
        temporary = {} if self.android else {"TMPDIR": str(self.root / "tmp")}
        return {"PATH": self.path, "HOME": str(self.root), **temporary}

    def __enter__(self) -> Self:
        assert self.android is None or len(bytes(self.android)) == len(ANDROID)
        (self.root / "tmp").mkdir(parents=True, exist_ok=True)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.die()
        for command in self.commands:
            with suppress(ProcessLookupError):
                os.killpg(command.pid, signal.SIGKILL)
            command.wait()
        for thread in self._threads:
            thread.join()

    def start(self) -> None:
        """Listen, on the same port as before; what is frozen stays so."""
        self.awake = threading.Event()
        self.awake.set()
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        self._accepting = self.spawn(self._accept, self._listener)

    def die(self) -> None:
        """End as a killed daemon does: every socket is closed."""
        self.stop()
        for link in self._links:
            _close(link.socket)
            link.awake.set()
        self._links.clear()

    def stop(self) -> None:
        """Take no more connections."""
        _close(self._listener)
        self._accepting.join()

    def freeze(self) -> None:
        """Answer nothing more, and keep every socket open."""
        self.awake.clear()

    def suffer(self) -> None:
        """Meet the fate that was asked for."""
        self.die() if self.faults.fate == "die" else self.freeze()

    def here(self, text: bytes) -> bytes:
        """The same with Android's folder replaced by the one that stands in for it."""
        return text if self.android is None else text.replace(ANDROID, bytes(self.android))

    def spawn(self, work: Callable[..., None], *arguments: object, **options: object) -> threading.Thread:
        """Do it in a thread, and wait for its end when the daemon ends."""
        thread = threading.Thread(target=work, args=arguments, kwargs=options)
        self._threads.append(thread)
        thread.start()
        return thread

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # Closed: the daemon is dead.
            while True:
                link = _Link(self, listener.accept()[0])
                self._links.append(link)
                self.spawn(link.serve)


class _Link:
    """The connection of one adb server: messages of many streams."""

    def __init__(self, daemon: AdbDaemon, link: socket.socket) -> None:
        self.daemon = daemon
        self.socket = link
        self.awake = daemon.awake
        self._lock = threading.Lock()
        self._streams: dict[int, _Stream] = {}

    def serve(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                self._take(*self._receive())
        for stream in list(self._streams.values()):
            stream.end()
        _close(self.socket)

    def send(self, command: bytes, first: int, second: int, data: bytes = b"") -> None:
        self.awake.wait()
        complement = int.from_bytes(command, "little") ^ 0xFFFFFFFF
        with self._lock:
            self.socket.sendall(_HEADER.pack(command, first, second, len(data), 0, complement) + data)

    def _receive(self) -> tuple[bytes, int, int, bytes]:
        command, first, second, size, _, _ = _HEADER.unpack(self._read(_HEADER.size))
        data = self._read(size)
        self.awake.wait()
        return command, first, second, data

    def _read(self, size: int) -> bytes:
        held = b""
        while len(held) < size:
            more = self.socket.recv(size - len(held))
            if not more:
                raise EOFError
            held += more
        return held

    def _take(self, command: bytes, theirs: int, ours: int, data: bytes) -> None:
        if command in (b"CNXN", b"AUTH"):
            self._shake_hands(command, theirs)
        elif command == b"OPEN":
            self._open(theirs, data.rstrip(b"\0").decode())
        elif stream := self._streams.get(ours):
            stream.take(command, data)

    def _shake_hands(self, command: bytes, kind: int) -> None:
        faults = self.daemon.faults
        if not faults.answers:
            return
        if faults.trusts:
            banner = "device::ro.product.model=stand-in;features=" + ",".join(self.daemon.features)
            self.send(b"CNXN", _VERSION, _MAX_DATA, banner.encode())
        elif command == b"CNXN" or kind != 3:  # The third kind is a new key: somebody must accept it on the screen.
            self.send(b"AUTH", _AUTH_TOKEN, 0, os.urandom(20))

    def _open(self, theirs: int, service: str) -> None:
        ours = max(self._streams, default=0) + 1
        stream = self._streams[ours] = _Stream(self, ours, theirs)
        self.send(b"OKAY", ours, theirs)
        self.daemon.spawn(stream.serve, service)


class _Stream:
    """One service's bytes both ways: each message is sent when the one before it has been taken."""

    def __init__(self, link: _Link, ours: int, theirs: int) -> None:
        self.link, self.ours, self.theirs = link, ours, theirs
        self.daemon = link.daemon
        self._held = b""
        self._ended = False
        self._changed = threading.Condition()
        self._writable = threading.Lock()
        self._taken = threading.Semaphore(0)

    def take(self, command: bytes, data: bytes) -> None:
        if command == b"WRTE":
            self.link.send(b"OKAY", self.ours, self.theirs)
            with self._changed:
                self._held += data
                self._changed.notify_all()
        elif command == b"OKAY":
            self._taken.release()
        elif command == b"CLSE":
            self.end()

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._taken.release()

    def wait_end(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ended)

    def read(self, size: int) -> bytes:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or len(self._held) >= size)
            if len(self._held) < size:
                raise EOFError
            data, self._held = self._held[:size], self._held[size:]
            return data

    def write(self, data: bytes) -> None:
        with self._writable:
            if self._ended:
                raise EOFError
            self.link.send(b"WRTE", self.ours, self.theirs, data)
            self._taken.acquire()

    def serve(self, service: str) -> None:
        kind, _, argument = service.partition(":")
        with suppress(EOFError, OSError):
            if kind == "sync":
                _Sync(self).serve()
            elif kind == "exec" or kind.startswith("shell,v2"):
                _run(self, argument, packets=kind != "exec")
            self.link.send(b"CLSE", self.ours, self.theirs)
        self.end()


def _run(stream: _Stream, command: str, *, packets: bool) -> None:
    """Run a command: with packets its streams come apart and its status last, else all share one socket."""
    daemon = stream.daemon
    theirs, ours, end_input = _pipes() if packets else _socket()
    stdin, stdout, stderr = theirs
    process = subprocess.Popen(
        ["/bin/sh", "-c", os.fsdecode(daemon.here(os.fsencode(command)))],
        cwd=daemon.root,
        env=daemon.variables,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
    )
    daemon.commands.append(process)
    for end in theirs:
        end.close()
    daemon.spawn(_feed, stream, ours[0], packets=packets)
    daemon.spawn(_hang_up, stream, process, end_input)
    forwards = [
        threading.Thread(target=_forward, args=(stream, source, kind if packets else None))
        for kind, source in enumerate(ours[1:], start=_STDOUT)
    ]
    for thread in forwards:
        thread.start()
    for thread in forwards:
        thread.join()
    code = process.wait()
    if packets:
        status = code if code >= 0 else 128 - code
        stream.write(_PACKET.pack(_EXIT, 1) + bytes([status]))


def _pipes() -> tuple[list[IO[bytes]], list[IO[bytes]], Callable[[], None]]:
    """The command's standard input, output and errors, our ends of them, and how to end its input."""
    (stdin, feed), (said, stdout), (complained, stderr) = os.pipe(), os.pipe(), os.pipe()
    ours = _files((feed, "wb"), (said, "rb"), (complained, "rb"))
    return _files((stdin, "rb"), (stdout, "wb"), (stderr, "wb")), ours, ours[0].close


def _socket() -> tuple[list[IO[bytes]], list[IO[bytes]], Callable[[], None]]:
    """One end is all three for the command, the other one for us to write to and to read from."""
    theirs, ours = socket.socketpair()
    files = _files((os.dup(ours.fileno()), "wb"), (os.dup(ours.fileno()), "rb"))
    return _files((theirs.detach(), "r+b")) * 3, files, partial(_close, ours)


def _files(*ends: tuple[int, str]) -> list[IO[bytes]]:
    return [os.fdopen(end, mode, buffering=0) for end, mode in ends]


def _feed(stream: _Stream, feed: IO[bytes], *, packets: bool) -> None:
    """Give the command what the client sends."""
    with suppress(EOFError, OSError), feed:
        while True:
            kind, size = _PACKET.unpack(stream.read(_PACKET.size)) if packets else (_STDIN, 1)
            data = stream.read(size)
            if kind == _CLOSE_STDIN:
                break
            if kind == _STDIN:
                feed.write(stream.daemon.here(data))


def _hang_up(stream: _Stream, process: subprocess.Popen[bytes], end_input: Callable[[], None]) -> None:
    stream.wait_end()
    with suppress(OSError):
        end_input()
    process.send_signal(signal.SIGHUP)


def _forward(stream: _Stream, source: IO[bytes], kind: int | None) -> None:
    mark, said = stream.daemon.faults.at_said, b""
    with source, suppress(EOFError, OSError):
        for data in iter(lambda: source.read(_CHUNK), b""):
            stream.write(data if kind is None else _PACKET.pack(kind, len(data)) + data)
            said += data
            if mark is not None and mark in said:
                stream.daemon.suffer()


class _Sync:
    """Files in and out, until the client quits."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self._faults = stream.daemon.faults

    def serve(self) -> None:
        answers = {b"STAT": self._stat, b"STA2": self._stat2, b"LST2": self._stat2, b"SEND": self._take}
        while True:
            what, size = _SYNC.unpack(self._stream.read(_SYNC.size))
            if what == b"QUIT":
                return
            argument = self._stream.read(size).decode()
            try:
                answers.get(what, self._give)(what, argument)
            except OSError as e:
                self._refuse(e.strerror or str(e))

    def _place(self, path: str) -> Path:
        daemon = self._stream.daemon
        place = (daemon.root / os.fsdecode(daemon.here(os.fsencode(path)))).resolve()
        if not any(place.is_relative_to(folder.resolve()) for folder in (daemon.root, daemon.android) if folder):
            raise PermissionError(13, "Permission denied")
        return place

    def _stat(self, what: bytes, path: str) -> None:
        try:
            found = self._place(path).stat()
        except OSError:
            self._stream.write(_STAT.pack(what, 0, 0, 0))
        else:
            self._stream.write(_STAT.pack(what, found.st_mode, found.st_size, int(found.st_mtime)))

    def _stat2(self, what: bytes, path: str) -> None:
        try:
            s = self._place(path).stat()
        except OSError as e:
            self._stream.write(_STAT2.pack(what, e.errno or 1, *[0] * 10))
            return
        times = (int(s.st_atime), int(s.st_mtime), int(s.st_ctime))
        owner = (s.st_mode, s.st_nlink, s.st_uid, s.st_gid)
        self._stream.write(_STAT2.pack(what, 0, s.st_dev, s.st_ino, *owner, s.st_size, *times))

    def _take(self, _: bytes, argument: str) -> None:
        path, mode = argument.rsplit(",", 1)
        received = self._received()
        try:
            self._keep(self._place(path), received)
        finally:
            for _ in received:  # What was refused still comes.
                pass
        self._place(path).chmod(int(mode) & 0o777)
        self._stream.write(_SYNC.pack(b"OKAY", 0))

    def _keep(self, place: Path, received: Iterator[bytes]) -> None:
        left = self._faults.keeps_bytes
        with place.open("wb") as file:
            for data in received:
                if self._faults.disk_full:
                    raise OSError(28, "No space left on device")
                kept = data[:left]
                file.write(kept[::-1] if self._faults.spoils else kept)
                file.flush()
                left = None if left is None else left - len(kept)

    def _received(self) -> Iterator[bytes]:
        count = 0
        while True:
            what, size = _SYNC.unpack(self._stream.read(_SYNC.size))
            if what == b"DONE":
                return
            yield self._stream.read(size)
            count += size
            self._copied(count)

    def _copied(self, count: int) -> None:
        most = self._faults.at_copied_bytes
        if most is not None and count >= most:
            self._stream.daemon.suffer()
            raise EOFError

    def _give(self, what: bytes, path: str) -> None:
        if what != b"RECV":
            raise OSError(95, f"unknown request {what!r}")
        with self._place(path).open("rb") as file:
            for data in iter(lambda: file.read(_CHUNK), b""):
                self._stream.write(_SYNC.pack(b"DATA", len(data)) + data)
                self._copied(file.tell())
        self._stream.write(_SYNC.pack(b"DONE", 0))

    def _refuse(self, cause: str) -> None:
        self._stream.write(_SYNC.pack(b"FAIL", len(cause.encode())) + cause.encode())


def _close(link: socket.socket) -> None:
    with suppress(OSError):  # It may be closed already, from the other side.
        link.shutdown(socket.SHUT_RDWR)
    link.close()
