"""Who may reach whom and who may do what: derived from the rendered YAML, and compared with what is meant."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest

from lockgate.adapters.git import Admission, Agent, Cloud, Layout
from serving.engines.registry import engine

ROOT = Path(__file__).parents[3]
OUTSIDE = {"DNS": (53,), "outside": (443, 6443)}
STEP = {**OUTSIDE, "Prefect's server": (4200,)}
REACH: dict[str, dict[str, tuple[int, ...]]] = {
    "caller outside": {"gateway": (10443,)},
    "other pod in the cluster": {"gateway": (10443,)},
    "gateway": {"slot": (8000,), "DNS": (53,), "Envoy Gateway's controller": (18000,)},
    "Prometheus": {"gateway": (10443, 19001), "slot": (8000,), "state metrics": (9101,)},
    "slot": {"DNS": (53,)},
    "worker": STEP,
    "release": {**STEP, "outside": (22, 443, 6443), "gateway": (19001,), "slot": (8000,)},
    "prepare": STEP,
    "measure": {**STEP, "test server": (8000,)},
    "sign": STEP,
    "state metrics": {**OUTSIDE, "outside": (22, 443, 6443)},
    # Its database, and where notifications go.
    "Prefect's server": {"DNS": (53,), "outside": (443, 5432)},
}
READ = ("get", "list", "watch")
APPLY = ("create", "delete", "get", "list", "patch", "update", "watch")
RENDERED = {
    "deployments.apps", "horizontalpodautoscalers.autoscaling", "httproutes.gateway.networking.k8s.io",
    "inferenceservices.serving.kserve.io", "leaderworkersets.leaderworkerset.x-k8s.io",
    "llminferenceservices.serving.kserve.io", "networkpolicies.networking.k8s.io",
    "persistentvolumeclaims", "poddisruptionbudgets.policy", "scaledobjects.keda.sh", "serviceaccounts", "services", "verticalpodautoscalers.autoscaling.k8s.io",
}  # fmt: skip
WORKER = {
    "jobs.batch": ("create", *READ),
    "pods": ("list", "watch"),
    "pods/log": ("get",),
}
RIGHTS: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {
    ("lockgate/lockgate-release", "lockgate-production"): dict.fromkeys(
        (RENDERED & {
            "deployments.apps", "httproutes.gateway.networking.k8s.io",
            "inferenceservices.serving.kserve.io", "leaderworkersets.leaderworkerset.x-k8s.io",
            "llminferenceservices.serving.kserve.io",
        }) | {"pods", "replicasets.apps", "revisions.serving.knative.dev", "serviceaccounts"},
        READ,
    ),
    ("lockgate/lockgate-measure", "lockgate-tests"): {
        "jobs.batch": ("create", "delete", "get"),
        "services": ("create", "delete"),
        "pods": ("list",),
        "pods/log": ("get",),
    },
    ("lockgate/lockgate-measure", "cluster"): {"nodes": ("get",)},
    ("lockgate/lockgate-prepare", ""): {"": ()},
    ("lockgate-sign/lockgate-sign", ""): {"": ()},
    ("lockgate-production/lockgate-secrets", ""): {"": ()},
    ("prefect/lockgate-secrets", ""): {"": ()},
    ("lockgate/lockgate-metrics", ""): {"": ()},
    ("lockgate/lockgate-secrets", ""): {"": ()},
    ("lockgate-sign/lockgate-secrets", ""): {"": ()},
    ("lockgate/lockgate-worker", "lockgate"): WORKER,
    ("lockgate-sign/lockgate-worker", "lockgate-sign"): WORKER,
}  # fmt: skip
AGENT_RIGHTS: dict[str, dict[tuple[str, str], dict[str, tuple[str, ...]]]] = {
    "argocd": {
        ("argocd/lockgate-platform", "cluster"): {"*.*": ("*",)},
        ("argocd/lockgate-secrets", ""): {"": ()},
        ("lockgate-production/lockgate-agent", "lockgate-production"): dict.fromkeys(RENDERED, APPLY),
        ("lockgate/lockgate-release", "argocd"): {"applications.argoproj.io": ("get",)},
    },
    "flux": {
        ("flux-system/lockgate-platform", "cluster"): {"*.*": ("*",)},
        ("flux-system/lockgate-secrets", ""): {"": ()},
        ("flux-system/lockgate-models-production", "lockgate-production"): dict.fromkeys(RENDERED, APPLY),
        ("lockgate/lockgate-release", "flux-system"): {
            "kustomizations.kustomize.toolkit.fluxcd.io": ("get",),
            "gitrepositories.source.toolkit.fluxcd.io": ("get",),
        },
    },
}  # fmt: skip


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


@pytest.fixture(scope="module")
def rendered(tables: ModuleType, kubectl: Path) -> dict[tuple[Cloud, Agent], list[dict[str, Any]]]:
    choices: tuple[tuple[Cloud, Agent], ...] = (
        ("eks", "argocd"), ("eks", "flux"), ("gke", "flux"), ("aks", "argocd"), ("onprem", "flux"),
    )  # fmt: skip
    return {
        (cloud, agent): tables.rendered(
            Layout(("production",), agent, cloud, lockgate_image=tables.IMAGE), kubectl
        )
        for cloud, agent in choices
    }


def test_nothing_is_reachable_but_what_serving_and_the_pipeline_need(
    tables: ModuleType, rendered: dict[tuple[Cloud, Agent], list[dict[str, Any]]]
) -> None:
    for (cloud, _), objects in rendered.items():
        wanted = {(s, d): ports for s, to in REACH.items() for d, ports in to.items()}
        if (
            cloud == "gke"
        ):  # its metadata server, which hands out the pod's identity, not the node's
            for step in ("release", "prepare", "measure", "sign"):
                wanted[step, "node's metadata service"] = (80,)
        assert tables.reach(objects) == wanted, cloud


def test_the_release_flow_reaches_prometheus_where_it_asks_it_and_there_only(
    tables: ModuleType, kubectl: Path
) -> None:
    layout = Layout(("production",), "argocd", "eks")
    for mtls, port in ((False, 9090), (True, 15008)):
        without = tables.reach(tables.rendered(layout, kubectl, mtls=mtls))
        found = tables.reach(tables.rendered(layout, kubectl, mtls=mtls, prometheus=True))
        assert {k: v for k, v in found.items() if without.get(k) != v} == {
            ("release", "Prometheus"): (port,)
        }


def test_what_is_scraped_and_what_the_release_flow_reads_is_let_through(
    tables: ModuleType, kubectl: Path
) -> None:
    layout = Layout(("production",), "argocd", "eks", monitoring=True)
    objects = tables.rendered(layout, kubectl)
    reach = tables.reach(objects)
    ends = {"model-servers": "slot", "gateway": "gateway", "release-states": "state metrics"}
    named = {"http": engine("vllm").port, "metrics": 9101}
    monitors = {o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == "PodMonitor"}
    assert set(monitors) == set(ends)
    ports = {}
    for name, spec in monitors.items():
        (endpoint,) = spec["podMetricsEndpoints"]
        ports[name] = endpoint.get("portNumber") or named[endpoint["port"]]
        assert ports[name] in reach["Prometheus", ends[name]], name
    for name in ("model-servers", "gateway"):
        assert ports[name] in reach["release", ends[name]], name
    [service] = [o for o in objects if o["metadata"]["name"] == "models-metrics"]
    [port] = service["spec"]["ports"]
    assert port["targetPort"] == ports["gateway"]
    text = (ROOT / "docs/real-cluster.md").read_text()
    address = f"http://models-metrics.lockgate-gateway:{ports['gateway']}/stats/prometheus"
    assert f"LOCKGATE_GATEWAY_METRICS={address}" in text
    assert f"--listen 0.0.0.0:{ports['release-states']}" in text


def test_in_the_mesh_a_slot_is_reached_through_the_mesh_alone(
    tables: ModuleType, kubectl: Path
) -> None:
    objects = tables.rendered(Layout(("production",), "flux", "aks"), kubectl, mtls=True)
    reach = tables.reach(objects)
    reached = {s: ports for (s, d), ports in reach.items() if d == "slot"}
    assert reached == {"gateway": (15008,), "Prometheus": (15008,), "release": (15008,)}
    assert reach["release", "gateway"] == reach["Prometheus", "state metrics"] == (15008,)
    [authentication] = [o for o in objects if o["kind"] == "PeerAuthentication"]
    assert authentication["spec"] == {"mtls": {"mode": "STRICT"}}
    meshed = {
        o["metadata"]["name"]
        for o in objects
        if o["kind"] == "Namespace"
        and o["metadata"]["labels"].get("istio.io/dataplane-mode") == "ambient"
    }
    assert meshed == {"lockgate", "lockgate-gateway", "lockgate-production"}


def test_nobody_may_do_more_than_his_part(
    tables: ModuleType, rendered: dict[tuple[Cloud, Agent], list[dict[str, Any]]]
) -> None:
    for (cloud, agent), objects in rendered.items():
        test_pods = ("default", "lockgate-secrets") if cloud == "onprem" else ()
        nothing = {(f"lockgate-tests/{name}", ""): {"": ()} for name in test_pods}
        wanted = {
            (who, place, what): tuple(sorted(verbs))
            for (who, place), rights in {**RIGHTS, **AGENT_RIGHTS[agent], **nothing}.items()
            for what, verbs in rights.items()
        }
        assert tables.rights(objects) == wanted
        assert "secrets" not in json.dumps([o for o in objects if o["kind"] in ("Role", "ClusterRole")])  # fmt: skip


def _plural(kind: str) -> str:
    return re.sub(r"ys$", "ies", f"{kind.lower()}s")


def test_what_argo_cd_may_apply_of_models_is_what_its_account_may(
    rendered: dict[tuple[Cloud, Agent], list[dict[str, Any]]],
) -> None:
    objects = rendered["eks", "argocd"]
    [project] = [o for o in objects if o["metadata"]["name"] == "lockgate-models-production" and o["kind"] == "AppProject"]  # fmt: skip
    listed = {
        f"{_plural(e['kind'])}.{e['group']}".rstrip(".")
        for e in project["spec"]["namespaceResourceWhitelist"]
    }
    assert listed == RENDERED
    assert project["spec"]["clusterResourceWhitelist"] == []


@pytest.mark.parametrize("admission", ["kyverno", "policy-controller"])
def test_what_the_agents_projects_may_make_covers_what_the_repository_renders(
    tables: ModuleType, kubectl: Path, admission: Admission
) -> None:
    """With everything that an environment and a cluster may take up: admission engine, mesh, rate limit, monitoring."""
    for cloud in get_args(Cloud):
        layout = Layout(
            ("production",),
            "argocd",
            cloud,
            admission,
            monitoring=True,
            lockgate_image=tables.IMAGE,
        )
        # What a person applies beside the agent, before Prefect's charts, is not the agent's.
        objects = tables.rendered(
            layout, kubectl, mtls=True, components=("rate-limit",), prefect=False
        )
        found = {o["kind"] for o in objects}
        assert {"PodMonitor", "PrometheusRule", "EnvoyProxy", "PeerAuthentication",
                "BackendTrafficPolicy", "ExternalSecret", "SecretStore"} <= found  # fmt: skip
        projects = {o["metadata"]["name"]: o["spec"] for o in objects if o["kind"] == "AppProject"}
        bootstrap = {"argocd", "flux-system"}
        for item in objects:
            place = item["metadata"].get("namespace")
            if place in bootstrap or item["metadata"]["name"] == "lockgate-platform-argocd":
                continue
            whose = "lockgate-platform-production" if place == "lockgate-production" else "lockgate-cluster"  # fmt: skip
            if item["metadata"]["name"] == "lockgate-production":
                whose = "lockgate-platform-production"
            key = "namespaceResourceWhitelist" if place else "clusterResourceWhitelist"
            group = item["apiVersion"].rpartition("/")[0]
            assert {"group": group, "kind": item["kind"]} in projects[whose][key], item["kind"]
            if place:
                assert place in {d["namespace"] for d in projects[whose]["destinations"]}


def test_every_namespace_of_lockgates_refuses_what_is_not_restricted(
    rendered: dict[tuple[Cloud, Agent], list[dict[str, Any]]],
) -> None:
    for objects in rendered.values():
        namespaces = [o for o in objects if o["kind"] == "Namespace"]
        assert {o["metadata"]["name"] for o in namespaces} == {
            "lockgate", "lockgate-sign", "lockgate-gateway", "lockgate-tests", "lockgate-production",
            "prefect",
        }  # fmt: skip
        for namespace in namespaces:
            labels = namespace["metadata"]["labels"]
            for mode in ("enforce", "audit", "warn"):
                assert labels[f"pod-security.kubernetes.io/{mode}"] == "restricted"
                assert labels[f"pod-security.kubernetes.io/{mode}-version"] == "v1.35"
            signed = labels.get("lockgate.dev/images") == "signed"
            assert signed is (namespace["metadata"]["name"] == "lockgate-production")
            own = [
                o["spec"]["podSelector"] == {}
                and set(o["spec"]["policyTypes"]) == {"Ingress", "Egress"}
                for o in objects
                if o["kind"] == "NetworkPolicy"
                and o["metadata"]["namespace"] == namespace["metadata"]["name"]
            ]
            assert any(own), f"{namespace['metadata']['name']} has no policy for all of its pods"


def test_every_secret_by_reference_finds_its_store_and_the_identity_that_reads_it(
    rendered: dict[tuple[Cloud, Agent], list[dict[str, Any]]],
) -> None:
    for objects in rendered.values():
        there = {(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects}  # fmt: skip
        assert len(there) == len(objects)
        external = [o for o in objects if o["kind"] == "ExternalSecret"]
        places = {o["metadata"]["namespace"] for o in external}
        assert places >= {"prefect", "lockgate", "lockgate-sign", "lockgate-production"}
        for item in external:
            place, ref = item["metadata"]["namespace"], item["spec"]["secretStoreRef"]
            assert (ref["kind"], place, ref["name"]) in there
        for item in objects:
            if item["kind"] == "SecretStore":
                [account] = _service_accounts(item["spec"]["provider"])
                assert ("ServiceAccount", item["metadata"]["namespace"], account) in there


def _service_accounts(value: Any) -> list[str]:
    if not isinstance(value, dict):
        return []
    named = [value["serviceAccountRef"]["name"]] if "serviceAccountRef" in value else []
    return named + [name for inner in value.values() for name in _service_accounts(inner)]


def test_the_evaluator_of_network_policies_knows_what_a_policy_says(tables: ModuleType) -> None:
    """Against the examples that the specification gives: no policy, deny all, allow all, peers joined by and, by or."""
    server = tables.Pod("server", "own", {"app": "db"})
    friend = tables.Pod("friend", "other", {"role": "client"})
    stranger = tables.Pod("stranger", "other", {"role": "else"})
    outside = tables.Pod("outside", address="192.0.2.1")
    namespaces = {"other": {"project": "p"}, "own": {}}

    def may(spec: dict[str, Any] | None, peer: Any, port: int = 80) -> bool:
        policies = [] if spec is None else [
            {"metadata": {"namespace": "own"}, "spec": {"podSelector": {}, "policyTypes": ["Ingress"], **spec}}
        ]  # fmt: skip
        return bool(tables._may(policies, namespaces, "ingress", server, peer, "TCP", port))

    both = {"namespaceSelector": {"matchLabels": {"project": "p"}}, "podSelector": {"matchLabels": {"role": "client"}}}  # fmt: skip
    either = [{"namespaceSelector": {"matchLabels": {"project": "q"}}}, {"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.128/25"]}}]  # fmt: skip
    assert may(None, stranger)
    assert not may({}, friend)
    assert may({"ingress": [{}]}, outside)
    assert may({"ingress": [{"from": [both]}]}, friend)
    assert not may({"ingress": [{"from": [both]}]}, stranger)
    assert may({"ingress": [{"from": either}]}, outside)
    assert not may({"ingress": [{"from": either}]}, friend)
    assert not may({"ingress": [{"from": [{"podSelector": {}}]}]}, friend), "its own namespace only"
    for port, wanted in itertools.product((80, 81), (80, 81)):
        rule = {"ingress": [{"from": [both], "ports": [{"protocol": "TCP", "port": wanted}]}]}
        assert may(rule, friend, port) is (port == wanted)


def test_the_page_of_the_documentation_is_what_is_rendered(
    tables: ModuleType, kubectl: Path
) -> None:
    assert tables.PAGE.read_text() == tables.page(kubectl)
