"""A model that KServe runs as LLMInferenceServices: one for each slot. They find each other by `spec.router.route.group` and
share the traffic by their weights, which each member's status repeats once its controller carries them out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lockgate.adapters.kube.api import Kind
from lockgate.adapters.kube.reading import (
    annotation,
    pod_status,
    route_generation,
    slot_of,
    troubles,
)
from lockgate.domain.cluster import CANDIDATE_ANNOTATION, ModelStatus, RouteStatus, SlotStatus

LLM_SERVICES = Kind("serving.kserve.io", "v1alpha2", "llminferenceservices")


def model_status(
    model: str,
    services: Sequence[Mapping[str, Any]],
    pods: Sequence[Mapping[str, Any]],
    gateway_url: str,
) -> ModelStatus:
    """Slots and weights of the model's services."""
    slots: dict[str, SlotStatus] = {}
    for service in services:
        slot = slot_of(service)
        if slot is None or slot in slots:
            raise ValueError(f"{service['metadata']['name']} is in no slot of its own")
        slots[slot] = _slot(service, slot, [pod for pod in pods if slot_of(pod) == slot])
    weights = {slot_of(s) or "": int(s["spec"]["router"]["route"]["weight"]) for s in services}
    trouble = _not_routed(services)
    generations = [route_generation(s) for s in services]
    known = [g for g in generations if g is not None]
    return ModelStatus(
        model=model,
        commit="",
        # Weights are spread over the members: the newest generation is in force when all carry it.
        generation=min(known)
        if trouble is None and len(known) == len(generations) and known
        else None,
        gateway_url=gateway_url,
        route=RouteStatus(
            weights=weights,
            effective=weights,
            version=",".join(str(s["metadata"].get("resourceVersion", "")) for s in services),
            loaded=trouble is None,
            trouble=trouble,
        ),
        slots=slots,
    )


def _slot(service: Mapping[str, Any], slot: str, pods: Sequence[Mapping[str, Any]]) -> SlotStatus:
    metadata, spec = service["metadata"], service["spec"]
    candidate = annotation(service, CANDIDATE_ANNOTATION)
    seen = [pod_status(pod) for pod in pods]
    current = [p for p in seen if p.candidate == candidate and p.state != "terminating"]
    observed = _observed(service)
    primary = ((service.get("status") or {}).get("workloads") or {}).get("primary") or {}
    ready = int(primary.get("readyReplicas") or 0)
    final, passing = troubles({}, pods)
    condition = _condition(service, "MainWorkloadReady") or _condition(service, "Ready")
    if condition is not None and condition.get("status") == "False":
        passing.append(f"{condition.get('reason')}: {condition.get('message')}")
    return SlotStatus(
        slot=slot,
        deployment=metadata["name"],
        candidate=candidate,
        desired=int(spec.get("replicas", 1)),
        ready=ready,
        updated=min(sum(p.ready for p in current), ready) if observed else 0,
        observed=observed,
        restarts=sum(pod.restarts for pod in current),
        pods=tuple(seen),
        refusals=tuple(final),
        waiting=tuple(passing),
    )


def _observed(service: Mapping[str, Any]) -> bool:
    status = service.get("status") or {}
    return status.get("observedGeneration") == service["metadata"]["generation"]


def _condition(service: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    conditions = (service.get("status") or {}).get("conditions") or []
    return next((c for c in conditions if c.get("type") == kind), None)


def _not_routed(services: Sequence[Mapping[str, Any]]) -> str | None:
    """None where every member says that its route is ready and repeats the weights that all of them ask for."""
    wanted = {s["metadata"]["name"]: int(s["spec"]["router"]["route"]["weight"]) for s in services}
    for service in services:
        name = service["metadata"]["name"]
        if not _observed(service):
            return f"KServe has not looked at the newest {name}"
        condition = _condition(service, "GroupReady") or _condition(service, "RouterReady")
        if condition is None or condition.get("status") != "True":
            said = condition or {}
            return f"{name} is not routed: {said.get('reason')}: {said.get('message')}"
        group = ((service.get("status") or {}).get("router") or {}).get("group") or {}
        members = {m.get("name"): m.get("weight") for m in group.get("members") or []}
        if members != wanted:
            return f"{name} is routed with the weights {members}, not {wanted}"
    return None
