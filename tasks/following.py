"""See a release through that another flow drives: whoever begins a release wants to know how it ended."""

from __future__ import annotations

import logging
import time

from prefect.cache_policies import NO_CACHE

from lockgate.domain.release_state import TERMINAL_PHASES, Phase, ReleaseState
from tasks import driving
from tasks.lease import is_driven
from tasks.retries import TRANSIENT
from tasks.steps import step

logger = logging.getLogger("lockgate.release")

FOLLOW_SECONDS = 5.0


def is_over(state: ReleaseState) -> bool:
    """Whether nothing of the release is left to be driven, until a person decides."""
    return state.phase in (*TERMINAL_PHASES, Phase.HELD, Phase.AWAITING_APPROVAL)


@step(name="follow-release", cache_policy=NO_CACHE, **TRANSIENT)
def follow(model: str, environment: str) -> ReleaseState:
    """Wait for what another flow makes of the release: the newest state once that is over, or once nobody drives it any more."""
    logger.info("another flow drives %s in %s: waiting for what it makes of it", model, environment)
    while True:
        state = driving.read_state.fn(model, environment)
        if is_over(state) or not is_driven(model, environment):
            return state
        time.sleep(FOLLOW_SECONDS)
