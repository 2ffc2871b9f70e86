"""The rights that the GitOps repository gives Lockgate's own identities are those that its code uses, and no more."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lockgate.adapters.git import Agent, Layout
from lockgate.adapters.kube import ArgoCd, Flux, GitOpsAgent, Kind, ModelReader
from lockgate.adapters.kube.agents import APPLICATIONS, GIT_REPOSITORIES, KUSTOMIZATIONS
from lockgate.adapters.kube.inference_service import ACCOUNTS, INFERENCE_SERVICES, REVISIONS
from lockgate.adapters.kube.kserve import LLM_SERVICES
from lockgate.adapters.kube.models import GROUPS
from serving.manifests import pod_template
from tests.unit.serving.test_kube import (
    COMMIT,
    NAMESPACE,
    Kubernetes,
    canary,
    cluster,
    llm_service,
    manifests,
)
from tests.unit.serving.test_kubernetes_job import CANDIDATE, Cluster
from tests.unit.serving.test_kubernetes_job import NAMESPACE as TESTS

KSERVE = (LLM_SERVICES, INFERENCE_SERVICES, REVISIONS, ACCOUNTS)
ROOT = Path(__file__).parents[3]
AGENTS: dict[Agent, tuple[str, ArgoCd | Flux]] = {
    "argocd": ("argocd", ArgoCd("lockgate-models-prod")),
    "flux": ("flux-system", Flux("lockgate-models-prod", "lockgate-models-prod")),
}
Rights = dict[tuple[str, str], set[str]]
"""Verbs by namespace (or `cluster`) and resource."""


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    path = ROOT / "scripts" / "make_access_tables.py"
    spec = importlib.util.spec_from_file_location("make_access_tables", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def given(tables: ModuleType, kubectl: Path, agent: Agent, who: str) -> Rights:
    """What the rendered roles and bindings give an account."""
    objects = tables.rendered(Layout(("prod",), agent, "onprem"), kubectl)
    found = tables.rights(objects).items()
    return {(place, what): set(verbs) for (name, place, what), verbs in found if name == who}


@pytest.fixture
def kubernetes() -> Iterator[Kubernetes]:
    agents = (APPLICATIONS, KUSTOMIZATIONS, GIT_REPOSITORIES)
    made = Kubernetes(NAMESPACE, (*agents, *KSERVE, GROUPS))
    yield made
    made.close()


def inference_service() -> dict[str, Any]:
    labels = {"lockgate.dev/model": "smol"}
    return {"metadata": {"name": "smol", "labels": labels}, "spec": {"predictor": {}}}


def observe(kubernetes: Kubernetes, agent: GitOpsAgent) -> None:
    """Whatever a release asks of a cluster, with an HTTPRoute and with KServe: whole status, one slot, waits for a commit."""
    observed = cluster(kubernetes, agent=agent)

    def wait() -> None:
        """By the part that waits, which watches however long the lists before it took."""
        models = ModelReader(kubernetes.reader(), NAMESPACE)
        models.wait_for_change(models.observe("smol", "http://x"), "smol", 0.3)

    kubernetes.sync(manifests(canary(4)))
    kubernetes.settle()
    observed.status()
    observed.slot_status("smol", "a")
    observed.scrape_targets("smol")
    observed.gateway_url("smol")
    assert not observed.carry_out(COMMIT, canary(5), timeout_seconds=0.5)
    wait()
    for item in manifests(canary(4))[:2]:
        kubernetes.delete(Kind("apps", "v1", "deployments"), item["metadata"]["name"])
    weights = {"a": 95, "b": 5}
    for slot in weights:
        kubernetes.put(LLM_SERVICES, llm_service(slot, weights))
    assert not observed.carry_out(COMMIT, canary(5), timeout_seconds=0.5)
    wait()
    for slot in weights:
        kubernetes.delete(LLM_SERVICES, f"smol-{slot}")
    kubernetes.put(INFERENCE_SERVICES, inference_service())
    wait()


def asked(kubernetes: Kubernetes) -> Rights:
    """The verbs that an API server would look for, of what the real client sent."""
    found: Rights = {}
    for request in kubernetes.kmock:
        if request.headers.get("x-double") is None:
            group_name, resource = request.resource.group, request.resource.plural
            what = f"{resource}.{group_name}" if group_name else resource
            verb = {"FETCH": "get"}.get(request.action.value, request.action.value.lower())
            found.setdefault((request.namespace, what), set()).add(verb)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["argocd", "flux"])
def test_the_release_flow_may_read_what_it_asks_for_and_nothing_else(
    tables: ModuleType, kubectl: Path, kubernetes: Kubernetes, agent: Agent
) -> None:
    place, object_of_agent = AGENTS[agent]
    for kind in (APPLICATIONS, KUSTOMIZATIONS, GIT_REPOSITORIES):
        named = {"name": object_of_agent.name, "namespace": place, "generation": 1}
        kubernetes.create(kind, place, {"metadata": named, "spec": {}, "status": {}})
    observe(kubernetes, object_of_agent)
    wanted = asked(kubernetes)
    rights = given(tables, kubectl, agent, "lockgate/lockgate-release")
    # A kind that holds weights is watched in its turn: HTTPRoutes or KServe's services.
    assert {"list", "watch"} <= wanted[NAMESPACE, "httproutes.gateway.networking.k8s.io"]
    assert {"list", "watch"} <= wanted[NAMESPACE, "llminferenceservices.serving.kserve.io"]
    assert {"list", "watch"} <= wanted[NAMESPACE, "inferenceservices.serving.kserve.io"]
    assert set(rights) == set(wanted)
    for key, verbs in wanted.items():
        assert verbs <= rights[key], key
    # Read whole or not at all: what is listed in the environment may be got and watched as well.
    for (where, what), verbs in rights.items():
        allowed = {"get"} if where == place else {"get", "list", "watch"}
        assert verbs == allowed, what


class _Recorded(Cluster):
    def rights(self) -> Rights:
        found: Rights = {}
        for call in self.calls:
            method, _, path = call.partition(" ")
            parts = path.strip("/").split("/")
            group_name, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
            where, rest = (rest[1], rest[2:]) if rest[0] == "namespaces" else ("cluster", rest)
            resource = rest[0] + (f"/{rest[2]}" if len(rest) > 2 else "")
            what = f"{resource}.{group_name}" if group_name else resource
            verb = {"POST": "create", "DELETE": "delete"}.get(method, "get" if rest[1:] else "list")
            found.setdefault((where, what), set()).add(verb)
        return found


@pytest.mark.slow
def test_the_measure_step_may_do_what_it_does_and_nothing_else(
    tables: ModuleType, kubectl: Path, tmp_path: Path
) -> None:
    server = _Recorded()
    template: dict[str, Any] = pod_template(
        "smol", "local", CANDIDATE, ROOT / "gitops_repo_template", kubectl=kubectl
    )
    try:
        with server.target(template).serve(CANDIDATE, log_path=tmp_path / "log"):
            pass
    finally:
        server.server.shutdown()
        server.server.server_close()
    rights = given(tables, kubectl, "flux", "lockgate/lockgate-measure")
    assert server.rights() == rights
    assert {where for where, _ in rights} == {TESTS, "cluster"}
