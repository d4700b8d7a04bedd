"""A Dask cluster of two worker processes on this machine, in a process of its own.

Run as a script, this is that process: it prints its address and its workers' process ids as JSON, and ends with stdin.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def local_cluster(**variables: str) -> Iterator[tuple[str, list[int]]]:
    """The scheduler's address and the workers' process ids, until the block ends; `variables` go to all of them."""
    process = subprocess.Popen(
        [sys.executable, __file__],
        env=os.environ | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            sys.exit(f"the Dask cluster did not start; `{sys.executable} {__file__}` says why")
        address, *workers = json.loads(line)
        yield address, workers
    finally:
        process.communicate(timeout=60)


def main() -> None:
    """Serve until stdin closes."""
    from distributed import LocalCluster

    options = {"threads_per_worker": 1, "dashboard_address": None, "worker_dashboard_address": None}
    with LocalCluster(n_workers=2, host="127.0.0.1", **options) as cluster, cluster.get_client() as client:
        print(json.dumps([cluster.scheduler_address, *client.run(os.getpid).values()]), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
