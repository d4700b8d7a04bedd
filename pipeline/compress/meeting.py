"""How workers meet: each tells worker 0 what it is about to do, and worker 0 answers when all are there."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Final

from edgebuild.pipeline import headway
from edgebuild.pipeline.compress import links
from edgebuild.pipeline.compress.tf_config import VARIABLE, Place
from edgebuild.pipeline.errors import ConfigError, PeerError

MEET_S: Final = 600.0  # Hosts are slower and faster, and a person starts one after the other.
_HELLO_S: Final = 10.0
_AGAIN_S: Final = 0.5
_SHORT: Final = 1 << 12  # Bytes; more is said by something else that listens there, or knocks.
_GO: Final = b"go"
_OTHER: Final = b"other work"
_UNREACHED: Final = b"not reached"
_TAKEN: Final = b"index taken"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hello:
    """What a worker says first: its index, of how many, and what it is about to do."""

    worker: int
    workers: int
    work: str


@contextmanager
def meet(place: Place, work: str) -> Iterator[Mapping[int, socket.socket]]:
    """Connections by the index at their other end: worker 0's to all others, or another's one to worker 0.

    Raises:
        PeerError: one does not come or can't be reached at its address, or can't listen there.
        ConfigError: one is about other `work`, or has the index of another.
    """
    with ExitStack() as opened:
        with _listening(place) as listener:  # Until TensorFlow listens there.
            found = _gathered(place, work, listener, opened) if place.leads else {0: _admitted(place, work, opened)}
        headway.say("all workers are there")
        for link in found.values():
            links.keep(link)
        yield found


def _gathered(place: Place, work: str, listener: socket.socket, opened: ExitStack) -> Mapping[int, socket.socket]:
    found: dict[int, socket.socket] = {}
    until = time.monotonic() + MEET_S
    while missing := _missing(found, place):
        named = f"worker{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
        headway.say(f"waiting for {named}", waits=True)
        if time.monotonic() > until:
            raise _missed(named)
        with suppress(OSError, EOFError, ValueError), ExitStack() as unless_met:  # Nobody, or no worker.
            link = unless_met.enter_context(listener.accept()[0])
            found[_greeted(link, place, work, missing)] = link
            opened.push(unless_met.pop_all())
    for link in found.values():
        with suppress(OSError):  # Whoever needs it next finds that it went away.
            links.send(link, _GO)
    return found


def _missing(found: Mapping[int, socket.socket], place: Place) -> list[int]:
    """The others that have not come, or that went away again."""
    there = found.keys() - set(links.ended(found))
    return [index for index in range(1, len(place.addresses)) if index not in there]


def _listening(place: Place) -> socket.socket:
    host, port = place.reached_at(place.index)
    both = socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server(
            ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both
        )
    except OSError as e:
        raise PeerError(
            f"finetune: strategy: multi_worker can't listen on port {port}",
            cause=f"{e.strerror or e}; {VARIABLE} says that this machine is {host}, worker {place.index}",
            action="choose a free port, and give each machine its own index",
        ) from e
    listener.settimeout(_AGAIN_S)
    return listener


def _greeted(link: socket.socket, place: Place, work: str, missing: Sequence[int]) -> int:
    """The index that the worker at the other end has, one of those `missing`."""
    link.settimeout(_HELLO_S)
    hello = _understood(links.receive(link, _SHORT))
    index = hello.worker
    if (hello.workers, hello.work) != (len(place.addresses), work):
        links.send(link, _OTHER)
        raise _differs(f"worker {index}")
    if index not in missing:
        links.send(link, _TAKEN)
        raise ValueError(f"another machine is worker {index} already")
    try:
        socket.create_connection(place.reached_at(index), timeout=_HELLO_S).close()
    except OSError as e:
        links.send(link, _UNREACHED)
        raise _unreached(place, index, str(e)) from e
    return index


def _understood(said: bytes) -> _Hello:
    """What a worker says of itself.

    Raises:
        ValueError: no worker says that.
    """
    try:
        hello = _Hello(**json.loads(said))
    except (TypeError, RecursionError) as e:
        raise ValueError("no worker says that") from e
    numbers = type(hello.worker) is type(hello.workers) is int  # A boolean is a kind of int.
    if not (numbers and 0 < hello.worker < hello.workers and isinstance(hello.work, str)):
        raise ValueError("no worker says that")
    return hello


def _admitted(place: Place, work: str, opened: ExitStack) -> socket.socket:
    until, cause = time.monotonic() + MEET_S, ""
    while (left := until - time.monotonic()) > 0:
        headway.say("waiting for the other workers", waits=True)
        try:
            with ExitStack() as unless_met:
                wait_s = min(left, _HELLO_S)
                link = unless_met.enter_context(socket.create_connection(place.reached_at(0), timeout=wait_s))
                _require_go(_answer(link, place, work, left), place)
                opened.push(unless_met.pop_all())
                return link
        except (OSError, EOFError, ValueError) as e:  # Not yet, or what an earlier training left of itself.
            cause = str(e)
        time.sleep(_AGAIN_S)
    raise _missed("worker 0, or one that it waits for,", cause)


def _answer(link: socket.socket, place: Place, work: str, left_s: float) -> bytes:
    hello = _Hello(worker=place.index, workers=len(place.addresses), work=work)
    links.send(link, json.dumps(asdict(hello)).encode())
    link.settimeout(left_s)
    return links.receive(link, _SHORT)


def _require_go(answer: bytes, place: Place) -> None:
    if answer == _OTHER:
        raise _differs("worker 0")
    if answer == _UNREACHED:
        raise _unreached(place, place.index, "worker 0 says so")
    if answer == _TAKEN:
        raise _taken(place)
    if answer != _GO:
        raise ValueError("something else answers there")


def _missed(who: str, cause: str = "") -> PeerError:
    after = f": {cause}" if cause else ""
    return PeerError(
        f"finetune: strategy: multi_worker: {who} did not come within {MEET_S:g} s{after}",
        cause="its build was not started, failed or can't be reached; or its store holds this step already",
        action=f"run the same command on every host that {VARIABLE} names, over one store or with --no-cache on all",
    )


def _unreached(place: Place, index: int, cause: str) -> PeerError:
    return PeerError(
        f"finetune: strategy: multi_worker: worker {index} can't be reached at {place.addresses[index]}",
        cause=cause,
        action=f"mend its address in {VARIABLE} on all hosts, and see that no firewall keeps them apart",
    )


def _taken(place: Place) -> ConfigError:
    return ConfigError(
        f"finetune: strategy: multi_worker: another machine is worker {place.index} already",
        cause=f"task.index is the same in {VARIABLE} on both",
        action="give each machine its own index",
    )


def _differs(who: str) -> ConfigError:
    return ConfigError(
        f"finetune: strategy: multi_worker: {who} is about to train something else",
        cause="its model, data, settings or versions of packages differ; or one store holds a step that another lacks",
        action="make them the same, and build over one store or with --no-cache on all hosts",
    )
