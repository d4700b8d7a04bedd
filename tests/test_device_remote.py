"""A device at the end of a link, without a network: the link's other end is a shell here, in folders of its own."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Final

import pytest

from edgebuild.device_tests.adb import AdbLink
from edgebuild.device_tests.device import RemoteTransport
from edgebuild.device_tests.environment import DevicePython, setup
from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.facts import probe
from edgebuild.device_tests.link import Ended, LinkLostError, bootstrap, guarded
from edgebuild.device_tests.local import LocalTransport
from edgebuild.device_tests.registry import address, link_to, opened
from edgebuild.device_tests.shell import ShellLink
from edgebuild.device_tests.ssh import SshLink
from edgebuild.device_tests.stay import Stay
from edgebuild.device_tests.transport import RunRequest

TIMEOUT_S: Final = 60.0
SHELLS: Final = ("dash", "bash", "busybox")
REQUEST: Final = RunRequest(min_warmup_s=0.0, min_warmup_runs=1, min_time_s=0.0, min_runs=3)


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """The folder that a device consists of."""
    for name in ("tmp", "home"):
        (tmp_path / "device" / name).mkdir(parents=True)
    return tmp_path / "device"


def link_into(device: Path) -> ShellLink:
    return ShellLink(("env", f"TMPDIR={device / 'tmp'}", f"HOME={device}/home", "sh"))


def left(device: Path) -> list[str]:
    return sorted(path.name for path in (device / "tmp").rglob("*"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file that fake runners hash and never load."""
    path = tmp_path / "model.tflite"
    path.write_bytes(b"not a model")
    return path


def transport_to(link: ShellLink, tmp_path: Path, runner: str) -> RemoteTransport:
    (tmp_path / "fake_runner.py").write_text(runner)
    return RemoteTransport(Stay(link), python=sys.executable, runner=tmp_path / "fake_runner.py")


def wait_until(true: Callable[[], object]) -> None:
    until = time.monotonic() + 30
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


def shell(name: str, folder: Path, *, few: bool) -> list[str]:
    """A shell by name, with all programs or with few: neither `timeout` nor `setsid` is among them."""
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"there is no {name} here: apt-get install {name}")
    start = [program, "sh"] if name == "busybox" else [program]
    if not few:
        return start
    for needed in ("dd", "sleep"):
        (folder / needed).symlink_to(str(shutil.which(needed)))
    (folder / "sh").symlink_to(program)
    (folder / "python3").symlink_to(sys.executable)
    return ["env", f"PATH={folder}", *start]


@pytest.mark.parametrize("programs", ["all", "few"])
@pytest.mark.parametrize("name", SHELLS)
def test_every_shell_tells_how_a_script_ended(name: str, programs: str, tmp_path: Path) -> None:
    link = ShellLink(shell(name, tmp_path, few=programs == "few"))
    ended = link.run("echo it\\'s out; echo err >&2; exit 3", TIMEOUT_S)
    assert (ended.code, ended.stdout, ended.stderr, ended.timed_out) == (3, "it's out\n", "err\n", False)
    assert link.run("printf 'no newline'", TIMEOUT_S).stdout == "no newline"
    killed = link.run("echo before; sleep 600", 1.0)
    assert (killed.code, killed.stdout, killed.timed_out) == (137, "before\n", True)


@pytest.mark.parametrize("programs", ["all", "few"])
@pytest.mark.parametrize("name", SHELLS)
def test_every_shell_ends_a_script_whose_owner_is_gone(name: str, programs: str, tmp_path: Path) -> None:
    start = shell(name, tmp_path, few=programs == "few")
    guard = guarded(f"echo >{tmp_path}/began; sleep 600", 600, nonce="4f", lost=f"echo >{tmp_path}/lost")
    with subprocess.Popen([*start, "-c", bootstrap(guard)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(guard.encode())
        process.stdin.flush()
        wait_until((tmp_path / "began").exists)
        process.stdin.close()
        assert process.wait(timeout=30) == 0
    assert (tmp_path / "lost").exists()


def test_a_model_that_crashes_the_runtime_is_told_by_its_signal(device: Path, model: Path, tmp_path: Path) -> None:
    transport = transport_to(link_into(device), tmp_path, "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    with pytest.raises(DeviceError, match=r"model\.tflite crashed the runtime with SIGSEGV"):
        transport.run(model, REQUEST, TIMEOUT_S)
    transport.close()
    assert not left(device)


def test_a_model_that_hangs_is_ended_when_its_time_is_up(device: Path, model: Path, tmp_path: Path) -> None:
    transport = transport_to(link_into(device), tmp_path, "import time\ntime.sleep(600)\n")
    with pytest.raises(DeviceError, match="was not measured within 1 s"):
        transport.run(model, REQUEST, 1.0)
    transport.close()
    assert not left(device)


def test_an_exit_status_of_0_proves_nothing(device: Path, model: Path, tmp_path: Path) -> None:
    transport = transport_to(link_into(device), tmp_path, "print('all is well')\n")
    with pytest.raises(DeviceError, match="0 result lines instead of one"):
        transport.run(model, REQUEST, TIMEOUT_S)
    transport.close()


def test_files_go_there_once_a_session_and_privately(device: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    stay = Stay(link_into(device))
    room = Path(stay.ready({"file": tmp_path / "file"}, TIMEOUT_S))
    first = (room / "file").stat()
    assert room.stat().st_mode & 0o777 == 0o700
    assert stay.ready({"file": tmp_path / "file"}, TIMEOUT_S) == str(room)
    assert (room / "file").stat().st_ino == first.st_ino
    stay.close()
    assert not left(device)


def test_a_second_user_waits_with_a_message_until_the_first_has_left(device: Path) -> None:
    first, heard = Stay(link_into(device)), []
    first.ready({}, TIMEOUT_S)

    def leave(holder: str) -> None:
        heard.append(holder)
        first.close()

    second = Stay(link_into(device), on_wait=leave)
    second.ready({}, TIMEOUT_S)
    assert len(heard) == 1
    assert heard[0].endswith(f", process {os.getpid()}")
    second.close()
    assert not left(device)


def test_a_second_user_gives_up_after_a_bound_and_disturbs_nothing(device: Path) -> None:
    first = Stay(link_into(device))
    room = Path(first.ready({}, TIMEOUT_S))
    with pytest.raises(DeviceError, match="was in use for 0 s"):
        Stay(link_into(device), wait_s=0.0).ready({}, TIMEOUT_S)
    assert room.exists()
    first.close()


def test_what_a_dead_user_left_is_swept_when_its_lease_is_over(device: Path) -> None:
    dead = Stay(link_into(device))
    room = Path(dead.ready({}, -1e6))  # A lease that is over by the device's clock.
    heir = Stay(link_into(device), wait_s=0.0)
    assert Path(heir.ready({}, TIMEOUT_S)).exists()
    assert not room.exists()
    heir.close()
    assert not left(device)


def test_many_who_come_at_once_all_have_their_turn(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgebuild.device_tests.stay._TURN_S", 0.01)

    def use(_: int) -> None:
        stay = Stay(link_into(device), wait_s=TIMEOUT_S)
        for _ in range(8):
            stay.ready({}, TIMEOUT_S)
        stay.close()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(use, range(18)))
    assert not left(device)


class LosingLink(ShellLink):
    """A link that is lost by so many commands that hold a word, which the device notices."""

    word = ""
    losses = 0
    lost = 0

    def run(self, script: str, timeout_s: float, *, lost: str = "") -> Ended:
        if self.word in script and self.lost < self.losses:
            self.lost += 1
            super().run(lost, timeout_s)
            raise LinkLostError("lost")
        return super().run(script, timeout_s, lost=lost)


def losing_link(device: Path, losses: int, word: str = "") -> LosingLink:
    link = LosingLink(("env", f"TMPDIR={device / 'tmp'}", "sh"))
    link.losses, link.word = losses, word
    return link


def test_a_link_is_made_again_two_times(device: Path) -> None:
    stay = Stay(losing_link(device, 2))
    assert Path(stay.ready({}, TIMEOUT_S)).exists()
    stay.close()
    assert not left(device)


def test_a_link_is_not_made_again_a_third_time(device: Path) -> None:
    link = losing_link(device, 9)
    with pytest.raises(LinkLostError):
        Stay(link).ready({}, TIMEOUT_S)
    assert link.lost == 3


def test_a_process_whose_link_is_lost_is_begun_anew_once_and_not_again(device: Path, model: Path) -> None:
    link = losing_link(device, 9, "exec env -i")
    transport = RemoteTransport(Stay(link), python=sys.executable)
    with pytest.raises(DeviceError, match="lost twice"):
        transport.run(model, REQUEST, TIMEOUT_S)
    assert link.lost == 2
    transport.close()
    assert not left(device)


def test_packages_are_chosen_for_the_device_and_not_for_this_machine(device: Path, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for machine in ("x86_64", "aarch64", "armv7l"):
        make_wheel(wheels, machine)
    for machine in ("aarch64", "armv7l"):
        stay = Stay(link_into(device))
        python = python_of(machine, tmp_path)
        said = setup(stay, python=python, wheels=wheels, requirements=("tflite-runtime",))
        stay.close()
        assert said == f"tflite_runtime for {machine}"
        # The one before it has gone.
        assert len(list((device / "home/.local/share/edgebuild").glob("env-*"))) == 1
    assert not left(device)


def make_wheel(folder: Path, machine: str) -> None:
    """A runtime that does nothing but say what it was built for."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}-none-manylinux_2_17_{machine}"
    info = "tflite_runtime-1.0.dist-info"
    with zipfile.ZipFile(folder / f"tflite_runtime-1.0-{tag}.whl", "w") as archive:
        archive.writestr("tflite_runtime/__init__.py", f"__version__ = 'for {machine}'\n")
        archive.writestr("tflite_runtime/interpreter.py", "class Interpreter: ...\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tflite-runtime\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")


def python_of(machine: str, folder: Path) -> str:
    """A bare Python that takes its machine for another."""
    path = folder / f"python-{machine}"
    code = (
        f"import platform, sys; platform.machine = lambda: '{machine}'; "
        "code = sys.argv[2]; sys.argv = ['-c', *sys.argv[3:]]; exec(code)"
    )
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -c "{code}" "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("version", "runtime"), [("3.7", "tflite-runtime"), ("3.11", "tflite-runtime"), ("3.12", "ai-edge-litert")]
)
def test_the_runtime_is_one_that_has_wheels_for_the_device(version: str, runtime: str) -> None:
    there = DevicePython(version=version, machine="aarch64", glibc_minor=36)
    assert there.requirements[0].startswith(runtime)
    assert {"manylinux_2_34_aarch64", "manylinux2014_aarch64"} < set(there.platforms)
    assert "manylinux_2_37_aarch64" not in there.platforms


@pytest.mark.parametrize("name", ["sh", "busybox"])
def test_facts_are_those_of_the_machine(name: str, device: Path, tmp_path: Path) -> None:
    if name == "busybox" and shutil.which(name) is None:
        pytest.skip("there is no busybox here: apt-get install busybox")
    start = ("env", "PATH=/usr/bin:/bin", "sh") if name == "sh" else only_busybox(tmp_path / "programs")
    facts = probe(ShellLink(("env", f"TMPDIR={device / 'tmp'}", *start)), python=sys.executable)
    assert (facts.uri, facts.machine, facts.kernel) == ("local:", os.uname().machine, os.uname().release)
    assert facts.cpu_model == LocalTransport().fingerprint().cpu_model
    assert facts.memory_kib == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 1024
    assert facts.available_kib is not None
    assert 0 < facts.available_kib <= facts.memory_kib
    assert facts.free_disk_kib is not None
    assert facts.free_disk_kib <= shutil.disk_usage(device).total // 1024
    assert platform.python_version() in facts.pythons
    assert facts.runtime == f"tflite_runtime {metadata.version('tflite_runtime')}"
    assert facts.holder is None


def only_busybox(folder: Path) -> tuple[str, ...]:
    """A shell with no programs but busybox's."""
    program = str(shutil.which("busybox"))
    listed = subprocess.run([program, "--list"], capture_output=True, text=True, check=True, timeout=30).stdout
    folder.mkdir()
    for name in listed.split():
        (folder / name).symlink_to(program)
    return ("env", f"PATH={folder}", program, "sh")


def test_facts_say_who_has_the_device(device: Path) -> None:
    stay = Stay(link_into(device))
    stay.ready({}, TIMEOUT_S)
    link = ShellLink(("env", f"TMPDIR={device / 'tmp'}", "PATH=/usr/bin:/bin", "sh"))
    assert str(probe(link, python=sys.executable).holder).endswith(f"process {os.getpid()}")
    stay.close()


def test_devices_go_by_their_uri_or_a_name_of_the_users_own() -> None:
    devices = {"pi": "ssh://pi@board:2222", "here": "local:"}
    assert address("pi", devices) == "ssh://pi@board:2222"
    assert address("adb://SERIAL", devices) == "adb://SERIAL"
    assert isinstance(link_to("ssh://board"), SshLink)
    assert isinstance(link_to("adb://SERIAL"), AdbLink)
    with opened(address("here", devices)) as transport:
        assert isinstance(transport, LocalTransport)


@pytest.mark.parametrize("name", ["pie", "http://board", ""])
def test_an_unknown_device_is_told_with_those_that_are_known(name: str) -> None:
    with pytest.raises(DeviceError) as e:
        address(name, {"pi": "ssh://board"})
    assert "pi" in e.value.action
