"""`profile`: a model on a device, and all that can be asked of it there."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

from edgebuild.device_tests.errors import DeviceError
from edgebuild.pipeline import console
from edgebuild.pipeline.commands import profile_shown as shown
from edgebuild.pipeline.console import Narrator
from edgebuild.pipeline.device_settings import Device
from edgebuild.pipeline.errors import ConfigError
from edgebuild.pipeline.timing.listener import Listener

_EXIT_CODES: Final = {"pass": 0, "fail": 6, "inconclusive": 8}
_PROCESSES: Final = 6
_MAX_REGRESSION: Final = 0.05
_BUDGET_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the command line says; None and empty where it says nothing."""

    device: str
    config_path: Path
    baseline: Path | None
    save_baseline: Path | None
    max_regression: float | None
    budget: float | None
    processes: int | None
    threads: int | None
    instructions: bool
    operators: bool
    runtimes: str
    wheels: Path | None
    history: Path | None
    as_json: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What was found, for a person or for a script, with the exit code."""

    found: Any
    show: Callable[[], None]
    code: int = 0


_Question: TypeAlias = "Callable[[Path, Device, Listener, Asked], _Answer]"


def profile(model: Path, asked: Asked) -> int:
    """Answer what is asked of a flatbuffer on a device."""
    from edgebuild.pipeline import devices

    question = _chosen(asked)
    if asked.history is not None:
        return _history(model, asked.history, as_json=asked.as_json)
    device = devices.named(asked.device or "local", devices.configured(asked.config_path))
    if asked.threads is not None:
        device = device.model_copy(update={"threads": asked.threads})
    narrator = Narrator()
    with narrator.running():
        answer = _QUESTIONS[question](model, device, narrator.listener, asked)
    if asked.as_json:
        console.emit(json.dumps(_plain(answer.found), indent=1))
    else:
        answer.show()
    return answer.code


def _chosen(asked: Asked) -> str:
    """The one question that is asked.

    Raises:
        ConfigError: several are, or an option is given that means nothing to it.
    """
    given = {field.name for field in fields(Asked) if getattr(asked, field.name) not in (None, "", False)}
    chosen = [name for name in _TAKES if name in given]
    if "instructions" in chosen and "baseline" in chosen:
        chosen.remove("baseline")
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(map(_option, chosen))} are two questions", action="ask one after the other")
    question = chosen[0] if chosen else ""
    foreign = given - _ALWAYS - {question} - _TAKES.get(question, _MEASURES)
    if foreign:
        raise ConfigError(
            f"{_option(min(foreign))} means nothing {f'to {_option(question)}' if question else 'here'}",
            action="leave it out",
        )
    return question


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _measured(model: Path, device: Device, listener: Listener, asked: Asked) -> _Answer:
    from edgebuild.pipeline.storage.digests import digest_file
    from edgebuild.pipeline.storage.location import default_root
    from edgebuild.pipeline.timing import kept, questions

    keep = asked.save_baseline
    processes = asked.processes or (_PROCESSES if keep is None else kept.PROCESSES)
    if keep is not None:
        kept.require_room(keep, processes)
    found, same = questions.profile(model, device, default_root(), processes=processes, listener=listener)
    refusal: DeviceError | None = None
    if keep is not None:
        try:
            kept.save(keep, kept.Kept(model=model.name, sha256=digest_file(model), latency=found.latency))
        except DeviceError as e:  # What was measured is worth telling all the same.
            refusal = e

    def show() -> None:
        shown.profile(model, found, same)
        if refusal is not None:
            console.show_failure(refusal, console.stdout())
        elif keep is not None:
            shown.line(f"kept as a baseline in {keep}")

    plain = asdict(found) | {"outputs": same and asdict(same)}
    if keep is not None:
        plain |= {"kept": refusal is None, "refused": str(refusal or "")}
    return _Answer(found=plain, show=show, code=8 if refusal else 0)


def _held(model: Path, device: Device, listener: Listener, asked: Asked) -> _Answer:
    from edgebuild.pipeline.timing import questions

    baseline = cast("Path", asked.baseline)  # Or this question was not asked.
    held = questions.compare(
        baseline,
        model,
        device,
        max_regression=asked.max_regression or _MAX_REGRESSION,
        budget_s=asked.budget or _BUDGET_S,
        listener=listener,
    )
    return _Answer(found=held, show=lambda: shown.comparison(model, baseline, held), code=_EXIT_CODES[held.gate])


def _counted(model: Path, device: Device, listener: Listener, asked: Asked) -> _Answer:
    from edgebuild.device_tests import instructions
    from edgebuild.pipeline.timing import kept, questions

    baseline = asked.baseline
    if baseline is None:
        found = questions.count(model, device, listener)
        return _Answer(found=found, show=lambda: shown.instructions(found))
    if not baseline.is_file() or kept.is_kept(baseline):
        raise ConfigError(
            f"{baseline} is no .tflite", cause="instructions are counted of both", action="name the old model itself"
        )
    both = questions.count_both(baseline, model, device, listener)
    gate = instructions.against(both.found, both.baseline, asked.max_regression or _MAX_REGRESSION)
    return _Answer(
        found={"comparison": both, "gate": gate},
        show=lambda: shown.counts(both, baseline, gate),
        code=_EXIT_CODES[gate],
    )


def _by_operator(model: Path, device: Device, listener: Listener, _: Asked) -> _Answer:
    from edgebuild.pipeline.timing import questions

    found = questions.operators(model, device, listener)
    return _Answer(found=found, show=lambda: shown.operators(found))


def _on_runtimes(model: Path, _: Device, listener: Listener, asked: Asked) -> _Answer:
    from edgebuild.pipeline.timing import questions

    names = tuple(filter(None, (name.strip() for name in asked.runtimes.split(","))))
    found = questions.runtimes(model, names, wheels=asked.wheels, listener=listener)
    return _Answer(found=found, show=lambda: shown.runtimes(found), code=8 if all(one.failure for one in found) else 0)


_QUESTIONS: Final[Mapping[str, _Question]] = {
    "": _measured,
    "save_baseline": _measured,
    "baseline": _held,
    "instructions": _counted,
    "operators": _by_operator,
    "runtimes": _on_runtimes,
}
_ALWAYS: Final = frozenset({"config_path", "as_json"})
_MEASURES: Final = frozenset({"device", "threads", "processes"})
# What each question takes besides; `baseline` alone may stand beside `instructions`.
_TAKES: Final[Mapping[str, frozenset[str]]] = {
    "save_baseline": _MEASURES,
    "instructions": frozenset({"device", "baseline", "max_regression"}),
    "baseline": frozenset({"device", "threads", "max_regression", "budget"}),
    "operators": frozenset({"device"}),
    "runtimes": frozenset({"wheels"}),
    "history": frozenset(),
}


def _history(model: Path, page: Path, *, as_json: bool) -> int:
    from edgebuild.pipeline.storage.location import default_root
    from edgebuild.pipeline.timing import history, history_page

    found = history.series(default_root(), model)
    if not found:
        raise ConfigError(
            f"nothing was measured of {model} yet", action="measure it: edgebuild profile, or a build of it"
        )
    history_page.write(page, model, found)
    if as_json:
        console.emit(json.dumps(_plain(found), indent=1))
    else:
        shown.history(found)
        shown.line(f"with a plot in {page}")
    return 0


def _plain(found: Any) -> Any:
    """As plain data; what is no number is not known, and JSON has no word for the former."""
    if is_dataclass(found):
        return {field.name: _plain(getattr(found, field.name)) for field in fields(found)}
    if isinstance(found, dict):
        return {name: _plain(one) for name, one in found.items()}
    if isinstance(found, tuple | list):
        return [_plain(one) for one in found]
    if isinstance(found, Exception):
        return str(found)
    return None if isinstance(found, float) and not math.isfinite(found) else found
