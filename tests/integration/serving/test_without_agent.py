"""Faults while the agent is dead too: the gateway alone keeps the traffic off what has died."""

from __future__ import annotations

import os
import signal
import time

import pytest
from cluster_world import MODEL, Traffic, World

from lockgate.adapters.metrics import scrape
from lockgate.domain.release_state import Phase

REQUESTS = "envoy_cluster_upstream_rq_total"


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def end_agent(world: World) -> None:
    """The agent dies, and so does what would start it again."""
    pid = world.cluster.status().pid
    world.cluster._stop_supervisors()
    kill(pid)


@pytest.mark.parametrize("slot", ["a", "b"])
def test_the_gateway_sends_nothing_to_a_dead_slot_and_the_crash_is_seen_all_the_same(
    world: World, slot: str
) -> None:
    world.release_first("one")
    world.apply(phase=Phase.DEPLOYING, b=world.occupant("two"))
    world.until_ready("b")
    world.apply(phase=Phase.CANARY, step=1, weight=50)
    status = world.cluster.status()
    targets = world.cluster.scrape_targets(MODEL, status)
    (victim,) = status.models[MODEL].slots[slot].pods
    other = "b" if slot == "a" else "a"
    with Traffic(world.cluster.gateway_url(MODEL)) as traffic:
        time.sleep(1)
        end_agent(world)
        kill(victim.pid)
        killed = time.monotonic()
        time.sleep(1)
        early = scrape(targets, {"a": "baseline", "b": "canary"}, time=1.0)
        time.sleep(2)
        late = scrape(targets, {"a": "baseline", "b": "canary"}, time=2.0)
        assert world.ask(slot=slot).status_code == 503, "who asks for a slot gets no other"
    assert [text for began, text in traffic.failed_at if began > killed + 1] == []
    assert traffic.slots_since(killed + 1) == {other}
    # Each track's requests are its own, and its dead server is no secret.
    by_slot = [{s.instance: s for s in scrapes} for scrapes in (early, late)]
    dead, alive = (
        [scrapes[f"gateway-{name}"].counters[REQUESTS] for scrapes in by_slot]
        for name in (slot, other)
    )
    assert dead[0] == dead[1]
    assert alive[1] > alive[0]
    assert not by_slot[1][victim.name].up
    world.cluster.up()
    status = world.until_ready(slot)
    assert status.models[MODEL].slots[slot].restarts == 1
    world.until(lambda s: s.models[MODEL].route.effective == {"a": 50, "b": 50})


def test_a_candidate_without_a_verdict_takes_over_from_nobody_without_an_agent_either(
    world: World,
) -> None:
    world.release_first("one")
    world.apply(phase=Phase.DEPLOYING, b=world.occupant("two"))
    status = world.until_ready("b")
    (stable,) = status.models[MODEL].slots["a"].pods
    end_agent(world)
    kill(stable.pid)
    time.sleep(1)
    assert world.ask().status_code == 503
    assert world.ask(slot="b").json()["server"] == "two"
