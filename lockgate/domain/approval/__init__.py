"""Approvals: what is asked of a release manager, who may answer, and why an answer does not count."""

from lockgate.domain.approval.approvers import NAMESPACE, Approver, read_approvers
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
    "ApprovalRequest",
    "Approver",
    "Decision",
    "Flaw",
    "LiftRequest",
    "Presented",
    "Refusal",
    "SignedDecision",
    "Verify",
    "Weighed",
    "approval_request",
    "lift_request",
    "manifests_digest",
    "read_approvers",
    "weigh",
    "weigh_one",
]
