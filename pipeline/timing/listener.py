"""Who hears of a measurement as it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """`process` hears of each process as (what is measured, done, total), the total 0 if unknown.

    `wait` hears of others who have the device, in their own words.
    """

    process: Callable[[str, int, int], None] = lambda *_: None
    wait: Callable[[str], None] = lambda _: None
