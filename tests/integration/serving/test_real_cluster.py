"""Against the API server of KUBECONFIG: every rendered object is taken by server-side apply without an error or a warning.

Only its namespaces are made (and removed again); everything else is a dry run on the server, admission included. Needs the
custom resources' definitions that the template names, and rights to make namespaces. What would be sent is looked at without a
cluster, too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from kubernetes import client, dynamic

from lockgate.adapters.git import Admission, Agent, Cloud, Layout
from lockgate.adapters.kube import Reader, configured_client
from lockgate.domain.release_state import Phase, ReleaseState, Slot
from lockgate.domain.spec import CanarySpec, CanaryStep, Resources
from serving.kubernetes_cluster import Gateway, KubernetesCluster
from serving.manifests import kustomize, render
from serving.manifests.groups import pod_templates
from tests.integration.git.layouts import (
    SERVED,
    lay_files,
    occupant,
    own_checks,
    slot_objects,
    taken_up,
)

real = pytest.mark.skipif(
    not os.environ.get("KUBECONFIG"), reason="KUBECONFIG is not set: no real API server"
)
MANAGER = "lockgate-test"
ENVIRONMENT = "local"
CHOICES: tuple[tuple[Agent, Admission], ...] = (("argocd", "kyverno"), ("flux", "policy-controller"))  # fmt: skip


class Server:
    """Server-side apply as an agent does it, with what the server warns of."""

    def __init__(self) -> None:
        self.api = configured_client()
        self._dynamic = dynamic.DynamicClient(self.api)

    def apply(self, item: dict[str, Any], *, dry_run: bool = True) -> list[str]:
        """Errors and warnings."""
        try:
            resource = self._dynamic.resources.get(
                api_version=item["apiVersion"], kind=item["kind"]
            )
        except dynamic.exceptions.ResourceNotFoundError:
            return [f"the cluster does not know {item['apiVersion']} {item['kind']}"]
        path = resource.path(item["metadata"]["name"], item["metadata"].get("namespace"))
        query = [("fieldManager", MANAGER), ("force", "true"), ("fieldValidation", "Strict")]
        if dry_run:
            query.append(("dryRun", "All"))
        arguments = self.api.param_serialize(
            method="PATCH",
            resource_path=path,
            query_params=query,
            header_params={
                "Content-Type": "application/apply-patch+yaml",
                "Accept": "application/json",
            },
            body=item,
            auth_settings=["BearerToken"],
        )
        try:
            answer = self.api.call_api(*arguments, _request_timeout=(5, 30)).response
        except client.ApiException as error:
            return [f"{error.status}: {error.body}"]
        said = answer.headers.getlist("Warning")
        return said if answer.status < 300 else [f"{answer.status}: {answer.data!r}", *said]

    def remove_namespace(self, name: str) -> None:
        client.CoreV1Api(self.api).delete_namespace(name, _request_timeout=(5, 30))

    def has_namespace(self, name: str) -> bool:
        listed = client.CoreV1Api(self.api).list_namespace(_request_timeout=(5, 30))
        return name in {item.metadata.name for item in listed.items}


@pytest.fixture(scope="module")
def server() -> Server:
    return Server()


def platform(root: Path, cloud: Cloud, kubectl: Path) -> Iterator[dict[str, Any]]:
    """What agents apply of cluster and environment, once plain and once with every optional component."""
    cluster = root / f"clouds/{cloud}/cluster/kustomization.yaml"
    own = root / f"platform/environments/{ENVIRONMENT}/kustomization.yaml"
    for path, components in (
        (cluster, ["../../../platform/cluster/mtls"]),
        (own, ["../../components/mtls", "../../components/rate-limit"]),
    ):
        yield from kustomize.build(path.parent, kubectl=kubectl)
        data = yaml.safe_load(path.read_text())
        data["components"] = [*data["components"], *components]
        path.write_text(yaml.safe_dump(data))
        yield from kustomize.build(path.parent, kubectl=kubectl)
    yield from kustomize.build(root / "apps/vllm/nodes/karpenter", kubectl=kubectl)
    for path in sorted((root / "clusters").rglob("*.yaml")):
        yield from yaml.safe_load_all(path.read_text())


def slots(root: Path, kubectl: Path) -> Iterator[dict[str, Any]]:
    """Slots of every engine and size with all components, and a canary beside a fresh baseline with its route."""
    gpu = Resources(cpu=8, memory="64Gi", gpu=1)
    components = {p.name for p in (root / "apps/vllm/components").iterdir()}
    components -= {"gpu", "read-only-root"}
    for name, serving in SERVED.items():
        chosen = components - ({"persistent-cache"} if name == "kserve-serverless" else set())
        with taken_up(root, ENVIRONMENT, *sorted(chosen)):
            yield from slot_objects(root, ENVIRONMENT, gpu, kubectl, **serving)
    weighted = CanaryStep(weight=5)
    mirror = CanaryStep(weight=0, traffic="mirror", mirror_percent=10)
    for canary in (
        CanarySpec(steps=(weighted,), baseline="fresh"), CanarySpec(steps=(mirror, weighted))
    ):  # fmt: skip
        state = ReleaseState(
            model="tiny", environment=ENVIRONMENT, generation=3, phase=Phase.CANARY, stable=Slot.A,
            a=occupant(Resources()), b=occupant(Resources(cpu=2)), step=0, canary=canary,
            weight=canary.steps[0].weight, fresh_baseline=canary.baseline == "fresh",
        )  # fmt: skip
        yield from map(yaml.safe_load, render(state, root, kubectl=kubectl).values())


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory, kubectl: Path) -> list[dict[str, Any]]:
    """Every object of every cloud with either agent, each once."""
    found: dict[str, dict[str, Any]] = {}
    for cloud in get_args(Cloud):
        for agent, admission in CHOICES:
            root = lay_files(
                tmp_path_factory.mktemp(f"{cloud}-{agent}") / "r",
                Layout((ENVIRONMENT,), agent, cloud, admission, monitoring=True),
            )
            made = [*platform(root, cloud, kubectl)]
            if agent == "argocd":  # slots know nothing of agents
                made += slots(root, kubectl)
            found |= {json.dumps(item, sort_keys=True): item for item in made if item}
    return list(found.values())


@pytest.fixture(scope="module")
def objects(server: Server, rendered: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    made = []
    try:
        for item in rendered:
            name = item["metadata"]["name"]
            if item["kind"] == "Namespace" and name not in made and not server.has_namespace(name):
                made.append(name)
                assert server.apply(item, dry_run=False) == []
        yield rendered
    finally:
        for name in made:
            server.remove_namespace(name)


def test_what_would_be_sent_holds_every_kind_and_is_valid_as_it_is(
    rendered: list[dict[str, Any]], tmp_path: Path
) -> None:
    checks = own_checks()
    schemas = Path(__file__).parents[3] / "gitops_repo_template/schemas"
    assert checks.check(rendered, schemas, set()) == []
    kinds = {item["kind"] for item in rendered}
    custom = {path.stem.partition("_")[0] for path in schemas.rglob("*.json")}
    # The audit policy is a file of the API server's, and nobody sends it.
    assert custom - {kind.lower() for kind in kinds} == {"policy", "servicemonitor"}
    assert {"Deployment", "HorizontalPodAutoscaler", "PersistentVolumeClaim", "StorageClass",
            "NetworkPolicy", "ValidatingAdmissionPolicy"} <= kinds  # fmt: skip


@real
def test_a_real_api_server_takes_every_rendered_object_without_an_error_or_a_warning(
    server: Server, objects: list[dict[str, Any]]
) -> None:
    problems = {}
    for item in objects:
        said = server.apply(item)
        if said:
            problems[f"{item['kind']} {item['metadata']['name']}"] = said
    assert problems == {}, json.dumps(problems, indent=1)


@real
def test_the_pods_of_every_workload_are_admitted_by_the_namespaces_pod_security(
    server: Server, objects: list[dict[str, Any]]
) -> None:
    workloads = [item for item in objects if item["kind"] in ("Deployment", "LeaderWorkerSet")]
    assert workloads
    for item, template in ((w, t) for w in workloads for t in pod_templates(w)):
        metadata = {**template["metadata"], "name": "probe"}
        metadata["namespace"] = item["metadata"]["namespace"]
        spec = {**template["spec"]}
        # The account and the class are dry runs too, and a pod's admission looks for real ones.
        spec.pop("serviceAccountName", None)
        spec.pop("priorityClassName", None)
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        assert server.apply(pod) == []


@real
def test_a_namespace_without_models_is_read_as_such(server: Server, objects: list[Any]) -> None:
    cluster = KubernetesCluster(
        ENVIRONMENT, gateway=Gateway("https://{model}"), remote="r", reader=Reader(server.api)
    )
    assert cluster.status().models == {}
