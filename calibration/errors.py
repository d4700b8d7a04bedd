"""The base of every failure a user can act on, and the family of data errors."""

from __future__ import annotations


class Failure(Exception):  # noqa: N818 - every family's error derives from it; it is a base, not an error of its own
    """A failure told in three parts: what happened, the likely cause, the next action.

    Failures cross process borders by pickling, so every part is plain text.
    """

    def __init__(self, what: str, *, cause: str = "", action: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.cause = cause
        self.action = action

    def __str__(self) -> str:
        """All three parts, a line each."""
        return "\n".join(part for part in (self.what, self.cause, self.action) if part)

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the keyword parts when pickled; `BaseException` keeps positional ones only."""
        return _rebuild, (type(self), self.what, self.cause, self.action)


def _rebuild(kind: type[Failure], what: str, cause: str, action: str) -> Failure:
    return kind(what, cause=cause, action=action)


class DataError(Failure):
    """Calibration, evaluation or training data that is missing, broken or does not fit the model."""
