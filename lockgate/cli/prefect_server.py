"""The workspace's own Prefect server: started once, found again by every command.

Several ephemeral servers would fight over one SQLite file, so each workspace has one server process with its own
`PREFECT_HOME`, on a free loopback port, in a session of its own. A server given by `PREFECT_API_URL` is used as it is.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

import httpx

from lockgate.cli.daemons import Daemon
from lockgate.errors import ClusterError
from lockgate.settings import Settings

START_SECONDS = 180.0
PORTS_TRIED = 3

# The server of a workspace only records runs and holds leases; these would poll SQLite for nothing.
_IDLE_SERVICES = ("SCHEDULER", "LATE_RUNS", "FOREMAN", "TRIGGERS", "PAUSE_EXPIRATIONS")


def environment(home: Path) -> dict[str, str]:
    """Prefect settings of everything that runs in this workspace. JSON results, no telemetry, leases that survive a restart."""
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(home / "results"),
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "lockgate",
        **{f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in _IDLE_SERVICES},
    }


def ensure_server(settings: Settings) -> str:
    """Start the workspace's server unless it runs; set this process's Prefect environment; return the API's URL.

    Must be called before `prefect` is imported, since Prefect reads its environment then.

    Raises:
        ClusterError: the server did not come up; its log is named.
    """
    if settings.prefect_api_url is not None:
        return settings.prefect_api_url
    home = settings.layout.prefect
    os.environ.update(environment(home))
    daemon = Daemon(home, "server")
    with daemon.exclusively():
        url = _running(daemon) or _start(daemon)
    os.environ["PREFECT_API_URL"] = url
    return url


def stop_server(settings: Settings) -> bool:
    """End the workspace's own server. Returns whether one was running."""
    return Daemon(settings.layout.prefect, "server").stop()


def _running(daemon: Daemon) -> str | None:
    record = daemon.record()
    if record is None or daemon.process() is None or not _healthy(record["url"]):
        return None
    return str(record["url"])


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def _start(daemon: Daemon) -> str:
    for _ in range(PORTS_TRIED):
        url = _start_once(daemon)
        if url is not None:
            return url
    raise ClusterError(
        f"the Prefect server ended while starting: {PORTS_TRIED} ports that were free were taken by others",
        log=daemon.log, hint="try again",
    )  # fmt: skip


def _start_once(daemon: Daemon) -> str | None:
    """The server's address; None where somebody took its port in the seconds before it listened."""
    daemon.stop()  # one that runs but does not answer would hold the database
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    process = daemon.start(
        [sys.executable, "-m", "prefect", "server", "start",
         "--host", "127.0.0.1", "--port", str(port)],
        {**os.environ, **environment(daemon.directory), "PREFECT_API_URL": url},
        url=url,
    )  # fmt: skip
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if _healthy(url):
            return url
        if not process.alive():
            if _taken(daemon.log, port):
                return None
            raise ClusterError(
                "the Prefect server ended while starting", log=daemon.log,
                hint="read the log; a second try starts it afresh",
            )  # fmt: skip
        time.sleep(0.3)
    daemon.stop()
    raise ClusterError(
        f"the Prefect server was not healthy after {START_SECONDS:.0f} s", log=daemon.log,
        hint="is the machine overloaded? try again",
    )  # fmt: skip


def _taken(log: Path, port: int) -> bool:
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return False
    return f"('127.0.0.1', {port}): address already in use" in text
