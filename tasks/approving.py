"""Approvals as a driver reads them from Git: what waits, and what the signed decisions on it come to."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from lockgate.adapters import ssh_signatures
from lockgate.domain import gitops
from lockgate.domain.approval import (
    ApprovalRequest,
    Approver,
    Verify,
    Weighed,
    approval_request,
    read_approvers,
    weigh,
)
from lockgate.domain.release_state import Phase, ReleaseState
from lockgate.domain.rollout import Approval, Look, Observation, Rejection
from lockgate.errors import LockgateError
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
    """The decisions on this request as of the last sync, each verified just now."""
    place = gitops.approvals_directory(request.model, request.environment, request.content_digest())
    files = workspace.gitops.files(place)
    now = datetime.now(UTC)
    return weigh(files, request, listed_approvers(workspace) if files else (), now, verify_at(now))


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


def asked_again(
    workspace: Workspace, newest: ReleaseState, observation: Observation
) -> Observation:
    """The observation with the approval in it as it stands at the newest commit: one that was withdrawn or overruled since
    the look raises nothing."""
    if isinstance(observation, Look) and isinstance(observation.decision, Approval):
        return observation.model_copy(update={"decision": decision_on(workspace, newest)})
    return observation
