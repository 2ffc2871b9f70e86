"""A slot's scaler: what follows the load, and what is frozen while a candidate is judged.

It is made from the release state at every transition, so a scaler never decides on its own how large the two sides of a comparison
are, and a rollback finds stable no smaller than it was. The Deployment carries no `replicas`: neither Argo CD nor Flux then owns
the field that the scaler writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from lockgate.domain.cluster import MODEL_LABEL, SLOT_LABEL
from lockgate.domain.release_state import TERMINAL_PHASES, ReleaseState, Slot
from lockgate.domain.scaling import Scaling
from lockgate.domain.spec import ServingSpec
from serving.manifests.names import namespace, slot_name

SCALER_KINDS = ("ScaledObject", "HorizontalPodAutoscaler")
_POLL_SECONDS = 15
_FAILURES = 4
"""Queries without an answer before KEDA falls back to the size that the spec names."""


class Range(NamedTuple):
    """What a scaler may do in one phase."""

    least: int
    most: int
    up: bool
    down: bool
    asleep: bool
    """Whether the last replica may go."""


def scaled(serving: ServingSpec, slot: Slot) -> bool:
    """Whether a scaler, and not the manifest, says how many replicas the slot has. A fresh baseline has the canary's size."""
    return serving.scaling is not None and slot is not Slot.BASELINE


def allowed(state: ReleaseState, slot: Slot) -> Range | None:
    """What the slot's scaler may do in this state; none for a slot without one.

    A slot whose candidate is not proved stays at the size that the spec names. Beside it stable grows and never shrinks (or does
    neither, where the spec says so). After promotion both grow: the new version has to carry all, the old one to take it back.
    """
    occupant = state.occupant(slot)
    scaling = occupant.candidate.serving.scaling if occupant is not None else None
    if occupant is None or scaling is None or slot is Slot.BASELINE:
        return None
    whole = occupant.candidate.serving.replicas
    if state.phase in TERMINAL_PHASES:
        return Range(scaling.min, scaling.max, True, True, scaling.to_zero is not None)
    if slot is not state.stable and not state.baking:
        return Range(whole, whole, False, False, False)
    grows = state.baking or scaling.during_canary == "grow"
    return Range(max(scaling.min, whole), scaling.max, grows, False, False)


def scaler(state: ReleaseState, slot: Slot) -> dict[str, Any] | None:
    """The slot's ScaledObject or HorizontalPodAutoscaler; none for a slot of fixed size."""
    occupant, may = state.occupant(slot), allowed(state, slot)
    if occupant is None or may is None:
        return None
    serving = occupant.candidate.serving
    assert serving.scaling is not None
    name = slot_name(state.model, slot)
    metadata = {
        "name": name,
        "namespace": namespace(state.environment),
        "labels": {
            "app.kubernetes.io/name": state.model,
            MODEL_LABEL: state.model,
            SLOT_LABEL: slot.value,
        },
    }
    grouped = serving.parallel is not None and serving.parallel.nodes > 1
    target = {
        "apiVersion": "leaderworkerset.x-k8s.io/v1" if grouped else "apps/v1",
        "kind": "LeaderWorkerSet" if grouped else "Deployment",
        "name": name,
    }
    if serving.scaling.by == "hpa":
        return _horizontal(metadata, target, serving.scaling, may)
    # A Deployment's pods have two random parts behind its name, a group's leader has its number.
    pods = f"{name}-[0-9]+" if grouped else f"{name}-[a-z0-9]+-[a-z0-9]+"
    selector = f'{{namespace="{metadata["namespace"]}",pod=~"{pods}"}}'
    return _scaled_object(metadata, target, serving, may, selector)


def _behavior(scaling: Scaling, may: Range) -> dict[str, Any]:
    return {
        "scaleUp": {
            "stabilizationWindowSeconds": scaling.up_seconds,
            "policies": [
                {"type": "Percent", "value": 100, "periodSeconds": 60},
                {"type": "Pods", "value": 2, "periodSeconds": 60},
            ],
            "selectPolicy": "Max" if may.up else "Disabled",
        },
        "scaleDown": {
            "stabilizationWindowSeconds": scaling.down_seconds,
            "policies": [{"type": "Pods", "value": 1, "periodSeconds": 120}],
            "selectPolicy": "Max" if may.down else "Disabled",
        },
    }


def _horizontal(
    metadata: Mapping[str, Any], target: Mapping[str, Any], scaling: Scaling, may: Range
) -> dict[str, Any]:
    wanted = {
        "vllm_num_requests_running": str(scaling.running_per_replica),
        "vllm_num_requests_waiting": str(scaling.waiting_per_replica),
    }
    if scaling.kv_cache_percent is not None:
        wanted["vllm_kv_cache_usage_perc"] = f"{10 * scaling.kv_cache_percent}m"
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": dict(metadata),
        "spec": {
            "scaleTargetRef": dict(target),
            "minReplicas": may.least,
            "maxReplicas": may.most,
            "behavior": _behavior(scaling, may),
            "metrics": [
                {
                    "type": "Pods",
                    "pods": {
                        "metric": {"name": metric},
                        "target": {"type": "AverageValue", "averageValue": value},
                    },
                }
                for metric, value in wanted.items()
            ],
        },
    }


def _scaled_object(
    metadata: Mapping[str, Any],
    target: Mapping[str, Any],
    serving: ServingSpec,
    may: Range,
    selector: str,
) -> dict[str, Any]:
    scaling = serving.scaling
    assert scaling is not None
    spec: dict[str, Any] = {
        "scaleTargetRef": dict(target),
        "pollingInterval": _POLL_SECONDS,
        "minReplicaCount": 0 if may.asleep else may.least,
        "maxReplicaCount": may.most,
        "fallback": {
            "failureThreshold": _FAILURES,
            "replicas": serving.replicas,
            "behavior": "currentReplicasIfHigher",
        },
        "advanced": {
            # A ScaledObject that is removed must not shrink what it leaves behind.
            "restoreToOriginalReplicaCount": False,
            "horizontalPodAutoscalerConfig": {"behavior": _behavior(scaling, may)},
        },
        "triggers": _triggers(scaling, may, selector),
    }
    if may.asleep and scaling.to_zero is not None:
        spec["cooldownPeriod"] = scaling.to_zero.after_seconds
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": dict(metadata),
        "spec": spec,
    }


def _triggers(scaling: Scaling, may: Range, selector: str) -> list[dict[str, Any]]:
    running = f"sum(vllm:num_requests_running{selector})"
    if scaling.buffer:
        running += f" + {scaling.buffer * scaling.running_per_replica}"
    # No engine, no metrics: where nothing sleeps, missing metrics are a failure and not an idle engine.
    missing = "true" if may.asleep else "false"

    def prometheus(name: str, query: str, threshold: int, **more: str) -> dict[str, Any]:
        return {
            "type": "prometheus",
            "name": name,
            "metricType": more.pop("metric_type", "AverageValue"),
            "metadata": {
                "serverAddress": scaling.prometheus,
                "query": query,
                "threshold": str(threshold),
                "ignoreNullValues": missing,
                **more,
            },
        }

    triggers = [
        prometheus("running", running, scaling.running_per_replica),
        prometheus(
            "waiting", f"sum(vllm:num_requests_waiting{selector})", scaling.waiting_per_replica
        ),
    ]
    if scaling.kv_cache_percent is not None:
        query = f"100 * avg(vllm:kv_cache_usage_perc{selector})"
        triggers.append(
            prometheus("kv-cache", query, scaling.kv_cache_percent, metric_type="Value")
        )
    if scaling.to_zero is not None:
        triggers.append(prometheus("asked", scaling.to_zero.query, scaling.running_per_replica))
    triggers += [
        {
            "type": "cron",
            "name": f"window-{number}",
            "metadata": {
                "timezone": window.timezone,
                "start": window.start,
                "end": window.end,
                "desiredReplicas": str(window.replicas),
            },
        }
        for number, window in enumerate(scaling.windows)
    ]
    return triggers
