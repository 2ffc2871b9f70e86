"""What a driver relies on holds of every cluster: the embedded one, with Envoy and an agent, and Kubernetes through its API."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_world import MODEL, TEMPLATE, World

from lockgate.adapters.kube import SyncWebhook
from lockgate.domain.cluster import lagging
from lockgate.domain.release_state import Phase, Slot
from lockgate.errors import ClusterError
from serving.kubernetes_cluster import Gateway, KubernetesCluster

sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "serving"))
from kubernetes_double import Kubernetes
from kubernetes_world import Agent


@pytest.fixture
def kubernetes_world(tmp_path: Path, kubectl: Path) -> Iterator[World]:
    remote, checkout = tmp_path / "remote.git", tmp_path / "checkout"
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", remote], check=True)
    subprocess.run(["git", "clone", "-q", remote, checkout], check=True, capture_output=True)
    shutil.copytree(TEMPLATE / "apps", checkout / "apps")
    kubernetes = Kubernetes("lockgate-local")
    agent = Agent(kubernetes)
    cluster: Any = KubernetesCluster(
        "local",
        gateway=Gateway("http://{model}", "http://127.0.0.1:9/stats", "{service}"),
        remote=str(remote),
        webhook=SyncWebhook(agent.url, str(remote), "main"),
        reader=kubernetes.reader(),
    )
    agent.world = World(tmp_path, tmp_path, cluster)
    agent.world.git("checkout", "-q", "-b", "main")
    agent.world.commit()
    yield agent.world
    agent.close()
    kubernetes.close()


@pytest.fixture(params=["embedded", "kubernetes"])
def place(request: pytest.FixtureRequest) -> World:
    name = "world" if request.param == "embedded" else "kubernetes_world"
    found: World = request.getfixturevalue(name)
    return found


def carried_out(place: World, **changes: Any) -> None:
    commit = place.push(**changes)
    assert place.cluster.carry_out(commit, place.state, timeout_seconds=20), place.cluster.status()
    seen = place.cluster.status().models[MODEL]
    assert lagging(seen, place.state) == ()
    assert seen.generation == place.state.generation
    assert seen.route is not None
    assert seen.route.weights == {s.value: w for s, w in place.state.weights().items()}


def test_a_driver_sees_the_same_of_a_release_whichever_cluster_serves_it(place: World) -> None:
    cluster = place.cluster
    with pytest.raises(ClusterError):
        cluster.gateway_url(MODEL)
    assert cluster.slot_status(MODEL, Slot.A) is None

    one, two = place.occupant("one"), place.occupant("two")
    carried_out(place, phase=Phase.DEPLOYING, a=one)
    place.until_ready("a", one.candidate)
    carried_out(place, phase=Phase.STABLE, stable=Slot.A)
    assert cluster.gateway_url(MODEL).startswith("http")
    assert cluster.slot_status(MODEL, Slot.B) is None

    carried_out(place, phase=Phase.DEPLOYING, b=two)
    place.until_ready("b", two.candidate)
    before = {pod.name for slot in "ab" for pod in cluster.slot_status(MODEL, slot).pods}
    carried_out(place, phase=Phase.CANARY, step=0, weight=5)
    slots = {slot: cluster.slot_status(MODEL, slot) for slot in "ab"}
    assert {pod.name for slot in slots.values() for pod in slot.pods} == before
    assert (slots["a"].candidate, slots["b"].candidate) == (
        one.candidate.digest,
        two.candidate.digest,
    )

    targets = cluster.scrape_targets(MODEL)
    assert {t.instance for t in targets if t.cluster is None} == before
    assert {t.slot for t in targets if t.cluster is not None} == {"a", "b"}

    # Nobody has committed this one.
    next_one = place.state.model_copy(update={"generation": place.state.generation + 1})
    assert not cluster.carry_out("0" * 40, next_one, timeout_seconds=0.5)
    assert lagging(cluster.status().models[MODEL], next_one)

    carried_out(place, phase=Phase.STABLE, step=None, weight=0, b=None)
    place.until(lambda status: "b" not in status.models[MODEL].slots)
    assert lagging(None, place.state)
