"""Ethos-U NPUs and the memory around them: the names that Vela knows, and those that go together."""

from __future__ import annotations

import re
import subprocess
from configparser import ConfigParser
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import pytest

from edgebuild.targets.errors import ProfileError, UnknownTargetError
from edgebuild.targets.microcontroller import vela
from edgebuild.targets.microcontroller.npu import BUNDLED, MEMORY_MODES, SYSTEMS, Accelerator, Npu, for_profile
from edgebuild.targets.profile import Word, load_profile, profile_names
from edgebuild.targets.tools import python_module

U55 = Npu(accelerator="ethos-u55-128", system_config="Ethos_U55_High_End_Embedded", memory_mode="Shared_Sram")


@pytest.mark.skipif(not vela.installed(), reason="the optional wheel ethos-u-vela is not here")
def test_npus_and_names_are_those_that_vela_knows() -> None:
    (folder,) = find_spec("ethosu").submodule_search_locations  # type: ignore[union-attr,misc]
    ini = ConfigParser()
    ini.read(Path(folder) / "config_files" / BUNDLED)
    systems = {name.partition(".")[2]: ini[name]["axi1_port"] for name in ini if name.startswith("System_Config.")}
    modes = {name.partition(".")[2] for name in ini if name.startswith("Memory_Mode.")}
    assert (systems, modes) == (SYSTEMS, set(MEMORY_MODES))
    done = subprocess.run(python_module("ethosu.vela", "--help"), capture_output=True, text=True, check=True)
    known = re.search(r"--accelerator-config \{([^}]*)\}", done.stdout)
    assert known is not None
    assert tuple("".join(known[1].split()).split(",")) == get_args(Accelerator)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"accelerator": "ethos-u55-129"}, "did you mean 'ethos-u55-128'?"),
        ({"system_config": "Ethos_U55_High_End"}, "did you mean 'Ethos_U55_High_End_Embedded'?"),
        ({"system_config": "Ethos_U65_High_End"}, "those that fit are Ethos_U55_Deep_Embedded"),
        ({"memory_mode": "Shared"}, "did you mean 'Shared_Sram'?"),
        ({"memory_mode": "Dedicated_Sram"}, "no memory mode Dedicated_Sram"),
        ({"config": "mine.yaml"}, "end in .ini"),
        ({"config": "mine.ini", "system_config": "--help"}, "no name for a section"),
    ],
)
def test_an_npu_that_is_none_is_refused_at_birth(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(UnknownTargetError) as caught:
        replace(U55, **changed)
    assert says in str(caught.value)


@pytest.mark.parametrize("board", [name for name in profile_names() if "ethos" in name])
def test_profiles_name_their_npu(board: str) -> None:
    found = for_profile(load_profile(board).words)
    assert found is not None
    assert board.endswith(found.accelerator)


def test_a_board_without_npu_has_none() -> None:
    assert for_profile(load_profile("cortex-m4").words) is None


def test_a_profile_that_names_an_npu_names_the_memory_around_it() -> None:
    with pytest.raises(ProfileError, match="vela_system_config and no vela_memory_mode"):
        for_profile({"npu": Word(value="ethos-u55-128", source="a choice")})
