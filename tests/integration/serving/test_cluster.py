"""The embedded cluster does what Git says, and no request notices."""

from __future__ import annotations

import os
import signal
import time

from conftest import MODEL, Traffic, World

from lockgate.domain.release_state import Phase, Slot


def test_a_first_release_takes_traffic_only_when_it_has_weight(world: World) -> None:
    world.apply(phase=Phase.DEPLOYING, a=world.occupant("one"))
    world.until_ready("a")
    assert world.ask().status_code == 503
    assert world.ask(slot="a").json()["server"] == "one"
    world.apply(phase=Phase.STABLE, stable=Slot.A)
    assert world.ask().json()["server"] == "one"
    assert world.ask().headers["x-lockgate-slot"] == "a"
