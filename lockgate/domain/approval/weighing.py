"""What signed decisions come to: which count, which do not and why by name, and whether those that count are enough.

Pure but for the one question that only OpenSSH answers, whether a key made a signature over these bytes: that is asked through
`Verify`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import ValidationError

from lockgate.domain.approval.approvers import (
    NAMESPACE,
    Approver,
    is_named,
    person,
    read_signature,
)
from lockgate.domain.approval.requests import ApprovalRequest, Decision, LiftRequest
from lockgate.domain.base import Frozen
from lockgate.domain.digests import canonical_json
from lockgate.domain.rollout import Approval, Rejection
from lockgate.domain.rollout.transitions import parse_time

MAX_BYTES = 64 << 10
"""Of a decision's file; a longer one is not read."""

Verify = Callable[[bytes, str, Approver, str], str | None]
"""(signed bytes, armored signature, the approver's line, name) → None where the key made it and is valid, else OpenSSH's words."""


class Flaw(StrEnum):
    """Why a decision does not count."""

    MALFORMED = "malformed"
    WRONG_NAMESPACE = "wrong_namespace"
    """Signed for something else than approvals."""
    NOT_LISTED = "not_listed"
    """The signer, or the signer's key, is not among the approvers."""
    KEY_NOT_VALID = "key_not_valid"
    """The key is listed, but not at this time (`valid-after`, `valid-before`)."""
    FORGED = "forged"
    """The signature is not the key's, or not of these bytes."""
    REPLAYED = "replayed"
    """Of another release, step, candidate, evidence or manifests, or of an older question."""
    EXPIRED = "expired"
    WRONG_ROLE = "wrong_role"
    SELF_GIVEN = "self_given"
    """By whoever started the release."""
    REQUESTER_UNKNOWN = "requester_unknown"
    """Nobody knows who started the release, so nobody can be shown not to be that person."""
    DUPLICATE = "duplicate"
    """The same person has approved already, by another name or key."""
    HEAD_CHANGED = "head_changed"
    """A pull request that is not, or an approval that was not of, the commit which Lockgate pushed."""
    OTHER_BASE = "other_base"
    """A pull request that was merged into another branch than the protected one."""
    SIGNATURES_ONLY = "signatures_only"
    """A merge, where the policy counts signatures alone, or another forge's."""


class Refusal(Frozen):
    """One decision that does not count."""

    flaw: Flaw
    by: str
    """As the decision or its file says: nothing is proved of it."""
    place: str
    message: str

    def __str__(self) -> str:
        return f"decision of {self.by}: {self.flaw}: {self.message}"


class SignedDecision(Frozen):
    """A decision's file."""

    decision: dict[str, Any]
    """The document as it was signed: verified over the canonical JSON of exactly this, whatever fields later versions add."""
    signature: str

    @classmethod
    def of(cls, decision: Decision, signature: str) -> SignedDecision:
        return cls(decision=decision.to_data(), signature=signature)

    def text(self) -> str:
        """The file."""
        return json.dumps(self.to_data(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


class Presented(Frozen):
    """A decision that counts."""

    decision: Decision
    place: str
    keys: tuple[str, ...]
    """All keys of the person, to tell people apart."""
    told_by: str | None = None
    """The forge whose word this is; None for what was signed."""


class Weighed(Frozen):
    """What all decisions on one request come to."""

    request: ApprovalRequest
    approved: tuple[Presented, ...] = ()
    """By different people."""
    rejected: Presented | None = None
    refusals: tuple[Refusal, ...] = ()
    unasked: bool = False
    """Whether a pull request was closed and its forge cannot be asked who did: nothing is approved before that is known."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(yes.decision.by for yes in self.approved)

    @property
    def enough(self) -> bool:
        return len(self.approved) >= self.request.needed

    @property
    def outcome(self) -> Approval | Rejection | None:
        """What the state machine is told. One no is enough, and stronger than any number of yes."""
        request = self.request
        if self.rejected is not None:
            no = self.rejected.decision
            return Rejection(
                release=request.release,
                candidate=request.candidate,
                by=no.by,
                reason=no.reason or "no reason given",
            )
        if self.unasked or not self.enough:
            return None
        return Approval(
            release=request.release,
            candidate=request.candidate,
            step=request.step,
            by=", ".join(self.names),
            expires=request.expires,
            request=request.content_digest(),
        )


class Examination(Frozen):
    """Of one decision: it counts, or why not."""

    presented: Presented | None = None
    refusal: Refusal | None = None


def weigh(
    files: Mapping[str, str],
    request: ApprovalRequest,
    approvers: Sequence[Approver],
    now: datetime,
    verify: Verify,
) -> Weighed:
    """Weigh the decisions in `files` (text by path, one signer each) on the request that waits."""
    approved: list[Presented] = []
    rejected: Presented | None = None
    refusals: list[Refusal] = []
    for place, text in sorted(files.items()):
        found = weigh_one(place, text, request, approvers, now, verify)
        presented = found.presented
        if presented is None:
            refusals += [found.refusal] if found.refusal is not None else []
        elif presented.decision.word == "reject":
            rejected = rejected or presented
        elif any(set(presented.keys) & set(yes.keys) for yes in approved):
            refusals.append(
                _refusal(
                    Flaw.DUPLICATE, presented.decision.by, place, "this person approved already"
                )
            )
        else:
            approved.append(presented)
    return Weighed(
        request=request, approved=tuple(approved), rejected=rejected, refusals=tuple(refusals)
    )


def weigh_one(
    place: str,
    text: str,
    request: ApprovalRequest | LiftRequest,
    approvers: Sequence[Approver],
    now: datetime,
    verify: Verify,
) -> Examination:
    """Whether one decision counts for this request. The first flaw is named: who signed comes before what was signed."""
    by = place.rsplit("/", 1)[-1].removesuffix(".json")
    try:
        signed = _read(text)
        decision = Decision.model_validate(signed.decision)
        facts = read_signature(signed.signature)
        data = canonical_json(signed.decision)
    except ValueError as error:
        return Examination(refusal=_refusal(Flaw.MALFORMED, by, place, _first_line(error)))

    def refuse(flaw: Flaw, message: str) -> Examination:
        return Examination(refusal=_refusal(flaw, decision.by, place, message))

    if decision.by != by:
        return refuse(Flaw.MALFORMED, f"it lies in the file of {by}")
    if facts.namespace != NAMESPACE:
        return refuse(
            Flaw.WRONG_NAMESPACE, f"signed for {facts.namespace!r}, not for {NAMESPACE!r}"
        )
    line = next((a for a in approvers if a.key == facts.key and decision.by in a.names), None)
    if line is None or (line.namespaces and NAMESPACE not in line.namespaces):
        known = any(decision.by in a.names for a in approvers)
        what = "this key is not listed for that name" if known else "nobody of that name is listed"
        return refuse(Flaw.NOT_LISTED, what)
    said = verify(data, signed.signature, line, decision.by)
    if said is not None:
        invalid = "has expired" in said or "not yet valid" in said
        return refuse(Flaw.KEY_NOT_VALID if invalid else Flaw.FORGED, said)
    flaw = standing(decision, request, line, approvers, now)
    if flaw is not None:
        return refuse(*flaw)
    keys = tuple(sorted(a.key for a in person(line, approvers)))
    return Examination(presented=Presented(decision=decision, place=place, keys=keys))


_NOBODY = ("", "unknown")
"""What a request says where nobody knows who started the release; the word is older releases'."""


def standing(
    decision: Decision,
    request: ApprovalRequest | LiftRequest,
    line: Approver,
    approvers: Sequence[Approver],
    now: datetime,
) -> tuple[Flaw, str] | None:
    """What speaks against a decision that its signer has really made."""
    words = {"lift"} if isinstance(request, LiftRequest) else {"approve", "reject"}
    if decision.word not in words:
        return Flaw.REPLAYED, f"{decision.word!r} is no answer to this request"
    if decision.request != request:
        return Flaw.REPLAYED, f"it was given for {_difference(decision.request, request)}"
    if request.roles and not line.roles & set(request.roles):
        have = ", ".join(sorted(line.roles)) or "none"
        return (
            Flaw.WRONG_ROLE,
            f"it takes the role {' or '.join(request.roles)}; this key has {have}",
        )
    if decision.word == "reject":
        return None  # at any age, by whoever may decide: it only ever takes traffic away
    if parse_time(request.expires) <= now:
        return Flaw.EXPIRED, f"the request expired at {request.expires}"
    if isinstance(request, LiftRequest):
        return None
    requester = (request.requested_by or "").strip()
    if requester in _NOBODY:
        return Flaw.REQUESTER_UNKNOWN, "the state does not say who started the release"
    if is_named(person(line, approvers), requester):
        return Flaw.SELF_GIVEN, f"{request.requested_by} started this release"
    return None


_COMPARED = (
    "model", "environment", "release", "step", "candidate", "manifests", "evidence", "denied_at",
)  # fmt: skip


def _difference(given: ApprovalRequest | LiftRequest, wanted: ApprovalRequest | LiftRequest) -> str:
    """The first field in which two requests differ, in words."""
    was, now = given.to_data(), wanted.to_data()
    for key in (*_COMPARED, *now):
        if was.get(key) != now.get(key):
            one = 1 if key == "step" and was.get(key) is not None else 0
            before = was[key] + one if one else was.get(key)
            after = now[key] + one if one else now.get(key)
            return f"another {key.replace('_', ' ')}: {before}, not {after}"
    return "another kind of request"


def _read(text: str) -> SignedDecision:
    if len(text) > MAX_BYTES:
        raise ValueError(f"longer than {MAX_BYTES} characters")
    try:
        return SignedDecision.model_validate(json.loads(text))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refusal(flaw: Flaw, by: str, place: str, message: str) -> Refusal:
    return Refusal(flaw=flaw, by=by, place=place, message=message)


def _first_line(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).splitlines()[0]
