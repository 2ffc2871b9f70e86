"""Take up what nobody is driving: after a crash, a reboot, a lost worker, or a wait for a person."""

from __future__ import annotations

import logging
import time

from prefect import flow

from flows.canary import canary
from lockgate.domain.steps import CanaryRequest
from lockgate.errors import LockgateError
from tasks import driving
from tasks.lease import LeaseHeld

logger = logging.getLogger("lockgate.reconcile")


@flow(name="reconcile", flow_run_name="reconcile-{environment}")
def reconcile(model: str | None = None, environment: str = "local") -> list[str]:
    """Go on with every release in `environment` that is under way and that no flow holds the lease of.

    Returns one line a release. Safe to run on a schedule beside running releases. What ends one of them by an error keeps no
    other one from being driven: the first such error is raised at the end.
    """
    lines, failures = [], []
    for state in driving.releases_under_way(environment, model):
        try:
            ended = canary(CanaryRequest(model=state.model, environment=state.environment))
        except LeaseHeld as held:
            lines.append(f"{state.model}: {held}")
        except Exception as error:
            logger.error("%s/%s: %s", state.model, state.environment, error)
            failures.append(error)
        else:
            lines.append(f"{state.model}: {driving.describe(ended)}")
    if failures:
        raise failures[0]
    return lines


def watch(seconds: float, environment: str = "local") -> None:
    """Look into Git every `seconds` and run the flow only when something is under way. Runs until it is ended."""
    while True:
        try:
            if driving.releases_under_way.fn(environment, None):
                reconcile(environment=environment)
        except LockgateError as error:
            logger.warning("%s", error)
        time.sleep(seconds)
