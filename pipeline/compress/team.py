"""Machines that train one model together: they meet, keep in step with worker 0, and part when all are done.

TensorFlow's own servers add up the gradients. They wait an hour for a worker that never comes, and can't tell one that
trains something else. So the workers meet first, each by a connection to worker 0. The connections stay: what worker 0
decides goes over them, and their end says at once that a worker is gone.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from edgebuild.pipeline.compress import links, meeting
from edgebuild.pipeline.compress.tf_config import VARIABLE, Place
from edgebuild.pipeline.errors import PeerError

_END_SHOWS_S: Final = 5.0  # TensorFlow may notice earlier than a connection does that a worker is gone.
_READY: Final = b"ready"
START_S: Final = 60  # For TensorFlow's servers, which take a second or two once all workers are there.


@dataclass(slots=True, kw_only=True)
class Team:
    """Workers that have met, by `meeting.meet`; `strategy` is TensorFlow's, over all of them."""

    place: Place
    links: Mapping[int, socket.socket]
    strategy: Any = None

    def __len__(self) -> int:
        """How many workers there are."""
        return len(self.place.addresses)

    @property
    def leads(self) -> bool:
        """Whether the others take what it has."""
        return self.place.leads

    def broadcast(self, own: bytes) -> bytes:
        """What worker 0 has; all workers must ask, in the same order.

        Each says first that it reads: it may come much later than worker 0, and unread data looks like a host that is
        gone.

        Raises:
            PeerError: a worker went away.
        """
        found = own
        for index, link in self.links.items():
            with _required(index):
                if self.leads:
                    links.receive(link)
                    links.send(link, own)
                else:
                    links.send(link, _READY)
                    found = links.receive(link)
        return found

    def require_all(self, wait_s: float = 0.0) -> None:
        """Look, so long at most, whether any has gone.

        Raises:
            PeerError: a worker went away.
        """
        if gone := links.ended(self.links, wait_s):
            raise _gone(f"worker{'s' * (len(gone) > 1)} {', '.join(map(str, gone))}")

    def barrier(self) -> None:
        """Wait until all have come here: who leaves earlier may take away what another still reads.

        One that went away meanwhile keeps nobody: it says itself why, and the others have what they need.
        """
        for link in self.links.values():
            with suppress(OSError, EOFError):
                links.receive(link) if self.leads else links.send(link, _READY)
        for link in self.links.values():
            with suppress(OSError, EOFError):
                links.send(link, _READY) if self.leads else links.receive(link)


@contextmanager
def joined(place: Place, work: str) -> Iterator[Team]:
    """The team with its strategy; to be entered before TensorFlow does anything else in this process.

    `work` names what is to be done, the same on all workers. In the end they part.

    Raises:
        PeerError: a worker does not come or goes away; or one is not at its address.
        ConfigError: a worker is about other work, or has the index of another.
    """
    from tensorflow import errors

    lost = (errors.UnavailableError, errors.AbortedError, errors.CancelledError, errors.DeadlineExceededError)
    with meeting.meet(place, work) as met:
        team = Team(place=place, links=met)
        team.strategy = _strategy(place)
        try:
            yield team
        except lost as e:
            team.require_all(_END_SHOWS_S)
            raise _gone("a worker", _line(e)) from e
        team.barrier()


def _strategy(place: Place) -> Any:
    """TensorFlow's strategy over all workers.

    Where one of them ends just now, TensorFlow waits for it for an hour, without letting any Python run. So the alarm
    clock ends this process then, which whoever started it tells the user.
    """
    import tensorflow as tf
    from tensorflow import errors

    cluster = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(place.addresses)}),
        task_type="worker",
        task_id=place.index,
        num_accelerators={"GPU": len(tf.config.list_physical_devices("GPU"))},
        rpc_layer="grpc",
    )
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(START_S)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(cluster)
    except errors.OpError as e:
        raise PeerError(
            "finetune: strategy: multi_worker: the workers' TensorFlow servers did not find each other",
            cause=_line(e),
            action=f"see that all hosts reach each other at the addresses in {VARIABLE}, and that the ports are free",
        ) from e
    finally:
        signal.alarm(0)


@contextmanager
def _required(index: int) -> Iterator[None]:
    """What ends a connection to a worker in the block is that the worker went away."""
    try:
        yield
    except (OSError, EOFError) as e:
        raise _gone(f"worker {index}") from e


def _gone(who: str, cause: str = "") -> PeerError:
    return PeerError(
        f"finetune: strategy: multi_worker: {who} went away",
        cause=cause or "its build failed or was ended, and says why; or the network between the hosts is down",
        action="run the build again on every host: training goes on from the last epoch that worker 0 put down",
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
