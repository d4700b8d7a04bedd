"""Targets and profiles by name: complete, cheap to import, and helpful where a name is wrong."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edgebuild.targets.errors import ProfileError, UnknownTargetError
from edgebuild.targets.profile import load_profile, parse, profile_names
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


def test_every_number_of_every_profile_has_a_source() -> None:
    numbers = [number for name in profile_names() for number in load_profile(name).numbers.values()]
    assert len(numbers) > len(TARGETS)
    assert all(number.source for number in numbers)


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
        {"target": "cpu", "summary": "s"},
        [],
    ],
)
def test_rejects_profiles_that_lack_a_source_or_hold_something_else(content: object) -> None:
    with pytest.raises(ProfileError):
        parse("p", content)
