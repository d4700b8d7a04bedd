"""What `edgebuild.yaml` says of a target, and what each target takes of it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from edgebuild.export.formats import IoType, Precision
from edgebuild.pipeline.record import Record, or_a
from edgebuild.targets.errors import UnknownTargetError
from edgebuild.targets.microcontroller.emulation.machines import MachineName
from edgebuild.targets.microcontroller.npu import BUNDLED, Accelerator, Npu, for_profile
from edgebuild.targets.microcontroller.target import ARENA_MARGIN
from edgebuild.targets.profile import WORDS, load_profile, profile_names
from edgebuild.targets.registry import TARGETS

Positive: TypeAlias = Annotated[float, Field(gt=0)]
Count: TypeAlias = Annotated[int, Field(ge=0)]
_KIB: Final = 1024
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]


class NpuSettings(Record):
    """An Ethos-U beside the core, and the memory around it, in the words of Vela's own configuration."""

    accelerator: Accelerator
    system_config: str = Field(description="a system configuration of `config`")
    memory_mode: str = Field(description="a memory mode of `config`")
    config: str | None = Field(default=None, description="an .ini of Vela's form; the one it comes with where absent")

    def checked(self, folder: Path) -> Npu:
        """The same in Vela's words, with paths from `folder`.

        Raises:
            UnknownTargetError: they are none of Vela's, or do not go together.
        """
        config = str(folder / Path(self.config).expanduser()) if self.config else BUNDLED
        return Npu(
            accelerator=self.accelerator,
            system_config=self.system_config,
            memory_mode=self.memory_mode,
            config=config,
        )


def _known_core(name: str) -> str:
    known = WORDS["core"] or ()
    if name and name not in known:
        raise ValueError(f"unknown core{nearest(name, known)}")
    return name


class Board(Record):
    """A board of one's own."""

    flash_kib: Positive
    ram_kib: Positive
    core: Annotated[str, AfterValidator(_known_core)] = Field(
        default="", description="for what its code takes of flash and its kernels of RAM, such as cortex-m7"
    )
    npu: NpuSettings | None = None


class TflmSettings(Record):
    """A TFLite Micro that the user built, to run the package on an emulated core, and limits on its instructions."""

    library: str = Field(description="libtensorflow-microlite.a, as TFLM's own Makefile makes it")
    include: Annotated[tuple[str, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else v)] = Field(
        strict=False, min_length=1, description="folders that its headers, and those it includes, are found from"
    )
    machine: MachineName = Field(
        default="mps2-an386", description="QEMU's: a Cortex-M4F, M7 or M55, the core that the library was built for"
    )
    max_instructions: Annotated[int, Field(gt=0)] | None = Field(default=None, description="of one inference")
    baseline: str | None = Field(default=None, description="report.json of an earlier build, to hold instructions to")
    max_growth: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="share by which instructions may exceed the baseline's; 0.02 where absent"
    )

    @model_validator(mode="after")
    def _growth_is_of_a_baseline(self) -> TflmSettings:
        if self.max_growth is not None and self.baseline is None:
            raise ValueError("max_growth: of which baseline? Name the report.json of an earlier build as baseline")
        return self


def _board_kind(value: object) -> str | None:
    return "(name)" if isinstance(value, str) else "(own)" if isinstance(value, Mapping | Board) else None


BoardChoice: TypeAlias = Annotated[
    Annotated[str, Tag("(name)")] | Annotated[Board, Tag("(own)")],
    Discriminator(
        _board_kind,
        custom_error_type="board",
        custom_error_message="Input should be a profile's name, or flash_kib and ram_kib",
    ),
]


def _edits(value: object) -> object:
    """`none` and `auto` stand for lists of names."""
    return () if value == "none" else (value,) if isinstance(value, str) else value


Edits: TypeAlias = Annotated[
    tuple[str, ...],
    BeforeValidator(_edits, json_schema_input_type=Literal["none", "auto"] | tuple[str, ...]),
]


class TargetSettings(Record):
    """One target: how to export for it and what it must hold to."""

    model_config = ConfigDict(json_schema_extra=or_a("null"), serialize_by_alias=True)

    precision: Literal[Precision, "fastest"] | None = Field(
        default=None,
        description="the target's own default where absent; `fastest` is measured, among those that pass the gates",
    )
    io: IoType | None = Field(default=None, description="input and output type of int8 models")
    max_size_kib: Positive | None = None
    max_latency_ms: Positive | None = None
    max_arena_kib: Positive | None = None
    max_flash_kib: Positive | None = None
    min_mapped: Share | None = Field(default=None, description="share of operators the accelerator must take")
    dense_per_channel: bool | None = Field(
        default=None,
        description="a scale for each channel of int8 dense layers; where absent, not for edgetpu and mcu, since their "
        "older tools would read the first scale alone",
    )
    sparse: bool = Field(
        default=False, description="cpu only: store pruned weights without their zeros; the runtime unpacks them to RAM"
    )
    cut: Literal["none", "auto"] = Field(
        default="none",
        description="edgetpu and gpu: leave what the accelerator does not take to the host, as files of its own",
    )
    segments: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="edgetpu only: split the compiled model for a pipeline of so many devices"
    )
    beside: tuple[str, ...] = Field(
        default=(), alias="with", strict=False, description="edgetpu only: other .tflite files for the same device"
    )
    fix: Edits = Field(
        default=(),
        strict=False,
        description="edgetpu and gpu: `auto` edits the float model so that more of it is mapped; or edits by name",
    )
    oracle: Literal["auto", "required", "none"] = Field(
        default="auto",
        description="gpu only: let a GPU runtime of this machine place the model; `auto` where one is here",
    )
    device: str | None = Field(
        default=None, description="not of mcu: where latency is measured, a name of `devices` or a URI; local is here"
    )
    board: BoardChoice | None = Field(default=None, description="mcu only: a profile's name, or flash_kib and ram_kib")
    arena_margin: Share = Field(
        default=ARENA_MARGIN, description="mcu only: what `kArenaBytes` has on top of the smallest arena on this host"
    )
    lut: Literal["none", "auto"] = Field(
        default="none", description="mcu only: weights as indices into tables, where that saves flash in the end"
    )
    tflm: TflmSettings | None = Field(
        default=None, description="mcu only: run the package in QEMU with a TFLM of one's own"
    )
    max_cycles: Annotated[int, Field(gt=0)] | None = Field(
        default=None, description="mcu only: of one inference, as Vela estimates them for an Ethos-U"
    )
    max_sram_kib: Positive | None = Field(default=None, description="mcu only: what Vela says an Ethos-U takes of SRAM")
    max_cpu_operators: Count | None = Field(
        default=None, description="mcu only: operators that an Ethos-U leaves to its core"
    )

    @property
    def needs_compiler(self) -> bool:
        """Whether it asks for what the Edge TPU's compiler alone can do."""
        return self.segments is not None or bool(self.beside)

    @property
    def npu(self) -> NpuSettings | None:
        """The Ethos-U of the board, if it has one."""
        if not isinstance(self.board, str):
            return self.board.npu if self.board else None
        found = for_profile(load_profile(self.board).words)
        if found is None:
            return None
        return NpuSettings(
            accelerator=found.accelerator, system_config=found.system_config, memory_mode=found.memory_mode
        )

    @property
    def core(self) -> str:
        """The board's core, or nothing where none is known."""
        if not isinstance(self.board, str):
            return self.board.core if self.board else ""
        words = load_profile(self.board).words
        return words["core"].value if "core" in words else ""

    @property
    def ram_kib(self) -> float | None:
        """What the arena may take at the very most; None where nothing bounds it."""
        return least(self.max_arena_kib, self.board_kib("ram"))

    @property
    def flash_kib(self) -> float | None:
        """What model and code may take at the very most; None where nothing bounds it."""
        return least(self.max_flash_kib, self.board_kib("flash"))

    def board_kib(self, kind: Literal["ram", "flash"]) -> float | None:
        """The board's memory of that kind; None where no board is named."""
        if self.board is None:
            return None
        if isinstance(self.board, Board):
            return self.board.ram_kib if kind == "ram" else self.board.flash_kib
        return load_profile(self.board).numbers[f"{kind}_bytes"].value / _KIB


def least(*limits: float | None) -> float | None:
    """The smallest of those limits that there are; None where there is none."""
    return min((limit for limit in limits if limit is not None), default=None)


FASTEST: Final = "fastest"
NPU_GATES: Final = ("max_cycles", "max_sram_kib", "max_cpu_operators")


def refusals(name: str, settings: TargetSettings) -> Iterator[str]:
    """A line, `target.key: why`, for each setting that a target does not take."""
    yield from _format_refusals(name, settings)
    foreign = set(_foreign(name, settings))
    yield from (f"{name}.{key}: {_only_takers(key)} it" for key in _options() if key in foreign)
    yield from (line for key, check in _CHECKS.items() if key not in foreign for line in check(name, settings))


def precisions(name: str, settings: TargetSettings) -> tuple[Precision, ...]:
    """The precision that a target asks for; those that it leaves the choice of, the default first.

    `settings` are such as the target takes.
    """
    if settings.precision != FASTEST:
        return (settings.precision or TARGETS[name].PRECISIONS[0],)
    each = {precision: settings.model_copy(update={"precision": precision}) for precision in TARGETS[name].PRECISIONS}
    return tuple(precision for precision, one in each.items() if not any(refusals(name, one)))


def can_choose(name: str, settings: TargetSettings) -> bool:
    """Whether these settings leave more than one precision for `fastest` to choose from."""
    return len(precisions(name, settings.model_copy(update={"precision": FASTEST}))) > 1


def _fastest_refusals(name: str, settings: TargetSettings) -> Iterator[str]:
    if TARGETS[name].FLASHED:
        yield f"{name}.precision: fastest is picked by measurement, and nothing here can measure on a {name}"
    elif not can_choose(name, settings):
        left = ", ".join(precisions(name, settings)) or "none"
        yield f"{name}.precision: there is no choice for fastest, since with these settings {name} takes {left}"


def _format_refusals(name: str, settings: TargetSettings) -> Iterator[str]:
    target = TARGETS[name]
    if settings.precision == FASTEST:
        yield from _fastest_refusals(name, settings)
        return
    precision = settings.precision or target.PRECISIONS[0]
    if settings.precision and settings.precision not in target.PRECISIONS:
        yield f"{name}.precision: {name} takes {', '.join(target.PRECISIONS)}, not {settings.precision}"
    if settings.io and settings.io not in target.IO_TYPES:
        yield f"{name}.io: {name} takes {', '.join(target.IO_TYPES)}, not {settings.io}"
    elif settings.io not in (None, "float32") and precision != "int8":
        yield f"{name}.io: {settings.io} is for int8 models; {precision} ones keep float32"


def _options() -> Iterator[str]:
    """The keys that some targets take and others do not, in the order of the settings."""
    some = frozenset().union(*(target.OPTIONS for target in TARGETS.values()))
    return (key for field, info in TargetSettings.model_fields.items() if (key := info.alias or field) in some)


def _only_takers(key: str) -> str:
    takers = [name for name, target in TARGETS.items() if key in target.OPTIONS]
    return f"only {' and '.join(takers)} {'takes' if len(takers) == 1 else 'take'}"


def _foreign(name: str, settings: TargetSettings) -> Iterator[str]:
    """The keys that are set and that the target does not take."""
    for field, info in TargetSettings.model_fields.items():
        key = info.alias or field
        if key in set(_options()) - TARGETS[name].OPTIONS and getattr(settings, field) != info.default:
            yield key


def _unpacked(name: str, settings: TargetSettings) -> Iterator[str]:
    precision, takes = settings.precision or TARGETS[name].PRECISIONS[0], TARGETS[name].SPARSE
    if settings.sparse and precision not in (*takes, FASTEST):
        yield f"{name}.sparse: {name} takes it for {', '.join(takes)}, not {precision}"


def _companions(name: str, settings: TargetSettings) -> Iterator[str]:
    if settings.segments and settings.beside:
        yield f"{name}.segments: models that share a device can't be split over several; choose segments or with"
    names = [PurePath(path).name for path in settings.beside]
    if any(not file.endswith(".tflite") for file in names) or len({"model.tflite", *names}) != len(names) + 1:
        yield f"{name}.with: name .tflite files, each of another name, and none of them model.tflite"


def _known_edits(name: str, settings: TargetSettings) -> Iterator[str]:
    if not settings.fix:
        return
    from edgebuild.pipeline.fitting import edits  # Not before: most configurations name none.

    own = (edits.AUTO, *(edit.name for edit in edits.EDITS if edit.target == name))
    yield from (f"{name}.fix: unknown edit{nearest(each, own)}" for each in settings.fix if each not in own)


def _known_board(name: str, settings: TargetSettings) -> Iterator[str]:
    boards = _boards(name)
    if isinstance(settings.board, str) and settings.board not in boards:
        yield f"{name}.board: unknown board{nearest(settings.board, boards)}"
        return
    yield from _unlike(name, settings)
    if settings.npu is None:
        asked = (key for key in NPU_GATES if getattr(settings, key) is not None)
        yield from (f"{name}.{key}: only boards with an Ethos-U have such a figure; name one as board" for key in asked)
    else:
        yield from _unknown_npu(name, settings.npu)
        asked = (key for key, value in (("lut", settings.lut != "none"), ("tflm", settings.tflm)) if value)
        yield from (f"{name}.{key}: not with an Ethos-U, {_NOT_WITH_NPU[key]}" for key in asked)


def _unlike(name: str, settings: TargetSettings) -> Iterator[str]:
    """A machine of QEMU's with another core than the board's."""
    if settings.tflm is not None and settings.core and settings.core not in STANDS_FOR[settings.tflm.machine]:
        machines = [machine for machine, cores in STANDS_FOR.items() if settings.core in cores]
        like = f"; {' or '.join(machines)} is like it" if machines else ", and no other machine either"
        yield f"{name}.tflm.machine: {settings.tflm.machine} is no {settings.core}{like}"


def _unknown_npu(name: str, npu: NpuSettings) -> Iterator[str]:
    try:
        npu.checked(Path())
    except UnknownTargetError as e:
        yield f"{name}.board.npu: {e}"


# Boards' cores whose code each of QEMU's machines runs.
STANDS_FOR: Final[Mapping[MachineName, tuple[str, ...]]] = {
    "mps2-an386": ("cortex-m0plus", "cortex-m4f"),
    "mps2-an500": ("cortex-m7",),
    "mps3-an547": ("cortex-m33", "cortex-m55", "cortex-m85"),
}
_NOT_WITH_NPU: Final = {
    "lut": "whose compiler compresses weights in its own way",
    "tflm": "which QEMU does not emulate",
}
_CHECKS: Final = {"sparse": _unpacked, "with": _companions, "fix": _known_edits, "board": _known_board}


def _boards(target: str) -> tuple[str, ...]:
    return tuple(name for name in profile_names() if load_profile(name).target == target)


def nearest(name: str, allowed: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest allowed one, or all."""
    names = list(allowed)
    close = difflib.get_close_matches(name, names, 1, 0.5)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(names)}"
