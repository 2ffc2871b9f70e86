"""Each component of `apps/vllm/components` on a rendered slot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lockgate.errors import RenderingError
from serving.local.desired import read_model
from serving.manifests import check_identity, render
from serving.manifests.test_job import job
from tests.unit.serving.rendering import (
    TEMPLATE,
    check,
    objects,
    occupant,
    repository,
    state_of,
    write_component,
)

FETCHER = "registry.example.com/lockgate@sha256:" + "1" * 64
COMPONENTS = sorted(p.name for p in (TEMPLATE / "apps" / "vllm" / "components").iterdir())
FETCHER_IMAGE = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "any"},
    "spec": {"template": {"spec": {"initContainers": [{"name": "fetch-model", "image": FETCHER}]}}},
}
TOGETHER = [name for name in COMPONENTS if not name.startswith("spot-")]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory, kubectl: Path) -> Any:
    """The stable slot with all components at once that go together: what one leaves behind cannot break another."""
    root = repository(tmp_path_factory.mktemp("all"), TOGETHER, [FETCHER_IMAGE])
    one = occupant("one", resources={"gpu": 2}, parallel={"tensor": 2})
    return objects(render(state_of(a=one), root, kubectl=kubectl)), one


def pod_of(found: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    pod: dict[str, Any] = found["Deployment", "smol-a"]["spec"]["template"]["spec"]
    return pod


def test_all_components_together_are_valid_and_change_nothing_that_was_attested(
    rendered: Any,
) -> None:
    found, one = rendered
    assert {kind for kind, _ in found} == {
        "Deployment", "Service", "PodDisruptionBudget", "ServiceAccount", "HTTPRoute",
        "VerticalPodAutoscaler", "PersistentVolumeClaim",
    }  # fmt: skip
    for (kind, name), item in found.items():
        assert item["metadata"]["namespace"] == "lockgate-prod"
        if kind != "HTTPRoute":
            assert name == "smol-a"
            assert item["metadata"]["labels"]["lockgate.dev/slot"] == "a"
    check_identity(found["Deployment", "smol-a"], one, 1)


def test_weights_come_by_an_init_container_with_the_very_digest(rendered: Any) -> None:
    found, one = rendered
    pod = pod_of(found)
    (fetcher,) = pod["initContainers"]
    assert fetcher["image"] == FETCHER
    assert fetcher["args"] == ["pull", str(one.candidate.model), "/weights/models"]
    model = next(v for v in pod["volumes"] if v["name"] == "model")
    assert model == {"name": "model", "emptyDir": {}}
    (mount,) = (m for m in pod["containers"][0]["volumeMounts"] if m["name"] == "model")
    assert (mount["subPath"], mount["readOnly"]) == ("models", True)
    assert fetcher["volumeMounts"][0] == {"name": "model", "mountPath": "/weights"}
    other = {**found["Deployment", "smol-a"]}
    fetcher["args"] = ["pull", "registry.example.com/other@sha256:" + "2" * 64, "/weights/models"]
    with pytest.raises(RenderingError, match="model"):
        check_identity(other, one)
    fetcher["args"] = ["pull", str(one.candidate.model), "/weights/models"]


def test_an_init_container_without_an_image_of_ones_own_is_refused(
    tmp_path: Path, kubectl: Path
) -> None:
    with pytest.raises(RenderingError, match="has no image yet"):
        render(state_of(), repository(tmp_path, ["init-container"]), kubectl=kubectl)


def test_the_recommender_looks_at_the_slot_and_may_change_nothing(rendered: Any) -> None:
    spec = rendered[0]["VerticalPodAutoscaler", "smol-a"]["spec"]
    assert spec["updatePolicy"] == {"updateMode": "Off"}
    assert spec["targetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "smol-a"}
    assert spec["resourcePolicy"]["containerPolicies"][0]["controlledResources"] == [
        "cpu",
        "memory",
    ]


def test_a_cache_that_outlives_pods_belongs_to_one_slot(rendered: Any) -> None:
    pod = pod_of(rendered[0])
    cache = next(v for v in pod["volumes"] if v["name"] == "cache")
    assert cache == {"name": "cache", "persistentVolumeClaim": {"claimName": "smol-a"}}
    claim = rendered[0]["PersistentVolumeClaim", "smol-a"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_a_test_server_does_not_wait_for_a_slots_own_claim(rendered: Any) -> None:
    found, one = rendered
    made = job(
        found["Deployment", "smol-a"]["spec"]["template"], one.candidate,
        name="test", namespace="tests", lifetime_seconds=60, node_selector={},
    )  # fmt: skip
    check(made)
    volumes = made["spec"]["template"]["spec"]["volumes"]
    assert {"name": "cache", "emptyDir": {}} in volumes
    assert made["spec"]["template"]["spec"]["initContainers"][0]["name"] == "fetch-model"


def test_a_slice_of_a_gpu_is_refused_by_the_embedded_cluster(tmp_path: Path, kubectl: Path) -> None:
    state = state_of(a=occupant("one", resources={"gpu": 1, "gpu_resource": "mig-3g.40gb"}))
    files = render(state, repository(tmp_path), kubectl=kubectl)
    (slot,) = read_model("smol", map(yaml.safe_load, files.values()), state).slots
    assert slot.refusal == "nvidia.com/mig-3g.40gb is not supported by the embedded cluster"


def test_what_the_others_add_is_there(rendered: Any) -> None:
    found, _ = rendered
    template = found["Deployment", "smol-a"]["spec"]["template"]
    annotations = template["metadata"]["annotations"]
    assert annotations["karpenter.sh/do-not-disrupt"] == "true"
    assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
    pod = template["spec"]
    (container,) = pod["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["priorityClassName"] == "lockgate-serving"
    (key,) = (e for e in container["env"] if e["name"] == "VLLM_API_KEY")
    assert key["valueFrom"]["secretKeyRef"]["name"] == "vllm-api-key"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod[
        "tolerations"
    ]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert {"name": "USER", "value": "vllm"} in container["env"]
    shm = next(v for v in pod["volumes"] if v["name"] == "shm")
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "6Gi"}
    for variable in container["env"]:
        if variable["name"].endswith(("HOME", "_ROOT", "_DIR")):
            mounts = [m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")]
            assert any(variable["value"].startswith(mount) for mount in mounts), variable


@pytest.mark.parametrize(
    ("component", "key"),
    [
        ("spot-karpenter", "karpenter.sh/capacity-type"),
        ("spot-gke", "cloud.google.com/gke-spot"),
        ("spot-aks", "kubernetes.azure.com/scalesetpriority"),
    ],
)
def test_spot_nodes_are_preferred_and_gpus_are_still_tolerated(
    tmp_path: Path, kubectl: Path, component: str, key: str
) -> None:
    one = occupant("one", resources={"gpu": 1, "gpu_resource": "mig-3g.40gb"})
    # What a cloud asks for by itself stays, but for the demand that capacity is bought.
    bought = {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "any"},
        "spec": {"template": {"spec": {"nodeSelector": {"pool": "gpu", "karpenter.sh/capacity-type": "on-demand"}}}},
    }  # fmt: skip
    root = repository(tmp_path, ["cloud", component])
    write_component(root, "cloud", bought)
    pod = pod_of(objects(render(state_of(a=one), root, kubectl=kubectl)))
    (preferred,) = pod["affinity"]["nodeAffinity"][
        "preferredDuringSchedulingIgnoredDuringExecution"
    ]
    assert preferred["preference"]["matchExpressions"][0]["key"] == key
    kept = {} if component == "spot-karpenter" else {"karpenter.sh/capacity-type": "on-demand"}
    assert pod["nodeSelector"] == {"pool": "gpu", **kept}
    keys = {toleration["key"] for toleration in pod["tolerations"]}
    assert "nvidia.com/gpu" in keys
    assert component == "spot-karpenter" or key in keys
    limits = pod["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/mig-3g.40gb"] == "1"
    assert "nvidia.com/gpu" not in limits


def test_node_pools_are_valid_and_never_consolidate_a_node_with_a_server() -> None:
    directory = TEMPLATE / "apps" / "vllm" / "nodes" / "karpenter"
    pools = list(yaml.safe_load_all((directory / "nodepools.yaml").read_text()))
    assert [pool["metadata"]["name"] for pool in pools] == ["lockgate-gpu", "lockgate-gpu-spot"]
    for pool in pools:
        check(pool)
        assert pool["spec"]["disruption"]["consolidationPolicy"] == "WhenEmpty"
