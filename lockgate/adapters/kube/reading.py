"""Live objects as statuses. Pure: what the API server wrote goes in; `LookupError` and the like where it cannot be read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from lockgate.domain.cluster import (
    CANDIDATE_ANNOTATION,
    GENERATION_ANNOTATION,
    SLOT_LABEL,
    PodStatus,
    RouteStatus,
    SlotStatus,
)

ENGINE_CONTAINERS = frozenset({"vllm", "main", "kserve-container"})
"""Names of the container that is the server: a mesh's or an agent's beside it may restart without being the candidate's fault."""

_CRASH_LOOP = 3
_FINAL_REASONS = frozenset({"InvalidImageName", "CreateContainerConfigError", "ErrImageNeverPull"})
_NEEDED_CONDITIONS = ("Accepted", "ResolvedRefs")
_REVISION = "deployment.kubernetes.io/revision"
_PLACE_IN_GROUP = "leaderworkerset.sigs.k8s.io/worker-index"


def slot_of(item: Mapping[str, Any]) -> str | None:
    """The slot that an object is labelled with."""
    slot = (item["metadata"].get("labels") or {}).get(SLOT_LABEL)
    return str(slot) if slot is not None else None


def annotation(item: Mapping[str, Any], name: str) -> str | None:
    value = (item["metadata"].get("annotations") or {}).get(name)
    return str(value) if value is not None else None


def carried_out(route: Mapping[str, Any]) -> str | None:
    """None where every gateway that the route asks for has taken up exactly this version of it, else why not."""
    parents = (route.get("status") or {}).get("parents") or []
    wanted = len(route["spec"].get("parentRefs") or [])
    if not wanted:
        return "the route names no gateway"
    if len(parents) < wanted:
        return f"{len(parents)} of {wanted} gateways have taken up the route"
    generation = route["metadata"]["generation"]
    for parent in parents:
        conditions = {c["type"]: c for c in parent.get("conditions") or []}
        for needed in _NEEDED_CONDITIONS:
            condition = conditions.get(needed)
            if condition is None:
                return f"the gateway does not say whether the route is {needed}"
            if condition.get("observedGeneration") != generation:
                return "the gateway has not looked at the newest route"
            if condition.get("status") != "True":
                return f"the gateway refuses the route: {condition.get('reason')}: {condition.get('message')}"
    return None


def route_generation(item: Mapping[str, Any]) -> int | None:
    """Generation of the release state that the route was rendered from."""
    value = annotation(item, GENERATION_ANNOTATION)
    return int(value) if value is not None else None


def route_status(route: Mapping[str, Any]) -> RouteStatus:
    weights: dict[str, int] = {}
    mirrored: str | None = None
    mirror_rule: int | None = None
    for number, rule in enumerate(route["spec"].get("rules") or []):
        if any(match.get("headers") for match in rule.get("matches") or []):
            continue
        for backend in rule.get("backendRefs") or []:
            weights[backend["name"].rpartition("-")[2]] = int(backend.get("weight", 1))
        for wanted in rule.get("filters") or []:
            if wanted.get("type") == "RequestMirror":
                mirrored = wanted["requestMirror"]["backendRef"]["name"].rpartition("-")[2]
                mirror_rule = number
    trouble = carried_out(route)
    return RouteStatus(
        weights=weights,
        effective=weights,
        version=str(route["metadata"].get("resourceVersion", "")),
        loaded=trouble is None,
        trouble=trouble,
        mirrored=mirrored,
        mirror_rule=mirror_rule,
    )


def slot_status(
    deployment: Mapping[str, Any],
    replica_sets: Iterable[Mapping[str, Any]],
    pods: Sequence[Mapping[str, Any]],
) -> SlotStatus:
    """A slot by its Deployment. `updated` counts ready pods of the Deployment's own template alone, which is that of its
    newest ReplicaSet: two templates of one candidate differ where a base was edited."""
    metadata, spec = deployment["metadata"], deployment["spec"]
    status = deployment.get("status") or {}
    candidate = annotation(spec["template"], CANDIDATE_ANNOTATION)
    template = _newest_template(deployment, replica_sets)
    seen = [pod_status(pod) for pod in pods]
    current = [
        pod
        for pod in seen
        if pod.candidate == candidate and pod.template == template and pod.state != "terminating"
    ]
    observed = status.get("observedGeneration") == metadata["generation"] and template is not None
    updated = min(sum(p.ready for p in current), int(status.get("updatedReplicas") or 0))
    refusals, waiting = troubles(deployment, pods)
    return SlotStatus(
        slot=metadata["labels"][SLOT_LABEL],
        deployment=metadata["name"],
        candidate=candidate,
        desired=int(spec.get("replicas", 1)),
        ready=int(status.get("readyReplicas") or 0),
        updated=updated if observed else 0,
        observed=observed,
        restarts=sum(pod.restarts for pod in current),
        pods=tuple(seen),
        refusals=tuple(refusals),
        waiting=tuple(waiting),
    )


def group_status(group: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]) -> SlotStatus:
    """A slot by its LeaderWorkerSet. A replica is a group, and its leader is the server: the workers answer nobody, but what
    keeps one of them from running is the slot's trouble."""
    metadata, spec, status = group["metadata"], group["spec"], group.get("status") or {}
    candidate = annotation(spec["leaderWorkerTemplate"]["leaderTemplate"], CANDIDATE_ANNOTATION)
    leaders = [
        pod_status(pod)
        for pod in pods
        if (pod["metadata"].get("labels") or {}).get(_PLACE_IN_GROUP) == "0"
    ]
    current = [p for p in leaders if p.candidate == candidate and p.state != "terminating"]
    observed = status.get("observedGeneration") == metadata["generation"]
    ready = int(status.get("readyReplicas") or 0)
    # A leader may be ready before its group is.
    updated = min(sum(p.ready for p in current), int(status.get("updatedReplicas") or 0), ready)
    refusals, waiting = troubles({}, pods)
    return SlotStatus(
        slot=metadata["labels"][SLOT_LABEL],
        deployment=metadata["name"],
        candidate=candidate,
        desired=int(spec.get("replicas", 1)),
        ready=ready,
        updated=updated if observed else 0,
        observed=observed,
        restarts=sum(pod.restarts for pod in current),
        pods=tuple(leaders),
        refusals=tuple(refusals),
        waiting=tuple(waiting),
    )


def _newest_template(
    deployment: Mapping[str, Any], replica_sets: Iterable[Mapping[str, Any]]
) -> str | None:
    """Hash of the template that the Deployment's controller rolls out at present; None while there is none."""
    uid, revision = deployment["metadata"].get("uid"), annotation(deployment, _REVISION)
    for item in replica_sets:
        owners = item["metadata"].get("ownerReferences") or []
        owned = any(owner.get("uid") == uid and owner.get("controller") for owner in owners)
        if owned and revision is not None and annotation(item, _REVISION) == revision:
            label = (item["metadata"].get("labels") or {}).get("pod-template-hash")
            return str(label) if label else None
    return None


def pod_status(pod: Mapping[str, Any], port: int = 8000) -> PodStatus:
    metadata, status = pod["metadata"], pod.get("status") or {}
    containers = status.get("containerStatuses") or []
    readiness: Mapping[str, Any] = next(
        (c for c in status.get("conditions") or [] if c["type"] == "Ready"), {}
    )
    changed = readiness.get("lastTransitionTime") or metadata["creationTimestamp"]
    terminating = metadata.get("deletionTimestamp") is not None
    started = bool(containers) and all(c.get("started") for c in containers)
    address = status.get("podIP")
    host = f"[{address}]" if address and ":" in address else address
    return PodStatus(
        name=metadata["name"],
        pid=None,
        url=f"http://{host}:{port}" if host and started else None,
        ready=readiness.get("status") == "True" and not terminating,
        since=datetime.fromisoformat(changed).timestamp(),
        state="terminating" if terminating else "running" if started else "pending",
        candidate=annotation(pod, CANDIDATE_ANNOTATION) or "",
        template=(metadata.get("labels") or {}).get("pod-template-hash", ""),
        restarts=max((int(c.get("restartCount", 0)) for c in _engine(containers)), default=0),
        last_exit=_last_exit(containers),
        log=f"kubectl logs -n {metadata['namespace']} {metadata['name']}",
    )


def _engine(containers: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The server's container; all of them where none has its name."""
    return [c for c in containers if c.get("name") in ENGINE_CONTAINERS] or containers


def _last_exit(containers: Iterable[Mapping[str, Any]]) -> str | None:
    for container in containers:
        ended = (container.get("lastState") or {}).get("terminated")
        if ended:
            return f"{ended.get('reason')} (exit code {ended.get('exitCode')})"
    return None


def troubles(
    workload: Mapping[str, Any], pods: Sequence[Mapping[str, Any]]
) -> tuple[list[str], list[str]]:
    """What is final, and what may pass by itself."""
    final: list[str] = []
    passing: list[str] = []
    for condition in (workload.get("status") or {}).get("conditions") or []:
        text = f"{condition.get('reason')}: {condition.get('message')}"
        if condition["type"] == "Progressing" and condition["status"] == "False":
            final.append(text)
        elif condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            # Admission said no to this very pod; a quota may have room later.
            denied = "denied the request" in str(condition.get("message"))
            (final if denied else passing).append(text)
    for pod in pods:
        status = pod.get("status") or {}
        for condition in status.get("conditions") or []:
            if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
                passing.append(f"{pod['metadata']['name']}: {condition.get('message')}")
        for container in status.get("containerStatuses") or []:
            waiting = (container.get("state") or {}).get("waiting") or {}
            reason = waiting.get("reason")
            if reason is None or reason in ("ContainerCreating", "PodInitializing"):
                continue
            restarts = int(container.get("restartCount", 0))
            text = f"{pod['metadata']['name']}: {reason} after {restarts} restarts"
            looping = reason == "CrashLoopBackOff" and restarts >= _CRASH_LOOP
            (final if looping or reason in _FINAL_REASONS else passing).append(text)
    return final, passing
