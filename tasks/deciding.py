"""What people do to a release from the command line: approve, reject, hold, lift a denial. Each is one commit.

A decision is signed on the person's own machine and verified there as the driver will verify it, so that what would not count is
refused before it is in Git.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from lockgate.adapters import ssh_signatures
from lockgate.adapters.git import FileChange
from lockgate.adapters.report import Check, answer
from lockgate.domain import gitops
from lockgate.domain.approval import (
    ApprovalRequest,
    Approver,
    Decision,
    LiftRequest,
    SignedDecision,
    Weighed,
    lift_request,
    weigh,
    weigh_one,
)
from lockgate.domain.release_state import Denied, Phase, ReleaseState
from lockgate.domain.rollout import DenialLifted, HoldRequested, Transition, Wait, advance
from lockgate.domain.rollout.transitions import one_line, rfc3339
from lockgate.errors import LockgateError, Refused, UsageError
from tasks.approving import listed_approvers, pending_request, verify_at, weigh_decisions
from tasks.driving import apply, commit
from tasks.reporting import gather
from tasks.workspace import Workspace


@dataclass(frozen=True)
class Question:
    """What waits for a person."""

    request: ApprovalRequest
    weighed: Weighed
    """What has been decided so far."""


@dataclass(frozen=True)
class Answered:
    """What a decision came to."""

    by: str
    committed: bool
    """False where the same person had decided so before."""
    commit: str
    approved: int
    """Approvals that count, this one included."""


def ask(workspace: Workspace, model: str, environment: str) -> Question:
    """What waits for approval at the remote now.

    Raises:
        UsageError: nothing waits.
    """
    workspace.gitops.sync()
    state = workspace.gitops.read_state(model, environment)
    request = pending_request(workspace, state)
    if request is None:
        raise UsageError(
            f"nothing of {model} waits for approval in {environment} ({state.phase})",
            hint="`lockgate status` says where every model stands",
        )
    return Question(request, weigh_decisions(workspace, request))


def speaking(workspace: Workspace, model: str, environment: str) -> tuple[Check, ...]:
    """What the report has for and against the release; that there is none speaks against it."""
    try:
        found = answer(gather(workspace, model, environment))
    except LockgateError as error:
        return (Check("bad", f"The report cannot be made: {error.message}"),)
    return found.checks if found is not None else (Check("bad", "There is no report."),)


def decide(
    workspace: Workspace,
    request: ApprovalRequest,
    word: Literal["approve", "reject"],
    *,
    key: Path,
    name: str | None,
    reason: str,
) -> Answered:
    """Sign a decision on `request` and commit it, if that still is what waits.

    Raises:
        Refused: something else waits now, or the decision would not count; the flaw is named.
    """
    decision, signed = _signed(workspace, word, request, key, name, reason)
    place = str(gitops.decision_path(
        request.model, request.environment, request.content_digest(), decision.by
    ))  # fmt: skip
    counted: list[int] = []

    def change(newest: ReleaseState) -> FileChange | None:
        if pending_request(workspace, newest) != request:
            raise Refused(
                "this is not what waits any more: the release, its manifests or the policy changed meanwhile",
                hint="look again and decide on what waits now",
            )
        directory = gitops.approvals_directory(
            request.model, request.environment, request.content_digest()
        )
        there = workspace.gitops.files(directory)
        now, approvers = datetime.now(UTC), listed_approvers(workspace)
        before = there.get(place)
        if before is not None:
            earlier = weigh_one(place, before, request, approvers, now, verify_at(now)).presented
            if earlier is not None and earlier.decision.word == word:
                counted[:] = [len(weigh(there, request, approvers, now, verify_at(now)).approved)]
                return None
        found = weigh({**there, place: signed.text()}, request, approvers, now, verify_at(now))
        for refusal in found.refusals:
            if refusal.place == place:
                raise Refused(f"not committed: {refusal}", hint=_HINTS.get(refusal.flaw))
        counted[:] = [len(found.approved)]
        return FileChange({place: signed.text()}, _message(decision, request))

    done = workspace.gitops.commit_beside(request.model, request.environment, change)
    return Answered(decision.by, done.committed, done.commit, counted[0])


_HINTS = {
    "not_listed": "who may approve stands in `approvers` on the protected branch",
    "self_given": "somebody else has to decide",
    "expired": "ask anew: `lockgate hold`, then `lockgate promote --resume`",
    "duplicate": "somebody else has to approve, too",
}


def _message(decision: Decision, request: ApprovalRequest) -> str:
    said = "approves" if decision.word == "approve" else "rejects"
    return gitops.format_message(
        f"{request.model}/{request.environment}: {decision.by} {said} step {request.step + 1} "
        f"({request.weight}%) of {request.release}",
        decision.reason,
        {
            "Lockgate-Decision": decision.word,
            "Lockgate-Request": str(request.content_digest()),
            "Candidate": str(request.candidate),
            "Evidence": str(request.evidence),
            "Decided-by": decision.by,
        },
    )


def lift(
    workspace: Workspace,
    model: str,
    environment: str,
    candidate: str,
    *,
    key: Path,
    name: str | None,
    reason: str,
) -> ReleaseState:
    """Take a candidate off the denylist: the signed decision and the new state are one commit.

    `candidate`: its digest, or enough of the digest's hex digits to tell it from the others.

    Raises:
        UsageError: no such candidate is denied.
        Refused: the signature would not count (its flaw is named), or the candidate is still in its slot.
    """
    repository = workspace.gitops
    repository.sync()
    denied = _denied(repository.read_state(model, environment), candidate)
    rule = repository.read_policy().approval_rule(environment)
    request = lift_request(repository.read_state(model, environment), denied, rule, _now())
    decision, signed = _signed(workspace, "lift", request, key, name, reason)
    digest = request.content_digest()
    place = str(gitops.decision_path(model, environment, digest, decision.by))
    asked = DenialLifted(
        candidate=denied.candidate, by=decision.by, reason=one_line(reason), request=digest
    )

    def build(newest: ReleaseState) -> Transition | Wait:
        if newest.is_denied(denied.candidate) not in (denied, None):
            raise Refused("the candidate was denied anew meanwhile", hint="look again")
        now = _now()
        refusal = weigh_one(
            place, signed.text(), request, listed_approvers(workspace), now, verify_at(now)
        ).refusal
        if refusal is not None:
            raise Refused(f"not lifted: {refusal}", hint=_HINTS.get(refusal.flaw))
        return advance(newest, asked, now)

    result = apply(workspace, model, environment, build, files={place: signed.text()})
    if result.wait is not None and not result.wait.finished:
        raise Refused(f"not lifted: {result.wait.reason}")
    return result.state


def hold(
    workspace: Workspace, model: str, environment: str, *, reason: str, requested_by: str
) -> ReleaseState:
    """Stop the release under way where it is: slots and weight stay.

    Raises:
        UsageError: nothing is under way that could be held.
    """
    workspace.gitops.sync()
    state = workspace.gitops.read_state(model, environment)
    release = state.release_under_way
    if release is None or state.phase is Phase.DRAINING:
        raise UsageError(f"nothing of {model} is under way in {environment} ({state.phase})")
    return commit(
        model, environment, HoldRequested(release=release, by=requested_by, reason=reason)
    )


def _signed(
    workspace: Workspace,
    word: Literal["approve", "reject", "lift"],
    request: ApprovalRequest | LiftRequest,
    key: Path,
    name: str | None,
    reason: str,
) -> tuple[Decision, SignedDecision]:
    by = name or _name_of(ssh_signatures.public_key(key), listed_approvers(workspace))
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+@-]{0,99}", by):
        raise UsageError(f"{by!r} is no name of an approver", hint="give `--as` as in `approvers`")
    decision = Decision(word=word, request=request, by=by, at=rfc3339(_now()), reason=reason)
    return decision, SignedDecision.of(decision, ssh_signatures.sign(decision.signed_bytes(), key))


def _name_of(key: str, approvers: tuple[Approver, ...]) -> str:
    for approver in approvers:
        if approver.key == key:
            return approver.names[0]
    raise Refused("not_listed: this key is not among the approvers", hint=_HINTS["not_listed"])


def _denied(state: ReleaseState, candidate: str) -> Denied:
    digits = candidate.removeprefix("sha256:").lower()
    found = [d for d in state.denylist if len(digits) >= 8 and d.candidate.hex.startswith(digits)]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(d.candidate.short for d in state.denylist) or "none"
    what = "more than one denied candidate" if found else "no denied candidate"
    raise UsageError(
        f"{what} of {state.model}/{state.environment} begins with {candidate!r} (denied: {listed})",
        hint="give at least eight hex digits of its digest",
    )


def _now() -> datetime:
    return datetime.now(UTC)
