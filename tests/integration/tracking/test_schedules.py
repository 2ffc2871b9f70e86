"""A schedule of a deployment becomes runs on a real Prefect server of the locked versions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx

from lockgate.cli.prefect_server import environment
from tests.integration.tracking.test_triggers import ROOT, free_port, wait_until

DEPLOY = """
from prefect.deployments.runner import EntrypointType
from flows.track import track
track.to_deployment(name="track", cron="0 3 * * *", entrypoint_type=EntrypointType.MODULE_PATH).apply()
"""


def test_the_runs_of_a_schedule_are_made(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/api"
    settings = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")},
        **environment(tmp_path / "prefect"),
        "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "true",
        "PREFECT_API_URL": url,
        "PYTHONPATH": str(ROOT),
    }
    log = tmp_path / "server.log"
    port = url.removesuffix("/api").rpartition(":")[2]
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port],
            env=settings, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def up() -> bool:
        assert server.poll() is None, log.read_text()
        try:
            return httpx.get(f"{url}/health", timeout=5).is_success
        except httpx.HTTPError:
            return False

    def scheduled() -> bool:
        asked = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
        found = httpx.post(f"{url}/flow_runs/filter", json=asked, timeout=30).json()
        return any(run["auto_scheduled"] for run in found)

    try:
        wait_until(up, 180, f"the server is up (log: {log})")
        subprocess.run(
            [sys.executable, "-c", DEPLOY],
            env=settings,
            timeout=120,
            check=True,
            capture_output=True,
        )
        wait_until(scheduled, 120, f"a run is scheduled (log: {log})")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait(20)
