"""The machine that we run on as the end of a link: to look at it, and to set it up, as at any other device."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.link import Ended, LinkLostError, bootstrap, ended, guarded, last_words, refused, talk

_SHELL: Final = ("sh",)


class ShellLink:
    """A link that goes nowhere; `command` is the shell, with what stands before it."""

    uri = "local:"

    def __init__(self, command: Sequence[str] = _SHELL) -> None:
        self._command = tuple(command)

    def run(self, script: str, timeout_s: float, *, lost: str = "") -> Ended:
        """See `Link.run`."""
        nonce = secrets.token_hex(8)
        guard = guarded(script, timeout_s, nonce=nonce, lost=lost)
        said = talk([*self._command, "-c", bootstrap(guard)], guard, timeout_s)
        answer = ended(said, timeout_s, nonce=nonce)
        if answer is None:
            raise LinkLostError("the shell was killed", cause=last_words(said.stderr.decode("utf-8", "replace")))
        return answer

    def push(self, source: Path, target: str) -> None:
        """See `Link.push`."""
        part = f"{target}.part"
        try:
            shutil.copyfile(source, part)
            Path(part).replace(target)
        except OSError as e:
            Path(part).unlink(missing_ok=True)
            raise refused(f"{self.uri} can't keep {source.name}", str(e)) from e

    def pull(self, source: str, target: Path) -> None:
        """See `Link.pull`."""
        try:
            shutil.copyfile(source, target)
        except OSError as e:
            raise DeviceError(f"{self.uri} can't give {source}", cause=str(e)) from e

    def close(self) -> None:
        """See `Link.close`."""
