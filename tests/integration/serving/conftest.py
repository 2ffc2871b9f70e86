"""An embedded cluster on a real Envoy and a real Git remote, with a small server in the place of the engine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockgate.domain.policy import SigningPolicy
from serving.engines import registry
from serving.local.cluster import LocalCluster

sys.path.insert(0, str(Path(__file__).parent))
import tiny_engine
from cluster_world import TEMPLATE, World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kubectl: Path) -> Iterator[World]:
    """An empty cluster, up."""
    monkeypatch.setitem(registry.ENGINES, "vllm", tiny_engine.TinyEngine())
    remote, checkout, control = tmp_path / "remote.git", tmp_path / "checkout", tmp_path / "control"
    control.mkdir()
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", remote], check=True)
    subprocess.run(["git", "clone", "-q", remote, checkout], check=True, capture_output=True)
    shutil.copytree(TEMPLATE / "apps", checkout / "apps")
    cluster = LocalCluster(
        tmp_path / "cluster",
        remote=str(remote),
        store="oci:unused",
        signing=SigningPolicy(),
        gates=("scan",),
        serving_python=Path(sys.executable),
        runtime_environment=None,
        snapshots=tmp_path / "snapshots",
        poll_seconds=0.5,
        cpu_pool=tmp_path / "cpus",
        agent_command=(sys.executable, tiny_engine.__file__),
    )
    found = World(tmp_path, control, cluster)
    found.git("checkout", "-q", "-b", "main")
    found.commit()
    cluster.up()
    try:
        yield found
    finally:
        cluster.down(timeout_seconds=3)
