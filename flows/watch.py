"""Watch what was promoted for as long as the old version is warm, and roll back to it on a verdict."""

from __future__ import annotations

import time

from prefect import flow

from lockgate.domain.release_state import Phase
from tasks import driving
from tasks.lease import LeaseHeld, release_lease


@flow(name="watch", flow_run_name="watch-{environment}")
def watch(model: str | None = None, environment: str = "local", seconds: float = 50.0) -> list[str]:
    """Judge every bake in `environment` that no flow holds the lease of, each for at most `seconds`; the next run goes on
    from its trace. Returns one line a release.

    The canary flow watches its own release to the end; this one is for a worker that should not be kept by a long bake,
    and for what was left alone. A rollback that it makes is drained by the next run, or by reconcile.
    """
    lines = []
    for found in driving.releases_under_way(environment, model):
        if found.phase is not Phase.BAKING:
            continue
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
            lines.append(f"{found.model}: {held}")
        else:
            lines.append(f"{state.model}: {driving.describe(state)}")
    return lines
