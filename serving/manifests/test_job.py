"""The manifests of a candidate's test server: a Job made of the slot's own pod template, and the Service that leads to it.

The engine gets the very arguments, environment, mounts and limits that it would get in its slot. What belongs to a slot under
traffic is left out: routes and spreading, drain, service account, priority, and secrets, of which a test has no need.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from lockgate.domain.candidates import Candidate
from lockgate.domain.cluster import CANDIDATE_ANNOTATION
from lockgate.errors import RenderingError
from serving.engines.registry import engine as engine_named

TEST_LABEL = "lockgate.dev/test-server"
STOP_SECONDS = 30
TTL_SECONDS = 300
"""How long an ended Job, with its pod and their log, is left to be looked at before the cluster removes it."""

_SLOT_ONLY = ("topologySpreadConstraints", "priorityClassName", "priority", "preemptionPolicy", "affinity")  # fmt: skip
_TRAFFIC_ONLY = ("lifecycle", "livenessProbe")


def job(
    template: Mapping[str, Any],
    candidate: Candidate,
    *,
    name: str,
    namespace: str,
    lifetime_seconds: int,
    node_selector: Mapping[str, str],
) -> dict[str, Any]:
    """The Job that runs the pod `template` of the candidate's slot once.

    The cluster ends it after `lifetime_seconds`, and removes it `TTL_SECONDS` later, whether or not anybody still asks.
    `RenderingError` if the template is not the candidate's.
    """
    labels = _labels(name)
    annotations = {CANDIDATE_ANNOTATION: str(candidate.digest)}
    pod = copy.deepcopy(dict(template))
    if (pod.get("metadata") or {}).get("annotations", {}).get(CANDIDATE_ANNOTATION) != str(
        candidate.digest
    ):
        raise RenderingError("the pod template is another candidate's")
    spec = pod["spec"]
    for key in _SLOT_ONLY:
        spec.pop(key, None)
    spec |= {
        "serviceAccountName": "default",
        "automountServiceAccountToken": False,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": STOP_SECONDS,
    }
    if node_selector:
        spec["nodeSelector"] = {**spec.get("nodeSelector", {}), **node_selector}
    for volume in spec.get("volumes", []):
        # A slot's own claim is in the slot's namespace, and what lies there is none of a test's business.
        if volume.pop("persistentVolumeClaim", None) is not None:
            volume["emptyDir"] = {}
    for container in spec["containers"]:
        for key in _TRAFFIC_ONLY:
            container.pop(key, None)
        container["env"] = [e for e in container.get("env", []) if "valueFrom" not in e]
        container.pop("envFrom", None)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": labels,
            "annotations": annotations,
        },
        "spec": {
            # A server that died is a finding, not something to be tried again.
            "backoffLimit": 0,
            "activeDeadlineSeconds": lifetime_seconds,
            "ttlSecondsAfterFinished": TTL_SECONDS,
            "template": {
                "metadata": {"labels": labels, "annotations": annotations},
                "spec": spec,
            },
        },
    }


def service(name: str, namespace: str, candidate: Candidate, *, owner_uid: str) -> dict[str, Any]:
    """The Service in front of the Job's pod. The Job owns it, so that the cluster removes both together."""
    port = engine_named(candidate.serving.engine).port
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": _labels(name),
            "ownerReferences": [
                {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": owner_uid}
            ],
        },
        "spec": {
            "type": "ClusterIP",
            "selector": {TEST_LABEL: name},
            "ports": [{"name": "http", "port": port, "targetPort": port, "protocol": "TCP"}],
        },
    }


def _labels(name: str) -> dict[str, str]:
    return {"app.kubernetes.io/managed-by": "lockgate", TEST_LABEL: name}
