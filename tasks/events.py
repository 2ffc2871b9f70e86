"""What happens to releases, as Prefect events: what its automations and notifications are made of.

An event tells; it carries nothing that anybody has to act on, and none that is lost changes anything: Git has the state.
"""

from __future__ import annotations

import logging
from typing import Any

from prefect.events import emit_event
from prefect.settings import get_current_settings

from lockgate.domain.release_state import ReleaseState
from lockgate.domain.rollout import Transition, TransitionKind

logger = logging.getLogger("lockgate.events")

REFUSED = "lockgate.release.refused"
FAILED = "lockgate.release.failed"
FOUND = "lockgate.rescan.found"
UNSCANNED = "lockgate.rescan.incomplete"
IN_FORCE = "lockgate.release.in_force"
OF_TRANSITIONS = {
    TransitionKind.DEPLOY: "lockgate.release.deployed",
    TransitionKind.RAISE: "lockgate.canary.raised",
    TransitionKind.AWAIT: "lockgate.approval.awaited",
    TransitionKind.PROMOTE: "lockgate.release.promoted",
    TransitionKind.ROLLBACK: "lockgate.canary.failed",
    TransitionKind.ABORT: "lockgate.release.aborted",
    TransitionKind.HOLD: "lockgate.release.held",
    TransitionKind.LIFT: "lockgate.release.resumed",
    TransitionKind.PARDON: "lockgate.denial.lifted",
}
"""The other transitions are parts of these."""


def tell(event: str, model: str, environment: str, **payload: Any) -> None:
    """Emit an event about a model in an environment, where this process knows Prefect's API. That it could not be sent fails
    nothing."""
    if get_current_settings().api.url is None:
        # Prefect would start a server of its own, for this one event, that nobody listens to.
        return
    resource = {
        "prefect.resource.id": f"lockgate.model.{model}.{environment}",
        "prefect.resource.name": f"{model} in {environment}",
        "lockgate.model": model,
        "lockgate.environment": environment,
    }
    try:
        emit_event(event, resource=resource, payload=payload)
    except Exception as error:
        logger.warning("the event %s could not be sent: %s", event, error)


def tell_transition(transition: Transition, commit: str) -> None:
    """Emit what a landed transition means to people, if anything."""
    event = OF_TRANSITIONS.get(transition.kind)
    if event is None:
        return
    state, trailers = transition.state, transition.trailers
    tell(
        event, state.model, state.environment,
        release=trailers.get("Lockgate-Release"), candidate=trailers.get("Candidate"),
        phase=state.phase.value, weight=state.weight, generation=state.generation,
        subject=transition.subject, reason=transition.reason, commit=commit,
    )  # fmt: skip


def tell_in_force(state: ReleaseState, seconds: float) -> None:
    """Emit that the gateway carries out a state, and how long after its commit: the sync latency."""
    tell(
        IN_FORCE, state.model, state.environment,
        release=state.release_under_way, phase=state.phase.value, weight=state.weight,
        generation=state.generation, seconds=round(seconds, 1),
    )  # fmt: skip
