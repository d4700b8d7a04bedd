"""Ethos-U NPUs, each with the memory around it in the words of Vela's configuration files.

A system configuration says what lies behind the NPU's two ports and how fast it is, a memory mode what is kept behind
which: constants, the tensor arena, and the cache that some modes put before a slow arena.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

from edgebuild.targets.errors import ProfileError, UnknownTargetError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from edgebuild.targets.profile import Word

Accelerator: TypeAlias = Literal[
    "ethos-u55-32",
    "ethos-u55-64",
    "ethos-u55-128",
    "ethos-u55-256",
    "ethos-u65-256",
    "ethos-u65-512",
    "ethos-u85-128",
    "ethos-u85-256",
    "ethos-u85-512",
    "ethos-u85-1024",
    "ethos-u85-2048",
]

BUNDLED: Final = "Arm/vela.ini"  # The file that comes with Vela, by the name that it takes for it.
# What the bundled file has behind the second port; SRAM is behind the first. ref: Arm/vela.ini of ethos-u-vela 5.2.0
SYSTEMS: Final[Mapping[str, Literal["OffChipFlash", "Dram"]]] = {
    "Ethos_U55_Deep_Embedded": "OffChipFlash",
    "Ethos_U55_High_End_Embedded": "OffChipFlash",
    "Ethos_U65_Embedded": "OffChipFlash",
    "Ethos_U65_Mid_End": "Dram",
    "Ethos_U65_High_End": "Dram",
    "Ethos_U65_Client_Server": "Dram",
    "Ethos_U85_SYS_Flash_Low": "OffChipFlash",
    "Ethos_U85_SYS_Flash_High": "OffChipFlash",
    "Ethos_U85_SYS_DRAM_Low": "Dram",
    "Ethos_U85_SYS_DRAM_Mid": "Dram",
    "Ethos_U85_SYS_DRAM_High": "Dram",
}
MEMORY_MODES: Final = (
    "Sram_Only",
    "Shared_Sram",
    "Dedicated_Sram",
    "Dedicated_Sram_256KB",
    "Dedicated_Sram_384KB",
    "Dedicated_Sram_512KB",
)


_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # They become options and names of files.


@dataclass(frozen=True, slots=True, kw_only=True)
class Npu:
    """One NPU and its memory; `config` is Vela's own file, or the path of an .ini of the user's.

    Names in a user's own file are Vela's to check.

    Raises:
        UnknownTargetError: Vela has no such NPU or names, or they do not go together.
    """

    accelerator: Accelerator
    system_config: str
    memory_mode: str
    config: str = BUNDLED

    def __post_init__(self) -> None:
        """Vela takes one chip's memory for another's, and would estimate with it; we don't."""
        _require_known("accelerator", self.accelerator, get_args(Accelerator))
        if self.config != BUNDLED:
            _require_own(self)
            return
        family = self.accelerator.rpartition("-")[0].title().replace("-", "_")
        _require_known(
            "system configuration", self.system_config, [name for name in SYSTEMS if name.startswith(family)]
        )
        _require_known("memory mode", self.memory_mode, MEMORY_MODES)
        if self.memory_mode.startswith("Dedicated_Sram") and SYSTEMS[self.system_config] != "Dram":
            raise UnknownTargetError(
                f"{self.accelerator} with {self.system_config} has no memory mode {self.memory_mode}",
                cause="in this mode the arena lies behind the second port, and flash is there, which can't be written",
                action="take Shared_Sram or Sram_Only, or a system configuration with DRAM where the chip has it",
            )


def _require_known(what: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        near = get_close_matches(name, known, n=1)
        raise UnknownTargetError(
            f"unknown {what} {name!r}",
            cause=f"those that fit are {', '.join(known)}",
            action=f"did you mean {near[0]!r}?" if near else "choose one of them",
        )


def _require_own(npu: Npu) -> None:
    if not npu.config.endswith(".ini"):
        raise UnknownTargetError(
            f"{npu.config} is no configuration file of Vela's",
            cause="Vela takes files that end in .ini",
            action=f"rename it, or leave it out for {BUNDLED}",
        )
    for name in (npu.system_config, npu.memory_mode):
        if not _NAME.fullmatch(name):
            raise UnknownTargetError(
                f"{name!r} is no name for a section of {npu.config}",
                action="take letters, digits, dots, dashes and underscores",
            )


def for_profile(words: Mapping[str, Word]) -> Npu | None:
    """The NPU of a board, from the words of its profile; None where it has none.

    Raises:
        ProfileError: the profile names an NPU and not the memory around it.
        UnknownTargetError: Vela has no such NPU.
    """
    if "npu" not in words:
        return None
    missing = [key for key in ("vela_system_config", "vela_memory_mode") if key not in words]
    if missing:
        raise ProfileError(
            f"the profile names an NPU and no {' and no '.join(missing)}", action="add it under `words:`"
        )
    return Npu(
        accelerator=words["npu"].value,  # type: ignore[arg-type]  # checked at birth
        system_config=words["vela_system_config"].value,
        memory_mode=words["vela_memory_mode"].value,
    )
