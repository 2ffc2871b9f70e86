"""Promotion pull requests: what a forge (GitHub, GitLab) is asked, what it says, and what its word comes to.

Merging one is a decision without a signature: it rests on the forge's word on who merged. So it counts only where the policy says
so, and only for accounts that a line of `approvers` names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Annotated, Literal, Protocol

from pydantic import Field

from lockgate.domain.approval.approvers import NAMESPACE, Approver, person
from lockgate.domain.approval.requests import ApprovalRequest, Decision
from lockgate.domain.approval.weighing import (
    Flaw,
    Presented,
    Refusal,
    Weighed,
    standing,
)
from lockgate.domain.base import Frozen
from lockgate.domain.rollout.transitions import parse_time

Commit = Annotated[str, Field(pattern=r"^([0-9a-f]{40}|[0-9a-f]{64})$")]


class Account(Frozen):
    """Somebody, as the forge calls them."""

    login: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\[\]-]*$", max_length=255)]
    id: Annotated[int, Field(ge=1)]
    """Stays when the login is given to somebody else."""


class Review(Frozen):
    """An approval at the forge."""

    by: Account
    commit: Commit
    """What was the pull request's head when it was given."""


class PullRequest(Frozen):
    """What the forge says of one."""

    number: Annotated[int, Field(ge=1)]
    url: Annotated[str, Field(pattern=r"^https?://[!-~]+$", max_length=500)]
    state: Literal["open", "merged", "closed"]
    base: str
    branch: str
    fork: bool
    """Whether the branch is another repository's."""
    head: Commit
    landed: Commit | None = None
    """The commit of the base branch that the merge made."""
    by: Account | None = None
    """Who merged or closed it."""
    at: str | None = None
    """RFC 3339 time of that."""
    approvals: tuple[Review, ...] = ()
    """That stood when it was merged."""


class PullRecord(Frozen):
    """What Git remembers of a promotion pull request: what Lockgate pushed, and what the forge said of it last."""

    apiVersion: Literal["lockgate.dev/v1"] = "lockgate.dev/v1"
    kind: Literal["PromotionPullRequest"] = "PromotionPullRequest"
    forge: Literal["github", "gitlab"]
    repository: str
    request: ApprovalRequest
    pushed: Commit
    """The head as Lockgate made it: the request's file on top of the protected branch, and nothing else."""
    said: PullRequest

    @property
    def place(self) -> str:
        return f"{self.forge}:{self.repository}#{self.said.number}"


class Forge(Protocol):
    """Where pull requests are. Every method raises `ForgeError` where there is no answer that is understood in time."""

    def find(self, branch: str, base: str) -> int | None:
        """The number of the newest pull request of the repository's own `branch` into `base`, in any state."""

    def open(self, branch: str, base: str, title: str, body: str) -> int:
        """Open one; where there is one already, its number."""

    def look(self, number: int) -> PullRequest:
        """What the forge says of it now."""


def request_branch(request: ApprovalRequest) -> str:
    """The branch that a promotion pull request comes from."""
    return f"lockgate/approve/{request.content_digest().hex[:20]}"


def weigh_pull(
    record: PullRecord,
    found: Weighed,
    approvers: Sequence[Approver],
    now: datetime,
    *,
    base: str,
    landed: bool,
) -> Weighed:
    """`found`, with the word of the forge. Whoever merged it and whoever approved exactly what was merged has approved; whoever
    closed it without merging has rejected.

    `base`: the protected branch. `landed`: whether that branch has the commit which the forge names, and it brought the request
    alone.
    """
    said, place = record.said, record.place
    if said.state == "open":
        return found
    flaw = _flaw(record, found.request, base, landed)
    if flaw is not None:
        who = said.by.login if said.by is not None else "nobody known"
        refusal = Refusal(flaw=flaw[0], by=who, place=place, message=flaw[1])
        return found.model_copy(update={"refusals": (*found.refusals, refusal)})
    approved, rejected, refusals = list(found.approved), found.rejected, list(found.refusals)
    for outcome in _people(record, found.request, approvers, now):
        if isinstance(outcome, Refusal):
            refusals.append(outcome)
        elif outcome.decision.word == "reject":
            rejected = rejected or outcome
        elif not (same := [y for y in approved if set(y.keys) & set(outcome.keys)]):
            approved.append(outcome)
        elif same[0].place != place:
            by, message = outcome.decision.by, "this person approved already"
            refusals.append(Refusal(flaw=Flaw.DUPLICATE, by=by, place=place, message=message))
    return found.model_copy(
        update={
            "approved": tuple(approved),
            "rejected": rejected,
            "refusals": tuple(refusals),
        }
    )


def _flaw(
    record: PullRecord, request: ApprovalRequest, base: str, landed: bool
) -> tuple[Flaw, str] | None:
    """Why the pull request as a whole decides nothing."""
    said = record.said
    if record.request != request or said.branch != request_branch(request) or said.fork:
        whose = "a fork's branch" if said.fork else f"branch {said.branch}"
        return Flaw.REPLAYED, f"it is of another request than what waits ({whose})"
    if said.state == "closed":
        return None
    if said.base != base:
        return Flaw.OTHER_BASE, f"it was merged into {said.base}, not into {base}"
    if said.head != record.pushed:
        return (
            Flaw.HEAD_CHANGED,
            f"its head is {said.head[:12]}; Lockgate pushed {record.pushed[:12]}",
        )
    if not landed:
        what = (said.landed or "no commit")[:12]
        return Flaw.FORGED, f"{base} has no merge {what} that brought the request and nothing else"
    return None


def _people(
    record: PullRecord, request: ApprovalRequest, approvers: Sequence[Approver], now: datetime
) -> Iterator[Presented | Refusal]:
    """The word of each account that took part in the end of the pull request."""
    said = record.said
    if said.by is None:
        message = f"{record.forge} does not say who {said.state} it"
        yield Refusal(flaw=Flaw.NOT_LISTED, by="nobody known", place=record.place, message=message)
    merged = said.state == "merged"
    accounts = {said.by.id: said.by} if said.by is not None else {}
    for review in said.approvals if merged else ():
        if review.commit == said.head:
            accounts.setdefault(review.by.id, review.by)
        else:
            yield Refusal(
                flaw=Flaw.HEAD_CHANGED, by=review.by.login, place=record.place,
                message=f"approved {review.commit[:12]}, not what was merged",
            )  # fmt: skip
    word: Literal["approve", "reject"] = "approve" if merged else "reject"
    for account in accounts.values():
        yield _word(record, account, word, request, approvers, now)


def _word(
    record: PullRecord,
    account: Account,
    word: Literal["approve", "reject"],
    request: ApprovalRequest,
    approvers: Sequence[Approver],
    now: datetime,
) -> Presented | Refusal:
    def refuse(flaw: Flaw, message: str) -> Refusal:
        return Refusal(flaw=flaw, by=account.login, place=record.place, message=message)

    lines = [
        line for line in approvers
        if line.has_account(record.forge, account.login, account.id)
        and (not line.namespaces or NAMESPACE in line.namespaces)
    ]  # fmt: skip
    if not lines:
        return refuse(
            Flaw.NOT_LISTED, f"no line of `approvers` says {record.forge}={account.login}"
        )
    valid = [line for line in lines if line.is_valid(now)]
    if not valid:
        return refuse(Flaw.KEY_NOT_VALID, "the line of this account is not valid at this time")
    line = next((v for v in valid if v.roles & set(request.roles)), valid[0])
    decision = Decision(
        word=word, request=record.request, by=line.names[0], at=record.said.at or "",
        reason=f"pull request {record.said.number} was {record.said.state}: {record.said.url}",
    )  # fmt: skip
    flaw = standing(decision, request, line, approvers, now)
    if flaw is not None:
        return refuse(*flaw)
    if word == "approve" and not _in_time(record.said.at, request):
        return refuse(Flaw.EXPIRED, f"the request expired at {request.expires}")
    keys = tuple(sorted(a.key for a in person(line, approvers)))
    return Presented(decision=decision, place=record.place, keys=keys, told_by=record.forge)


def _in_time(at: str | None, request: ApprovalRequest) -> bool:
    try:
        return at is not None and parse_time(at) < parse_time(request.expires)
    except ValueError:
        return False
