"""Servers that tests talk to on the loopback: a Dask cluster, and S3."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).parent
# Below those that whoever connects is given, and elsewhere in processes that run beside this one.
_PORTS: Final = iter(range(20000 + os.getpid() % 60 * 200, 32000))
_CLUSTER: Final = """\
import sys
from distributed import LocalCluster

if __name__ == "__main__":
    options = dict(threads_per_worker=1, dashboard_address=None, worker_dashboard_address=None, host="127.0.0.1")
    with LocalCluster(n_workers=int(sys.argv[1]), **options) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""


@contextmanager
def cluster(folder: Path, variables: Mapping[str, str] | None = None, *, workers: int = 2) -> Iterator[str]:
    """A scheduler and its worker processes, which know the stages of `cluster_stages`; its address."""
    script = folder / "cluster.py"
    script.write_text(_CLUSTER)
    (folder / "sitecustomize.py").write_text(
        f"import sys; sys.path.insert(0, {str(TESTS)!r})\nimport cluster_stages; cluster_stages.register()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(folder), "DASK_TEMPORARY_DIRECTORY": str(folder)}
    log = folder / "cluster.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(script), str(workers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment | dict(variables or {}),
            text=True,
        )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address, log.read_text()
    try:
        yield address
    finally:
        process.communicate(timeout=30)


def _forget_clients() -> None:
    """Let no client of this process outlive its server: fsspec hands out the one it made first."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


@contextmanager
def s3() -> Iterator[dict[str, str]]:
    """An S3 server with an empty bucket `edgebuild`; the environment that leads to it."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(port)
        environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        make = "import boto3; boto3.client('s3').create_bucket(Bucket='edgebuild')"
        subprocess.run([sys.executable, "-c", make], env=os.environ | environment, check=True, timeout=60)
        _forget_clients()
        yield environment
    finally:
        _forget_clients()
        process.terminate()
        process.wait(timeout=30)


def free_port() -> int:
    """A port of this machine that nothing listens on, another one each time."""
    for port in _PORTS:
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        return port
    raise OSError("no port is free")


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on {port}")
