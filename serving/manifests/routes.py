"""The HTTPRoute of a model: the only object that a change of weights touches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lockgate.domain.cluster import FAILOVER_ANNOTATION, GENERATION_ANNOTATION
from lockgate.domain.release_state import Phase, ReleaseState, Slot
from serving.manifests.names import SLOT_HEADER, slot_name

_TIMEOUTS = {"request": "0s", "backendRequest": "0s"}
"""None: a long answer is streamed for as long as it takes."""


def route_rules(state: ReleaseState) -> list[dict[str, Any]]:
    """The HTTPRoute's rules: one for each slot that a header forces, then the weighted one."""
    weights = _weights(state)
    forced = [
        {
            "matches": [
                {
                    "path": {"type": "PathPrefix", "value": "/"},
                    "headers": [{"type": "Exact", "name": SLOT_HEADER, "value": slot.value}],
                }
            ],
            "backendRefs": [_backend(state.model, slot, 1)],
            "timeouts": dict(_TIMEOUTS),
        }
        for slot in weights
    ]
    weighted: dict[str, Any] = {
        "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
        "backendRefs": [_backend(state.model, slot, weight) for slot, weight in weights.items()],
        "timeouts": dict(_TIMEOUTS),
    }
    mirrored = state.mirrored()
    if mirrored is not None:
        slot, percent = mirrored
        backend = _backend(state.model, slot, 1)
        del backend["weight"]
        weighted["filters"] = [
            {
                "type": "RequestMirror",
                "requestMirror": {"backendRef": backend, "percent": percent},
            }
        ]
    return [*forced, weighted] if weights else []


def _weights(state: ReleaseState) -> dict[Slot, int]:
    """By slot, not by role: a promotion changes two numbers in the route and nothing else."""
    return dict(sorted(state.weights().items()))


def failover_slots(state: ReleaseState) -> tuple[Slot, ...]:
    """Slots that may take all traffic when the other one has no ready replica.

    Stable may, a candidate that already has weight may, and the old version during the bake. A candidate without a
    verdict at any weight may not.
    """
    slots = []
    for slot, weight in _weights(state).items():
        if slot is Slot.BASELINE:
            continue  # a yardstick, sized for its share alone
        if slot is state.stable or weight > 0 or state.phase is Phase.BAKING:
            slots.append(slot)
    return tuple(slots) if state.stable is not None else ()


def _backend(model: str, slot: Slot, weight: int) -> dict[str, Any]:
    return {
        "group": "",
        "kind": "Service",
        "name": slot_name(model, slot),
        "port": 8000,
        "weight": weight,
    }


def routed(route: Mapping[str, Any], state: ReleaseState) -> dict[str, Any]:
    """`route` with the rules of `state`; everything else about it stays."""
    metadata = {**route["metadata"]}
    annotations = dict(metadata.get("annotations") or {})
    annotations[FAILOVER_ANNOTATION] = ",".join(slot.value for slot in failover_slots(state))
    annotations[GENERATION_ANNOTATION] = str(state.generation)
    metadata["annotations"] = dict(sorted(annotations.items()))
    return {**route, "metadata": metadata, "spec": {**route["spec"], "rules": route_rules(state)}}
