"""What a GPU runtime says on its log: the adapter it chose, and the operators it refuses.

TFLite's GPU delegate and LiteRT's accelerator log the same block, refusals by kind and each text once, without an
operator's index. ref: tensorflow/lite/delegates/gpu/common/model_builder.cc, GetOpsToReplace.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_ADAPTER: Final = re.compile(
    r"Selected adapter: (?P<name>.*?), arch=.*?backend=(?P<backend>[^,]*), adapterType=(?P<type>.*)"
)
_SOFTWARE: Final = re.compile(r"swiftshader|llvmpipe|lavapipe|softpipe|\bcpu\b", re.IGNORECASE)
# Years ago it said "Next operations", and "First 3 operations will run on the GPU, and the remaining 4 on the CPU."
_HEAD: Final = re.compile(r"(?:Following|Next) operations are not supported by GPU delegate:")
_COUNTS: Final = re.compile(r"(?:First )?(\d+|No) operations will run on the GPU, and (?:the remaining|all) (\d+)")
_REFUSED: Final = re.compile(r"(?:CUSTOM )?(?P<kind>[^:\s]+): ?(?P<why>.*)")
_ERROR: Final = re.compile(r"(?:ERROR: |Warning: |E\d{4} .*?\] )(?:\[[^\]]*\] ?)?(?P<text>.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A kind of operator and what the runtime has against one of that kind; empty where it gives no reason."""

    kind: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """`adapter` is empty where none is named; `on_gpu` and `on_cpu` count operators, None where no count is given."""

    adapter: str
    is_software: bool
    refused: tuple[Refused, ...]
    on_gpu: int | None
    on_cpu: int | None
    errors: tuple[str, ...]


def parse(text: str) -> Log:
    """Read a log; where a model was compiled several times, the last one's counts."""
    lines = text.splitlines()
    adapter = next((found for line in lines if (found := _ADAPTER.search(line))), None)
    counts = [found for line in lines if (found := _COUNTS.search(line))]
    refused = _refusals(lines)
    return Log(
        adapter=f"{adapter['name']}, {adapter['backend']}" if adapter else "",
        is_software=bool(adapter and _SOFTWARE.search(adapter[0])),
        refused=tuple(dict.fromkeys(refused)),
        on_gpu=_count(counts[-1][1]) if counts else None,
        on_cpu=int(counts[-1][2]) if counts else None,
        errors=tuple(dict.fromkeys(_errors(lines))),
    )


def _refusals(lines: list[str]) -> list[Refused]:
    """The lines between a block's head and its counts."""
    found, inside = [], False
    for line in lines:
        if _HEAD.search(line) or _COUNTS.search(line):
            inside = _HEAD.search(line) is not None
        elif inside and (entry := _REFUSED.fullmatch(line.strip())):
            found.append(Refused(kind=entry["kind"], why=entry["why"].strip()))
    return found


def _errors(lines: list[str]) -> Iterator[str]:
    """Errors in words; a block of refusals is none."""
    return (found["text"] for line in lines if (found := _ERROR.match(line)) and not _HEAD.search(line))


def _count(text: str) -> int:
    return 0 if text == "No" else int(text)
