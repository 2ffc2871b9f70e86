"""A model that KServe runs as one InferenceService: both slots' versions are Knative revisions of it.

KServe's status says how the route splits between revisions; which slot and candidate a revision is, its own labels say, and how
many of its servers are ready, its pods. What a commit asks for stands beside the service, on the ServiceAccount of its name.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lockgate.adapters.kube.api import Kind
from lockgate.adapters.kube.reading import (
    annotation,
    pod_status,
    route_generation,
    slot_of,
    troubles,
)
from lockgate.domain.cluster import (
    CANDIDATE_ANNOTATION,
    TEMPLATE_ANNOTATION,
    WANTED_ANNOTATION,
    ModelStatus,
    RouteStatus,
    SlotStatus,
    Successor,
)

INFERENCE_SERVICES = Kind("serving.kserve.io", "v1beta1", "inferenceservices")
REVISIONS = Kind("serving.knative.dev", "v1", "revisions")
ACCOUNTS = Kind("", "v1", "serviceaccounts")
_REVISION = "serving.knative.dev/revision"
_GENERATION = "serving.knative.dev/configurationGeneration"
_MIN_SCALE = "autoscaling.knative.dev/min-scale"
_ROUTED = "PredictorRouteReady"


@dataclass(frozen=True)
class _Seen:
    """What was listed, put together."""

    service: Mapping[str, Any]
    account: Mapping[str, Any] | None
    revisions: Sequence[Mapping[str, Any]]
    pods: Sequence[Mapping[str, Any]]

    @property
    def name(self) -> str:
        return str(self.service["metadata"]["name"])

    @property
    def predictor(self) -> Mapping[str, Any]:
        asked: Mapping[str, Any] = self.service["spec"]["predictor"]
        return asked

    @property
    def component(self) -> Mapping[str, Any]:
        """What KServe says of the revisions."""
        components = (self.service.get("status") or {}).get("components") or {}
        found: Mapping[str, Any] = components.get("predictor") or {}
        return found

    @property
    def traffic(self) -> Sequence[Mapping[str, Any]]:
        found: Sequence[Mapping[str, Any]] = self.component.get("traffic") or []
        return found

    @property
    def template(self) -> str | None:
        return annotation({"metadata": self.predictor}, TEMPLATE_ANNOTATION)

    @property
    def wanted(self) -> Mapping[str, Any] | None:
        """What the commit that was applied asks for."""
        text = annotation(self.account, WANTED_ANNOTATION) if self.account is not None else None
        data: Mapping[str, Any] | None = json.loads(text) if text is not None else None
        return data

    @property
    def shares(self) -> Counter[str]:
        """Percent of the traffic by revision."""
        shares: Counter[str] = Counter()
        for target in self.traffic:
            shares[target.get("revisionName") or ""] += int(target.get("percent") or 0)
        return shares

    @property
    def weights(self) -> dict[str, int]:
        """Percent by slot; what goes to a revision of neither slot's candidate, an older version's, counts for the empty name."""
        wanted = self.wanted
        occupied = {s: w["candidate"] for s, w in wanted["slots"].items()} if wanted else {}
        slots = {
            r["metadata"]["name"]: str(slot)
            for r in self.revisions
            if (slot := slot_of(r)) in occupied
            and annotation(r, CANDIDATE_ANNOTATION) == occupied[slot]
        }
        found: Counter[str] = Counter()
        for revision, share in self.shares.items():
            found[slots.get(revision, "")] += share
        return {slot: share for slot, share in found.items() if share}

    def newest(self) -> Mapping[str, Any] | None:
        """The revision of the template that the service asks for, once KServe has made it and says so."""
        created = self.component.get("latestCreatedRevision")
        for revision in self.revisions:
            own = annotation(revision, TEMPLATE_ANNOTATION) == self.template is not None
            if own and revision["metadata"]["name"] == created:
                return revision
        return None


def model_status(
    model: str,
    services: Sequence[Mapping[str, Any]],
    accounts: Sequence[Mapping[str, Any]],
    revisions: Sequence[Mapping[str, Any]],
    pods: Sequence[Mapping[str, Any]],
    gateway_url: str,
) -> ModelStatus:
    """Slots and weights of the model's service. `ValueError` and the like where they cannot be read."""
    if len(services) != 1:
        raise ValueError(f"{len(services)} InferenceServices")
    name = services[0]["metadata"]["name"]
    account = next((a for a in accounts if a["metadata"]["name"] == name), None)
    seen = _Seen(services[0], account, revisions, pods)
    wanted = seen.wanted
    trouble = _not_routed(seen, wanted)
    applied = wanted is not None and _asked(seen) == (wanted["template"], wanted["share"])
    weights = {s: int(w["weight"]) for s, w in wanted["slots"].items()} if wanted else {}
    return ModelStatus(
        model=model,
        commit="",
        generation=route_generation(account) if account is not None and trouble is None else None,
        gateway_url=gateway_url,
        route=RouteStatus(
            weights=weights,
            effective=seen.weights,
            version=str(services[0]["metadata"].get("resourceVersion", "")),
            loaded=trouble is None,
            trouble=trouble,
        ),
        slots=_slots(seen, wanted),
        successor=_successor(seen) if applied else None,
    )


def _asked(seen: _Seen) -> tuple[str | None, int | None]:
    return seen.template, seen.predictor.get("canaryTrafficPercent")


def _not_routed(seen: _Seen, wanted: Mapping[str, Any] | None) -> str | None:
    """None where KServe and Knative carry out what the commit asks for, all of it."""
    if wanted is None:
        return f"no ServiceAccount {seen.name} says what the service is to ask for"
    if _asked(seen) != (wanted["template"], wanted["share"]):
        return f"{seen.name} is of another commit than its ServiceAccount"
    newest = seen.newest()
    if newest is None:
        return f"KServe has not looked at the newest {seen.name}"
    weights = {s: int(w["weight"]) for s, w in wanted["slots"].items() if w["weight"]}
    if not weights:
        return None  # a first release: Knative gives it everything when it is ready
    conditions = (seen.service.get("status") or {}).get("conditions") or []
    routed: Mapping[str, Any] = next((c for c in conditions if c.get("type") == _ROUTED), {})
    if routed.get("status") != "True":
        return f"{seen.name} is not routed: {routed.get('reason')}: {routed.get('message')}"
    share = wanted["share"] if wanted["share"] is not None else 100
    latest = sum(int(t.get("percent") or 0) for t in seen.traffic if t.get("latestRevision"))
    whole = share < 100 or seen.shares[newest["metadata"]["name"]] == 100
    if seen.weights != weights or latest != share or not whole:
        return f"{seen.name} is routed with the weights {seen.weights}, not {weights}"
    return None


def _slots(seen: _Seen, wanted: Mapping[str, Any] | None) -> dict[str, SlotStatus]:
    """The slots that are to be occupied, and those that get traffic all the same."""
    shares, found = seen.shares, {}
    occupied = {s: w["candidate"] for s, w in wanted["slots"].items()} if wanted else {}
    routed = {t.get("revisionName") for t in seen.traffic}
    slots = {slot_of(r) for r in seen.revisions if r["metadata"]["name"] in routed}
    for slot in sorted({*occupied, *(s for s in slots if s is not None)}):
        own = [r for r in seen.revisions if slot_of(r) == slot]
        if slot in occupied:
            own = [r for r in own if annotation(r, CANDIDATE_ANNOTATION) == occupied[slot]]
        if own:
            # Stable's version put back is a revision beside the one that still has the traffic.
            best = max(own, key=lambda r: (shares[r["metadata"]["name"]], _number(r)))
            found[slot] = _slot(seen, slot, best)
    return found


def _slot(seen: _Seen, slot: str, revision: Mapping[str, Any]) -> SlotStatus:
    metadata = revision["metadata"]
    candidate = annotation(revision, CANDIDATE_ANNOTATION)
    pods = [
        p
        for p in seen.pods
        if (p["metadata"].get("labels") or {}).get(_REVISION) == metadata["name"]
    ]
    listed = [pod_status(pod) for pod in pods]
    current = [p for p in listed if p.candidate == candidate and p.state != "terminating"]
    ready = sum(p.ready for p in current)
    # A revision of an earlier release in the same slot is not what the service asks for now.
    stale = (
        slot == slot_of({"metadata": seen.predictor})
        and not seen.shares[metadata["name"]]
        and revision is not seen.newest()
    )
    final, passing = troubles({}, pods)
    for condition in (revision.get("status") or {}).get("conditions") or []:
        if condition.get("type") == "Ready" and condition.get("status") == "False":
            passing.append(f"{condition.get('reason')}: {condition.get('message')}")
    return SlotStatus(
        slot=slot,
        deployment=metadata["name"],
        candidate=candidate,
        desired=int(annotation(revision, _MIN_SCALE) or seen.predictor.get("minReplicas") or 1),
        ready=ready,
        updated=0 if stale else ready,
        observed=not stale,
        restarts=sum(pod.restarts for pod in current),
        pods=tuple(listed),
        refusals=tuple(final),
        waiting=tuple(passing),
    )


def _successor(seen: _Seen) -> Successor | None:
    newest, slot = seen.newest(), slot_of({"metadata": seen.predictor})
    if newest is None or slot is None or seen.template is None:
        return None
    if seen.component.get("latestReadyRevision") != newest["metadata"]["name"]:
        return None
    return Successor(generation=int(seen.template), slot=_slot(seen, slot, newest))


def _number(revision: Mapping[str, Any]) -> int:
    return int((revision["metadata"].get("labels") or {}).get(_GENERATION) or 0)
