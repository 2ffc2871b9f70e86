"""Approvals: what is asked of a release manager, who may answer, and why an answer does not count."""

from lockgate.domain.approval.approvers import NAMESPACE, Approver, read_approvers
from lockgate.domain.approval.pulls import (
    Account,
    Forge,
    PullRecord,
    PullRequest,
    Review,
    request_branch,
    weigh_pull,
)
from lockgate.domain.approval.requests import (
    ApprovalRequest,
    Decision,
    LiftRequest,
    approval_request,
    lift_request,
    manifests_digest,
)
from lockgate.domain.approval.weighing import (
    Flaw,
    Presented,
    Refusal,
    SignedDecision,
    Verify,
    Weighed,
    weigh,
    weigh_one,
)

__all__ = [
    "NAMESPACE",
    "Account",
    "ApprovalRequest",
    "Approver",
    "Decision",
    "Flaw",
    "Forge",
    "LiftRequest",
    "Presented",
    "PullRecord",
    "PullRequest",
    "Refusal",
    "Review",
    "SignedDecision",
    "Verify",
    "Weighed",
    "approval_request",
    "lift_request",
    "manifests_digest",
    "read_approvers",
    "request_branch",
    "weigh",
    "weigh_one",
    "weigh_pull",
]
