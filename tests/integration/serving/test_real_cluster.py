"""Against the API server of KUBECONFIG: every rendered object is taken by server-side apply without an error or a warning.

Only its namespaces are made (and removed again); everything else is a dry run on the server, admission included. Needs the
custom resources' definitions that the template names, and rights to make namespaces.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_world import KUBECTL, TEMPLATE, candidate
from kubernetes import client, dynamic

from lockgate.adapters.kube import Reader, configured_client
from lockgate.domain.digests import Digest
from lockgate.domain.release_state import Occupant, Phase, ReleaseState, Slot
from lockgate.domain.spec import CanarySpec, CanaryStep
from serving.kubernetes_cluster import Gateway, KubernetesCluster
from serving.manifests import kustomize, render

pytestmark = pytest.mark.skipif(
    not os.environ.get("KUBECONFIG"), reason="KUBECONFIG is not set: no real API server"
)
MANAGER = "lockgate-test"


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


def rendered(root: Path) -> list[dict[str, Any]]:
    """Platform, agents' objects, and a canary with a fresh baseline: every kind of object that Lockgate makes."""
    found: list[dict[str, Any]] = []
    for path in sorted((root / "platform").rglob("kustomization.yaml")):
        document = yaml.safe_load(path.read_text())
        if document["kind"] == "Kustomization":
            found += kustomize.build(path.parent, kubectl=KUBECTL)
    for path in sorted((root / "clusters").rglob("*.yaml")):
        found += [item for item in yaml.safe_load_all(path.read_text()) if item]
    stable, new = (
        Occupant(candidate=candidate(name), release=name, evidence=Digest.of_bytes(b"evidence"))
        for name in ("one", "two")
    )
    state = ReleaseState(
        model="tiny", environment="local", generation=3, phase=Phase.CANARY, a=stable, b=new,
        stable=Slot.A, step=0, weight=5, fresh_baseline=True,
        canary=CanarySpec(steps=(CanaryStep(weight=5),), baseline="fresh"),
    )  # fmt: skip
    found += map(yaml.safe_load, render(state, root, kubectl=KUBECTL).values())
    return [item for item in found if item.get("kind") not in ("Kustomization", "Component")
            or "toolkit.fluxcd.io" in item["apiVersion"]]  # fmt: skip


@pytest.fixture(scope="module")
def objects(
    server: Server, tmp_path_factory: pytest.TempPathFactory, kubectl: Path
) -> Iterator[list[Any]]:
    root = tmp_path_factory.mktemp("repository")
    shutil.copytree(TEMPLATE, root, dirs_exist_ok=True)
    found = rendered(root)
    made = []
    try:
        for item in found:
            if item["kind"] != "Namespace":
                continue
            name = item["metadata"]["name"]
            if not server.has_namespace(name):
                made.append(name)
                assert server.apply(item, dry_run=False) == []
        yield found
    finally:
        for name in made:
            server.remove_namespace(name)


def test_a_real_api_server_takes_every_rendered_object_without_an_error_or_a_warning(
    server: Server, objects: list[dict[str, Any]]
) -> None:
    problems = {}
    for item in objects:
        said = server.apply(item)
        if said:
            problems[f"{item['kind']} {item['metadata']['name']}"] = said
    assert problems == {}, json.dumps(problems, indent=1)


def test_the_pods_of_every_workload_are_admitted_by_the_namespaces_pod_security(
    server: Server, objects: list[dict[str, Any]]
) -> None:
    templates = [item for item in objects if item["kind"] == "Deployment"]
    assert templates
    for item in templates:
        template = item["spec"]["template"]
        metadata = {**template["metadata"], "name": "probe"}
        metadata["namespace"] = item["metadata"]["namespace"]
        spec = {**template["spec"]}
        # The account and the class are dry runs too, and a pod's admission looks for real ones.
        spec.pop("serviceAccountName", None)
        spec.pop("priorityClassName", None)
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        assert server.apply(pod) == []


def test_a_namespace_without_models_is_read_as_such(server: Server, objects: list[Any]) -> None:
    cluster = KubernetesCluster(
        "local", gateway=Gateway("https://{model}"), remote="r", reader=Reader(server.api)
    )
    assert cluster.status().models == {}
