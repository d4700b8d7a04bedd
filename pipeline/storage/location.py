"""Where the user's store lies on this machine."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

from edgebuild.pipeline.errors import StoreError

CACHE_VARIABLE: Final = "EDGEBUILD_CACHE"


def default_root() -> Path:
    """Where the store lies: `$EDGEBUILD_CACHE` (a URL's mirror here), or `edgebuild` in the user's cache folder.

    Raises:
        StoreError: it names the home of a user that there is not.
    """
    from platformdirs import user_cache_path

    named = os.environ.get(CACHE_VARIABLE)
    if named and "://" in named:
        return mirror(named)
    try:
        return Path(named).expanduser().absolute() if named else user_cache_path("edgebuild")
    except RuntimeError as e:
        raise StoreError(
            f"{CACHE_VARIABLE}={named} names no folder", cause=str(e), action="set it to a folder's full path"
        ) from e


def mirror(url: str) -> Path:
    """The folder on this machine that holds a shared store's entries; for `file://`, the store itself."""
    from platformdirs import user_cache_path

    if url.startswith("file://"):
        return Path(url.removeprefix("file://")).absolute()
    return user_cache_path("edgebuild") / "mirrors" / hashlib.sha256(url.encode()).hexdigest()[:16]
