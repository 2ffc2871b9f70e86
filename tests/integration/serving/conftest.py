"""An embedded cluster on a real Envoy and a real Git remote, with a small server in the place of the engine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockgate.adapters.quantization import ModelCard, convert_gguf
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


@pytest.fixture(scope="session")
def demo_model(demo_gguf: Path, quantization_python: Path) -> Path:
    """A real small instruct model as a directory. Made once a machine, beside the file that it is made from."""
    target = demo_gguf.parent / "SmolLM2-135M-Instruct-for-tests"
    if not (target / "config.json").exists():
        card = ModelCard(
            name="SmolLM2-135M-Instruct",
            license="apache-2.0",
            base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
        )
        log = demo_gguf.parent / "convert-for-tests.log"
        convert_gguf(quantization_python, demo_gguf, target, card=card, log=log)
    return target
