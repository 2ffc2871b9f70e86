"""A real Prometheus server of a test's own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml


@contextlib.contextmanager
def running_prometheus(binary: Path, config: Mapping[str, Any], directory: Path) -> Iterator[str]:
    """Its address, once it is ready; it is gone afterwards. What it writes is in `directory`."""
    (directory / "prometheus.yml").write_text(yaml.safe_dump(dict(config)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                binary,
                f"--config.file={directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        for _ in range(200):
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://{address}/-/ready", trust_env=False).status_code == 200:
                    break
            assert process.poll() is None, (directory / "prometheus.log").read_text()
            time.sleep(0.1)
        yield f"http://{address}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10)
