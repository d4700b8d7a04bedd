"""`cache ls`, `cache gc` and `cache verify`."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

from edgebuild.pipeline import console
from edgebuild.pipeline.storage.location import default_root
from edgebuild.pipeline.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgebuild.pipeline.storage.inventory import Entry
    from edgebuild.pipeline.storage.progress import Unfinished

_AGES: Final = ((86400, "d"), (3600, "h"), (60, "min"))


def ls(*, as_json: bool) -> int:
    """List what is there. A store may hold ten thousand entries: they are printed as lines, not as a laid out table."""
    from edgebuild.pipeline.storage import inventory, progress

    store = Store(default_root())
    found, unfinished = inventory.entries(store), progress.unfinished(store)
    total_bytes = sum(entry.size_bytes for entry in found)
    if as_json:
        listing = {
            "root": str(store.root),
            "size_bytes": total_bytes,
            "entries": [_record(entry) for entry in found],
            "unfinished": [asdict(one) | {"written_at": _iso(one.written_at)} for one in unfinished],
        }
        console.emit(json.dumps(listing, indent=1))
        return 0
    in_use = sum(entry.in_use for entry in found)
    total = [f"{_entries(len(found))}, {_size(total_bytes)}, {in_use} in use, in {store.root}"]
    if unfinished:
        total.append(f"{len(unfinished)} unfinished, {_size(sum(one.size_bytes for one in unfinished))} beside them")
    header = [f"{'key':<12} {'size':>10} {'made':>7} {'used':>7}  what"] if found or unfinished else []
    console.emit("\n".join([*header, *_unfinished_lines(unfinished), *_lines(found), *total]))
    return 0


def gc(*, max_size: str | None, older_than: str | None, unreferenced: bool, dry_run: bool) -> int:
    """Remove what is not wanted any more, and say what that was."""
    from edgebuild.pipeline.storage import collection

    criteria = collection.Criteria(
        max_size_bytes=None if max_size is None else collection.size(max_size),
        older_than_s=None if older_than is None else collection.age(older_than),
        unreferenced=unreferenced,
    )
    done = collection.collect(Store(default_root()), criteria, dry_run=dry_run)
    verb = "would free" if dry_run else "freed"
    left = f", {_size(done.dead_bytes)} of it left by builds that did not end" if done.dead_bytes else ""
    freed = f"{verb} {_size(done.freed_bytes)}: {_entries(len(done.removed))}{left}; {_size(done.kept_bytes)} stay"
    console.emit("\n".join([*_lines(done.removed), freed]))
    if criteria.max_size_bytes is not None and done.kept_bytes > criteria.max_size_bytes:
        console.emit(f"running builds use {_size(done.in_use_bytes)}, so it stays above {max_size}")
    return 0


def verify(*, keep: bool) -> int:
    """Check every digest, and name what is damaged."""
    from edgebuild.pipeline.storage import inventory

    narrator = console.Narrator()
    with narrator.running():
        found = inventory.verify(Store(default_root()), keep=keep, on_progress=narrator.on_bytes)
    for damage in found.damaged:
        fate = "removed" if damage.removed else "kept"
        named = f"damaged, {fate}: {damage.entry.key} {damage.entry.description}"
        console.emit("\n".join([named, *(f"  {fault}" for fault in damage.faults)]))
    console.emit(
        f"{_entries(found.entries)}, {len(found.damaged)} damaged; "
        f"{_size(found.checked_bytes)} in {found.seconds:.1f} s, {found.mb_per_s:,.0f} MB/s"
    )
    return found.exit_code


def _record(entry: Entry) -> dict[str, Any]:
    times = {name: _iso(getattr(entry, name)) for name in ("made_at", "used_at")}
    return asdict(entry) | times


def _lines(entries: Iterable[Entry]) -> Iterable[str]:
    now = time.time()
    for entry in entries:
        size, made, used = _size(entry.size_bytes), _age(now - entry.made_at), _age(now - entry.used_at)
        yield f"{entry.key[:12]} {size:>10} {made:>7} {used:>7}  {entry.description}{' (in use)' * entry.in_use}"


def _unfinished_lines(unfinished: Iterable[Unfinished]) -> Iterable[str]:
    now = time.time()
    for one in unfinished:
        written = _age(now - one.written_at)
        words = f"unfinished: {one.description}{' (in use)' * one.in_use}"
        yield f"{one.key[:12]} {_size(one.size_bytes):>10} {written:>7} {'':>7}  {words}"


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def _age(seconds: float) -> str:
    return next((f"{seconds / unit_s:.0f} {unit}" for unit_s, unit in _AGES if seconds >= unit_s), "now")


def _size(size_bytes: int) -> str:
    size, units = float(size_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:,.0f} B" if units[0] == "B" else f"{size:,.1f} {units[0]}"


def _entries(count: int) -> str:
    return "1 entry" if count == 1 else f"{count:,} entries"
