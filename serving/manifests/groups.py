"""A replica over several nodes: the slot's Deployment as a LeaderWorkerSet.

Source: LeaderWorkerSet v1 (its webhook sets LWS_LEADER_ADDRESS, LWS_GROUP_SIZE and LWS_WORKER_INDEX in every container); vLLM 0.32's
multi-node mode without Ray (`--nnodes --node-rank --master-addr`, `--headless` for all but the first node).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from lockgate.domain.spec import ServingSpec
from lockgate.errors import RenderingError

KIND = "LeaderWorkerSet"
LEADER = {"leaderworkerset.sigs.k8s.io/worker-index": "0"}
"""Label of the pod that serves HTTP: a Service that selected workers too would send requests to closed ports."""
HEADLESS = "--headless"
_SERVER_ONLY = ("ports", "startupProbe", "readinessProbe", "livenessProbe")


def grouped(serving: ServingSpec) -> bool:
    return serving.parallel is not None and serving.parallel.nodes > 1


def workload_kind(serving: ServingSpec) -> str:
    """Kind of the object that runs a slot of this candidate."""
    return KIND if grouped(serving) else "Deployment"


def leader_worker_set(deployment: Mapping[str, Any], serving: ServingSpec) -> dict[str, Any]:
    """The same pods in groups. The workers' are the leader's, without what belongs to a server."""
    assert serving.parallel is not None
    spec = deployment["spec"]
    leader = copy.deepcopy(spec["template"])
    worker = copy.deepcopy(spec["template"])
    for key in ("topologySpreadConstraints",):
        worker["spec"].pop(key, None)
    container = engine_container(worker, serving.engine)
    for key in _SERVER_ONLY:
        container.pop(key, None)
    model, *rest = container["args"]
    container["args"] = [model, HEADLESS, *rest]
    made: dict[str, Any] = {
        "leaderWorkerTemplate": {
            "size": serving.parallel.nodes,
            # Half a model answers nothing: ranks that lost a peer hang.
            "restartPolicy": "RecreateGroupOnPodRestart",
            "leaderTemplate": leader,
            "workerTemplate": worker,
        },
        # All of a group load their part of the weights at the same time.
        "startupPolicy": "LeaderCreated",
        "rolloutStrategy": {
            "type": "RollingUpdate",
            "rollingUpdateConfiguration": {"maxSurge": 0, "maxUnavailable": 1},
        },
    }
    if "replicas" in spec:
        made = {"replicas": spec["replicas"], **made}
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": KIND,
        "metadata": copy.deepcopy(deployment["metadata"]),
        "spec": made,
    }


def group_policy(workload: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    """What a default-deny namespace has to open: pods of one slot reach one another on any port (NCCL picks its own)."""
    peers = [{"podSelector": {"matchLabels": dict(labels)}}]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": workload["metadata"]["name"],
            "namespace": workload["metadata"]["namespace"],
            "labels": dict(labels),
        },
        "spec": {
            "podSelector": {"matchLabels": dict(labels)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": peers}],
            "egress": [{"to": peers}],
        },
    }


def pod_templates(workload: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The template of a Deployment, or the leader's and the workers' of a group."""
    if workload["kind"] != KIND:
        return [workload["spec"]["template"]]
    templates = workload["spec"]["leaderWorkerTemplate"]
    return [templates["leaderTemplate"], templates["workerTemplate"]]


def engine_container(template: Mapping[str, Any], name: str) -> dict[str, Any]:
    """`RenderingError` where a pod template has not exactly one container of the engine's name."""
    found = [c for c in template["spec"]["containers"] if c["name"] == name]
    if len(found) != 1:
        raise RenderingError(f"the pod template has {len(found)} containers named {name}")
    container: dict[str, Any] = found[0]
    return container
