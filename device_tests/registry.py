"""Transports by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from edgebuild.device_tests.local import LocalTransport
from edgebuild.device_tests.transport import Transport

TRANSPORTS: Final[Mapping[str, Callable[[], Transport]]] = {
    "local": LocalTransport,
}
