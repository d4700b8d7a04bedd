"""Numbers and words about devices (memory, core), each with its source, read from `profiles/*.yaml`."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from edgebuild.targets.errors import ProfileError, UnknownTargetError

if TYPE_CHECKING:
    from collections.abc import Mapping

_SUFFIX = ".yaml"
# What a word may say, by its key; None where it is a name in another tool's file, which that tool knows.
WORDS: Final[Mapping[str, tuple[str, ...] | None]] = {
    "core": ("cortex-m0plus", "cortex-m4f", "cortex-m7", "cortex-m33", "cortex-m55", "cortex-m85", "xtensa-lx7"),
    "npu": None,
    "vela_system_config": None,
    "vela_memory_mode": None,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """One number; its unit stands in its name. `source` is an address, or says that it is a choice."""

    value: float | int
    source: str

    def __post_init__(self) -> None:
        """No number without a source."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise ProfileError(f"{self.value!r} is not a number")
        _require_source(f"the number {self.value}", self.source)


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """One word of those that `WORDS` takes under its key, and its source."""

    value: str
    source: str

    def __post_init__(self) -> None:
        """No word without a source."""
        if not isinstance(self.value, str) or not self.value:
            raise ProfileError(f"{self.value!r} is not a word")
        _require_source(f"the word {self.value}", self.source)


def _require_source(what: str, source: object) -> None:
    if not isinstance(source, str) or not source:
        raise ProfileError(f"{what} has no source", action="add `source:`")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What is known of a device, for the target that builds for it."""

    name: str
    target: str
    summary: str
    numbers: Mapping[str, Number]
    words: Mapping[str, Word] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Words are of those that something reads."""
        for key, word in self.words.items():
            if key not in WORDS:
                raise ProfileError(f"{self.name} has a word {key!r}", cause=f"the keys are {', '.join(WORDS)}")
            allowed = WORDS[key]
            if allowed is not None and word.value not in allowed:
                raise ProfileError(f"{self.name} says {key} {word.value!r}", cause=f"known are {', '.join(allowed)}")


def profile_names() -> tuple[str, ...]:
    """The profiles there are, sorted."""
    entries = (entry.name for entry in files("edgebuild.targets.profiles").iterdir())
    return tuple(sorted(name.removesuffix(_SUFFIX) for name in entries if name.endswith(_SUFFIX)))


def load_profile(name: str) -> Profile:
    """The profile of that name.

    Raises:
        UnknownTargetError: there is none; its `action` names the nearest one.
        ProfileError: the file does not say what a profile says.
    """
    import yaml

    names = profile_names()
    if name not in names:
        near = get_close_matches(name, names, n=1)
        raise UnknownTargetError(
            f"unknown profile {name!r}",
            cause=f"the profiles are {', '.join(names)}",
            action=f"did you mean {near[0]!r}?" if near else "choose one of them",
        )
    text = files("edgebuild.targets.profiles").joinpath(name + _SUFFIX).read_text(encoding="utf-8")
    return parse(name, yaml.safe_load(text))


def profiles_of(name: str) -> tuple[Profile, ...]:
    """The profile of that name, or all of the target of that name.

    Raises:
        UnknownTargetError: there is neither.
    """
    if name in profile_names():
        return (load_profile(name),)
    of_target = tuple(p for p in map(load_profile, profile_names()) if p.target == name)
    return of_target or (load_profile(name),)


def parse(name: str, content: Any) -> Profile:
    """A profile from what its YAML holds.

    Raises:
        ProfileError: a key is missing, unknown or of another type.
    """
    try:
        numbers = {key: Number(**number) for key, number in content["numbers"].items()}
        words = {key: Word(**word) for key, word in content.get("words", {}).items()}
        rest = {key: value for key, value in content.items() if key not in ("numbers", "words")}
        return Profile(name=name, numbers=numbers, words=words, **rest)
    except (TypeError, KeyError, AttributeError) as e:
        raise ProfileError(
            f"profile {name} is not readable",
            cause=str(e),
            action="give target, summary, numbers and, if any, words; every one has value and source",
        ) from e
