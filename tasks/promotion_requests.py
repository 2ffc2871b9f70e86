"""Promotion pull requests: opened where a release waits and the policy counts merges, and what became of them written to Git.

Nothing is decided here: that a merge counts is found by whoever weighs decisions (`tasks.approving`), and asked of the forge again.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from lockgate.adapters.git import FileChange
from lockgate.domain import gitops
from lockgate.domain.approval import ApprovalRequest, Forge, PullRecord, request_branch
from lockgate.domain.policy import ForgePolicy
from lockgate.domain.release_state import Phase, ReleaseState
from lockgate.domain.rollout.transitions import parse_time
from lockgate.errors import GitError, LockgateError
from tasks.approving import pending_request, pull_record, request_text
from tasks.workspace import Workspace

logger = logging.getLogger("lockgate.release")

_WORDS = {"open": "asks", "merged": "merge", "closed": "close"}


def attend(workspace: Workspace, state: ReleaseState) -> None:
    """See to the pull request of what waits in `state`: open it, or write down what became of it.

    Safe to repeat after any failure. Where the forge or Git cannot be reached nothing is decided, and the next look tries again.
    """
    if state.phase is not Phase.AWAITING_APPROVAL:
        return
    try:
        _attend(workspace, state)
    except LockgateError as error:
        logger.warning(
            "the promotion pull request of %s/%s: %s (%s)",
            state.model, state.environment, error.message, error.next_step,
        )  # fmt: skip


def _attend(workspace: Workspace, state: ReleaseState) -> None:
    repository = workspace.gitops
    repository.sync()
    policy = repository.read_policy()
    if policy.forge is None or not policy.approval_rule(state.environment).merge_counts:
        return
    request = pending_request(workspace, repository.read_state(state.model, state.environment))
    if request is None:
        return
    before = pull_record(workspace, request)
    forge = workspace.forge(policy.forge)
    if before is None:
        found = _open(workspace, forge, policy.forge, request)
    else:
        found = before.model_copy(update={"said": forge.look(before.said.number)})
    if found is not None and found != before:
        _record(workspace, found)


def _open(
    workspace: Workspace, forge: Forge, policy: ForgePolicy, request: ApprovalRequest
) -> PullRecord | None:
    """The pull request of a request that Git has no record of: there already where a run was ended in between."""
    branches, branch = workspace.request_branches, request_branch(request)
    path = gitops.request_path(request.model, request.environment, request.content_digest())
    text = request_text(request)
    number = forge.find(branch, branches.protected)
    if number is None:
        if parse_time(request.expires) <= datetime.now(UTC):
            return None
        subject = _title(request)
        pushed = branches.propose(branch, path, text, gitops.format_message(subject, "", {}))
        number = forge.open(branch, branches.protected, subject, _body(workspace, request))
        said = forge.look(number)
    else:
        said = forge.look(number)
        pushed = said.head
        known = said.landed is not None and branches.has_landed(said.landed, path, text)
        # Of a closed one nothing was taken up, and its branch may be gone: that somebody said no is not lost with it.
        closed = said.state == "closed"
        if not closed and not known and not branches.is_request(pushed, branch, path, text):
            raise GitError(
                f"head_changed: pull request {number} ({said.url}) is not of the request alone",
                hint="find out who pushed to it; approve by signature",
            )
    return PullRecord(
        forge=policy.kind, repository=policy.repository, request=request, pushed=pushed, said=said
    )


def _record(workspace: Workspace, record: PullRecord) -> None:
    request, said = record.request, record.said
    path = gitops.pull_record_path(request.model, request.environment, request.content_digest())
    who = said.by.login if said.by is not None else "nobody known"
    if said.state == "open":
        subject = f"{_title(request)}: pull request {said.number}"
    else:
        subject = f"{request.model}/{request.environment}: pull request {said.number} was {said.state} by {who}"
    trailers = {
        "Lockgate-Decision": _WORDS[said.state],
        "Lockgate-Request": str(request.content_digest()),
        "Candidate": str(request.candidate),
        "Evidence": str(request.evidence),
    }
    if said.by is not None:
        trailers["Decided-by"] = f"{record.forge}:{who}"
    text = json.dumps(record.to_data(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    message = gitops.format_message(subject, f"As {record.forge} says: {said.url}", trailers)

    def change(newest: ReleaseState) -> FileChange | None:
        return (
            FileChange({str(path): text}, message)
            if pending_request(workspace, newest) == request
            else None
        )

    done = workspace.gitops.commit_beside(request.model, request.environment, change)
    if done.committed:
        logger.info("committed: %s (%s)", subject, said.url)


def _title(request: ApprovalRequest) -> str:
    return (
        f"{request.model}/{request.environment}: approve step {request.step + 1} "
        f"({request.weight}%) of {request.release}"
    )


def _body(workspace: Workspace, request: ApprovalRequest) -> str:
    """What a release manager reads before merging. Whatever a model's files may have put into it is shown as it stands."""
    # A driver that opens nothing does not load what draws reports.
    from lockgate.adapters.report import answer
    from tasks.reporting import gather

    try:
        answered = answer(gather(workspace, request.model, request.environment))
        checks = [(c.tone, c.text) for c in answered.checks] if answered is not None else []
    except LockgateError as error:
        checks = [("bad", f"The report cannot be made: {error.message}")]
    marks = {"bad": "against", "open": "open", "good": "for"}
    rows = [
        ("release", request.release),
        ("step", f"{request.step + 1}: {request.weight}% of the traffic"),
        ("candidate", request.candidate),
        ("manifests", request.manifests),
        ("evidence", request.evidence),
        ("started by", request.requested_by or "nobody known: nobody can approve it"),
        ("takes", f"{request.needed} approval(s), roles: {', '.join(request.roles) or 'any'}"),
        ("expires", request.expires),
        ("request", request.content_digest()),
        *((marks.get(tone, tone), text) for tone, text in checks or [("bad", "no report")]),
    ]
    lines = [f"{label:12} {' '.join(str(text).split())}" for label, text in rows]
    told = "\n".join(line.replace("`", "'")[:500] for line in lines)[:20000]
    return (
        "Merging this approves the raise, as do approving reviews of exactly this commit; closing it rejects the release.\n"
        "Push nothing to the branch: a changed one counts no more. By signature instead: "
        f"`lockgate approve {request.model} --env {request.environment}`\n\n```text\n{told}\n```\n"
    )
