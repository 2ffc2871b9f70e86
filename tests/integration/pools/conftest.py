"""One Prefect server with every deployment of `prefect.yaml` in a Kubernetes work pool, for all tests of this folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from lockgate.cli.prefect_server import environment
from tests.integration.tracking.test_triggers import free_port, wait_until
from tests.unit.house.prefect_jobs import ROOT, template

AUTH = "admin:word-that-no-Job-may-show"


@dataclass(frozen=True)
class PrefectServer:
    environment: dict[str, str]
    url: str

    def prefect(self, *arguments: str, cwd: Path) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
            env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        auth = ("admin", AUTH.partition(":")[2])
        answer = httpx.request(method, f"{self.url}/{path}", json=body, auth=auth, timeout=30)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def start(self, deployment: str) -> str:
        """A scheduled run of a deployment whose flow has the same name; its id."""
        found = self.ask("GET", f"deployments/name/{deployment}/{deployment}")
        # What Lockgate would give it is of no interest to whoever only makes a Job of it.
        body = {"enforce_parameter_schema": False}
        run = self.ask("POST", f"deployments/{found['id']}/create_flow_run", body)
        return str(run["id"])

    def state(self, run: str) -> str:
        return str(self.ask("GET", f"flow_runs/{run}")["state"]["name"])

    def force(self, run: str, kind: str) -> None:
        body = {"state": {"type": kind, "name": kind.title()}, "force": True}
        self.ask("POST", f"flow_runs/{run}/set_state", body)


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    root = tmp_path_factory.mktemp("prefect")
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PREFECT_", "KUBE", "LOCKGATE_"))
    }
    settings = {
        **kept, **environment(root / "home"), "PYTHONPATH": str(ROOT),
        "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "true",
        "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "true",
        "PREFECT_SERVER_API_AUTH_STRING": AUTH,
    }  # fmt: skip
    log = root / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start",
             "--host", "127.0.0.1", "--port", str(port)],
            env=settings | {"PREFECT_API_URL": url}, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    client = {**kept, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(root / "client"), "DO_NOT_TRACK": "1",
              "PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": AUTH}  # fmt: skip
    made = PrefectServer(client, url)

    def up() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return httpx.get(f"{url}/health", timeout=5).is_success
        except httpx.HTTPError:
            return False

    try:
        wait_until(up, 180, f"the server is up (log: {log})")
        shutil.copy(ROOT / "prefect.yaml", root)
        pool = root / "pool.json"
        pool.write_text(json.dumps(template()))
        create = ("work-pool", "create", "lockgate", "--type", "kubernetes")
        made.prefect(*create, "--base-job-template", str(pool), cwd=root)
        made.prefect("deploy", "--all", cwd=root)
        yield made
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)
