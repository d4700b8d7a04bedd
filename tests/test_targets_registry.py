"""Targets and profiles by name: complete, cheap to import, and helpful where a name is wrong."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest

from edgebuild.targets.errors import ProfileError, UnknownTargetError
from edgebuild.targets.microcontroller.npu import MEMORY_MODES, SYSTEMS, Accelerator
from edgebuild.targets.profile import load_profile, parse, profile_names, profiles_of
from edgebuild.targets.registry import TARGETS, target

HEAVY = ("numpy", "yaml", "flatbuffers", "ai_edge_litert", "tflite_runtime", "tflite_micro", "tensorflow")


def test_registry_names_the_four_targets() -> None:
    assert list(TARGETS) == ["cpu", "gpu", "edgetpu", "mcu"]
    assert all(name == module.NAME and module.SUMMARY for name, module in TARGETS.items())


def test_defaults_are_the_first_of_what_a_target_takes() -> None:
    first = {name: (module.PRECISIONS[0], module.IO_TYPES[0]) for name, module in TARGETS.items()}
    assert first == {
        "cpu": ("int8", "float32"),
        "gpu": ("float16", "float32"),
        "edgetpu": ("int8", "int8"),
        "mcu": ("int8", "int8"),
    }


def test_edgetpu_takes_full_integer_only() -> None:
    assert target("edgetpu").PRECISIONS == ("int8",)


def test_unknown_target_names_the_nearest_one() -> None:
    with pytest.raises(UnknownTargetError) as caught:
        target("edgtpu")
    assert "edgtpu" in caught.value.what
    assert "'edgetpu'" in caught.value.action


def test_unknown_target_far_from_all_lists_them() -> None:
    with pytest.raises(UnknownTargetError) as caught:
        target("quantum")
    assert "cpu, gpu, edgetpu, mcu" in caught.value.cause


def test_registry_imports_nothing_heavy() -> None:
    program = f"import sys, edgebuild.targets.registry; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_target_has_a_profile_and_every_profile_a_target() -> None:
    assert {load_profile(name).target for name in profile_names()} == set(TARGETS)


def test_cortex_m4_profile_is_the_generic_board() -> None:
    numbers = load_profile("cortex-m4").numbers
    assert numbers["ram_bytes"].value == 256 * 1024
    assert numbers["flash_bytes"].value == 1024 * 1024


def test_every_number_and_word_of_every_profile_has_a_source() -> None:
    profiles = [load_profile(name) for name in profile_names()]
    numbers = [number.source for profile in profiles for number in profile.numbers.values()]
    words = [word.source for profile in profiles for word in profile.words.values()]
    assert min(len(numbers), len(words)) > len(TARGETS)
    assert all((*numbers, *words))


def test_every_board_says_its_memories_its_clock_and_its_core() -> None:
    boards = {profile.name: profile for profile in profiles_of("mcu")}
    assert set(boards) == {
        "cortex-m4",
        "stm32l4r5zi",
        "stm32h743zi",
        "nrf52840",
        "rp2040",
        "arduino-nano-33-ble-sense",
        "esp32-s3",
        "cortex-m55-ethos-u55-128",
        "cortex-m55-ethos-u55-256",
        "cortex-m55-ethos-u65-256",
        "cortex-m85-ethos-u85-256",
    }
    for name, board in boards.items():
        assert set(board.numbers) == {"ram_bytes", "flash_bytes", "clock_hz"}, name
        assert "core" in board.words, name


@pytest.mark.parametrize("name", [name for name in profile_names() if "ethos" in name])
def test_a_board_with_an_npu_says_what_vela_must_be_told(name: str) -> None:
    words = {key: word.value for key, word in load_profile(name).words.items()}
    assert words["npu"] in get_args(Accelerator)
    assert words["npu"] in name
    assert words["vela_system_config"] in SYSTEMS
    assert words["vela_memory_mode"] in MEMORY_MODES


def test_the_arena_of_a_chip_with_many_banks_has_the_largest_one() -> None:
    ram = load_profile("stm32h743zi").numbers["ram_bytes"]
    assert ram.value == 512 * 1024
    assert "AXI SRAM" in ram.source


def test_unknown_profile_names_the_nearest_one() -> None:
    with pytest.raises(UnknownTargetError) as caught:
        load_profile("cortex-m5")
    assert "'cortex-m4'" in caught.value.action


@pytest.mark.parametrize(
    "content",
    [
        {"target": "cpu", "summary": "s", "numbers": {"ram_bytes": {"value": 1}}},
        {"target": "cpu", "summary": "s", "numbers": {"ram_bytes": {"value": 1, "source": ""}}},
        {"target": "cpu", "summary": "s", "numbers": {"ram_bytes": {"value": "1", "source": "s"}}},
        {"target": "cpu", "summary": "s", "numbers": {}, "colour": "red"},
        {"target": "mcu", "summary": "s", "numbers": {}, "words": {"core": {"value": "cortex-m4f", "source": ""}}},
        {"target": "mcu", "summary": "s", "numbers": {}, "words": {"core": {"value": "cortex-m4"}}},
        {"target": "mcu", "summary": "s", "numbers": {}, "words": {"core": {"value": "z80", "source": "s"}}},
        {"target": "mcu", "summary": "s", "numbers": {}, "words": {"colour": {"value": "red", "source": "s"}}},
        {"target": "mcu", "summary": "s", "numbers": {}, "words": {"npu": {"value": 55, "source": "s"}}},
        {"target": "cpu", "summary": "s"},
        [],
    ],
)
def test_rejects_profiles_that_lack_a_source_or_hold_something_else(content: object) -> None:
    with pytest.raises(ProfileError):
        parse("p", content)
