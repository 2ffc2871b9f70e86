"""Approvals as a driver reads them from Git: what waits, and what the signed decisions on it come to."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from datetime import UTC, datetime

from lockgate.adapters import ssh_signatures
from lockgate.domain import gitops
from lockgate.domain.approval import (
    ApprovalRequest,
    Approver,
    Flaw,
    PullRecord,
    PullRequest,
    Refusal,
    Verify,
    Weighed,
    approval_request,
    read_approvers,
    weigh,
    weigh_pull,
)
from lockgate.domain.policy import ForgePolicy, Policy
from lockgate.domain.release_state import Phase, ReleaseState
from lockgate.domain.rollout import (
    Approval,
    Look,
    Observation,
    Rejection,
    Transition,
    advance,
)
from lockgate.errors import GitError, LockgateError
from tasks.workspace import Workspace

logger = logging.getLogger("lockgate.release")


def pending_request(workspace: Workspace, state: ReleaseState) -> ApprovalRequest | None:
    """The request that waits in this state, made of the manifests and the policy as of the last sync; None where nothing
    waits."""
    if state.phase is not Phase.AWAITING_APPROVAL:
        return None
    repository = workspace.gitops
    manifests = repository.files(gitops.manifests_directory(state.model, state.environment))
    rule = repository.read_policy().approval_rule(state.environment)
    return approval_request(state, manifests, rule)


def listed_approvers(workspace: Workspace) -> tuple[Approver, ...]:
    """Everybody in `approvers` of the protected branch, as of the last sync."""
    return read_approvers(workspace.gitops.read_approvers())


def weigh_decisions(workspace: Workspace, request: ApprovalRequest) -> Weighed:
    """The decisions on this request as of the last sync, each verified just now; what a pull request decided is asked of its
    forge again."""
    place = gitops.approvals_directory(request.model, request.environment, request.content_digest())
    files = workspace.gitops.files(place)
    now = datetime.now(UTC)
    found = weigh(files, request, listed_approvers(workspace) if files else (), now, verify_at(now))
    return _with_merge(workspace, found, now)


def pull_record(workspace: Workspace, request: ApprovalRequest) -> PullRecord | None:
    """What Git has of the request's promotion pull request, as of the last sync; None where there is none that can be read."""
    path = gitops.pull_record_path(request.model, request.environment, request.content_digest())
    text = workspace.gitops.read_text(path)
    return read_pull_record(text) if text is not None else None


def read_pull_record(text: str) -> PullRecord | None:
    """None for what is no record."""
    try:
        return PullRecord.model_validate(json.loads(text))
    except (ValueError, RecursionError):
        return None


def _with_merge(workspace: Workspace, found: Weighed, now: datetime) -> Weighed:
    request = found.request
    policy = workspace.gitops.read_policy()
    record = pull_record(workspace, request)
    if policy.forge is None or not policy.approval_rule(request.environment).merge_counts:
        return found
    if record is None or found.rejected is not None:
        return found
    path = gitops.request_path(request.model, request.environment, request.content_digest())
    if record.said.state == "open":
        if workspace.request_branches.holds(path):
            what = (
                "the request was pushed to the protected branch without a merge of its pull request"
            )
            return _refusing(found, record, Flaw.FORGED, what)
        return _unless_closed_since(workspace, policy.forge, record, found)
    # Git's record is for the audit: anybody who can push could have written it.
    said = _word_of_the_forge(workspace, policy.forge, record)
    if said is None:
        return found.model_copy(update={"unasked": record.said.state == "closed"})
    if said != record.said:
        what = f"Git has another word of it than {record.forge}, which says: {said.state}"
        return _refusing(found, record, Flaw.FORGED, what)
    weighed = weigh_recorded(workspace, record, policy, found, listed_approvers(workspace), now)
    if weighed.approved != found.approved and not workspace.request_branches.holds(path):
        what = "the request was taken off the protected branch again"
        return _refusing(found, record, Flaw.FORGED, what)
    return weighed


def _unless_closed_since(
    workspace: Workspace, policy: ForgePolicy, record: PullRecord, found: Weighed
) -> Weighed:
    """`found`, by signatures alone, of a request whose pull request was open when it was last looked at: nothing is approved
    past a no that is not written down yet. Signatures need no forge: where it cannot be asked, they count."""
    if not found.enough:
        return found
    said = _word_of_the_forge(workspace, policy, record)
    if said is None:
        logger.error("PAGE: %s may have been closed meanwhile: it cannot be asked", record.place)
        return found
    return found if said.state == "open" else found.model_copy(update={"unasked": True})


def _word_of_the_forge(
    workspace: Workspace, policy: ForgePolicy, record: PullRecord
) -> PullRequest | None:
    """Asked once by each look and each commit; None where it does not answer."""
    words, number = workspace.forge_words, record.said.number
    if number not in words:
        try:
            words[number] = workspace.forge(policy).look(number)
        except LockgateError as error:
            logger.warning("%s cannot be asked for yet: %s", record.place, error.message)
            words[number] = None
    return words[number]


def weigh_recorded(
    workspace: Workspace,
    record: PullRecord,
    policy: Policy,
    found: Weighed,
    approvers: Sequence[Approver],
    now: datetime,
) -> Weighed:
    """`found`, with what the record says, under this policy: that the protected branch has the merge is looked up in Git."""
    request, forge = record.request, policy.forge
    named = forge is not None and (forge.kind, forge.repository) == (
        record.forge,
        record.repository,
    )
    if not named or not policy.approval_rule(request.environment).merge_counts:
        what = f"the policy counts no merges in {record.repository} for {request.environment}"
        return _refusing(found, record, Flaw.SIGNATURES_ONLY, what)
    branches = workspace.request_branches
    path = gitops.request_path(request.model, request.environment, request.content_digest())
    landed = record.said.landed is not None and branches.has_landed(
        record.said.landed, path, request_text(request)
    )
    return weigh_pull(record, found, approvers, now, base=branches.protected, landed=landed)


def merge_as_it_counted(
    workspace: Workspace,
    record: PullRecord,
    found: Weighed,
    approvers: Sequence[Approver],
    now: datetime,
) -> Weighed:
    """`found`, with what the record says, from Git alone: under the policy that the protected branch had at the merge. A no
    needs none: it only ever takes traffic away."""
    repository, landed = workspace.gitops, record.said.landed
    if landed is None:
        base = workspace.request_branches.protected
        return weigh_pull(record, found, approvers, now, base=base, landed=False)
    try:
        text = repository.text_at(landed, gitops.POLICY)
    except GitError:
        text = None  # Git does not have that commit: it will not be found to have landed
    policy = gitops.load_policy(text) if text is not None else repository.read_policy()
    return weigh_recorded(workspace, record, policy, found, approvers, now)


def request_text(request: ApprovalRequest) -> str:
    """The file that a promotion pull request brings."""
    return json.dumps(request.to_data(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _refusing(found: Weighed, record: PullRecord, flaw: Flaw, message: str) -> Weighed:
    by = record.said.by.login if record.said.by is not None else "nobody known"
    refusal = Refusal(flaw=flaw, by=by, place=record.place, message=message)
    return found.model_copy(update={"refusals": (*found.refusals, refusal)})


def verify_at(moment: datetime) -> Verify:
    """Verification by OpenSSH, with keys as they were valid then."""

    def verify(data: bytes, armored: str, approver: Approver, name: str) -> str | None:
        return ssh_signatures.verify(data, armored, approver, name, at=moment)

    return verify


def decision_on(workspace: Workspace, state: ReleaseState) -> Approval | Rejection | None:
    """What people have decided on what waits in `state`; None where nothing waits, too few have, or Git has moved on.

    Reads what the last sync brought. Decisions that do not count are named in the log.
    """
    if state.phase is not Phase.AWAITING_APPROVAL:
        return None
    if workspace.gitops.read_state(state.model, state.environment) != state:
        return None
    request = pending_request(workspace, state)
    if request is None:
        return None
    found = weigh_decisions(workspace, request)
    for refusal in found.refusals:
        logger.warning("%s", refusal)
    if found.approved and not found.enough:
        logger.info(
            "%d of %d approvals: %s", len(found.names), request.needed, ", ".join(found.names)
        )
    return found.outcome


def somebody_decided(workspace: Workspace, state: ReleaseState) -> bool:
    """Whether what waits in `state` has been decided on at the remote, as far as it can be read."""
    try:
        workspace.gitops.sync()
        return decision_on(workspace, state) is not None
    except LockgateError as error:
        logger.warning("approvals cannot be read: %s", error.message)
        return False


def ask_before(
    workspace: Workspace, model: str, environment: str, observation: Observation
) -> None:
    """Hear what `asked_again` will want to know of a forge, before the clone is locked for the commit: nobody waits for a
    forge there. What goes wrong here goes wrong there again."""
    if isinstance(observation, Look) and isinstance(observation.decision, Approval):
        try:
            workspace.gitops.sync()
            asked_again(workspace, workspace.gitops.read_state(model, environment), observation)
        except LockgateError as error:
            logger.debug("asked before: %s", error.message)


def asked_again(
    workspace: Workspace, newest: ReleaseState, observation: Observation
) -> Observation:
    """The observation with the approval in it as it stands at the newest commit: one that was withdrawn or overruled since
    the look raises nothing. What ends a release needs nobody's approval, and waits for none to be weighed."""
    if isinstance(observation, Look) and isinstance(observation.decision, Approval):
        without = observation.model_copy(update={"decision": None})
        if isinstance(advance(newest, without, datetime.now(UTC)), Transition):
            return without
        return observation.model_copy(update={"decision": decision_on(workspace, newest)})
    return observation
