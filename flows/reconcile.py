"""Take up what nobody is driving: after a crash, a reboot, a lost worker, or a wait for a person."""

from __future__ import annotations

import logging
import time
from functools import partial

from prefect import flow

from flows.canary import canary
from lockgate.domain.release_state import ReleaseState
from lockgate.domain.steps import CanaryRequest
from lockgate.errors import LockgateError
from tasks import driving
from tasks.lease import LeaseHeld
from tasks.side_by_side import drive_each, lines_of

logger = logging.getLogger("lockgate.reconcile")


@flow(name="reconcile", flow_run_name="reconcile-{environment}")
def reconcile(model: str | None = None, environment: str = "local") -> list[str]:
    """Go on with every release in `environment` that is under way and that no flow holds the lease of, all of them at once,
    and with what is left alone while any of them is driven.

    Returns one line a release. Safe to run on a schedule beside running releases. What ends one of them by an error keeps no
    other one from being driven: the first such error is raised at the end.
    """
    ended = drive_each(
        driving.releases_under_way(environment, model),
        _go_on,
        partial(driving.releases_under_way.fn, environment, model),
    )
    return lines_of(ended)


def _go_on(state: ReleaseState) -> str:
    try:
        return driving.describe(
            canary(CanaryRequest(model=state.model, environment=state.environment))
        )
    except LeaseHeld as held:
        return held.message


def watch(seconds: float, environment: str = "local") -> None:
    """Look into Git every `seconds` and run the flow only when something is under way. Runs until it is ended."""
    while True:
        try:
            if driving.releases_under_way.fn(environment, None):
                reconcile(environment=environment)
        except LockgateError as error:
            logger.warning("%s", error)
        except (KeyboardInterrupt, SystemExit):
            raise
        # A lost lease is none of Exception's; and who else would drive the other releases?
        except BaseException:
            logger.exception("this look has failed: the next one is in %.0f s", seconds)
        time.sleep(seconds)
