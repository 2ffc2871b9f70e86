"""Watch what was promoted for as long as the old version is warm, and roll back to it on a verdict."""

from __future__ import annotations

import time
from functools import partial

from prefect import flow

from lockgate.domain.release_state import Phase, ReleaseState
from tasks import driving
from tasks.lease import LeaseHeld, release_lease
from tasks.side_by_side import drive_each, lines_of


@flow(name="watch", flow_run_name="watch-{environment}")
def watch(model: str | None = None, environment: str = "local", seconds: float = 50.0) -> list[str]:
    """Judge every bake in `environment` that no flow holds the lease of, all at once and each for at most `seconds`; the next run
    goes on from its trace. Returns one line a release.

    The canary flow watches its own release to the end; this one is for a worker that should not be kept by a long bake,
    and for what was left alone. A rollback that it makes is drained by the next run, or by reconcile.
    """
    baking = [
        found
        for found in driving.releases_under_way(environment, model)
        if found.phase is Phase.BAKING
    ]
    ended = drive_each(baking, partial(_judge, seconds), list)
    return lines_of(ended)


def _judge(seconds: float, found: ReleaseState) -> str:
    try:
        with release_lease(found.model, found.environment):
            until = time.monotonic() + seconds
            state = driving.read_state(found.model, found.environment)
            while state.phase is Phase.BAKING:
                look = driving.observe(state, until)
                if look is None:
                    break
                state = driving.commit_observation(state, look)
    except LeaseHeld as held:
        return held.message
    return driving.describe(state)
