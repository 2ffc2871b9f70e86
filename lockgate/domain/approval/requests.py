"""The frozen request: everything that an approval is of, and the document that a release manager signs.

Nothing of a request is stored before somebody answers it: whoever wants to know what waits makes it anew from the state, the
manifests and the policy, and gets the same bytes. So an approval stops counting by itself when anything of it changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import Field

from lockgate.domain.approval.approvers import NAME
from lockgate.domain.base import Frozen
from lockgate.domain.cluster import (
    FAILOVER_ANNOTATION,
    GENERATION_ANNOTATION,
    WANTED_ANNOTATION,
)
from lockgate.domain.digests import Digest, canonical_json
from lockgate.domain.gitops import load_yaml
from lockgate.domain.policy import ApprovalRule
from lockgate.domain.release_state import Denied, Phase, ReleaseState
from lockgate.domain.rollout.transitions import parse_time, rfc3339
from lockgate.errors import GitError

LIFT_MINUTES = 60
"""How long a signed lifting of a denial may be carried out: it is committed by whoever signs it, at once."""
_MARKS = (FAILOVER_ANNOTATION, GENERATION_ANNOTATION, WANTED_ANNOTATION)
_SCALERS = ("ScaledObject", "HorizontalPodAutoscaler")


class ApprovalRequest(Frozen):
    """What an approval is of. A request that differs in anything is another one."""

    kind: Literal["approval"] = "approval"
    model: str
    environment: str
    release: str
    candidate: Digest
    manifests: Digest
    """`manifests_digest` of what will run."""
    evidence: Digest
    """Digest of the signed gate attestation's predicate."""
    step: Annotated[int, Field(ge=0)]
    """Index of the step that is to begin."""
    weight: Annotated[int, Field(ge=0, le=100)]
    """Percent of the traffic on the candidate in that step; of a first release, all."""
    requested_by: str | None
    """Who started the release; None where the state does not say."""
    needed: Annotated[int, Field(ge=1)]
    """Approvals of different people that it takes."""
    roles: tuple[str, ...]
    """Each of them needs one of these roles; empty: being listed is enough."""
    asked_at: str
    """RFC 3339 time at which the release began to wait."""
    expires: str
    """RFC 3339 time from which on no approval of this request counts."""


class LiftRequest(Frozen):
    """What the lifting of a denial is of: one denial, not the candidate for good."""

    kind: Literal["lift"] = "lift"
    model: str
    environment: str
    candidate: Digest
    release: str
    """The release that was denied."""
    denied_at: str
    denied_for: str
    roles: tuple[str, ...]
    expires: str


Request = ApprovalRequest | LiftRequest


class Decision(Frozen):
    """The document that is signed: one person's word on one request."""

    apiVersion: Literal["lockgate.dev/v1"] = "lockgate.dev/v1"
    kind: Literal["Decision"] = "Decision"
    word: Literal["approve", "reject", "lift"]
    request: Annotated[Request, Field(discriminator="kind")]
    by: Annotated[str, Field(pattern=NAME)]
    """The signer's name among the approvers."""
    at: str
    """RFC 3339 time, as the signer's clock had it: for people only."""
    reason: str = ""

    def signed_bytes(self) -> bytes:
        """What the signature is over: the canonical JSON."""
        return canonical_json(self.to_data())


def approval_request(
    state: ReleaseState, manifests: Mapping[str, str], rule: ApprovalRule
) -> ApprovalRequest | None:
    """The request that waits in `state`, whose manifests are these texts by path; None where nothing waits.

    A lifted hold asks anew: what was approved before it counts no longer, and the time to answer begins again.
    """
    slot, spec = state.canary_slot, state.canary
    subject = state.occupant(slot) if slot is not None else None
    if state.phase is not Phase.AWAITING_APPROVAL or subject is None or spec is None:
        return None
    moments = [moment for moment in (state.asked_at, state.resumed) if moment is not None]
    if not moments:
        return None
    step = 0 if state.step is None else state.step + 1
    asked = max(map(parse_time, moments))
    return ApprovalRequest(
        model=state.model,
        environment=state.environment,
        release=subject.release,
        candidate=subject.candidate.digest,
        manifests=manifests_digest(manifests),
        evidence=subject.evidence,
        step=step,
        # A first release has nobody to share the traffic with: whatever the step says, it takes all.
        weight=spec.steps[step].weight if state.stable is not None else 100,
        requested_by=subject.requested_by,
        needed=rule.needed,
        roles=rule.roles,
        asked_at=rfc3339(asked),
        expires=rfc3339(asked + timedelta(hours=rule.valid_hours)),
    )


def lift_request(
    state: ReleaseState, denied: Denied, rule: ApprovalRule, now: datetime
) -> LiftRequest:
    """What somebody who lifts this denial signs."""
    return LiftRequest(
        model=state.model,
        environment=state.environment,
        candidate=denied.candidate,
        release=denied.release,
        denied_at=denied.at,
        denied_for=denied.reason,
        roles=rule.roles,
        expires=rfc3339(now + timedelta(minutes=LIFT_MINUTES)),
    )


def manifests_digest(manifests: Mapping[str, str]) -> Digest:
    """Digest of rendered manifests (text by path), without what a raise or a rollback changes: weights, copies and rules of the
    route that follow from the phase, replicas, and scalers, which candidate and phase decide. So it is the same before and after the raise that was approved.

    Raises `GitError` for a text that is not YAML.
    """
    documents = {}
    for path, text in manifests.items():
        document = load_yaml(text, path)
        if not isinstance(document, dict):
            raise GitError(f"{path} holds no object")
        if document.get("kind") in _SCALERS:
            continue
        documents[PurePosixPath(path).name] = _lasting(document)
    return Digest.of_json(documents)


def _lasting(document: dict[str, Any]) -> Any:
    """The object without what belongs to a phase."""
    kind, spec = document.get("kind"), document.get("spec")
    if kind == "ServiceAccount" and (document.get("metadata") or {}).get("annotations"):
        return _unmarked(document)  # of an InferenceService, which cannot carry the marks itself
    if not isinstance(spec, dict):
        return document
    if kind in ("Deployment", "LeaderWorkerSet"):
        return {**document, "spec": _without(spec, "replicas")}
    if kind == "HTTPRoute":
        rules = [_lasting_rule(rule) for rule in spec.get("rules") or []]
        return {**_unmarked(document), "spec": {**spec, "rules": rules}}
    if kind == "LLMInferenceService":
        router = spec.get("router") or {}
        route = _without(router.get("route") or {}, "weight")
        kept = {**_without(spec, "replicas"), "router": {**router, "route": route}}
        return {**_unmarked(document), "spec": kept}
    if kind == "InferenceService":
        sizes = ("minReplicas", "maxReplicas", "canaryTrafficPercent")
        predictor = _without(spec.get("predictor") or {}, *sizes)
        return {**_unmarked(document), "spec": {**spec, "predictor": predictor}}
    return document


def _unmarked(document: dict[str, Any]) -> dict[str, Any]:
    """Without the annotations that a transition writes."""
    metadata = document.get("metadata") or {}
    kept = _without(metadata.get("annotations") or {}, *_MARKS)
    return {**document, "metadata": {**metadata, "annotations": kept}}


def _without(mapping: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key not in keys}


def _lasting_rule(rule: dict[str, Any]) -> dict[str, Any]:
    backends = [
        {key: value for key, value in backend.items() if key != "weight"}
        for backend in rule.get("backendRefs") or []
    ]
    kept = {
        **rule,
        "backendRefs": backends,
        "filters": [f for f in rule.get("filters") or [] if f.get("type") != "RequestMirror"],
    }
    return {key: value for key, value in kept.items() if key != "filters" or value}
