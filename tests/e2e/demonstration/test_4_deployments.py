"""The same flows as deployments of `prefect.yaml`, run by a real worker of a process work pool."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.e2e.e2e_site import Site, asked, prefect, wait_until

Demo = tuple[Site, subprocess.CompletedProcess[str]]
ROOT = Path(__file__).parents[3]
FLOWS = (
    "release", "canary", "promote", "rollback", "reconcile", "watch", "prepare", "quantize", "measure", "sign",
    "track", "release-tracked", "rescan", "scan-served", "garbage-collection",
)  # fmt: skip


def completed(environment: dict[str, str], flow: str) -> bool:
    """Whether a run of the flow's deployment has completed; fails the test when one has failed."""
    (flow_id,) = [found["id"] for found in asked(environment, "flows") if found["name"] == flow]
    runs = [
        run
        for run in asked(environment, "flow_runs")
        if run["flow_id"] == flow_id and run["deployment_id"]
    ]
    states = {run["state_type"] for run in runs}
    assert not states & {"FAILED", "CRASHED"}, runs
    return "COMPLETED" in states


def test_every_flow_deploys_and_a_worker_runs_them_by_their_module_paths(
    demo: Demo, tmp_path: Path
) -> None:
    site, _ = demo
    # `reconcile` with nothing under way starts the workspace's server and leaves the release state alone.
    assert site.run("reconcile").returncode == 0
    head = site.repository().sync()
    environment = {
        **site.environment,
        "PREFECT_API_URL": site.prefect_url(),
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "LOCKGATE_STEP_RUNNER": "deployment",
    }
    # Somewhere else than the clone: a module path must not depend on the directory.
    shutil.copy(ROOT / "prefect.yaml", tmp_path)
    pool = ("work-pool", "create", "lockgate", "--type", "process", "--overwrite")
    prefect(environment, *pool, cwd=tmp_path)
    prefect(environment, "deploy", "--all", cwd=tmp_path)
    assert sorted(found["name"] for found in asked(environment, "deployments")) == sorted(FLOWS)
    # What is stable already: the release asks its step of the pool and gets the result from there.
    parameters = json.dumps({"request": {"spec": site.spec_of_stable(), "requested_by": "test"}})
    log = tmp_path / "worker.log"
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", "lockgate"],
            env=environment,
            cwd=tmp_path,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        run = ("deployment", "run")
        prefect(environment, *run, "reconcile/reconcile", cwd=tmp_path)
        prefect(environment, *run, "release/release", "--params", parameters, cwd=tmp_path)
        for flow in ("reconcile", "prepare", "release"):
            wait_until(lambda flow=flow: completed(environment, flow), 240, f"{flow} (log: {log})")
    finally:
        os.killpg(worker.pid, signal.SIGTERM)
        try:
            worker.wait(30)
        except subprocess.TimeoutExpired:
            # Prefect's worker turns the signal into another one to itself, and now and then stays; its runs have ended.
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait(30)
    assert site.repository().sync() == head
