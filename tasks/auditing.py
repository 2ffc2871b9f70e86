"""The audit of a model: every commit that touched it, who stands behind it, and every signature verified again.

From Git alone: the branch's own commits, oldest first, and `approvers` and the policy of the protected branch. A key counts as it
was valid when its decision landed, so a key that ended since is ended by `valid-before`, not by removing its line. A commit's time
is never taken to be before that of an earlier one: a decision cannot be dated back behind the end of its key.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import PurePosixPath

from lockgate.adapters.git import Touched
from lockgate.domain import gitops
from lockgate.domain.approval import (
    ApprovalRequest,
    Approver,
    Decision,
    Flaw,
    LiftRequest,
    Presented,
    PullRecord,
    Weighed,
    approval_request,
    weigh,
    weigh_one,
)
from lockgate.domain.digests import Digest
from lockgate.domain.gitops import HistoryEntry
from lockgate.domain.policy import ApprovalRule
from lockgate.domain.release_state import Phase, ReleaseState
from lockgate.domain.rollout import TransitionKind
from lockgate.domain.rollout.transitions import parse_time
from lockgate.errors import GitError, LockgateError, UsageError
from tasks.approving import (
    listed_approvers,
    merge_as_it_counted,
    read_pull_record,
    verify_at,
)
from tasks.audited import Audit, AuditedCommit, Problem
from tasks.workspace import Workspace

CARRYING_OUT = timedelta(minutes=5)
"""The longest that a commit takes, once its driver has read the approvals."""


def audit_model(workspace: Workspace, model: str, environment: str | None) -> Audit:
    """Audit a model in one environment, or in all that it was ever in.

    Raises:
        UsageError: nothing of that name is in the history.
        GitError: the repository, or `approvers`, cannot be read.
    """
    repository = workspace.gitops
    repository.sync()
    environments = [environment] if environment is not None else _environments(workspace, model)
    approvers = listed_approvers(workspace)
    rows = [
        row for name in environments for row in _Auditor(workspace, model, name, approvers).rows()
    ]
    if not rows:
        raise UsageError(
            f"nothing of {model} is in the history", hint="`lockgate status` names the models"
        )
    return Audit(model=model, commits=tuple(rows))


def _environments(workspace: Workspace, model: str) -> list[str]:
    """A state that cannot be read counts too: its history is still there."""
    found = []
    for path in workspace.gitops.paths(gitops.MODELS / model):
        names = gitops.model_of_state_path(path)
        if names is not None:
            found.append(names[1])
    return sorted(found)


class _Auditor:
    """Goes through one environment's commits, oldest first."""

    def __init__(
        self,
        workspace: Workspace,
        model: str,
        environment: str,
        approvers: Sequence[Approver],
    ) -> None:
        self.workspace, self.repository = workspace, workspace.gitops
        self.told: list[str] = []
        """Of the commit that is looked at."""
        self.model, self.environment = model, environment
        self.approvers = approvers
        self.before = ReleaseState(model=model, environment=environment)
        self.now = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
        self.directory = gitops.environment_directory(model, environment)

    def rows(self) -> Iterator[AuditedCommit]:
        for entry, touched in self.repository.landed(self.model, self.environment):
            self.now = max(self.now, datetime.fromisoformat(entry.at))
            verified: list[str] = []
            self.told = []
            problems = list(self._problems(entry, touched, verified))
            yield AuditedCommit(
                commit=entry.commit,
                at=entry.at,
                environment=self.environment,
                author=entry.author,
                who=entry.approved_by
                or entry.trailers.get("Decided-by")
                or entry.trailers.get("Requested-by")
                or entry.author,
                did=entry.subject,
                kind=entry.transition or entry.trailers.get("Lockgate-Decision") or "other",
                release=entry.release,
                candidate=entry.trailers.get("Candidate"),
                evidence=entry.trailers.get("Evidence"),
                verdict=entry.verdict,
                verified=tuple(verified),
                told=tuple(self.told),
                problems=tuple(problems),
            )

    def _problems(
        self, entry: HistoryEntry, touched: Touched, verified: list[str]
    ) -> Iterator[Problem]:
        try:
            state = self.repository.state_at(entry.commit, self.model, self.environment)
        except GitError as error:
            yield Problem(kind="unreadable", message=error.message)
            return
        for path in (*touched.written, *touched.removed):
            if entry.transition is None and self._is_own(path):
                yield Problem(kind="changed_by_hand", message=f"{path}, by {entry.author}")
        for path in touched.removed:
            if self._place(path) is not None or self._is_pull(path):
                yield Problem(kind="decision_removed", message=path)
        for path in touched.written:
            yield from self._verdict(entry, path)
            if self._place(path) is not None:
                yield from self._decision(entry, path, state, verified)
            elif self._is_pull(path):
                yield from self._pull(entry, path, state)
        if entry.transition is not None:
            yield from self._transition(entry, touched, state, verified)
        self.before = state

    def _is_own(self, path: str) -> bool:
        """Whether only Lockgate writes this file."""
        own = (gitops.state_path(self.model, self.environment),)
        manifests = gitops.manifests_directory(self.model, self.environment)
        return PurePosixPath(path) in own or PurePosixPath(path).is_relative_to(manifests)

    def _place(self, path: str) -> str | None:
        """The request's hex digits, where the path is one of a decision."""
        place = PurePosixPath(path)
        if not place.is_relative_to(self.directory / "approvals"):
            return None
        return place.parent.name

    def _is_pull(self, path: str) -> bool:
        return PurePosixPath(path).parent == self.directory / "pulls"

    def _verdict(self, entry: HistoryEntry, path: str) -> Iterator[Problem]:
        """A judge's report is the one whose digest names it."""
        place = PurePosixPath(path)
        if place.parent != self.directory / "verdicts":
            return
        text = self.repository.text_at(entry.commit, path) or ""
        try:
            fits = Digest.of_json(json.loads(text)).hex == place.stem
        except (ValueError, RecursionError):
            fits = False
        if not fits:
            yield Problem(kind="verdict_changed", message=f"{path} is not the report of its name")

    def _decision(
        self, entry: HistoryEntry, path: str, state: ReleaseState, verified: list[str]
    ) -> Iterator[Problem]:
        """A decision that this commit brought: that it counted when it landed."""
        text = self.repository.text_at(entry.commit, path) or ""
        request = _request_in(text)
        if request is None:
            yield Problem(kind=Flaw.MALFORMED, message=f"{path} holds no decision")
            return
        found = weigh_one(path, text, request, self.approvers, self.now, verify_at(self.now))
        if found.presented is None:
            if found.refusal is not None:
                yield Problem(kind=found.refusal.flaw, message=str(found.refusal))
            return
        decision = found.presented.decision
        if request.content_digest().hex != self._place(path) or not self._waited(
            entry.commit, state, request
        ):
            yield Problem(
                kind=Flaw.REPLAYED,
                message=f"decision of {decision.by}: it is of a request that did not wait then",
            )
            return
        verified.append(f"{decision.word} by {decision.by}")

    def _pull(self, entry: HistoryEntry, path: str, state: ReleaseState) -> Iterator[Problem]:
        """The record of a pull request that this commit brought: what its end came to, as far as Git can tell."""
        record = read_pull_record(self.repository.text_at(entry.commit, path) or "")
        if record is None:
            yield Problem(kind=Flaw.MALFORMED, message=f"{path} holds no record of a pull request")
            return
        request = record.request
        fits = request.content_digest().hex == PurePosixPath(path).stem
        if not fits or not self._waited(entry.commit, state, request):
            yield Problem(kind=Flaw.REPLAYED, message=f"{record.place} is not of what waited then")
            return
        if record.said.state == "open":
            return
        found = merge_as_it_counted(
            self.workspace, record, Weighed(request=request), self.approvers, self.now
        )
        words = [*found.approved, *((found.rejected,) if found.rejected is not None else ())]
        self.told += [_told(presented, record) for presented in words]
        for refusal in found.refusals if not words else ():
            yield Problem(kind=refusal.flaw, message=str(refusal))

    def _waited(
        self, commit: str, state: ReleaseState, request: ApprovalRequest | LiftRequest
    ) -> bool:
        """Whether the request was that of the state which the commit was made on. The rule is taken as it was signed."""
        if isinstance(request, LiftRequest):
            denied = self.before.is_denied(request.candidate)
            return denied is not None and denied.at == request.denied_at
        return self._request_at(commit, state, request) == request

    def _request_at(
        self, commit: str, state: ReleaseState, signed: ApprovalRequest
    ) -> ApprovalRequest | None:
        manifests = self.repository.files(
            gitops.manifests_directory(self.model, self.environment), commit
        )
        rule = ApprovalRule(needed=min(signed.needed, 16), roles=signed.roles)
        try:
            found = approval_request(state, manifests, rule)
        except LockgateError:
            return None
        return found.model_copy(update={"expires": signed.expires}) if found is not None else None

    def _transition(
        self, entry: HistoryEntry, touched: Touched, state: ReleaseState, verified: list[str]
    ) -> Iterator[Problem]:
        said = entry.trailers.get("Lockgate-Generation")
        if state.generation != self.before.generation + 1 or said != str(state.generation):
            yield Problem(
                kind="out_of_order",
                message=f"generation {state.generation} (said: {said}) after {self.before.generation}",
            )
        lifted = {d.candidate for d in self.before.denylist} - {d.candidate for d in state.denylist}
        signed = any(word.startswith("lift by ") for word in verified)
        if lifted and not signed:
            names = ", ".join(sorted(candidate.short for candidate in lifted))
            yield Problem(
                kind="unsigned_lift",
                message=f"the denial of {names} was lifted without a signature",
            )
        steps = [n + 1 for n in _signed_steps(self.before, state, entry.transition)]
        if steps:
            yield from self._approved(entry, state, steps, verified)

    def _approved(
        self, entry: HistoryEntry, state: ReleaseState, steps: list[int], verified: list[str]
    ) -> Iterator[Problem]:
        """A raise that takes approvals: that they were there, of this release, these manifests and this evidence."""

        def missing(why: str) -> Problem:
            return Problem(kind="approval_missing", message=f"step {steps[0]}: {why}")

        named = entry.trailers.get("Lockgate-Request", "")
        try:
            place = gitops.approvals_directory(self.model, self.environment, Digest(named))
        except ValueError:
            yield missing("the commit names no signed request")
            return
        if len(steps) > 1:
            yield missing(f"steps {', '.join(map(str, steps))} were taken at once")
            return
        files = self.repository.files(place, entry.commit)
        path = gitops.pull_record_path(self.model, self.environment, Digest(named))
        record = read_pull_record(self.repository.text_at(entry.commit, path) or "")
        requests = [r for r in map(_request_in, files.values()) if r is not None]
        requests += [record.request] if record is not None else []
        request = next((r for r in requests if r.content_digest() == named), None)
        if not isinstance(request, ApprovalRequest):
            yield missing("there is no decision on the request that the commit names")
            return
        # The manifests of this commit with the state before it: what runs now is what was approved.
        if self._request_at(entry.commit, self.before, request) != request:
            yield missing("what was approved is not what was raised")
            return
        at = self._carried_out(request)
        found = weigh(files, request, self.approvers, at, verify_at(self.now))
        if record is not None:
            found = merge_as_it_counted(self.workspace, record, found, self.approvers, at)
        if not found.enough or found.rejected is not None:
            flaws = "; ".join(str(refusal) for refusal in found.refusals)
            yield missing(f"{len(found.names)} of {request.needed} approvals count ({flaws})")
            return
        if entry.approved_by != ", ".join(found.names):
            yield missing(f"approved by {', '.join(found.names)}, not by {entry.approved_by}")
        verified += [f"approved by {y.decision.by}" for y in found.approved if y.told_by is None]
        if record is not None:
            self.told += [_told(y, record) for y in found.approved if y.told_by is not None]

    def _carried_out(self, request: ApprovalRequest) -> datetime:
        """When a driver looked at the approvals that this commit rests on: a little before it landed."""
        expires = parse_time(request.expires)
        late = expires <= self.now <= expires + CARRYING_OUT
        return expires - timedelta(milliseconds=1) if late else self.now


def _told(presented: Presented, record: PullRecord) -> str:
    decision = presented.decision
    return f"{decision.word} by {decision.by}: {record.forge}'s word on {record.said.url}"


def _signed_steps(before: ReleaseState, after: ReleaseState, kind: str | None) -> list[int]:
    """Indices of the steps that a transition began or passed over and that take an approval."""
    spec = before.canary
    if spec is None:
        return []
    first = 0 if before.step is None else before.step + 1
    if after.step is not None and after.step != before.step:
        last = after.step
    elif kind == TransitionKind.PROMOTE and before.stable is None:
        # All traffic at once, whichever step asks for an approval.
        return [first] if any(step.approval for step in spec.steps) else []
    elif kind == TransitionKind.PROMOTE or (
        after.phase in (Phase.BAKING, Phase.STABLE) and after.stable != before.stable
    ):
        last = len(spec.steps) - 1
    else:
        return []
    return [n for n in range(first, min(last + 1, len(spec.steps))) if spec.steps[n].approval]


def _request_in(text: str) -> ApprovalRequest | LiftRequest | None:
    """The request that a decision's file says it is on; nothing is verified."""
    try:
        return Decision.model_validate(json.loads(text)["decision"]).request
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
