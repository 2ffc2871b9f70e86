"""The Kubernetes observer: the real client against an HTTP server that holds objects as an API server writes them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
from kubernetes import client

from lockgate.adapters.kube import KubernetesCluster
from lockgate.errors import ClusterError

CANDIDATE = "sha256:" + "1" * 64
LABELS = {"lockgate.dev/model": "smol", "lockgate.dev/slot": "a"}
SINCE = "2026-01-02T03:04:05Z"


class Api:
    """Lists by plural; `forbidden` answers 403."""

    def __init__(self) -> None:
        self.objects: dict[str, list[dict[str, Any]]] = {
            "deployments": [deployment()],
            "pods": [pod()],
            "httproutes": [route()],
        }
        self.forbidden = False
        self.methods: set[str] = set()
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                api.methods.add("GET")
                plural = urlsplit(self.path).path.rpartition("/")[2]
                body = {"kind": "List", "apiVersion": "v1", "metadata": {}}
                body["items"] = api.objects[plural]
                self.send_response(403 if api.forbidden else 200)
                self.send_header("content-type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps({} if api.forbidden else body).encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def cluster(self) -> KubernetesCluster:
        host = f"http://127.0.0.1:{self.server.server_address[1]}"
        return KubernetesCluster(
            namespace="lockgate-prod",
            gateway_urls={"smol": "https://smol.example.com"},
            api=client.ApiClient(client.Configuration(host=host)),
        )


def deployment() -> dict[str, Any]:
    return {
        "metadata": {"name": "smol-a", "labels": LABELS, "generation": 4},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": LABELS},
            "template": {
                "metadata": {"annotations": {"lockgate.dev/candidate": CANDIDATE}},
                "spec": {"containers": [{"name": "vllm"}]},
            },
        },
        "status": {"observedGeneration": 4, "readyReplicas": 1, "updatedReplicas": 1},
    }


def pod() -> dict[str, Any]:
    return {
        "metadata": {
            "name": "smol-a-x",
            "namespace": "lockgate-prod",
            "labels": {**LABELS, "pod-template-hash": "abc"},
            "annotations": {"lockgate.dev/candidate": CANDIDATE},
            "creationTimestamp": SINCE,
        },
        "spec": {"containers": [{"name": "vllm"}]},
        "status": {
            "podIP": "10.0.0.7",
            "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": SINCE}],
            "containerStatuses": [
                {
                    "name": "vllm",
                    "image": "i",
                    "imageID": "i",
                    "ready": True,
                    "started": True,
                    "restartCount": 0,
                    "state": {"running": {}},
                }
            ],
        },
    }


def route() -> dict[str, Any]:
    accepted = [
        {"type": kind, "status": "True", "observedGeneration": 9}
        for kind in ("Accepted", "ResolvedRefs")
    ]
    return {
        "metadata": {
            "name": "smol",
            "labels": {"lockgate.dev/model": "smol"},
            "annotations": {"lockgate.dev/generation": "12"},
            "generation": 9,
        },
        "spec": {
            "parentRefs": [{"name": "models"}],
            "rules": [
                {"matches": [{"headers": [{"name": "x", "value": "a"}]}], "backendRefs": []},
                {
                    "backendRefs": [
                        {"name": "smol-a", "weight": 95},
                        {"name": "smol-b", "weight": 5},
                    ]
                },
            ],
        },
        "status": {"parents": [{"conditions": accepted}]},
    }


@pytest.fixture
def api() -> Iterator[Api]:
    made = Api()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_settled_slot_and_a_route_that_is_carried_out_are_seen_as_such_by_reading_alone(
    api: Api,
) -> None:
    seen = api.cluster().model_status("smol")
    slot = seen.slots["a"]
    assert (slot.candidate, slot.desired, slot.ready, slot.updated) == (CANDIDATE, 1, 1, 1)
    assert slot.settled
    assert slot.pods[0].url == "http://10.0.0.7:8000"
    assert seen.generation == 12
    assert seen.route is not None
    assert seen.route.loaded
    assert seen.route.weights == {"a": 95, "b": 5}
    assert api.cluster().sync(12, model="smol", timeout_seconds=0)
    assert not api.cluster().sync(13, model="smol", timeout_seconds=0)
    assert api.methods == {"GET"}


def test_a_deployment_that_its_controller_has_not_looked_at_is_not_ready(api: Api) -> None:
    api.objects["deployments"][0]["metadata"]["generation"] = 5
    slot = api.cluster().slot_status("smol", "a")
    assert slot is not None
    assert slot.updated == 0


def test_pods_of_another_candidate_do_not_count(api: Api) -> None:
    api.objects["pods"][0]["metadata"]["annotations"]["lockgate.dev/candidate"] = "sha256:other"
    slot = api.cluster().slot_status("smol", "a")
    assert slot is not None
    assert slot.updated == 0


@pytest.mark.parametrize("lag", ["generation", "status", "parents"])
def test_a_route_that_a_gateway_has_not_taken_up_is_not_live(api: Api, lag: str) -> None:
    item = api.objects["httproutes"][0]
    if lag == "generation":
        item["metadata"]["generation"] = 10
    elif lag == "status":
        item["status"]["parents"][0]["conditions"][1]["status"] = "False"
    else:
        item["status"] = {"parents": []}
    seen = api.cluster().model_status("smol")
    assert seen.generation is None
    assert seen.route is not None
    assert not seen.route.loaded


def waiting(reason: str, restarts: int) -> dict[str, Any]:
    item = pod()
    item["status"]["conditions"][0]["status"] = "False"
    container = item["status"]["containerStatuses"][0]
    container.update(restartCount=restarts, started=False, state={"waiting": {"reason": reason}})
    return item


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
    api: Api, reason: str, restarts: int, final: bool
) -> None:
    api.objects["pods"] = [waiting(reason, restarts)]
    slot = api.cluster().slot_status("smol", "a")
    assert slot is not None
    assert slot.updated == 0
    assert bool(slot.refusals) is final
    assert bool(slot.waiting) is not final


def test_a_pod_that_admission_denied_is_refused_for_good(api: Api) -> None:
    api.objects["pods"] = []
    message = 'admission webhook "verify" denied the request: no signature'
    api.objects["deployments"][0]["status"]["conditions"] = [
        {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}
    ]
    slot = api.cluster().slot_status("smol", "a")
    assert slot is not None
    assert "no signature" in slot.refusals[0]


def test_an_api_server_that_forbids_or_is_away_is_an_error_that_says_so(api: Api) -> None:
    api.forbidden = True
    with pytest.raises(ClusterError, match="403"):
        api.cluster().model_status("smol")
    cluster = api.cluster()
    api.server.shutdown()
    api.server.server_close()
    with pytest.raises(ClusterError, match="cannot be reached"):
        cluster.model_status("smol")
