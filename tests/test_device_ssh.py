"""A link over a real sshd on the loopback: what goes wrong is told apart, and nothing stays on the device."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Final

import pytest
from servers import free_port
from ssh_server import SSHD, SshServer, ssh_server

from edgebuild.device_tests.device import RemoteTransport
from edgebuild.device_tests.environment import setup
from edgebuild.device_tests.errors import DeviceError
from edgebuild.device_tests.link import LinkLostError
from edgebuild.device_tests.ssh import SshLink
from edgebuild.device_tests.stay import Stay
from edgebuild.device_tests.transport import RUNNER, RunRequest

pytestmark = pytest.mark.skipif(
    not Path(SSHD).exists() or shutil.which("ssh") is None,
    reason="there is no sshd here: apt-get install openssh-server openssh-client",
)
FIXTURES: Final = Path(__file__).parents[2] / "shared" / "fixtures"
REQUEST: Final = RunRequest(min_warmup_s=0.0, min_warmup_runs=1, min_time_s=0.0, min_runs=3)
TIMEOUT_S: Final = 60.0
HANGS: Final = "import sys, time\nopen('began', 'w').close()\ntime.sleep(600)\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with ssh_server(tmp_path_factory.mktemp("device")) as server:
        yield server


@pytest.fixture
def link(server: SshServer) -> Iterator[SshLink]:
    link = SshLink(server.uri, config=server.config)
    yield link
    link.close()


@pytest.fixture
def model() -> Path:
    path = FIXTURES / "kws" / "ref_int8.tflite"
    if not path.exists():
        pytest.skip("the fixture kws/ref_int8.tflite is not here")
    return path


@pytest.fixture
def unread(tmp_path: Path) -> Path:
    """A model that nothing loads."""
    path = tmp_path / "model.tflite"
    path.write_bytes(b"not a model")
    return path


def hanging(link: SshLink, tmp_path: Path) -> RemoteTransport:
    """A transport whose runner says that it began, and then hangs."""
    runner = tmp_path / "hangs.py"
    runner.write_text(HANGS)
    return RemoteTransport(Stay(link), python=sys.executable, runner=runner)


def wait_until(true: Callable[[], object]) -> None:
    until = time.monotonic() + 30
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


def nothing_left(server: SshServer) -> bool:
    return not server.left() and not server.processes()


def test_measures_a_real_model_and_leaves_nothing(server: SshServer, link: SshLink, model: Path) -> None:
    transport = RemoteTransport(Stay(link), python=sys.executable)
    samples = [transport.run(model, REQUEST, TIMEOUT_S) for _ in range(2)]
    assert {sample.runs for sample in samples} == {3}
    assert len({sample.outputs_sha256 for sample in samples}) == 1
    assert transport.fingerprint().machine == os.uname().machine
    transport.close()
    wait_until(lambda: nothing_left(server))


def test_a_command_after_the_first_takes_the_same_connection(link: SshLink) -> None:
    ports = {link.run('echo "$SSH_CONNECTION"', TIMEOUT_S).stdout for _ in range(3)}
    assert len(ports) == 1


def test_a_command_may_end_with_the_status_of_a_lost_link(link: SshLink) -> None:
    ended = link.run("echo out; echo err >&2; exit 255", TIMEOUT_S)
    assert (ended.code, ended.stdout, ended.stderr, ended.timed_out) == (255, "out\n", "err\n", False)


def test_files_go_there_and_back_byte_for_byte(server: SshServer, link: SshLink, tmp_path: Path) -> None:
    content = os.urandom(1 << 20)
    (tmp_path / "sent").write_bytes(content)
    link.push(tmp_path / "sent", f"{server.home}/it's here")
    link.pull(f"{server.home}/it's here", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    (server.home / "it's here").unlink()


def test_a_file_that_is_not_there_is_said_so(link: SshLink, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="No such file"):
        link.pull("/no/such/file", tmp_path / "back")


def test_a_process_ends_with_its_children_when_its_time_is_up(server: SshServer, link: SshLink) -> None:
    ended = link.run("sleep 600 & sleep 601", 1.0)
    assert ended.timed_out
    assert not [line for line in server.processes() if line.startswith("sleep")]


def refusal(server: SshServer, tmp_path: Path, old: str = "", new: str = "", *, port: int | None = None) -> str:
    """What a link says of a server, with `new` for `old` in the client's settings."""
    config = tmp_path / "ssh_config"
    config.write_text(server.config.read_text().replace(old, new))
    link = SshLink(f"ssh://127.0.0.1:{port}" if port else server.uri, config=config)
    try:
        with pytest.raises(DeviceError) as e:
            link.run("true", TIMEOUT_S)
    finally:
        link.close()
    assert not isinstance(e.value, LinkLostError)
    return str(e.value)


def test_refuses_a_host_key_that_is_not_known(server: SshServer, tmp_path: Path) -> None:
    said = refusal(server, tmp_path, f"{server.folder}/known_hosts", "/dev/null")
    assert "has a host key that is not known here" in said
    assert f"ssh-keyscan -p {server.uri.rpartition(':')[2]} 127.0.0.1 >> ~/.ssh/known_hosts" in said


def test_refuses_a_host_key_that_has_changed(server: SshServer, tmp_path: Path) -> None:
    place = f"[127.0.0.1]:{server.uri.rpartition(':')[2]}"
    (tmp_path / "known_hosts").write_text(f"{place} {(server.folder / 'user_key.pub').read_text()}")
    said = refusal(server, tmp_path, f"{server.folder}/known_hosts", f"{tmp_path}/known_hosts")
    assert "shows another host key than the one known here" in said
    assert f"ssh-keygen -R '{place}'" in said


def test_a_key_that_the_device_does_not_know_is_not_let_in(server: SshServer, tmp_path: Path) -> None:
    said = refusal(server, tmp_path, "user_key", "host_key")
    assert "with none of the keys here" in said
    assert "ssh-copy-id" in said


def test_a_port_that_nothing_listens_on_refuses(server: SshServer, tmp_path: Path) -> None:
    assert "no SSH server listens on that port" in refusal(server, tmp_path, port=free_port())


def test_a_host_that_nobody_knows_is_said_so(server: SshServer, tmp_path: Path) -> None:
    assert "names a host that nobody knows" in refusal(
        server, tmp_path, "Host *", "Host *\n    Hostname no-such-host.invalid"
    )


def test_aliases_and_jump_hosts_of_the_users_hold_and_what_is_for_sessions_of_their_own_does_not(
    server: SshServer, tmp_path: Path
) -> None:
    port = server.uri.rpartition(":")[2]
    aliases = f"Host board\n    ProxyJump jump\nHost board jump\n    Hostname 127.0.0.1\n    Port {port}\n"
    own = "Host board\n    RemoteCommand false\n    RequestTTY force\n    ControlMaster auto\n    ControlPersist yes\n"
    (tmp_path / "ssh_config").write_text(aliases + own + server.config.read_text())
    link = SshLink("ssh://board", config=tmp_path / "ssh_config")
    assert link.run("echo there", TIMEOUT_S).stdout == "there\n"
    link.close()
    wait_until(lambda: not server.sessions())


@pytest.mark.parametrize("uri", ["ssh://", "ssh://-oProxyCommand=x", "ssh://-l@host", "ssh://host:port", "host"])
def test_rejects_what_names_no_device(uri: str) -> None:
    with pytest.raises(DeviceError, match="names no device"):
        SshLink(uri)


@contextmanager
def killing(server: SshServer, times: int) -> Iterator[None]:
    """Kill all sessions in the middle of a process that says that it began, so many times."""

    is_over = threading.Event()

    def kill() -> None:
        for _ in range(times):
            wait_until(lambda: "began" in "".join(server.left()) or is_over.is_set())
            for session in () if is_over.is_set() else server.sessions():
                os.kill(session, signal.SIGKILL)
            wait_until(lambda: "began" not in "".join(server.left()) or is_over.is_set())

    with ThreadPoolExecutor(1) as pool:
        killer = pool.submit(kill)
        try:
            yield
        finally:
            is_over.set()
            killer.result()


def test_a_link_that_is_killed_twice_in_the_middle_is_lost_and_leaves_nothing(
    server: SshServer, link: SshLink, unread: Path, tmp_path: Path
) -> None:
    transport = hanging(link, tmp_path)
    with killing(server, 2), pytest.raises(DeviceError, match="was lost twice in the middle"):
        transport.run(unread, REQUEST, TIMEOUT_S)
    wait_until(lambda: nothing_left(server))
    transport.close()


def test_a_process_whose_link_is_killed_in_the_middle_is_begun_anew(
    server: SshServer, link: SshLink, model: Path, tmp_path: Path
) -> None:
    runner, hung = tmp_path / "hangs_once.py", tmp_path / "hung"
    runner.write_text(
        f"from pathlib import Path\nif not Path({str(hung)!r}).exists():\n    Path({str(hung)!r}).touch()\n"
        + "".join(f"    {line}\n" for line in HANGS.splitlines())
        + RUNNER.read_text().replace("from __future__ import annotations\n", "")
    )
    transport = RemoteTransport(Stay(link), python=sys.executable, runner=runner)
    with killing(server, 1):
        assert transport.run(model, REQUEST, TIMEOUT_S).runs == REQUEST.min_runs
    assert hung.exists()
    transport.close()
    wait_until(lambda: nothing_left(server))


def test_a_link_lost_between_two_processes_is_made_again(server: SshServer, link: SshLink, model: Path) -> None:
    transport = RemoteTransport(Stay(link), python=sys.executable)
    first = transport.run(model, REQUEST, TIMEOUT_S)
    for session in server.sessions():
        os.kill(session, signal.SIGKILL)
    assert transport.run(model, REQUEST, TIMEOUT_S).outputs_sha256 == first.outputs_sha256
    transport.close()
    wait_until(lambda: nothing_left(server))


def test_a_peer_that_freezes_is_found_out_and_leaves_nothing_when_it_wakes(
    server: SshServer, link: SshLink, unread: Path, tmp_path: Path
) -> None:
    stopped: list[int] = []

    def freeze() -> None:
        wait_until(lambda: "began" in "".join(server.left()))
        stopped.extend(server.sessions())
        for session in stopped:
            os.kill(session, signal.SIGSTOP)

    freezer = threading.Thread(target=freeze)
    freezer.start()
    transport = hanging(link, tmp_path)
    try:
        with pytest.raises(LinkLostError, match="is frozen: it no longer answers"):
            transport.run(unread, REQUEST, TIMEOUT_S)
        freezer.join()
        assert server.processes()
    finally:
        for session in stopped:
            os.kill(session, signal.SIGCONT)
    transport.close()
    wait_until(lambda: nothing_left(server))


_MEASURE: Final = """\
import signal
import sys
from pathlib import Path
from edgebuild.device_tests.device import RemoteTransport
from edgebuild.device_tests.ssh import SshLink
from edgebuild.device_tests.stay import Stay
from edgebuild.device_tests.transport import RunRequest

signal.signal(signal.SIGINT, signal.default_int_handler)  # A background job ignores it.
uri, config, runner, model = sys.argv[1:]
link = SshLink(uri, config=Path(config))
transport = RemoteTransport(Stay(link), python=sys.executable, runner=Path(runner))
try:
    transport.run(Path(model), RunRequest(), 60.0)
finally:
    transport.close()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_us_leaves_nothing_there(
    server: SshServer, unread: Path, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "hangs.py").write_text(HANGS)
    arguments = [server.uri, str(server.config), str(tmp_path / "hangs.py"), str(unread)]
    folder = tempfile.mkdtemp()  # Killed outright, nobody removes the folder of a socket, whose path must be short.
    variables = {**os.environ, "TMPDIR": folder}
    ours = subprocess.Popen([sys.executable, "-c", _MEASURE, *arguments], stderr=subprocess.DEVNULL, env=variables)
    try:
        wait_until(lambda: "began" in "".join(server.left()))
        ours.send_signal(number)
        assert ours.wait(timeout=30) != 0
        wait_until(lambda: nothing_left(server) and not server.sessions())
    finally:
        ours.kill()
        ours.wait()
        shutil.rmtree(folder)


@pytest.mark.parametrize(("blocks", "what"), [(0, "can't make a private folder"), (8, "can't keep model.tflite")])
def test_a_disk_that_is_full_is_said_so_and_nothing_is_left(blocks: int, what: str, tmp_path: Path) -> None:
    # A limit on the length of files stands for a disk: it is reached in the same calls, and needs no rights to set.
    limited = f"ForceCommand ulimit -f {blocks}; trap '' XFSZ; eval \"$SSH_ORIGINAL_COMMAND\"\n"
    big = tmp_path / "model.tflite"
    big.write_bytes(bytes(1 << 20))
    with ssh_server(tmp_path / "small", settings=limited) as small:
        link = SshLink(small.uri, config=small.config)
        transport = RemoteTransport(Stay(link), python=sys.executable, runner=big)
        with pytest.raises(DeviceError, match=what) as e:
            transport.run(big, REQUEST, TIMEOUT_S)
        assert "its disk is full" in str(e.value)
        assert "free some space" in str(e.value)
        transport.close()
        wait_until(lambda: nothing_left(small))


@pytest.fixture
def bare(tmp_path: Path) -> str:
    """A Python with nothing but the standard library."""
    path = tmp_path / "python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wheels of the runtime and numpy: what is installed here, packed again."""
    folder = tmp_path_factory.mktemp("wheels")
    for name in ("tflite_runtime", "numpy"):
        pack(metadata.distribution(name), folder)
    return folder


def pack(package: metadata.Distribution, folder: Path) -> None:
    """Make a wheel of what pip has unpacked.

    ref: https://packaging.python.org/specifications/binary-distribution-format/
    """
    tags = [line.partition(": ")[2] for line in (package.read_text("WHEEL") or "").splitlines() if "Tag: " in line]
    name = package.metadata["Name"].replace("-", "_")
    with zipfile.ZipFile(folder / f"{name}-{package.version}-{tags[-1]}.whl", "w") as archive:
        for path in package.files or ():
            if not {"..", "__pycache__", "tests"} & set(path.parts):
                archive.write(str(path.locate()), str(path))


def test_sets_a_device_up_from_a_folder_of_wheels(
    server: SshServer, link: SshLink, model: Path, wheels: Path, bare: str
) -> None:
    transport = RemoteTransport(Stay(link), python=bare)
    with pytest.raises(DeviceError, match="no TFLite runtime can be imported"):
        transport.run(model, REQUEST, TIMEOUT_S)
    transport.close()
    for _ in range(2):
        stay = Stay(link)
        said = setup(stay, python=bare, wheels=wheels, requirements=("tflite_runtime", "numpy"))
        assert said == f"tflite_runtime {metadata.version('tflite_runtime')}"
        stay.close()
    kept = {path.name[:4] for path in (server.home / ".local/share/edgebuild").iterdir()}
    assert kept == {"curr", "env-"}
    assert transport.run(model, REQUEST, TIMEOUT_S).runtime == said
    transport.close()
    wait_until(lambda: nothing_left(server))


def test_wheels_that_a_folder_lacks_are_named(link: SshLink, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="no wheels of tflite-runtime") as e:
        setup(Stay(link), python=sys.executable, wheels=tmp_path, requirements=("tflite-runtime==2.14.0",))
    assert str(tmp_path) in str(e.value)
