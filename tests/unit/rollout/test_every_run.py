"""Model checking: whatever is seen, in whatever order, twice, late or not at all, some things never happen, and every run ends."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import Phase as HypothesisPhase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lockgate.domain.gitops import dump_state, load_state
from lockgate.domain.release_state import Outcome, Phase, ReleaseState, Restoring, Slot
from lockgate.domain.rollout import (
    AbortRequested,
    Approval,
    DenialLifted,
    HoldLifted,
    HoldRequested,
    Look,
    Observation,
    Promotion,
    Rejection,
    SlotReadiness,
    SmokeResult,
    Successor,
    Transition,
    TransitionKind,
    Verification,
    Wait,
    advance,
    start,
)
from lockgate.domain.rollout.transitions import parse_time, rfc3339
from lockgate.domain.spec import CanarySpec, CanaryStep, ServiceLevels, Strategy
from lockgate.errors import Refused
from tests.unit.rollout.world import (
    BEGIN,
    REPLICAS,
    Rollout,
    approval,
    candidate,
    look,
    occupant,
    subject,
    verdict,
)

NAMES = tuple(f"c{n}" for n in range(12))
DIGESTS = [candidate(name).digest for name in NAMES]
NOBODY: dict[str, Any] = {"candidate": DIGESTS[0], "ready": False, "sized": False}
QUIET = {Phase.EMPTY, Phase.STABLE}
DOUBTS = ["insufficient_data", "metrics_outage"]
BEGINNINGS = [
    "empty",
    "serving",
    "deploying",
    "canary",
    "canary",
    "second step",
    "second step",
    "baking",
    "draining",
    "held",
]


def specs() -> st.SearchStrategy[CanarySpec]:
    """Surge is the most frequent."""
    return st.sampled_from(
        [*[Strategy.SURGE] * 3, *[Strategy.BORROW] * 2, Strategy.RECREATE]
    ).flatmap(specs_of)


def specs_of(strategy: Strategy) -> st.SearchStrategy[CanarySpec]:
    if strategy is Strategy.SURGE:
        return st.sampled_from(["stable", "stable", "fresh"]).flatmap(
            lambda baseline: specs_with(strategy, baseline)
        )
    return specs_with(strategy, "stable")


def specs_with(strategy: Strategy, baseline: str) -> st.SearchStrategy[CanarySpec]:
    # One replica of four is borrowed: more than this would be too much for it.
    highest = 29 if strategy is Strategy.BORROW else 50 if baseline == "fresh" else 100
    steps = st.lists(
        st.tuples(st.integers(1, highest), st.sampled_from([False, False, False, True])),
        min_size=1,
        max_size=3,
        unique_by=lambda s: s[0],
    ).map(
        lambda chosen: tuple(
            CanaryStep(weight=w, approval=a, min_seconds=30, max_seconds=300)
            for w, a in sorted(chosen)
        )
    )
    before = st.lists(
        st.sampled_from(["header"] if baseline == "fresh" else ["mirror", "header"]).map(
            lambda traffic: CanaryStep(weight=0, traffic=traffic, min_seconds=30, max_seconds=300)
        ),
        max_size=2,
    ).map(tuple)
    steps = st.builds(lambda first, then: first + then, before, steps)
    if strategy is Strategy.RECREATE:
        steps = st.just(())
    return st.builds(
        CanarySpec,
        strategy=st.just(strategy),
        baseline=st.just(baseline),
        steps=steps,
        on_insufficient_data=st.sampled_from(["rollback", "hold"]),
        outage_budget_seconds=st.just(120.0),
        ready_seconds=st.just(600.0),
        bake_seconds=st.sampled_from([0.0, 300.0]),
        control_percent=st.sampled_from([0, 5]),
        slos=st.sampled_from([ServiceLevels(), ServiceLevels(error_ratio=0.01)]),
    )


@st.composite
def readiness(draw: st.DrawFn, names: tuple[str, ...]) -> SlotReadiness | None:
    """Mostly well; at times unseen, dead, half, refused, or somebody else's."""
    if draw(st.integers(0, 9)) == 0:
        return None
    ready = draw(st.integers(0, 5)) > 0
    sized = ready and draw(st.integers(0, 7)) > 0
    return SlotReadiness(
        candidate=candidate(draw(st.sampled_from(names))).digest,
        ready=ready,
        sized=sized,
        enough=draw(st.sampled_from([None, sized, ready])),
        restarts=draw(st.sampled_from([0, 0, 0, 0, 1, 2, 3])),
        unready_seconds=0 if ready else draw(st.sampled_from([1.0, 60.0, 121.0, 900.0])),
        refusal=draw(st.sampled_from([None, None, None, None, None, "unsigned"])),
    )


def successors(generation: int) -> st.SearchStrategy[Successor]:
    return st.builds(
        lambda seen, at: Successor(**(seen or SlotReadiness(**NOBODY)).model_dump(), generation=at),
        readiness(NAMES),
        st.integers(0, generation),
    )


class EveryRun(RuleBasedStateMachine):
    """Drives one model as badly as it can, and remembers what each candidate had proved when it got traffic."""

    specs = staticmethod(lambda: specs_of(Strategy.SURGE))
    """Of the release that a run begins with; later ones take any."""
    beginnings: ClassVar[list[str]] = BEGINNINGS

    def __init__(self) -> None:
        super().__init__()
        self.now = BEGIN
        self.state = ReleaseState(model="m", environment="prod")
        self.releases = 0
        self.last_observation: Observation | None = None

    @initialize(data=st.data())
    def begin_somewhere(self, data: st.DataObject) -> None:
        """Anywhere in the life of a model, so that no phase is far away."""
        where = data.draw(st.sampled_from(self.beginnings), label="where")
        spec = data.draw(self.specs(), label="spec")
        if where == "empty":
            return
        self.begin_release(NAMES[0], spec)
        for _ in range(2):
            if self.state.phase not in QUIET | {Phase.BAKING}:
                self.observe_well(60, approved=True)
        if where == "serving":
            return
        self.begin_release(NAMES[1], spec)
        long = dict.fromkeys(("handing over", "baking", "leaving"), 12)
        wanted = {"canary": 1, "replaced": 1, "second step": 2, "draining": 2, "held": 1, **long}
        for _ in range(wanted.get(where, 0)):
            lent = where == "handing over" and self.state.lent > 1
            if lent or self.state.phase is Phase.BAKING:
                break
            self.observe_well(60, "pass", approved=True)
        if where in ("draining", "leaving"):
            self.observe_well(60, "fail")
        if where == "held" and self.state.release_under_way is not None:
            self.observe(HoldRequested(release=self.state.release_under_way, by="p", reason="x"))

    # What happens

    @rule(seconds=st.integers(-100, 4000))
    def time_passes_or_the_clock_is_set_back(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(name=st.sampled_from(NAMES), spec=specs())
    def a_candidate_is_released(self, name: str, spec: CanarySpec) -> None:
        """Where nothing is under way it is a new one."""
        fresh = self.state.phase in QUIET and self.releases < len(NAMES)
        self.begin_release(NAMES[self.releases] if fresh else name, spec)

    @rule(
        seconds=st.sampled_from([1, 31, 60, 121, 301, 601]),
        word=st.sampled_from([None, "pass", "pass", "pass", "fail", *DOUBTS]),
        approved=st.booleans(),
    )
    def a_driver_sees_all_well(self, seconds: int, word: str | None, approved: bool) -> None:
        self.observe_well(seconds, word, approved=approved)

    @rule(
        seconds=st.sampled_from([0, 1, 31, 60]),
        lacking=st.sampled_from(
            [
                *("a", "a", "b", "b", "baseline"),
                *("smoke", "verification", "fallback_verification", "decision"),
            ]
        ),
        other=st.sampled_from(["unseen", "unfit", "of another"]),
        word=st.sampled_from(["pass", "pass", "fail"]),
    )
    def a_driver_sees_all_well_but_for_one_thing(
        self, seconds: int, lacking: str, other: str, word: str
    ) -> None:
        """One thing unseen, or unfit, or seen of some other candidate."""
        self.now += timedelta(seconds=seconds)
        digest = candidate("stranger" if other == "of another" else NAMES[0]).digest
        places = {"a": self.state.a, "b": self.state.b}
        there = places.get(lacking) or (
            lacking == "baseline" and self.state.occupant(Slot.BASELINE)
        )
        if there and other == "unfit":
            digest = there.candidate.digest
        things: dict[str, Any] = {
            "smoke": SmokeResult(candidate=digest, ok=True),
            "verification": Verification(candidate=digest, ok=True),
            "fallback_verification": Verification(candidate=digest, ok=True),
            "a": SlotReadiness(candidate=digest, ready=True, sized=other != "unfit"),
            "b": SlotReadiness(candidate=digest, ready=True, sized=other != "unfit"),
            "baseline": SlotReadiness(candidate=digest, ready=True, sized=other != "unfit"),
        }
        seen = None if other == "unseen" else things.get(lacking)
        if lacking == "decision" and subject(self.state) is not None:
            late = rfc3339(self.now - timedelta(seconds=1))
            target = 0 if self.state.step is None else self.state.step + 1
            seen = (
                approval(self.state, target, expires=late)
                if other == "unseen"
                else approval(self.state, target + 1)
            )
        self.observe(look(self.state, verdict=verdict(word, self.now), **{lacking: seen}))

    @rule(data=st.data())
    def a_driver_sees_anything(self, data: st.DataObject) -> None:
        self.observe(data.draw(self.looks(), label="look"))

    @precondition(lambda self: self.last_observation is not None)
    @rule()
    def an_observation_comes_twice_or_late(self) -> None:
        assert self.last_observation is not None
        self.observe(self.last_observation)

    @rule(data=st.data())
    def a_person_speaks(self, data: st.DataObject) -> None:
        release = data.draw(
            st.sampled_from([self.state.release_under_way or "r-0", "r-0", "r-none"])
        )
        slot = readiness(NAMES)
        asked = data.draw(
            st.one_of(
                st.builds(
                    HoldRequested, release=st.just(release), by=st.just("p"), reason=st.just("x")
                ),
                st.builds(
                    HoldLifted,
                    release=st.just(release),
                    by=st.just("p"),
                    generation=st.sampled_from([None, self.state.generation, 1]),
                ),
                st.builds(
                    AbortRequested,
                    release=st.just(release),
                    by=st.just("p"),
                    reason=st.just("x"),
                    deny=st.booleans(),
                    a=slot,
                    b=slot,
                ),
                st.builds(
                    DenialLifted,
                    candidate=st.sampled_from(DIGESTS),
                    by=st.just("p"),
                    reason=st.just("x"),
                ),
            ),
            label="asked",
        )
        self.observe(asked)

    @rule(data=st.data())
    def a_push_is_lost(self, data: st.DataObject) -> None:
        """The driver dies with its answer, or the remote never took it: the next one finds the state as it was, and the same
        look gives the same answer."""
        seen = data.draw(self.looks(), label="lost look")
        lost = advance(self.state, seen, self.now)
        self.observe(seen if data.draw(st.booleans(), label="seen again") else look(self.state))
        if isinstance(lost, Transition) and self.state.generation == lost.state.generation:
            # Pushed late after all, on top of what came between: the state itself refuses it by its generation.
            late = advance(self.state, seen, self.now)
            assert isinstance(late, Wait)
            assert late.stale or late.finished

    @rule()
    def check_restart(self) -> None:
        assert load_state(dump_state(self.state)) == self.state

    # How it is judged

    def begin_release(self, name: str, spec: CanarySpec) -> None:
        who = occupant(name).model_copy(update={"release": f"r-{self.releases}"})
        digest = who.candidate.digest
        # Every other release of an engine that could have both versions in one object is one of such an engine.
        plain = spec.strategy is Strategy.SURGE and spec.baseline == "stable"
        one = plain and not any(s.traffic != "weighted" for s in spec.steps)
        one = one and self.releases % 2 == 1
        try:
            answer = start(self.state, who, spec, self.now, one_object=one)
        except Refused:
            assert self.state.phase not in QUIET or self.state.is_denied(digest)
            return
        if isinstance(answer, Transition):
            assert self.state.phase in QUIET
            assert not self.state.is_denied(digest)
            self.releases += 1
            self.commit(answer, None)
            assert isinstance(start(self.state, who, spec, self.now), Wait)

    def observe_well(
        self, seconds: int, word: str | None = None, *, approved: bool = False
    ) -> None:
        self.now += timedelta(seconds=seconds)
        said = verdict(word, self.now) if word is not None else None
        yes = None
        if approved and subject(self.state) is not None:
            yes = approval(self.state, 0 if self.state.step is None else self.state.step + 1)
        self.observe(look(self.state, verdict=said, decision=yes))

    def looks(self) -> st.SearchStrategy[Look]:
        digests = st.sampled_from(DIGESTS)
        under_test = subject(self.state)
        if under_test is not None:
            digests = st.one_of(st.just(under_test.candidate.digest), digests)
        seen: dict[str, Any] = {}
        for slot in Slot:
            there = self.state.occupant(slot)
            own = [n for n in NAMES if there and candidate(n).digest == there.candidate.digest]
            seen[slot.value] = readiness((*own, *own, *own, *NAMES))
        words = ["pass", "fail", "insufficient_data", "metrics_outage"]
        release = st.just(self.state.release_under_way or "r-0")
        return st.builds(
            Look,
            generation=st.sampled_from([self.state.generation] * 9 + [self.state.generation - 1]),
            **seen,
            smoke=st.none() | st.builds(SmokeResult, candidate=digests, ok=st.booleans()),
            verification=st.none() | st.builds(Verification, candidate=digests, ok=st.booleans()),
            fallback_verification=st.none()
            | st.builds(Verification, candidate=digests, ok=st.booleans()),
            verdict=st.none() | st.sampled_from(words).map(lambda w: verdict(w, self.now)),
            decision=st.none()
            | st.builds(
                Approval,
                release=release,
                candidate=digests,
                step=st.integers(0, 3),
                by=st.just("m"),
            )
            | st.builds(
                Promotion,
                release=release,
                candidate=digests,
                step=st.integers(0, 4),
                by=st.just("m"),
                reason=st.just("x"),
            )
            | st.builds(
                Rejection, release=release, candidate=digests, by=st.just("m"), reason=st.just("no")
            ),
            blind_seconds=st.sampled_from([0.0, 0.0, 0.0, 60.0, 121.0]),
            live_generation=st.none() | st.integers(0, self.state.generation),
            successor=st.none() | successors(self.state.generation),
            shares=st.none() | st.sampled_from([{"a": 100}, {"a": 95, "b": 5}, {"b": 100}]),
        )

    def observe(self, observation: Observation) -> None:
        before = self.state.model_copy(deep=True)
        answer = advance(self.state, observation, self.now)
        assert self.state == before, "the state machine changed its input"
        restarted = ReleaseState.model_validate_json(before.model_dump_json())
        assert advance(restarted, observation, self.now) == answer, "not pure"
        self.last_observation = observation
        if isinstance(answer, Transition):
            self.commit(answer, observation)
            if isinstance(observation, Look):
                repeated = advance(self.state, observation, self.now)
                assert isinstance(repeated, Wait)
                assert repeated.stale

    def commit(self, answer: Transition, observation: Observation | None) -> None:
        before, after = self.state, answer.state
        assert after.generation == before.generation + 1
        self.check_slots(before, after)
        self.check_sizes(before, answer, observation)
        self.check_traffic(before, answer, observation)
        self.check_restored(before, answer, observation)
        if isinstance(observation, Look):
            assert observation.generation == before.generation
        if isinstance(observation, HoldLifted):
            assert observation.generation in (None, before.generation)
        self.state = after

    def check_slots(self, before: ReleaseState, after: ReleaseState) -> None:
        """One commit carries route and deployments, applied in any order: a slot with traffic on either side of it is not
        touched, and a slot that had traffic is given its drain time first."""
        for slot in Slot:
            was, now = before.occupant(slot), after.occupant(slot)
            if was == now:
                continue
            assert before.weights().get(slot, 0) == 0
            assert after.weights().get(slot, 0) == 0
            assert was is None or now is None, "a slot is emptied before it is filled"
            if was is not None and before.phase in (Phase.DRAINING, Phase.BAKING):
                since = before.control_ended or before.since
                assert since is not None
                waited = (self.now - parse_time(since)).total_seconds()
                assert waited >= was.candidate.serving.drain_seconds

    def check_sizes(
        self, before: ReleaseState, answer: Transition, observation: Observation | None
    ) -> None:
        """Replicas change hands one by one, each only when those before it are ready; all at once only where the candidate
        does not serve, or nobody can see. Stable is stopped only where both versions could be started."""
        after = answer.state
        changed = {s: after.replicas(s) - before.replicas(s) for s in (Slot.A, Slot.B)}
        if answer.kind is TransitionKind.REPLACE:
            assert isinstance(observation, Look)
            assert before.stable is not None
            for who, seen in (
                (before.occupant(before.stable), observation.fallback_verification),
                (before.occupant(before.free_slot), observation.verification),
            ):
                assert who is not None
                assert seen == Verification(candidate=who.candidate.digest, ok=True)
            return
        if answer.kind in (TransitionKind.HAND_OVER, TransitionKind.HAND_BACK):
            assert sorted(changed.values()) == [-1, 1]
            assert observation is not None
            (grows,) = (s for s, by in changed.items() if by == 1)
            who = before.occupant(grows)
            assert who is not None
            seen = observation.a if grows is Slot.A else observation.b  # type: ignore[union-attr]
            blind = isinstance(observation, AbortRequested) or observation.blind_seconds > 120  # type: ignore[union-attr]
            rejected = isinstance(observation, Look) and isinstance(observation.decision, Rejection)
            back = answer.kind is TransitionKind.HAND_BACK
            if seen is None:
                assert blind or rejected
            else:
                own = who.candidate.digest
                assert seen.carries(own) if back else seen.fit(own)
            # One replica is between the slots: the load of the others is equal, but for a step's own weight.
            ready = {s: before.replicas(s) + min(by, 0) for s, by in changed.items()}
            assert sum(ready.values()) == REPLICAS - 1
            loads = [after.weights()[s] / n for s, n in ready.items() if n]
            assert max(loads) <= 2 * 100 / (REPLICAS - 1)
            return
        touched = {s for s in changed if after.weights().get(s, 0) and before.weights().get(s, 0)}
        assert all(changed[s] == 0 for s in touched) or answer.kind in (
            TransitionKind.DEPLOY,
            TransitionKind.ROLLBACK,
            TransitionKind.ABORT,
            TransitionKind.FINISH,
        )
        if answer.kind in (TransitionKind.ROLLBACK, TransitionKind.ABORT) and before.lent > 1:
            assert before.stable is not None
            baking = Phase.BAKING in (before.phase, before.held_from)
            stands = before.stable if baking else before.free_slot
            seen = observation.a if stands is Slot.A else observation.b  # type: ignore[union-attr]
            own = before.occupant(stands)
            assert own is not None
            gone = seen is None or seen.candidate != own.candidate.digest or not seen.ready
            assert gone or before.replicas(stands) <= 1

    def check_restored(
        self, before: ReleaseState, answer: Transition, observation: Observation | None
    ) -> None:
        """Where both versions are in one object, a candidate that is not promoted goes only when stable's stands there again."""
        if answer.kind is TransitionKind.RESTORE:
            assert isinstance(observation, Look)
            assert observation.shares is not None
            assert not observation.shares.get(before.free_slot.value)
        gone = answer.state.phase in QUIET and before.phase not in QUIET
        if before.restoring is None or not gone or before.baking:
            return
        assert before.restoring is Restoring.UNDER_WAY
        assert before.stable is not None
        stable = before.occupant(before.stable)
        assert stable is not None
        assert isinstance(observation, Look)
        assert observation.successor is not None
        assert observation.successor.fit(stable.candidate.digest)
        assert observation.successor.generation >= before.began

    def check_traffic(
        self, before: ReleaseState, answer: Transition, observation: Observation | None
    ) -> None:
        after = answer.state
        for slot in Slot:
            who = after.occupant(slot)
            more = after.weights().get(slot, 0) - before.weights().get(slot, 0)
            if who is None or more <= 0:
                continue
            digest = who.candidate.digest
            assert not after.is_denied(digest)
            if slot is Slot.BASELINE:
                assert answer.kind is TransitionKind.RAISE
                assert isinstance(observation, Look)
                assert observation.baseline is not None
                assert observation.baseline.fit(digest)
                continue
            ends = answer.kind in (TransitionKind.ROLLBACK, TransitionKind.ABORT)
            if ends and after.canary is not None and after.canary.strategy is Strategy.RECREATE:
                assert after.replicas(slot) == REPLICAS, "it is deployed anew"
                continue
            if ends or answer.kind is TransitionKind.HAND_BACK:
                fallback = before.stable
                if before.phase is Phase.BAKING or before.held_from is Phase.BAKING:
                    assert before.stable is not None
                    fallback = before.stable.other
                assert slot is fallback
                assert isinstance(observation, Look | AbortRequested)
                seen = observation.a if slot is Slot.A else observation.b
                assert seen is None or seen.carries(digest), "traffic onto a dead slot"
                if seen is None and isinstance(observation, Look):
                    rejected = isinstance(observation.decision, Rejection)
                    assert rejected or observation.blind_seconds > 120
                continue
            if answer.kind is TransitionKind.END_CONTROL:
                assert slot is before.stable
                assert slot is after.stable
                continue
            assert answer.kind in (
                TransitionKind.RAISE,
                TransitionKind.PROMOTE,
                TransitionKind.HAND_OVER,
            )
            assert isinstance(observation, Look)
            seen = observation.slot(slot)
            assert seen is not None
            assert seen.fit(digest)
            if slot is before.stable:
                # The control, after a last step that left the old version less than that.
                assert answer.kind is TransitionKind.PROMOTE
                assert observation.fallback_verification == Verification(candidate=digest, ok=True)
                continue
            assert observation.verification == Verification(candidate=digest, ok=True)
            assert before.step is not None or observation.smoke is not None
            assert before.canary is not None
            if before.stable is None and any(s.approval for s in before.canary.steps):
                assert isinstance(observation.decision, Approval), "all traffic at once"
            if before.stable is not None and before.replicas(before.stable):
                stable = before.occupant(before.stable)
                other = observation.slot(before.stable)
                assert stable is not None
                assert other is not None
                assert other.fit(stable.candidate.digest)
            if (
                answer.kind is TransitionKind.RAISE
                and after.step is not None
                and after.canary is not None
            ):
                following = 0 if before.step is None else before.step + 1
                by_hand = isinstance(observation.decision, Promotion)
                assert after.step == following or (by_hand and after.step > following)
                if after.canary.steps[after.step].approval:
                    assert isinstance(observation.decision, Approval)
                    assert answer.trailers["Approved-by"] == observation.decision.by
            if before.phase is Phase.HELD:
                assert isinstance(observation.decision, Promotion)
                assert answer.trailers["Requested-by"] == observation.decision.by
            elif (
                before.step is not None
                and not self.by_header_only(before)
                and not before.handing_over
            ):
                assert (before.step, "pass") in {(v.step, v.verdict) for v in after.verdicts}

    @staticmethod
    def by_header_only(state: ReleaseState) -> bool:
        assert state.canary is not None
        return state.canary.steps[state.step or 0].traffic == "header"

    @invariant()
    def a_restart_changes_nothing(self) -> None:
        assert load_state(dump_state(self.state)) == self.state

    @invariant()
    def the_weights_sum_to_all_traffic_and_one_candidate_at_most_is_under_test(self) -> None:
        weights = self.state.weights()
        assert sum(weights.values()) == (100 if self.state.stable is not None else 0)
        occupants = [o for o in (self.state.a, self.state.b) if o is not None]
        assert len({o.candidate.digest for o in occupants}) == len(occupants)
        for slot, weight in weights.items():
            who = self.state.occupant(slot)
            assert who is not None
            assert not (weight and self.state.is_denied(who.candidate.digest))
        assert (self.state.release_under_way is None) == (self.state.phase in QUIET)

    @invariant()
    def something_is_asked_of_a_person_exactly_while_it_waits(self) -> None:
        waits = Phase.AWAITING_APPROVAL in (self.state.phase, self.state.held_from)
        assert waits == (self.state.asked_at is not None)

    @invariant()
    def a_fresh_baseline_is_no_release_and_has_what_the_canary_has(self) -> None:
        state = self.state
        who = state.occupant(Slot.BASELINE)
        weight = state.weights().get(Slot.BASELINE, 0)
        if who is None:
            assert (state.replicas(Slot.BASELINE), weight) == (0, 0)
            return
        assert state.phase not in QUIET
        under_test = subject(state)
        if state.phase is not Phase.DRAINING:
            assert under_test is not None
            assert who != under_test
        assert who in (state.a, state.b)
        assert weight == (state.weight if state.step is not None else 0)
        assert state.replicas(Slot.BASELINE) == REPLICAS

    @invariant()
    def without_room_for_a_second_copy_there_is_none(self) -> None:
        state = self.state
        strategy = state.canary.strategy if state.canary is not None else Strategy.SURGE
        sizes = {s: state.replicas(s) for s in Slot}
        if state.stable is not None and strategy is not Strategy.SURGE:
            assert sum(sizes.values()) == REPLICAS
        if strategy is not Strategy.RECREATE:
            for slot, weight in state.weights().items():
                assert sizes[slot] > 0 or not weight

    @precondition(lambda self: self.state.weight > 0 or self.state.phase is Phase.BAKING)
    @rule()
    def every_future_from_here_ends(self) -> None:
        self.check_futures()

    def teardown(self) -> None:
        self.check_futures()

    def check_futures(self) -> None:
        """From wherever it stands, each of these futures ends the run."""
        under_way = self.state.release_under_way
        if under_way is None:
            return
        had_ended = self.state.phase is Phase.DRAINING or self.state.leaving is not None

        good = self.future("pass", people_help=True)
        assert good.phase in QUIET
        assert good.last is not None
        assert good.last.release == under_way
        assert had_ended or good.last.outcome is Outcome.PROMOTED

        bad = self.future("fail")
        if bad.stable is not None and bad.free_slot and bad.phase is Phase.HELD:
            assert bad.occupant(bad.free_slot) is None, (
                "held only where there is nothing to go back to"
            )
            return
        assert bad.phase in QUIET
        assert bad.last is not None
        assert had_ended or bad.last.outcome is Outcome.ROLLED_BACK

        undecided = self.future(None)
        assert undecided.phase in QUIET | {Phase.HELD, Phase.AWAITING_APPROVAL}

        unseen = self.future("metrics_outage")
        assert unseen.phase in QUIET | {Phase.HELD, Phase.AWAITING_APPROVAL}

        unproved = self.future("pass", fallback_verification=None)
        assert unproved.phase in QUIET | {Phase.HELD, Phase.AWAITING_APPROVAL}

        blind = Rollout(self.state)
        blind.now = self.now
        blind.sees(blind_seconds=121.0)
        baking = Phase.BAKING in (self.state.phase, self.state.held_from)
        if not baking and not self.state.handing_over:
            assert blind.state.weight == 0

    def future(
        self, word: str | None, *, people_help: bool = False, **lacking: None
    ) -> ReleaseState:
        """The state after enough looks with this verdict, all else well but for what is `lacking`; with people who lift holds
        and approve."""
        run = Rollout(self.state)
        run.now = self.now + timedelta(hours=1)
        for _ in range(24):
            if run.state.phase in QUIET:
                break
            if people_help:
                self.help_on(run)
            said = verdict(word, run.now) if word is not None else None
            run.sees(verdict=said, **lacking)
            run.after(300)
        return run.state

    @staticmethod
    def help_on(run: Rollout) -> None:
        """What people would do: lift a hold, give an approval."""
        if run.state.phase is Phase.HELD and run.state.release_under_way is not None:
            run.observes(HoldLifted(release=run.state.release_under_way, by="p"))
        if run.state.phase is Phase.AWAITING_APPROVAL:
            target = 0 if run.state.step is None else run.state.step + 1
            run.sees(decision=approval(run.state, target))


class EveryBorrowing(EveryRun):
    specs = staticmethod(lambda: specs_of(Strategy.BORROW))
    beginnings: ClassVar[list[str]] = [
        "deploying",
        "canary",
        "handing over",
        "baking",
        "leaving",
        "leaving",
        "held",
    ]


class EveryReplacement(EveryRun):
    specs = staticmethod(lambda: specs_of(Strategy.RECREATE))
    beginnings: ClassVar[list[str]] = ["deploying", "replaced", "baking", "leaving", "held"]


class EveryFreshBaseline(EveryRun):
    specs = staticmethod(lambda: specs_with(Strategy.SURGE, "fresh"))
    beginnings: ClassVar[list[str]] = ["deploying", "canary", "second step", "baking", "baking"]


RUNS = int(os.environ.get("LOCKGATE_MODEL_CHECKING_RUNS", "60"))


def checked(machine: type[EveryRun], runs: int) -> Any:
    """The machine as a test, with a number of runs."""
    case = pytest.mark.slow(pytest.mark.timeout(RUNS * 5)(machine.TestCase))
    case.settings = settings(
        max_examples=runs,
        # The same runs every time; other ones, and more of them, on demand.
        derandomize="LOCKGATE_MODEL_CHECKING_RUNS" not in os.environ,
        stateful_step_count=40,
        deadline=None,
        report_multiple_bugs=False,
        phases=[phase for phase in HypothesisPhase if phase is not HypothesisPhase.explain],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    return case


TestEveryRun = checked(EveryRun, RUNS * 2 // 3)
TestEveryBorrowing = checked(EveryBorrowing, RUNS // 3)
TestEveryReplacement = checked(EveryReplacement, RUNS // 6)
TestEveryFreshBaseline = checked(EveryFreshBaseline, RUNS // 6)
