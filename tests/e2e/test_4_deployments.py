"""The same flows as deployments of `prefect.yaml`, run by a real worker of a process work pool."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from e2e_site import Site, wait_until

Demo = tuple[Site, subprocess.CompletedProcess[str]]
ROOT = Path(__file__).parents[2]
FLOWS = ("release", "canary", "rollback", "reconcile", "prepare", "measure", "sign")


def prefect(environment: dict[str, str], *arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_flow_deploys_and_a_worker_runs_it_by_its_module_path(
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
    }
    # Somewhere else than the clone: a module path must not depend on the directory.
    shutil.copy(ROOT / "prefect.yaml", tmp_path)
    prefect(environment, "work-pool", "create", "lockgate", "--type", "process", cwd=tmp_path)
    prefect(environment, "deploy", "--all", cwd=tmp_path)
    for flow in FLOWS:
        prefect(environment, "deployment", "inspect", f"{flow}/{flow}", cwd=tmp_path)
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
        prefect(environment, "deployment", "run", "reconcile/reconcile", cwd=tmp_path)

        def completed() -> bool:
            listed = prefect(
                environment,
                "flow-run",
                "ls",
                "--flow-name",
                "reconcile",
                "--limit",
                "5",
                "-o",
                "json",
                cwd=tmp_path,
            )
            runs = json.loads(listed)
            return any(run["deployment_id"] and run["state_type"] == "COMPLETED" for run in runs)

        wait_until(completed, 240, f"the worker ran reconcile (log: {log})")
    finally:
        os.killpg(worker.pid, signal.SIGTERM)
        worker.wait(60)
    assert site.repository().sync() == head
