"""A release of an InferenceService through the API server: the whole cluster client against a stateful double of the API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lockgate.adapters.kube.inference_service import ACCOUNTS, INFERENCE_SERVICES, REVISIONS
from lockgate.adapters.kube.kserve import LLM_SERVICES
from lockgate.adapters.kube.models import GROUPS
from lockgate.domain.cluster import ModelStatus
from lockgate.domain.rollout import TransitionKind
from serving.kubernetes_cluster import Gateway, KubernetesCluster
from tests.unit.serving.inference_world import World, bases, occupant
from tests.unit.serving.knative_double import Published
from tests.unit.serving.kubernetes_double import Kubernetes


@pytest.fixture
def kubernetes() -> Iterator[Kubernetes]:
    kinds = (LLM_SERVICES, INFERENCE_SERVICES, REVISIONS, ACCOUNTS, GROUPS)
    made = Kubernetes("lockgate-local", kinds)
    yield made
    made.close()


@pytest.mark.timeout(300)
def test_a_release_is_driven_through_the_api_server_and_every_commit_comes_into_force(
    tmp_path: Path, kubectl: Path, kubernetes: Kubernetes
) -> None:
    cluster = KubernetesCluster(
        "local", gateway=Gateway("https://{model}.example.com/"), remote="r",
        reader=kubernetes.reader(),
    )  # fmt: skip
    store = Published(kubernetes)

    def status() -> ModelStatus | None:
        store.publish()
        return cluster.status().models.get("smol")

    world = World(bases(tmp_path, kubectl), store, status)
    world.pace = 60
    for number, fate in enumerate(("promoted", "fails")):
        world.release(f"r{number}", fate)
        assert not cluster.carry_out("c" * 40, world.state, timeout_seconds=0)
        assert world.rounds(40), (fate, world.state.phase, world.kinds)
        assert cluster.carry_out("c" * 40, world.state, timeout_seconds=0)
    assert world.knative.shares == {str(occupant("r0").candidate.digest): 100}
    assert world.kinds.count(TransitionKind.RESTORE) == 1
    assert kubernetes.methods == {"GET"}
