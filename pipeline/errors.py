"""The pipeline's own failures, and the one table of exit codes."""

from __future__ import annotations

from typing import Final

from edgebuild.calibration.errors import DataError, Failure
from edgebuild.device_tests.errors import DeviceError
from edgebuild.export.errors import ModelError
from edgebuild.targets.errors import (
    EmulationError,
    LibraryError,
    PlacementError,
    ProfileError,
    ToolMissingError,
    UnknownTargetError,
)


class ConfigError(Failure):
    """A command line or configuration that can't be used as it is."""


class StoreError(Failure):
    """The store can't be read or written."""


class CrashError(Failure):
    """A stage took its worker process down: a signal, or an end without an answer."""


class SchedulerError(Failure):
    """A Dask scheduler that can't be reached, has no workers, or went away."""


class PeerError(Failure):
    """A machine that trains together with this one, and does not come, is about other work or went away."""


class MismatchError(Failure):
    """An artifact that is not what its manifest says.

    Its code is that of a model that can't be used. Whether the folder, the store or a tool is to blame isn't known, so
    it is no fault of ours (1), and a script must be able to tell it from a folder named wrong (2).
    """


class InternalError(Failure):
    """A fault of edgebuild's own."""


OK: Final = 0
INTERNAL: Final = 1
INTERRUPTED: Final = 130

EXIT_CODES: Final[dict[type[Failure], int]] = {
    InternalError: INTERNAL,
    ProfileError: INTERNAL,
    ConfigError: 2,
    DataError: 2,
    StoreError: 2,
    UnknownTargetError: 2,
    LibraryError: 2,
    ModelError: 3,
    CrashError: 3,
    MismatchError: 3,
    EmulationError: 3,
    PlacementError: 7,
    DeviceError: 8,
    SchedulerError: 8,
    PeerError: 8,
    ToolMissingError: 9,
}

GATE_EXIT_CODES: Final[dict[str, int]] = {"metric": 4, "size": 5, "memory": 5, "latency": 6, "placement": 7}
INCONCLUSIVE_LATENCY: Final = 8


def exit_code(failure: Failure) -> int:
    """The code of the failure's nearest family.

    >>> exit_code(DataError("empty"))
    2
    """
    return next(EXIT_CODES[kind] for kind in type(failure).__mro__ if kind in EXIT_CODES)
