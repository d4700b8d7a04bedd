"""Devices behind the real `adb`: what it says and what it hides, against a daemon that fails where it is told to."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from adb_stand_in import AdbDaemon, Faults

from edgebuild.device_tests import adb, link
from edgebuild.device_tests.adb import AdbLink
from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.link import LinkLostError
from edgebuild.device_tests.registry import opened
from edgebuild.device_tests.transport import RunRequest

pytestmark = pytest.mark.skipif(shutil.which("adb") is None, reason="there is no adb here: apt-get install adb")

FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures"
TIMEOUT_S = 60.0  # For what ends by itself.
FAULTY_S = 1.0  # For what is frozen: it never comes, however long we wait.
OLD = ()  # The features of a daemon from before Android 7.
CONTENT = bytes(range(256)) * 1200  # More than one chunk of a transfer, and more than one message.
TOOLS = (
    "sh",
    "cat",
    "dd",
    "env",
    "kill",
    "ls",
    "mkdir",
    "mv",
    "printf",
    "rm",
    "setsid",
    "sleep",
    "true",
    "uname",
    "wc",
)


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    """An adb server with a home, keys and a socket of its own, so that no user's devices are touched."""
    with tempfile.TemporaryDirectory(prefix="adb-") as home, pytest.MonkeyPatch.context() as patch:
        for name in ("ADB_VENDOR_KEYS", "ANDROID_SDK_HOME", "ANDROID_SERIAL", "ANDROID_USER_HOME"):
            patch.delenv(name, raising=False)
        patch.setenv("HOME", home)
        patch.setenv("ADB_SERVER_SOCKET", f"localfilesystem:{home}/socket")
        subprocess.run(["adb", "start-server"], env=os.environ | {"TMPDIR": home}, check=True, capture_output=True)
        yield
        subprocess.run(["adb", "kill-server"], check=True, capture_output=True)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Frozen devices are given up early; and every test begins with an adb that knows no device."""
    monkeypatch.setattr(adb, "_CONNECT_S", 0.2)
    yield
    subprocess.run(["adb", "disconnect"], check=True, capture_output=True)


@pytest.fixture
def device(tmp_path: Path) -> Callable[..., AdbDaemon]:
    """Make a daemon of the test's own; its files lie in `root`."""

    def made(**options: Any) -> AdbDaemon:
        return AdbDaemon(root=tmp_path / "root", **options)

    return made


def linked(daemon: AdbDaemon) -> AdbLink:
    return AdbLink(f"adb://{daemon.address}")


def give_up_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_GRACE_S", FAULTY_S)


def known() -> str:
    return subprocess.run(["adb", "devices"], check=True, capture_output=True, text=True).stdout


def wait_for(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < ends, "it never came"
        time.sleep(0.02)


def ended(pid: str) -> bool:
    """Gone, or waiting for its parent to ask how it ended. ref: proc(5), /proc/pid/stat"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_command_ends_with_its_own_status_and_its_streams_apart(device: Callable[..., AdbDaemon]) -> None:
    with device() as daemon:
        done = linked(daemon).run("echo out; echo err >&2; exit 3", TIMEOUT_S)
    assert (done.code, done.stdout, done.stderr, done.timed_out) == (3, "out\n", "err\n", False)


def test_an_old_daemon_gives_both_streams_as_one(device: Callable[..., AdbDaemon]) -> None:
    with device(features=OLD) as daemon:
        done = linked(daemon).run("echo out; echo err >&2; exit 3", TIMEOUT_S)
    assert (done.code, done.stdout, done.stderr) == (3, "out\nerr\n", "")


def test_a_command_too_long_for_an_old_daemon_is_refused_before_it_ends_the_server(
    device: Callable[..., AdbDaemon],
) -> None:
    with device(features=OLD) as daemon, pytest.raises(DeviceError, match="too old") as refusal:
        linked(daemon).run("true;" * 1000, TIMEOUT_S)
    assert "ssh" in refusal.value.action


def test_a_long_command_reaches_a_new_daemon(device: Callable[..., AdbDaemon]) -> None:
    with device() as daemon:
        done = linked(daemon).run(f"printf %s {'x' * 100_000} | wc -c", TIMEOUT_S)
    assert done.stdout.strip() == "100000"


def test_a_missing_program_is_no_lost_link(device: Callable[..., AdbDaemon]) -> None:
    with device() as daemon:
        done = linked(daemon).run("no-such-program", TIMEOUT_S)
    assert done.code == 127
    assert "no-such-program" in done.stderr


@pytest.mark.parametrize("features", [("shell_v2", "cmd", "stat_v2"), OLD], ids=["new", "old"])
def test_files_come_back_as_they_went(
    device: Callable[..., AdbDaemon], tmp_path: Path, features: tuple[str, ...]
) -> None:
    (tmp_path / "there and back").write_bytes(CONTENT)
    with device(features=features) as daemon:
        way = linked(daemon)
        way.push(tmp_path / "there and back", f"{daemon.root}/a 'name'")
        way.pull(f"{daemon.root}/a 'name'", tmp_path / "back")
        assert {path.name for path in daemon.root.iterdir()} == {"a 'name'", "tmp"}
    assert (tmp_path / "back").read_bytes() == CONTENT


def test_adb_gives_0_where_the_device_died_and_the_link_does_not_believe_it(device: Callable[..., AdbDaemon]) -> None:
    with device(faults=Faults(at_said=b"half")) as daemon:
        subprocess.run(["adb", "connect", daemon.address], check=True, capture_output=True)
        bare = subprocess.run(["adb", "-s", daemon.address, "shell", "echo half; sleep 99"], check=False)
        assert bare.returncode == 0
        daemon.start()
        with pytest.raises(LinkLostError, match="lost half-way") as refusal:
            linked(daemon).run("echo half; sleep 99", TIMEOUT_S)
    assert "offline" in refusal.value.cause


@pytest.mark.parametrize("features", [("shell_v2",), OLD], ids=["new", "old"])
def test_a_command_ends_with_the_daemon_that_ran_it(
    device: Callable[..., AdbDaemon], features: tuple[str, ...]
) -> None:
    with device(features=features, faults=Faults(at_said=b"half")) as daemon:
        with pytest.raises(DeviceError):
            linked(daemon).run(f"echo $$ >{daemon.root}/pid; echo half; sleep 99; true", TIMEOUT_S)
        wait_for(lambda: ended((daemon.root / "pid").read_text().strip()))


def test_a_lost_link_stands_again_when_the_device_is_back(device: Callable[..., AdbDaemon]) -> None:
    with device(faults=Faults(at_said=b"half")) as daemon:
        way = linked(daemon)
        with pytest.raises(LinkLostError, match="lost"):
            way.run("echo half; sleep 99", TIMEOUT_S)
        with pytest.raises(DeviceError, match="can't be reached") as refusal:
            way.run("true", TIMEOUT_S)
        assert "refused" in refusal.value.cause
        daemon.faults.at_said = None
        daemon.start()
        assert way.run("echo back", TIMEOUT_S).stdout == "back\n"


def test_half_a_file_never_gets_its_name(device: Callable[..., AdbDaemon], tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(CONTENT)
    with device(faults=Faults(at_copied_bytes=1)) as daemon:
        way = linked(daemon)
        with pytest.raises(LinkLostError, match="lost half-way"):
            way.push(tmp_path / "model", f"{daemon.root}/model")
        assert not (daemon.root / "model").exists()
        assert 0 < (daemon.root / "model.part").stat().st_size < len(CONTENT)
        daemon.faults.at_copied_bytes = None
        daemon.start()
        way.push(tmp_path / "model", f"{daemon.root}/model")
        assert (daemon.root / "model").read_bytes() == CONTENT


def test_half_a_file_never_gets_its_name_here(device: Callable[..., AdbDaemon], tmp_path: Path) -> None:
    with device(faults=Faults(at_copied_bytes=1)) as daemon:
        (daemon.root / "file").write_bytes(CONTENT)
        with pytest.raises(LinkLostError, match="lost half-way"):
            linked(daemon).pull(f"{daemon.root}/file", tmp_path / "back")
    assert not list(tmp_path.glob("back*"))


@pytest.mark.parametrize("faults", [Faults(keeps_bytes=1000), Faults(spoils=True)], ids=["cut", "spoiled"])
def test_a_file_that_arrived_otherwise_is_refused(
    device: Callable[..., AdbDaemon], tmp_path: Path, faults: Faults
) -> None:
    (tmp_path / "model").write_bytes(CONTENT)
    with device(faults=faults) as daemon:
        with pytest.raises(DeviceError, match="is not what"):
            linked(daemon).push(tmp_path / "model", f"{daemon.root}/model")
        assert [path.name for path in daemon.root.iterdir()] == ["tmp"]


def test_a_cut_file_is_found_without_a_tool_for_digests(device: Callable[..., AdbDaemon], tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(CONTENT)
    with (
        device(path=str(few_tools(tmp_path)), faults=Faults(keeps_bytes=1000)) as daemon,
        pytest.raises(DeviceError, match="1000 and"),
    ):
        linked(daemon).push(tmp_path / "model", f"{daemon.root}/model")


def test_a_full_disk_is_said_and_left_as_it_was(device: Callable[..., AdbDaemon], tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(CONTENT)
    with device(faults=Faults(disk_full=True)) as daemon:
        with pytest.raises(DeviceError) as refusal:
            linked(daemon).push(tmp_path / "model", f"{daemon.root}/model")
        assert [path.name for path in daemon.root.iterdir()] == ["tmp"]
    assert "disk is full" in refusal.value.cause


def test_a_file_that_is_not_there_is_said(device: Callable[..., AdbDaemon], tmp_path: Path) -> None:
    with device() as daemon, pytest.raises(DeviceError, match="can't be read"):
        linked(daemon).pull(f"{daemon.root}/nothing", tmp_path / "back")
    assert not list(tmp_path.glob("back*"))


def test_a_file_that_this_machine_can_not_keep_is_said(device: Callable[..., AdbDaemon], tmp_path: Path) -> None:
    with device() as daemon:
        (daemon.root / "file").write_bytes(CONTENT)
        with pytest.raises(DeviceError, match="can't be copied") as refusal:
            linked(daemon).pull(f"{daemon.root}/file", tmp_path / "no folder" / "file")
    assert "this machine" in refusal.value.action


def test_a_device_frozen_in_a_command_is_given_up(
    device: Callable[..., AdbDaemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    give_up_early(monkeypatch)
    with (
        device(faults=Faults(fate="freeze", at_said=b"half")) as daemon,
        pytest.raises(LinkLostError, match="frozen"),
    ):
        linked(daemon).run("echo half; sleep 99", FAULTY_S)


def test_a_device_that_restarted_without_a_word_is_connected_anew(
    device: Callable[..., AdbDaemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    give_up_early(monkeypatch)
    with device(faults=Faults(fate="freeze", at_said=b"half")) as daemon:
        subprocess.run(["adb", "connect", daemon.address], check=True, capture_output=True)
        way = linked(daemon)
        with pytest.raises(LinkLostError, match="frozen"):
            way.run("echo half; sleep 99", FAULTY_S)
        daemon.faults.at_said = None
        daemon.stop()
        daemon.start()
        assert way.run("echo back", TIMEOUT_S).stdout == "back\n"
        way.close()
        assert daemon.address in known(), "it was connected before us"


def test_a_device_frozen_in_a_transfer_is_given_up(
    device: Callable[..., AdbDaemon], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_up_early(monkeypatch)
    monkeypatch.setattr(adb, "_QUERY_S", FAULTY_S)
    (tmp_path / "model").write_bytes(CONTENT)
    with device(faults=Faults(fate="freeze", at_copied_bytes=1)) as daemon:
        with pytest.raises(LinkLostError, match="frozen"):
            linked(daemon).push(tmp_path / "model", f"{daemon.root}/model")
        assert not (daemon.root / "model").exists()


def test_a_command_ends_with_its_children_when_its_time_is_up(device: Callable[..., AdbDaemon]) -> None:
    with device() as daemon:
        done = linked(daemon).run(f"sleep 99 & echo $! >{daemon.root}/pid; echo said; wait", 1.0)
        assert done.timed_out
        assert done.stdout == "said\n"
        wait_for(lambda: ended((daemon.root / "pid").read_text().strip()))


def test_a_command_is_bounded_on_a_device_without_timeout(device: Callable[..., AdbDaemon], tmp_path: Path) -> None:
    with device(path=str(few_tools(tmp_path))) as daemon:
        done = linked(daemon).run(f"echo $$ >{daemon.root}/pid; sleep 99; true", 1.0)
        assert done.timed_out
        wait_for(lambda: ended((daemon.root / "pid").read_text().strip()))


def test_ctrl_c_ends_the_command_there_and_tidies_up(device: Callable[..., AdbDaemon]) -> None:
    with device() as daemon:
        pid, tidied = daemon.root / "pid", daemon.root / "tidied"
        script = f"echo $$ >{pid}.new; mv {pid}.new {pid}; sleep 99; true"
        program = f"""\
import signal; signal.signal(signal.SIGINT, signal.default_int_handler)  # A background job ignores it.
from edgebuild.device_tests.adb import AdbLink
AdbLink("adb://{daemon.address}").run({script!r}, 60, lost="mkdir {tidied}")
"""
        with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) as client:
            wait_for(pid.exists)
            client.send_signal(signal.SIGINT)
            _, errors = client.communicate(timeout=TIMEOUT_S)
        assert errors.endswith("KeyboardInterrupt\n")
        wait_for(lambda: tidied.exists() and ended(pid.read_text().strip()) and not daemon.running)


def test_a_device_that_does_not_trust_us_says_what_to_do(device: Callable[..., AdbDaemon]) -> None:
    with device(faults=Faults(trusts=False)) as daemon, pytest.raises(DeviceError, match="unauthorized") as refusal:
        linked(daemon).run("true", TIMEOUT_S)
    assert "adbkey.pub" in refusal.value.action


def test_a_device_that_never_answers_is_offline(
    device: Callable[..., AdbDaemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    give_up_early(monkeypatch)
    with device(faults=Faults(answers=False)) as daemon, pytest.raises(DeviceError, match="offline") as refusal:
        linked(daemon).run("true", TIMEOUT_S)
    assert "adbd" in refusal.value.action


def test_a_serial_that_adb_does_not_know_is_said_beside_those_it_knows(device: Callable[..., AdbDaemon]) -> None:
    with device() as daemon:
        linked(daemon).run("true", TIMEOUT_S)
        with pytest.raises(DeviceError, match="no such device") as refusal:
            AdbLink("adb://R58M123").run("true", TIMEOUT_S)
    assert daemon.address in refusal.value.cause


def test_the_only_device_needs_no_name_and_several_do(device: Callable[..., AdbDaemon], tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="no device"):
        AdbLink("adb://").run("true", TIMEOUT_S)
    with device() as one, AdbDaemon(root=tmp_path / "other") as other:
        linked(one).run("true", TIMEOUT_S)
        nameless = AdbLink("adb://")
        assert nameless.run("pwd", TIMEOUT_S).stdout.strip() == str(one.root)
        assert nameless.uri == f"adb://{one.address}"
        linked(other).run("true", TIMEOUT_S)
        with pytest.raises(DeviceError, match="only device") as refusal:
            AdbLink("adb://").run("true", TIMEOUT_S)
    assert one.address in refusal.value.what
    assert other.address in refusal.value.what


@pytest.mark.parametrize(
    ("state", "action"),
    [
        ("no permissions (user in plugdev group; are your udev rules wrong?); see [http://developer]", "udev rule"),
        ("recovery", "adb reboot"),
        ("bootloader", "fastboot reboot"),
        ("authorizing", "wait until"),
    ],
)
def test_states_of_devices_on_usb_have_their_actions(tmp_path: Path, state: str, action: str) -> None:
    program = tmp_path / "adb"
    program.write_text(f"#!/bin/sh\nprintf 'List of devices attached\\nR58M123\\t%s\\n\\n' '{state}'\n")
    program.chmod(0o755)
    with pytest.raises(DeviceError, match=f"its state is {state.partition(' (')[0]}") as refusal:
        AdbLink("adb://R58M123", program=str(program)).run("true", TIMEOUT_S)
    assert action in refusal.value.action


def test_a_server_that_does_not_start_is_said_in_its_own_words(tmp_path: Path) -> None:
    program = tmp_path / "adb"
    program.write_text("#!/bin/sh\necho '* failed to start daemon' >&2; exit 1\n")
    program.chmod(0o755)
    with pytest.raises(DeviceError, match="server does not run") as refusal:
        AdbLink("adb://R58M123", program=str(program)).run("true", TIMEOUT_S)
    assert "failed to start daemon" in refusal.value.cause


def test_a_uri_that_names_no_device_is_refused() -> None:
    with pytest.raises(DeviceError, match="names no device"):
        AdbLink("adb://-L tcp:5037")


def test_a_machine_without_adb_says_how_to_get_it() -> None:
    with pytest.raises(DeviceError, match="no adb-of-nobody") as refusal:
        AdbLink("adb://R58M123", program="adb-of-nobody").run("true", TIMEOUT_S)
    assert "apt-get install adb" in refusal.value.action


def test_close_gives_up_what_it_connected_and_nothing_else(device: Callable[..., AdbDaemon]) -> None:
    with device() as daemon:
        first, second = linked(daemon), linked(daemon)
        first.run("true", TIMEOUT_S)
        second.run("true", TIMEOUT_S)
        second.close()
        assert daemon.address in known()
        first.close()
        first.close()
        assert daemon.address not in known()


def few_tools(tmp_path: Path) -> Path:
    """A folder with what the smallest device has: no timeout, no setsid, no sha256sum."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    return folder


@pytest.fixture
def android() -> Iterator[Path]:
    """Stands in for Android's folder."""
    with tempfile.TemporaryDirectory(prefix="ad", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.parametrize("features", [("shell_v2", "cmd", "stat_v2"), OLD], ids=["new", "old"])
def test_measures_a_real_model_and_leaves_nothing(
    device: Callable[..., AdbDaemon], android: Path, features: tuple[str, ...]
) -> None:
    model = FIXTURES / "kws" / "ref_int8.tflite"
    if not model.exists():
        pytest.skip("the fixture kws/ref_int8.tflite is not here")
    request = RunRequest(min_warmup_s=0.0, min_warmup_runs=1, min_time_s=0.0, min_runs=3)
    with device(features=features, android=android) as daemon:
        with opened(f"adb://{daemon.address}", python=sys.executable) as transport:
            assert transport.fingerprint().machine == platform.machine()
            sample = transport.run(model, request, TIMEOUT_S)
            assert list(android.glob("edgebuild-run-*/runner.py"))
        assert list(android.iterdir()) == []
        assert daemon.address not in known()
    assert sample.model_sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    assert sample.median_us > 0


def test_a_device_without_python_says_what_it_needs(
    device: Callable[..., AdbDaemon], android: Path, tmp_path: Path
) -> None:
    (tmp_path / "model").write_bytes(CONTENT)
    with (
        device(path=str(few_tools(tmp_path)), android=android) as daemon,
        opened(f"adb://{daemon.address}") as transport,
        pytest.raises(DeviceError) as refusal,
    ):
        transport.run(tmp_path / "model", RunRequest(), TIMEOUT_S)
    assert "python3" in refusal.value.cause
