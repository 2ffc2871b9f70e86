"""Model checking: whatever is seen, in whatever order, twice, late or not at all, some things never happen, and every run ends."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import Phase as HypothesisPhase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lockgate.domain.gitops import dump_state, load_state
from lockgate.domain.release_state import Outcome, Phase, ReleaseState, Slot
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
    Transition,
    TransitionKind,
    Verification,
    Wait,
    advance,
    start,
)
from lockgate.domain.rollout.transitions import parse_time, rfc3339
from lockgate.domain.spec import CanarySpec, CanaryStep, ServiceLevels
from lockgate.errors import Refused
from tests.unit.rollout.world import (
    BEGIN,
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
    steps = st.lists(
        st.tuples(st.integers(1, 100), st.sampled_from([False, False, False, True])),
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
        st.sampled_from(["mirror", "header"]).map(
            lambda traffic: CanaryStep(weight=0, traffic=traffic, min_seconds=30, max_seconds=300)
        ),
        max_size=2,
    ).map(tuple)
    steps = st.builds(lambda first, then: first + then, before, steps)
    return st.builds(
        CanarySpec,
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
    return SlotReadiness(
        candidate=candidate(draw(st.sampled_from(names))).digest,
        ready=ready,
        sized=ready and draw(st.integers(0, 7)) > 0,
        restarts=draw(st.sampled_from([0, 0, 0, 0, 1, 2, 3])),
        unready_seconds=0 if ready else draw(st.sampled_from([1.0, 60.0, 121.0, 900.0])),
        refusal=draw(st.sampled_from([None, None, None, None, None, "unsigned"])),
    )


class EveryRun(RuleBasedStateMachine):
    """Drives one model as badly as it can, and remembers what each candidate had proved when it got traffic."""

    def __init__(self) -> None:
        super().__init__()
        self.now = BEGIN
        self.state = ReleaseState(model="m", environment="prod")
        self.releases = 0
        self.last_observation: Observation | None = None

    @initialize(where=st.sampled_from(BEGINNINGS), spec=specs())
    def begin_somewhere(self, where: str, spec: CanarySpec) -> None:
        """Anywhere in the life of a model, so that no phase is far away."""
        if where == "empty":
            return
        self.begin_release(NAMES[0], spec)
        self.observe_well(60)
        if where == "serving":
            return
        self.begin_release(NAMES[1], spec)
        wanted = {"canary": 1, "second step": 2, "baking": 4, "draining": 2, "held": 1}
        for _ in range(wanted.get(where, 0)):
            self.observe_well(60, "pass", approved=True)
        if where == "draining":
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
            ["a", "a", "b", "b", "smoke", "verification", "fallback_verification", "decision"]
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
        there = {"a": self.state.a, "b": self.state.b}.get(lacking)
        if there is not None and other == "unfit":
            digest = there.candidate.digest
        things: dict[str, Any] = {
            "smoke": SmokeResult(candidate=digest, ok=True),
            "verification": Verification(candidate=digest, ok=True),
            "fallback_verification": Verification(candidate=digest, ok=True),
            "a": SlotReadiness(candidate=digest, ready=True, sized=other != "unfit"),
            "b": SlotReadiness(candidate=digest, ready=True, sized=other != "unfit"),
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
                st.builds(HoldLifted, release=st.just(release), by=st.just("p")),
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
        try:
            answer = start(self.state, who, spec, self.now)
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
        self.check_traffic(before, answer, observation)
        if isinstance(observation, Look):
            assert observation.generation == before.generation
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
            if answer.kind in (TransitionKind.ROLLBACK, TransitionKind.ABORT):
                fallback = before.stable
                if before.phase is Phase.BAKING or before.held_from is Phase.BAKING:
                    assert before.stable is not None
                    fallback = before.stable.other
                assert slot is fallback
                assert isinstance(observation, Look | AbortRequested)
                seen = observation.a if slot is Slot.A else observation.b
                assert seen is None or seen.fit(digest), "traffic onto a dead slot"
                if seen is None and isinstance(observation, Look):
                    rejected = isinstance(observation.decision, Rejection)
                    assert rejected or observation.blind_seconds > 120
                continue
            if answer.kind is TransitionKind.END_CONTROL:
                assert slot is before.stable
                assert slot is after.stable
                continue
            assert answer.kind in (TransitionKind.RAISE, TransitionKind.PROMOTE)
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
            if before.stable is not None:
                stable = before.occupant(before.stable)
                other = observation.slot(before.stable)
                assert stable is not None
                assert other is not None
                assert other.fit(stable.candidate.digest)
            if after.step is not None and after.canary is not None:
                following = 0 if before.step is None else before.step + 1
                by_hand = isinstance(observation.decision, Promotion)
                assert after.step == following or (by_hand and after.step > following)
                if after.canary.steps[after.step].approval:
                    assert isinstance(observation.decision, Approval)
                    assert answer.trailers["Approved-by"] == observation.decision.by
            if before.phase is Phase.HELD:
                assert isinstance(observation.decision, Promotion)
                assert answer.trailers["Requested-by"] == observation.decision.by
            elif before.step is not None and not self.by_header_only(before):
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
        had_ended = self.state.phase is Phase.DRAINING

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

        blind = Rollout(self.state)
        blind.now = self.now
        blind.sees(blind_seconds=121.0)
        if Phase.BAKING not in (self.state.phase, self.state.held_from):
            assert blind.state.weight == 0

    def future(self, word: str | None, *, people_help: bool = False) -> ReleaseState:
        """The state after enough looks with this verdict, all else well; with people who lift holds and approve."""
        run = Rollout(self.state)
        run.now = self.now + timedelta(hours=1)
        for _ in range(24):
            if run.state.phase in QUIET:
                break
            if people_help:
                self.help_on(run)
            said = verdict(word, run.now) if word is not None else None
            run.sees(verdict=said)
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


RUNS = int(os.environ.get("LOCKGATE_MODEL_CHECKING_RUNS", "60"))

TestEveryRun = pytest.mark.timeout(RUNS * 5)(EveryRun.TestCase)
TestEveryRun.settings = settings(
    max_examples=RUNS,
    # The same runs every time; other ones, and more of them, on demand.
    derandomize="LOCKGATE_MODEL_CHECKING_RUNS" not in os.environ,
    stateful_step_count=40,
    deadline=None,
    report_multiple_bugs=False,
    phases=[phase for phase in HypothesisPhase if phase is not HypothesisPhase.explain],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
