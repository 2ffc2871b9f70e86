"""Releases without room for a second copy, driven by the state machine on a real Envoy, under traffic."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

from cluster_world import MODEL, Traffic, World

from lockgate.domain.digests import Digest
from lockgate.domain.release_state import Occupant, Phase, ReleaseState, Slot
from lockgate.domain.rollout import (
    JudgeVerdict,
    Look,
    SlotReadiness,
    SmokeResult,
    Transition,
    TransitionKind,
    Verification,
    advance,
    start,
)
from lockgate.domain.rollout.transitions import rfc3339
from lockgate.domain.spec import CanarySpec, CanaryStep, Strategy

REPLICAS = 3
BORROW = CanarySpec(
    strategy=Strategy.BORROW,
    steps=(CanaryStep(weight=30),),
    bake_seconds=300,
    control_percent=30,
)
RECREATE = CanarySpec(strategy=Strategy.RECREATE, bake_seconds=300)


class Driver:
    """Looks, decides and pushes as the canary flow does; the judge's word is given, and so is the time."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.now = datetime.now(UTC)
        self.kinds: list[TransitionKind] = []
        self.most_pods = 0

    @property
    def state(self) -> ReleaseState:
        return self.world.state

    def begin(self, occupant: Occupant, spec: CanarySpec) -> None:
        self._take(start(self.state, occupant, spec, self.now))

    def follow(self, word: str = "pass") -> TransitionKind:
        """Waits until the slots are as Git has them, and takes the next transition."""
        self._settled()
        self.now += timedelta(seconds=400)
        answer = advance(self.state, self._look(word), self.now)
        assert isinstance(answer, Transition), answer
        self._take(answer)
        return answer.kind

    def _take(self, answer: Any) -> None:
        assert isinstance(answer, Transition), answer
        self.kinds.append(answer.kind)
        self.world.apply(**answer.state.model_dump(exclude={"generation"}))

    def _settled(self) -> None:
        def settled(status: Any) -> bool:
            slots = status.models[MODEL].slots
            self.most_pods = max(self.most_pods, sum(len(s.pods) for s in slots.values()))
            return all(
                s.value in slots
                and slots[s.value].settled
                and slots[s.value].desired == self.state.replicas(s)
                for s in Slot
                if self.state.occupant(s) is not None
            )

        self.world.until(settled)

    def _look(self, word: str) -> Look:
        state, status = self.state, self.world.cluster.status()
        seen: dict[str, SlotReadiness] = {}
        for name, slot in status.models[MODEL].slots.items():
            assert slot.candidate is not None
            wanted = max(slot.desired, state.replicas(Slot(name)))
            seen[name] = SlotReadiness(
                candidate=Digest(slot.candidate),
                ready=slot.updated > 0,
                sized=0 < wanted <= slot.updated,
            )
        stable = state.occupant(state.stable) if state.stable is not None else None
        subject = state.occupant(state.free_slot) or stable
        assert subject is not None
        assert stable is not None
        digest = subject.candidate.digest
        return Look(
            generation=state.generation,
            **seen,
            smoke=SmokeResult(candidate=digest, ok=True),
            verification=Verification(candidate=digest, ok=True),
            fallback_verification=Verification(candidate=stable.candidate.digest, ok=True),
            verdict=JudgeVerdict.model_validate(
                {"verdict": word, "report": Digest.of_bytes(b"r"), "summary": "given", "at": rfc3339(self.now)}
            ),
            live_generation=status.models[MODEL].generation,
        )  # fmt: skip


def stable_one(world: World, replicas: int) -> None:
    world.apply(phase=Phase.DEPLOYING, a=world.occupant("one", replicas=replicas))
    world.until_ready("a")
    world.apply(phase=Phase.STABLE, stable=Slot.A)


def test_no_request_fails_while_replicas_change_hands_one_by_one_and_back(world: World) -> None:
    stable_one(world, REPLICAS)
    driver = Driver(world)
    with Traffic(world.cluster.gateway_url(MODEL)) as traffic:
        driver.begin(world.occupant("two", replicas=REPLICAS), BORROW)
        while driver.state.phase is not Phase.BAKING:
            driver.follow()
        promoted = time.monotonic()
        sizes = driver.state.replicas(Slot.A), driver.state.replicas(Slot.B)
        while driver.state.phase is not Phase.STABLE:
            driver.follow("fail")
        driver._settled()
    assert traffic.failures == []
    kinds = TransitionKind
    assert driver.kinds == [
        kinds.DEPLOY, kinds.RAISE, kinds.HAND_OVER, kinds.PROMOTE, kinds.HAND_BACK, kinds.ROLLBACK,
        kinds.FINISH,
    ]  # fmt: skip
    assert sizes == (1, REPLICAS - 1)
    assert driver.most_pods <= REPLICAS, "more servers than there is room for"
    assert {slot for began, slot in traffic.slots if began < promoted} == {"a", "b"}
    assert world.ask().json()["server"] == "one"
    assert world.cluster.status().models[MODEL].slots["a"].desired == REPLICAS


def test_a_recreation_takes_the_place_of_stable_and_a_rollback_gives_it_back(world: World) -> None:
    stable_one(world, 1)
    driver = Driver(world)
    driver.begin(world.occupant("two"), RECREATE)
    assert world.ask().json()["server"] == "one", "nothing moves before both are verified"
    assert driver.follow() is TransitionKind.REPLACE
    assert driver.follow() is TransitionKind.PROMOTE
    assert world.ask().json()["server"] == "two"
    assert driver.follow("fail") is TransitionKind.ROLLBACK
    assert driver.follow() is TransitionKind.FINISH
    assert world.ask().json()["server"] == "one"
    assert driver.most_pods <= 1, "there was room for one version only"


def test_a_fresh_baseline_gets_what_the_canary_gets_and_leaves_no_request_behind(
    world: World,
) -> None:
    stable_one(world, 1)
    driver = Driver(world)
    spec = CanarySpec(steps=(CanaryStep(weight=30),), baseline="fresh", bake_seconds=300)
    with Traffic(world.cluster.gateway_url(MODEL)) as traffic:
        driver.begin(world.occupant("two"), spec)
        assert driver.follow() is TransitionKind.RAISE
        raised = time.monotonic()
        time.sleep(4)
        judged = time.monotonic()
        assert world.ask(slot="baseline").json()["server"] == "one"
        assert driver.follow("fail") is TransitionKind.ROLLBACK
        rolled_back = time.monotonic()
        assert driver.follow() is TransitionKind.FINISH
        world.until(lambda s: set(s.models[MODEL].slots) == {"a"})
    assert traffic.failures == []
    during = [slot for began, slot in traffic.slots if raised < began < judged]
    # Three tenths each are expected: a tenth of some sixty requests is missed once in ten thousand runs.
    assert min(during.count("b"), during.count("baseline")) > 0.1 * len(during)
    assert {slot for began, slot in traffic.slots if began > rolled_back} == {"a"}
