"""Send the traffic back to stable because a person says so. The canary flow rolls back by itself on a verdict."""

from __future__ import annotations

from prefect import flow

from lockgate.domain.release_state import ReleaseState
from lockgate.domain.steps import RollbackRequest
from tasks import by_hand


@flow(name="rollback", flow_run_name="rollback-{request.model}-{request.environment}")
def rollback(request: RollbackRequest) -> ReleaseState:
    """Commit the rollback at once, without waiting for whoever drives the release: Git decides who was first.

    The driver sees the new state and empties the slot once it is drained; if there is no driver, reconcile does.
    """
    meant = by_hand.read_under_way(request.model, request.environment)
    return by_hand.commit_abort(
        request.model, request.environment, request.reason, request.requested_by, meant
    )
