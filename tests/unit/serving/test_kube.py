"""The Kubernetes observer: the real client against a stateful API server."""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

sys.path.insert(0, str(Path(__file__).parent))
from kubernetes_double import PODS, ROUTES, Kubernetes, live_pod

from lockgate.adapters.kube import ArgoCd, Flux, Reader, SyncWebhook
from lockgate.adapters.kube.agents import APPLICATIONS, GIT_REPOSITORIES, KUSTOMIZATIONS
from lockgate.adapters.kube.inference_service import ACCOUNTS, INFERENCE_SERVICES, REVISIONS
from lockgate.adapters.kube.kserve import LLM_SERVICES
from lockgate.adapters.kube.models import DEPLOYMENTS, GROUPS
from lockgate.adapters.kube.reading import ENGINE_CONTAINERS
from lockgate.domain.candidates import Candidate
from lockgate.domain.cluster import lagging
from lockgate.domain.digests import Digest
from lockgate.domain.images import ImageRef
from lockgate.domain.release_state import Occupant, Phase, ReleaseState, Slot
from lockgate.domain.spec import CanarySpec, CanaryStep, ServingSpec
from lockgate.errors import ClusterError
from serving.engines.registry import ENGINES
from serving.kubernetes_cluster import Gateway, KubernetesCluster

KSERVE = (LLM_SERVICES, INFERENCE_SERVICES, REVISIONS, ACCOUNTS)
NAMESPACE = "lockgate-prod"
CANARY = CanarySpec(steps=(CanaryStep(weight=5), CanaryStep(weight=50)))
COMMIT = "c" * 40


def occupant(name: str) -> Occupant:
    candidate = Candidate(
        model=ImageRef.parse("r.example.com/smol@" + Digest.of_bytes(name.encode())),
        runtime=ImageRef.parse("r.example.com/vllm@" + Digest.of_bytes(b"runtime")),
        serving=ServingSpec(served_model_name="smol"),
    )
    return Occupant(candidate=candidate, release=name, evidence=Digest.of_bytes(b"evidence"))


def state(generation: int = 1, **changes: Any) -> ReleaseState:
    data = {
        "model": "smol", "environment": "prod", "generation": generation, "phase": Phase.STABLE,
        "a": occupant("one"), "stable": Slot.A, "canary": CANARY, **changes,
    }  # fmt: skip
    return ReleaseState.model_validate(data)


def canary(generation: int, weight: int = 5) -> ReleaseState:
    step = [s.weight for s in CANARY.steps].index(weight)
    return state(generation, phase=Phase.CANARY, b=occupant("two"), weight=weight, step=step)


def manifests(wanted: ReleaseState) -> list[dict[str, Any]]:
    """Deployments and route of a state, with what the observer reads and no more."""
    made = []
    for slot in Slot:
        found = wanted.occupant(slot)
        if found is None:
            continue
        labels = {"lockgate.dev/model": wanted.model, "lockgate.dev/slot": slot.value}
        annotations = {"lockgate.dev/candidate": str(found.candidate.digest)}
        template = {
            "metadata": {"labels": labels, "annotations": annotations},
            "spec": {"containers": [{"name": "vllm"}]},
        }
        made.append(
            {
                "kind": "Deployment",
                "metadata": {"name": f"{wanted.model}-{slot}", "labels": labels},
                "spec": {
                    "replicas": wanted.replicas(slot),
                    "selector": {"matchLabels": labels},
                    "template": template,
                },
            }
        )
    backends = [
        {"name": f"{wanted.model}-{slot}", "weight": weight}
        for slot, weight in wanted.weights().items()
    ]
    forced = {"matches": [{"headers": [{"name": "x", "value": "a"}]}], "backendRefs": []}
    made.append(
        {
            "kind": "HTTPRoute",
            "metadata": {
                "name": wanted.model,
                "labels": {"lockgate.dev/model": wanted.model},
                "annotations": {"lockgate.dev/generation": str(wanted.generation)},
            },
            "spec": {
                "parentRefs": [{"name": "models"}],
                "rules": [forced, {"backendRefs": backends}],
            },
        }
    )
    return made


@pytest.fixture
def kubernetes() -> Iterator[Kubernetes]:
    agents = (APPLICATIONS, KUSTOMIZATIONS, GIT_REPOSITORIES)
    made = Kubernetes(NAMESPACE, (*agents, *KSERVE, GROUPS))
    yield made
    made.close()


def cluster(kubernetes: Kubernetes, **more: Any) -> KubernetesCluster:
    return KubernetesCluster(
        "prod", gateway=Gateway("https://{model}.{environment}.example.com/"), remote="r",
        reader=kubernetes.reader(), **more,
    )  # fmt: skip


def missing(kubernetes: Kubernetes, wanted: ReleaseState) -> str:
    """Why a state is not in force yet, as the operator is told."""
    seen = cluster(kubernetes).status().models.get(wanted.model)
    return "; ".join(lagging(seen, wanted))


def test_a_state_is_in_force_when_every_live_object_says_so_and_is_found_by_reading_alone(
    kubernetes: Kubernetes,
) -> None:
    kubernetes.sync(manifests(canary(4)))
    kubernetes.settle()
    observed = cluster(kubernetes)
    assert observed.carry_out(COMMIT, canary(4), timeout_seconds=0)
    seen = observed.status().models["smol"]
    assert seen.generation == 4
    assert seen.route is not None
    assert seen.route.weights == {"a": 95, "b": 5}
    assert all(slot.settled for slot in seen.slots.values())
    assert seen.slots["b"].candidate == canary(4).b.candidate.digest  # type: ignore[union-attr] # it is there
    assert kubernetes.methods == {"GET"}


def test_a_later_generation_is_in_force_for_an_earlier_one_and_not_the_other_way_round(
    kubernetes: Kubernetes,
) -> None:
    kubernetes.sync(manifests(state(7)))
    kubernetes.settle()
    assert cluster(kubernetes).carry_out(COMMIT, canary(4), timeout_seconds=0)
    assert not cluster(kubernetes).carry_out(COMMIT, state(8), timeout_seconds=0)
    assert "generation 7, not 8" in missing(kubernetes, state(8))


def _candidate_not_applied(kubernetes: Kubernetes) -> None:
    _, stale, _ = manifests(canary(3))
    stale["spec"]["template"]["metadata"]["annotations"]["lockgate.dev/candidate"] = str(
        Digest.of_bytes(b"older")
    )
    kubernetes.apply(DEPLOYMENTS, stale)


def _deployment_not_observed(kubernetes: Kubernetes) -> None:
    deployment = manifests(canary(4))[1]
    deployment["spec"]["minReadySeconds"] = 5
    kubernetes.apply(DEPLOYMENTS, deployment)


def _no_replica_set(kubernetes: Kubernetes) -> None:
    deployment = kubernetes.get(DEPLOYMENTS, "smol-b")
    assert deployment is not None
    deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = "99"
    kubernetes.put(DEPLOYMENTS, deployment)


def _gateway_behind(kubernetes: Kubernetes) -> None:
    route = manifests(canary(4, weight=50))[2]
    kubernetes.apply(ROUTES, route)


def _gateway_refuses(kubernetes: Kubernetes) -> None:
    kubernetes.settle_routes(status="False", reason="BackendNotFound", message="no Service smol-b")


def _one_of_two_gateways(kubernetes: Kubernetes) -> None:
    route = kubernetes.get(ROUTES, "smol")
    assert route is not None
    route["spec"]["parentRefs"].append({"name": "second"})
    kubernetes.put(ROUTES, route)


def _slot_not_pruned(kubernetes: Kubernetes) -> None:
    leftover = manifests(canary(4))[0]
    leftover["metadata"]["name"] = "smol-baseline"
    leftover["metadata"]["labels"] = {
        "lockgate.dev/model": "smol",
        "lockgate.dev/slot": "baseline",
    }
    kubernetes.apply(DEPLOYMENTS, leftover)


@pytest.mark.parametrize(
    ("disturb", "why"),
    [
        (_candidate_not_applied, "slot b runs"),
        (_deployment_not_observed, "slot b: its controller has not looked"),
        (_no_replica_set, "slot b: its controller has not looked"),
        (_gateway_behind, "has not looked at the newest route"),
        (_gateway_refuses, "BackendNotFound: no Service smol-b"),
        (_one_of_two_gateways, "1 of 2 gateways"),
        (_slot_not_pruned, "slot baseline is to be empty"),
        (lambda k: k.delete(ROUTES, "smol"), "no route"),
        (lambda k: k.delete(DEPLOYMENTS, "smol-b"), "slot b is empty"),
    ],
)
def test_one_object_that_lags_behind_keeps_a_state_from_being_in_force_and_is_named(
    kubernetes: Kubernetes, disturb: Callable[[Kubernetes], None], why: str
) -> None:
    kubernetes.sync(manifests(canary(4)))
    kubernetes.settle()
    disturb(kubernetes)
    assert not cluster(kubernetes).carry_out(COMMIT, canary(4), timeout_seconds=0)
    assert why in missing(kubernetes, canary(4))


def test_a_canary_that_never_gets_ready_is_in_force_all_the_same_and_is_not_ready(
    kubernetes: Kubernetes,
) -> None:
    kubernetes.sync(manifests(canary(4)))
    kubernetes.settle_deployments(ready=False)
    kubernetes.settle_routes()
    assert cluster(kubernetes).carry_out(COMMIT, canary(4), timeout_seconds=0)
    slot = cluster(kubernetes).slot_status("smol", Slot.B)
    assert slot is not None
    assert (slot.updated, slot.ready, slot.settled) == (0, 0, False)


def test_pods_of_an_older_template_of_the_same_candidate_do_not_count(
    kubernetes: Kubernetes,
) -> None:
    kubernetes.sync(manifests(state()))
    kubernetes.settle()
    edited = manifests(state())[0]
    edited["spec"]["template"]["spec"]["containers"][0]["image"] = "base, edited"
    old = kubernetes.items(PODS)
    kubernetes.apply(DEPLOYMENTS, edited)
    kubernetes.settle_deployments(ready=False)
    for item in old:
        kubernetes.put(PODS, item)
    slot = cluster(kubernetes).slot_status("smol", "a")
    assert slot is not None
    assert slot.updated == 0
    assert len(slot.pods) == 2


def test_a_wait_ends_as_soon_as_the_last_object_follows_and_survives_watches_that_are_lost(
    kubernetes: Kubernetes,
) -> None:
    import kmock

    kubernetes.sync(manifests(canary(4)))
    kubernetes.settle()
    route = manifests(canary(5, weight=50))[2]
    kubernetes.apply(ROUTES, route)
    watch = kubernetes.kmock[kmock.action.WATCH]
    # The first is cut off at once, the second in the middle of a line, the third is too old; then they work.
    watch[:1] << b""
    watch[1:2] << b'{"type": "MODIFIED", "obj'
    gone = {"type": "ERROR", "object": {"code": 410, "message": "too old resource version"}}
    watch[2:3] << gone
    stopped = threading.Event()

    def follow_the_fourth() -> None:
        while len(list(watch)) < 4 and not stopped.wait(0.05):
            pass
        kubernetes.settle_routes()

    following = threading.Thread(target=follow_the_fourth)
    following.start()
    try:
        assert cluster(kubernetes).carry_out(COMMIT, canary(5, weight=50), timeout_seconds=60)
    finally:
        stopped.set()
        following.join()
    assert len(list(kubernetes.kmock[kmock.action.WATCH])) >= 4


def test_another_models_objects_do_not_answer_for_this_one_even_if_the_server_sends_them(
    kubernetes: Kubernetes,
) -> None:
    kubernetes.sync(manifests(state()))
    for item in manifests(state(9, model="other")):
        kubernetes.apply(DEPLOYMENTS if item["kind"] == "Deployment" else ROUTES, item)
    kubernetes.settle()
    found = cluster(kubernetes)
    assert set(found.status().models) == {"smol", "other"}
    assert not found.carry_out(COMMIT, state(2), timeout_seconds=0)


def waiting(kubernetes: Kubernetes, reason: str, restarts: int) -> None:
    (item,) = kubernetes.items(PODS)
    item["status"]["conditions"][0]["status"] = "False"
    container = item["status"]["containerStatuses"][0]
    container.update(restartCount=restarts, started=False, state={"waiting": {"reason": reason}})
    kubernetes.put(PODS, item)


def test_only_restarts_of_the_server_count_and_not_those_of_what_stands_beside_it(
    kubernetes: Kubernetes,
) -> None:
    assert {getattr(e, "container", e.name) for e in ENGINES.values()} == ENGINE_CONTAINERS
    kubernetes.sync(manifests(state()))
    kubernetes.settle()
    (item,) = kubernetes.items(PODS)
    item["status"]["containerStatuses"] += [
        {"name": "istio-proxy", "started": True, "restartCount": 7, "state": {"running": {}}}
    ]
    item["status"]["containerStatuses"][0]["restartCount"] = 2
    kubernetes.put(PODS, item)
    slot = cluster(kubernetes).slot_status("smol", "a")
    assert slot is not None
    assert [pod.restarts for pod in slot.pods] == [2]


@pytest.mark.parametrize(
    ("reason", "restarts", "final"),
    [
        ("CrashLoopBackOff", 5, True),
        ("CrashLoopBackOff", 1, False),
        ("InvalidImageName", 0, True),
        ("ImagePullBackOff", 0, False),
    ],
)
def test_a_crash_loop_is_final_and_an_image_that_cannot_be_pulled_may_still_come(
    kubernetes: Kubernetes, reason: str, restarts: int, final: bool
) -> None:
    kubernetes.sync(manifests(state()))
    kubernetes.settle()
    waiting(kubernetes, reason, restarts)
    slot = cluster(kubernetes).slot_status("smol", "a")
    assert slot is not None
    assert slot.updated == 0
    assert bool(slot.refusals) is final
    assert bool(slot.waiting) is not final


def test_a_pod_that_admission_denied_is_refused_for_good(kubernetes: Kubernetes) -> None:
    kubernetes.sync(manifests(state()))
    message = 'admission webhook "verify" denied the request: no signature'
    deployment = kubernetes.get(DEPLOYMENTS, "smol-a")
    assert deployment is not None
    condition = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate"}
    deployment["status"] = {"conditions": [{**condition, "message": message}]}
    kubernetes.put(DEPLOYMENTS, deployment)
    slot = cluster(kubernetes).slot_status("smol", "a")
    assert slot is not None
    assert "no signature" in slot.refusals[0]


def test_an_api_server_that_forbids_hangs_lies_or_is_away_is_an_error_that_says_so(
    kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    import kmock

    kubernetes.sync(manifests(state()))
    routes = kubernetes.kmock[kmock.resource("gateway.networking.k8s.io/v1/httproutes")]
    first = routes["get"] ** 10
    reaction = first << 403
    with pytest.raises(ClusterError, match="403 about httproutes") as forbidden:
        cluster(kubernetes).slot_status("smol", "a")
    assert "get, list and watch" in str(forbidden.value)
    assert reaction is not None
    (routes["get"] ** 20) << b"<html>"
    with pytest.raises(ClusterError, match="no JSON"):
        cluster(kubernetes).slot_status("smol", "a")
    (routes["get"] ** 30) << 503
    with pytest.raises(ClusterError, match="503"):
        cluster(kubernetes).carry_out(COMMIT, state(), timeout_seconds=0)
    away = Reader(client.ApiClient(client.Configuration(host="http://127.0.0.1:9", retries=False)))
    observed = KubernetesCluster("prod", gateway=Gateway("u"), remote="r", reader=away)
    with pytest.raises(ClusterError, match="cannot be reached"):
        observed.status()


APPLICATION = {
    "kind": "Application",
    "metadata": {"name": "lockgate-models-prod", "generation": 3},
    "spec": {},
    "status": {
        "sync": {"status": "OutOfSync", "revision": "new"},
        "health": {"status": "Degraded"},
        "operationState": {
            "phase": "Failed",
            "message": "admission webhook denied",
            "syncResult": {"revision": "new"},
        },
    },
}


def test_argo_cds_word_is_told_to_the_operator_and_decides_nothing(kubernetes: Kubernetes) -> None:
    kubernetes.sync(manifests(state()))
    kubernetes.settle()
    agent = ArgoCd("lockgate-models-prod", NAMESPACE)
    observed = cluster(kubernetes, agent=agent)
    assert "does not exist" in str(observed.status().sync_error)
    kubernetes.put(APPLICATIONS, APPLICATION)
    said = observed.status()
    assert (said.head, said.synced) == ("new", None)
    assert "the sync failed: admission webhook denied" in str(said.sync_error)
    assert observed.carry_out(COMMIT, state(), timeout_seconds=0)
    done = json.loads(json.dumps(APPLICATION))
    done["status"]["sync"]["status"] = "Synced"
    done["status"]["operationState"] = {"phase": "Succeeded", "syncResult": {"revision": "new"}}
    kubernetes.put(APPLICATIONS, done)
    said = observed.status()
    assert (said.head, said.synced, said.sync_error) == ("new", "new", None)
    assert not observed.carry_out(COMMIT, state(2), timeout_seconds=0)


def flux_object(reported: dict[str, Any], **conditions: str) -> dict[str, Any]:
    ready = {"type": "Ready", **conditions}
    return {
        "metadata": {"name": "lockgate-models-prod", "generation": 2},
        "spec": {},
        "status": {"observedGeneration": 2, "conditions": [ready], **reported},
    }


def test_fluxs_word_is_told_to_the_operator(kubernetes: Kubernetes) -> None:
    kubernetes.sync(manifests(state()))
    agent = Flux("lockgate-models-prod", "lockgate-models-prod", NAMESPACE)
    observed = cluster(kubernetes, agent=agent)
    assert "does not exist" in str(observed.status().sync_error)
    applied = {"lastAppliedRevision": "main@sha1:old", "lastAttemptedRevision": "main@sha1:new"}
    kustomization = flux_object(
        applied, status="False", reason="BuildFailed", message="bad manifest"
    )
    kubernetes.put(KUSTOMIZATIONS, kustomization)
    artifact = {"artifact": {"revision": "main@sha1:new"}}
    kubernetes.put(GIT_REPOSITORIES, flux_object(artifact, status="True"))
    said = observed.status()
    assert (said.head, said.synced) == ("new", "old")
    assert "BuildFailed: bad manifest" in str(said.sync_error)
    kustomization["metadata"]["generation"] = 3
    kubernetes.put(KUSTOMIZATIONS, kustomization)
    assert "has not looked at it" in str(observed.status().sync_error)


def test_an_agent_that_may_not_be_read_costs_the_operator_a_word_and_nothing_else(
    kubernetes: Kubernetes,
) -> None:
    import kmock

    kubernetes.sync(manifests(state()))
    kubernetes.settle()
    kubernetes.kmock[kmock.resource("argoproj.io/v1alpha1/applications")] << 403
    observed = cluster(kubernetes, agent=ArgoCd("lockgate-models-prod", NAMESPACE))
    said = observed.status()
    assert "403 about applications" in str(said.sync_error)
    assert said.models["smol"].generation == 1


class Webhook:
    """Takes requests, or refuses them."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.status = 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.requests.append((dict(self.headers.items()), body))
                self.send_response(outer.status)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook/abc"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.mark.parametrize(
    "remote", ["ssh://git@git.example.com:22/platform/gitops.git", "git@git.example.com:platform/gitops.git"]
)  # fmt: skip
def test_a_commit_asks_the_agents_webhook_as_a_git_host_would_and_signs_what_it_says(
    kubernetes: Kubernetes, remote: str
) -> None:
    kubernetes.sync(manifests(state()))
    kubernetes.settle()
    hook = Webhook()
    try:
        webhook = SyncWebhook(hook.url, remote, "main", "s3cret")
        observed = cluster(kubernetes, webhook=webhook)
        assert observed.carry_out(COMMIT, state(), timeout_seconds=0)
        ((headers, body),) = hook.requests
        expected = "sha256=" + hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()
        assert headers["X-Signature"] == headers["X-Hub-Signature-256"] == expected
        said = json.loads(body)
        assert (said["ref"], said["after"]) == ("refs/heads/main", COMMIT)
        assert said["repository"]["html_url"] == "https://git.example.com/platform/gitops"
        hook.status = 500
        assert observed.carry_out(COMMIT, state(), timeout_seconds=0), "the agent came by itself"
        with pytest.raises(ClusterError, match="webhook did not take the request"):
            observed.carry_out(COMMIT, state(2), timeout_seconds=0)
    finally:
        hook.server.shutdown()
        hook.server.server_close()


def test_metrics_are_read_from_every_pod_and_from_every_proxys_cluster_of_the_slot(
    kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubernetes.sync(manifests(canary(4)))
    kubernetes.settle()
    gateway = Gateway(
        "https://{model}", "http://gw.test:19001/stats", "s/{namespace}/{service}",
        "{namespace}/{model}/{rule}-mirror",
    )  # fmt: skip
    observed = KubernetesCluster("prod", gateway=gateway, remote="r", reader=kubernetes.reader())
    proxies, resolve = ["10.0.0.7"], socket.getaddrinfo

    def resolved(host: str, port: int, *more: Any, **options: Any) -> Any:
        if host == "gw.test":
            return [(0, 0, 0, "", (address, port)) for address in proxies]
        return resolve(host, port, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    targets = {t.instance: t for t in observed.scrape_targets("smol")}
    assert targets["gateway-b"].cluster == "s/lockgate-prod/smol-b"
    assert targets["gateway-b"].url == "http://gw.test:19001/stats"
    (pod,) = [t for name, t in targets.items() if name.startswith("smol-b-")]
    assert pod.url == "http://127.0.0.1:8000/metrics"
    proxies.append("10.0.0.8")
    read = {
        t.instance: t.url for t in observed.scrape_targets("smol") if t.cluster and t.slot == "b"
    }
    assert read == {
        "gateway-b-10.0.0.7": "http://10.0.0.7:19001/stats",
        "gateway-b-10.0.0.8": "http://10.0.0.8:19001/stats",
    }
    route = kubernetes.get(ROUTES, "smol")
    assert route is not None
    copied = {
        "type": "RequestMirror",
        "requestMirror": {"backendRef": {"name": "smol-b"}, "percent": 9},
    }
    route["spec"]["rules"][1]["filters"] = [copied]
    kubernetes.put(ROUTES, route)
    copies = {t.instance: t for t in observed.scrape_targets("smol") if "copies" in t.instance}
    assert {(t.slot, t.cluster) for t in copies.values()} == {("b", "lockgate-prod/smol/1-mirror")}
    assert set(copies) == {"gateway-b-copies-10.0.0.7", "gateway-b-copies-10.0.0.8"}
    assert observed.gateway_url("smol") == "https://smol"
    with pytest.raises(ClusterError, match="nothing of other was deployed"):
        observed.gateway_url("other")


def group(wanted: ReleaseState, slot: Slot, *, replicas: int = 2) -> dict[str, Any]:
    """A slot over several nodes, its controller up to date and every group ready."""
    deployment = next(i for i in manifests(wanted) if i["metadata"]["name"] == f"smol-{slot}")
    template = deployment["spec"]["template"]
    pods = {"size": 2, "leaderTemplate": template, "workerTemplate": template}
    return {
        "kind": "LeaderWorkerSet",
        "metadata": {**deployment["metadata"], "generation": 3},
        "spec": {"replicas": replicas, "leaderWorkerTemplate": pods},
        "status": {
            "observedGeneration": 3,
            "replicas": replicas,
            "readyReplicas": replicas,
            "updatedReplicas": replicas,
        },
    }


def group_pod(item: dict[str, Any], number: int, place: int, *, ready: bool = True) -> Any:
    template = item["spec"]["leaderWorkerTemplate"]["leaderTemplate"]
    labels = {
        **template["metadata"]["labels"],
        "leaderworkerset.sigs.k8s.io/worker-index": str(place),
    }
    name = f"{item['metadata']['name']}-{number}" + (f"-{place}" if place else "")
    return live_pod(name, labels, template, ready=ready)


def test_a_slot_over_several_nodes_is_as_many_servers_as_it_has_leaders(
    kubernetes: Kubernetes,
) -> None:
    kubernetes.sync(manifests(canary(4)))
    kubernetes.delete(DEPLOYMENTS, "smol-b")
    kubernetes.settle()
    made = group(canary(4), Slot.B)
    for number in (0, 1):
        for place in (0, 1):
            kubernetes.put(PODS, group_pod(made, number, place))
    kubernetes.put(GROUPS, made)
    observed = cluster(kubernetes)
    assert observed.carry_out(COMMIT, canary(4), timeout_seconds=0)
    slot = observed.slot_status("smol", "b")
    assert slot is not None
    assert (slot.desired, slot.ready, slot.updated, slot.settled) == (2, 2, 2, True)
    assert {pod.name for pod in slot.pods} == {"smol-b-0", "smol-b-1"}
    # One leader is up before its worker: the group is not, and only the controller knows.
    made["status"]["readyReplicas"] = 1
    kubernetes.put(GROUPS, made)
    kubernetes.put(PODS, group_pod(made, 1, 1, ready=False))
    slot = observed.slot_status("smol", "b")
    assert slot is not None
    assert (slot.updated, slot.settled) == (1, False)
    kubernetes.put(GROUPS, {**made, "metadata": {**made["metadata"], "generation": 4}})
    assert "slot b: its controller has not looked" in missing(kubernetes, canary(4))
    kubernetes.delete(GROUPS, "smol-b")
    assert "slot b is empty" in missing(kubernetes, canary(4))


def llm_service(slot: str, weights: dict[str, int], generation: int = 3) -> dict[str, Any]:
    name = f"smol-{slot}"
    found = canary(generation).occupant(Slot(slot))
    assert found is not None
    members = [{"name": f"smol-{s}", "weight": w} for s, w in weights.items()]
    ready = {"type": "RouterReady", "status": "True"}
    return {
        "kind": "LLMInferenceService",
        "metadata": {
            "name": name,
            "generation": 2,
            "labels": {"lockgate.dev/model": "smol", "lockgate.dev/slot": slot},
            "annotations": {
                "lockgate.dev/candidate": str(found.candidate.digest),
                "lockgate.dev/generation": str(generation),
            },
        },
        "spec": {
            "replicas": 1,
            "router": {"route": {"group": "smol", "weight": weights[slot]}},
        },
        "status": {
            "observedGeneration": 2,
            "conditions": [ready],
            "router": {"group": {"name": "smol", "members": members}},
            "workloads": {"primary": {"name": name, "kind": "Deployment", "readyReplicas": 1}},
        },
    }


def test_kserves_services_are_slots_whose_weights_count_when_every_member_repeats_them(
    kubernetes: Kubernetes,
) -> None:
    weights = {"a": 95, "b": 5}
    for slot in weights:
        kubernetes.put(LLM_SERVICES, llm_service(slot, weights))
    observed = cluster(kubernetes)
    assert observed.carry_out(COMMIT, canary(3), timeout_seconds=0)
    route = observed.status().models["smol"].route
    assert route is not None
    assert route.weights == weights
    lag = llm_service("b", weights)
    lag["status"]["router"]["group"]["members"][1]["weight"] = 50
    kubernetes.put(LLM_SERVICES, lag)
    assert not observed.carry_out(COMMIT, canary(3), timeout_seconds=0)
    assert "is routed with the weights" in missing(kubernetes, canary(3))
    kubernetes.put(LLM_SERVICES, llm_service("b", weights, generation=2))
    assert "generation 2, not 3" in missing(kubernetes, canary(3))
