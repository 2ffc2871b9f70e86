"""A person lets a held release go on: from where it was held, or past the judge's missing verdict."""

from __future__ import annotations

from prefect import flow

from lockgate.domain.release_state import ReleaseState
from lockgate.domain.steps import PromoteRequest
from tasks import by_hand


@flow(name="promote", flow_run_name="promote-{request.model}-{request.environment}")
def promote(request: PromoteRequest) -> ReleaseState:
    """Commit it, with name and reason; whoever drives releases goes on from there.

    Never past a denial, a fail, a verification that is missing or failed, or a step that needs a signed approval.
    """
    held = by_hand.read_held(request.model, request.environment)
    if request.resume:
        return by_hand.commit_resume(
            request.model, request.environment, request.reason, request.requested_by, held
        )
    return by_hand.commit_promotion(
        request.model, request.environment, request.step, request.reason, request.requested_by, held
    )
