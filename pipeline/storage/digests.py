"""Content by its sha256: what decides whether two files, or two folders, are the same."""

from __future__ import annotations

import hashlib
import json
import os
from fnmatch import fnmatch
from pathlib import Path


def digest_file(path: Path) -> str:
    """The file's sha256, as hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def digest_tree(path: Path, pattern: str = "*") -> str:
    """The sha256 of a file, or of a folder's relative names and contents; times and places do not count."""
    if path.is_file():
        return digest_file(path)
    # Links are followed, as a reader follows them: the weights may lie behind one.
    walked = (Path(folder) / name for folder, _, names in os.walk(path, followlinks=True) for name in names)
    files = sorted(file for file in walked if fnmatch(file.name, pattern) and file.is_file())
    listing = [(file.relative_to(path).as_posix(), digest_file(file)) for file in files]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()
