"""Drive one release from its first commit to its end: observe, decide, commit, until nothing is under way."""

from __future__ import annotations

from prefect import flow

from lockgate.domain.release_state import ReleaseState
from lockgate.domain.steps import CanaryRequest
from tasks import driving
from tasks.following import follow, is_over
from tasks.lease import LeaseHeld, release_lease


@flow(name="canary", flow_run_name="canary-{request.model}-{request.environment}")
def canary(request: CanaryRequest) -> ReleaseState:
    """Go on with the release under way, from Git alone, under the release's lease.

    Ends when the release is promoted, rolled back, aborted, or waits for a person; a waiting release costs nothing and is
    taken up again by `reconcile`.
    """
    with release_lease(request.model, request.environment):
        state = driving.read_state(request.model, request.environment)
        while (observation := driving.observe(state)) is not None:
            state = driving.commit_observation(state, observation)
    return state


def see_through(request: CanaryRequest) -> ReleaseState:
    """The same for a flow that has begun the release: where another one was first (`reconcile` takes up a new candidate within
    seconds), it waits for what that one makes of it, and goes on where that one dies."""
    while True:
        try:
            return canary(request)
        except LeaseHeld:
            state = follow(request.model, request.environment)
            if is_over(state):
                return state
