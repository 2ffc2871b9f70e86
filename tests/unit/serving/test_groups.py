"""A replica over several nodes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from lockgate.domain.release_state import Phase, Slot
from lockgate.errors import ClusterError, RenderingError, UsageError
from serving.engines.registry import engine
from serving.local.desired import read_model
from serving.manifests import check_deployment, check_identity, pod_template, render
from tests.unit.serving.rendering import objects, occupant, repository, state_of

SPLIT = {
    "resources": {"cpu": 18, "memory": "56Gi", "gpu": 8},
    "parallel": {"tensor": 8, "pipeline": 2, "nodes": 2},
    "args": ["--enable-prefix-caching"],
}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory, kubectl: Path) -> Any:
    root = repository(tmp_path_factory.mktemp("groups"), ["read-only-root", "api-key", "vpa"])
    state = state_of(a=occupant("one", replicas=2, **SPLIT))
    files = render(state, root, kubectl=kubectl)
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root, state, objects(files)


def test_a_group_is_a_leader_that_serves_and_workers_that_do_not(rendered: Any) -> None:
    _, state, found = rendered
    assert not any(kind == "Deployment" for kind, _ in found)
    spec = found["LeaderWorkerSet", "smol-a"]["spec"]
    assert spec["replicas"] == 2
    template = spec["leaderWorkerTemplate"]
    assert template["size"] == 2
    assert template["restartPolicy"] == "RecreateGroupOnPodRestart"
    (leader,) = template["leaderTemplate"]["spec"]["containers"]
    (worker,) = template["workerTemplate"]["spec"]["containers"]
    assert worker["args"] == [leader["args"][0], "--headless", *leader["args"][1:]]
    text = " ".join(leader["args"])
    assert "--tensor-parallel-size 8 --pipeline-parallel-size 2 --nnodes 2" in text
    assert "--node-rank $(LWS_WORKER_INDEX) --master-addr $(LWS_LEADER_ADDRESS)" in text
    assert leader["args"][-1] == "--enable-prefix-caching"
    assert "readinessProbe" in leader
    assert not {"ports", "readinessProbe", "livenessProbe", "startupProbe"} & set(worker)
    for container in (leader, worker):
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
    check_deployment(found["LeaderWorkerSet", "smol-a"], state.a, 2)


def test_requests_reach_the_leader_alone_and_its_workers_reach_each_other(rendered: Any) -> None:
    _, _, found = rendered
    leader = {"leaderworkerset.sigs.k8s.io/worker-index": "0"}
    selector = found["Service", "smol-a"]["spec"]["selector"]
    assert leader.items() <= selector.items()
    policy = found["NetworkPolicy", "smol-a"]["spec"]
    labels = policy["podSelector"]["matchLabels"]
    assert labels.items() <= selector.items()
    assert policy["ingress"] == [{"from": [{"podSelector": {"matchLabels": labels}}]}]
    assert policy["egress"] == [{"to": [{"podSelector": {"matchLabels": labels}}]}]
    target = found["VerticalPodAutoscaler", "smol-a"]["spec"]["targetRef"]
    assert target["kind"] == "LeaderWorkerSet"


def test_a_group_is_kept_byte_for_byte_while_its_candidate_stands(rendered: Any) -> None:
    root, state, found = rendered
    again = objects(render(state, root, kubectl=Path("/nonexistent/kubectl")))
    assert again == found


@pytest.mark.parametrize("pod", ["leaderTemplate", "workerTemplate"])
def test_neither_pod_of_a_group_may_say_something_else_than_the_candidate(
    rendered: Any, pod: str
) -> None:
    _, state, found = rendered
    group = copy.deepcopy(found["LeaderWorkerSet", "smol-a"])
    check_identity(group, state.a)
    group["spec"]["leaderWorkerTemplate"][pod]["spec"]["containers"][0]["image"] = "vllm:latest"
    with pytest.raises(RenderingError, match="runtime"):
        check_identity(group, state.a)


def test_its_scaler_counts_groups(tmp_path: Path, kubectl: Path) -> None:
    one = occupant("one", replicas=2, scaling={"max": 4, "running_per_replica": 64}, **SPLIT)
    found = objects(render(state_of(a=one), repository(tmp_path), kubectl=kubectl))
    assert "replicas" not in found["LeaderWorkerSet", "smol-a"]["spec"]
    spec = found["ScaledObject", "smol-a"]["spec"]
    assert spec["scaleTargetRef"]["kind"] == "LeaderWorkerSet"
    assert 'pod=~"smol-a-[0-9]+"' in spec["triggers"][0]["metadata"]["query"]


def test_where_it_cannot_run_is_said_by_name(rendered: Any) -> None:
    root, state, _ = rendered
    files = render(state, root, kubectl=Path("/nonexistent/kubectl"))
    with pytest.raises(ClusterError, match="several nodes"):
        read_model("smol", map(yaml.safe_load, files.values()), state)
    with pytest.raises(RenderingError, match="several nodes"):
        pod_template("smol", "prod", state.a.candidate, root, kubectl=Path("/nonexistent/kubectl"))
    vllm = engine("vllm")
    arguments = vllm.arguments(state.a.candidate.serving, model_path="/m", host="h", port=1)
    with pytest.raises(UsageError, match="several nodes"):
        vllm.local_command(Path("python"), arguments, host="h", port=1)


def test_the_candidate_beside_it_may_be_of_one_node(rendered: Any, kubectl: Path) -> None:
    root, state, before = rendered
    data = {**state.to_data(), "b": occupant("two").to_data(), "phase": Phase.DEPLOYING}
    both = objects(render(type(state).model_validate(data), root, kubectl=kubectl))
    assert both["LeaderWorkerSet", "smol-a"] == before["LeaderWorkerSet", "smol-a"]
    assert both["Deployment", "smol-b"]["spec"]["replicas"] == 1
    assert state.stable is Slot.A
