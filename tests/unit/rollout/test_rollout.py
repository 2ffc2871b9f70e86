"""What follows from what is seen."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from lockgate.domain.release_state import Outcome, Phase, ReleaseState, Slot
from lockgate.domain.rollout import (
    AbortRequested,
    DenialLifted,
    HoldLifted,
    HoldRequested,
    Promotion,
    Rejection,
    SmokeResult,
    Transition,
    TransitionKind,
    Verification,
    Wait,
    advance,
    start,
)
from lockgate.domain.rollout.transitions import rfc3339
from lockgate.domain.spec import CanarySpec, CanaryStep, ServiceLevels
from lockgate.errors import Refused
from tests.unit.rollout.world import (
    SPEC,
    SPEC_WITH_APPROVAL,
    Rollout,
    approval,
    candidate,
    fit,
    in_bake,
    in_canary,
    look,
    occupant,
    serving_one,
    verdict,
)


def kinds(rollout: Rollout) -> list[TransitionKind]:
    return [t.kind for t in rollout.transitions]


def test_a_first_release_takes_all_traffic_once_it_is_ready_verified_and_answers() -> None:
    rollout = Rollout()
    rollout.start("new")
    assert rollout.state.weights() == {Slot.A: 0}
    for lacking in ("a", "smoke", "verification"):
        assert isinstance(rollout.sees(**{lacking: None}), Wait)
    rollout.sees()
    assert (rollout.state.phase, rollout.state.weights()) == (Phase.STABLE, {Slot.A: 100})
    assert rollout.state.last is not None
    assert rollout.state.last.outcome is Outcome.PROMOTED


def test_a_good_candidate_climbs_the_steps_bakes_and_leaves_one_version() -> None:
    rollout = in_canary()
    weights = [rollout.state.weights()]
    for _ in range(2):
        rollout.after(60).hears("pass")
        weights.append(rollout.state.weights())
    assert weights == [{Slot.A: 95, Slot.B: 5}, {Slot.A: 50, Slot.B: 50}, {Slot.B: 95, Slot.A: 5}]
    assert rollout.state.phase is Phase.BAKING
    assert rollout.state.stable is Slot.B
    assert isinstance(rollout.after(299).sees(), Wait)
    rollout.after(1).sees()
    assert kinds(rollout)[-1] is TransitionKind.END_CONTROL
    assert rollout.state.weights() == {Slot.B: 100, Slot.A: 0}
    assert isinstance(rollout.after(44).sees(), Wait)
    rollout.after(1).sees()
    assert (rollout.state.phase, rollout.state.a, rollout.state.weights()) == (
        Phase.STABLE,
        None,
        {Slot.B: 100},
    )
    assert [v.verdict for v in rollout.state.verdicts] == ["pass", "pass"]


def test_a_pass_is_not_taken_before_the_steps_minimum_time() -> None:
    rollout = in_canary()
    early = rollout.after(29).hears("pass")
    assert isinstance(early, Wait)
    assert early.until is not None
    assert rollout.state.step == 0
    rollout.after(1).hears("pass")
    assert rollout.state.step == 1


@pytest.mark.parametrize(
    "lacking",
    [
        {"verification": None},
        {"fallback_verification": None},
        {"fallback_verification": Verification(candidate=candidate("new").digest, ok=True)},
        {"verification": Verification(candidate=candidate("old").digest, ok=True)},
        {"a": fit(occupant("old"), sized=False)},
        {"a": fit(occupant("new"))},
        {"b": fit(occupant("new"), ready=False)},
        {"b": fit(occupant("old"))},
        {"a": None},
        {"b": None},
    ],
)
def test_no_raise_before_what_a_rollback_would_need_is_proved(lacking: dict[str, object]) -> None:
    rollout = in_canary()
    answer = rollout.after(60).sees(verdict=verdict("pass", rollout.now), **lacking)
    assert isinstance(answer, Wait)
    assert answer.page is not None
    assert rollout.state.weight == 5


def test_a_fail_sends_all_traffic_back_denies_the_candidate_and_empties_its_slot_later() -> None:
    rollout = in_canary(steps_passed=1)
    answer = rollout.after(5).hears("fail")
    assert isinstance(answer, Transition)
    assert answer.kind is TransitionKind.ROLLBACK
    assert answer.trailers["Verdict"].startswith("fail sha256:")
    state = rollout.state
    assert state.phase is Phase.DRAINING
    assert state.weights() == {Slot.A: 100, Slot.B: 0}
    assert state.b is not None
    assert state.is_denied(candidate("new").digest)
    # The gateway is seen at weight 0: the last streams get their 45 s.
    assert isinstance(rollout.after(44).sees(), Wait)
    rollout.after(1).sees()
    assert (rollout.state.phase, rollout.state.b) == (Phase.STABLE, None)


def test_a_slot_is_emptied_late_where_the_gateway_cannot_be_seen() -> None:
    rollout = in_canary()
    rollout.hears("fail")
    assert isinstance(rollout.after(179).sees(live_generation=None), Wait)
    assert isinstance(rollout.sees(live_generation=rollout.state.began - 1), Wait)
    rollout.after(1).sees(live_generation=None)
    assert rollout.state.b is None


def test_a_rolled_back_candidate_is_never_released_again_until_a_named_person_lifts_it() -> None:
    rollout = in_canary()
    rollout.hears("fail")
    rollout.after(60).sees()
    again = occupant("new").model_copy(update={"release": "r-again"})
    with pytest.raises(Refused, match="denylisted"):
        start(rollout.state, again, SPEC, rollout.now)
    pardon = DenialLifted(candidate=candidate("new").digest, by="mara", reason="bad host")
    answer = rollout.observes(pardon)
    assert isinstance(answer, Transition)
    assert answer.trailers["Requested-by"] == "mara"
    assert isinstance(start(rollout.state, again, SPEC, rollout.now), Transition)
    assert isinstance(rollout.observes(pardon), Wait)


def test_another_candidate_of_the_same_weights_is_not_denied_with_it() -> None:
    rollout = in_canary()
    rollout.hears("fail")
    rollout.after(60).sees()
    other = candidate("new")
    other = other.model_copy(
        update={"serving": other.serving.model_copy(update={"max_num_seqs": 8})}
    )
    who = occupant("new").model_copy(update={"candidate": other, "release": "r-fixed"})
    assert isinstance(start(rollout.state, who, SPEC, rollout.now), Transition)


def test_traffic_never_moves_onto_a_dead_stable_slot() -> None:
    rollout = in_canary(steps_passed=1)
    dead = fit(occupant("old"), ready=False, sized=False, unready_seconds=3)
    answer = rollout.sees(verdict=verdict("fail", rollout.now), a=dead)
    assert isinstance(answer, Transition)
    assert answer.kind is TransitionKind.HOLD
    assert answer.page is not None
    assert rollout.state.weight == 50
    again = rollout.after(10).sees(verdict=verdict("fail", rollout.now), a=dead)
    assert isinstance(again, Wait)
    assert again.page is not None
    # It comes back: the rollback that was wanted happens.
    rollout.after(10).hears("fail")
    assert (rollout.state.phase, rollout.state.weight) == (Phase.DRAINING, 0)
    assert kinds(rollout)[-2:] == [TransitionKind.HOLD, TransitionKind.ROLLBACK]


def test_a_stable_slot_that_an_autoscaler_wants_larger_takes_a_rollback_but_carries_no_raise() -> (
    None
):
    busy = fit(occupant("old"), sized=False, enough=True)
    rollout = in_canary()
    held_back = rollout.after(60).sees(verdict=verdict("pass", rollout.now), a=busy)
    assert isinstance(held_back, Wait)
    assert "stable slot" in held_back.reason
    rollout.after(1).sees(verdict=verdict("fail", rollout.now), a=busy)
    assert (rollout.state.phase, rollout.state.weight) == (Phase.DRAINING, 0)


def test_a_rollback_onto_a_slot_that_cannot_be_seen_waits_at_most_the_outage_budget() -> None:
    rollout = in_canary()
    waiting = rollout.sees(verdict=verdict("fail", rollout.now), a=None, blind_seconds=10)
    assert isinstance(waiting, Wait)
    assert waiting.page is not None
    rollout.after(111).sees(verdict=verdict("fail", rollout.now), a=None, blind_seconds=121)
    assert rollout.state.phase is Phase.DRAINING


def test_a_metrics_outage_holds_the_weight_and_past_its_budget_blames_nobody() -> None:
    rollout = in_canary()
    for blind in (10, 60, 120):
        outage = verdict("metrics_outage", rollout.now)
        assert isinstance(rollout.sees(verdict=outage, blind_seconds=blind), Wait)
    assert rollout.state.weight == 5
    rollout.sees(verdict=verdict("metrics_outage", rollout.now), blind_seconds=121)
    assert rollout.state.phase is Phase.DRAINING
    assert rollout.state.denylist == ()
    assert rollout.state.last is not None
    assert rollout.state.last.outcome is Outcome.ABORTED


def test_a_driver_that_comes_back_after_the_budget_finds_a_pass_too_old_to_raise_on() -> None:
    rollout = in_canary()
    rollout.after(600).sees(verdict=verdict("pass", rollout.now), blind_seconds=600)
    assert rollout.state.phase is Phase.DRAINING


def test_a_long_outage_without_weight_ends_nothing_but_nothing_is_raised_out_of_the_dark() -> None:
    rollout = serving_one()
    rollout.start("new")
    assert isinstance(rollout.after(600).sees(blind_seconds=600), Wait)
    rollout.after(2).sees(blind_seconds=0)
    assert rollout.state.phase is Phase.CANARY


@pytest.mark.parametrize(("choice", "phase"), [("hold", Phase.HELD), ("rollback", Phase.DRAINING)])
def test_without_a_verdict_in_the_time_budget_the_spec_decides_and_nobody_is_blamed(
    choice: str, phase: Phase
) -> None:
    rollout = in_canary(SPEC.model_copy(update={"on_insufficient_data": choice}))
    assert isinstance(rollout.after(299).hears("insufficient_data"), Wait)
    rollout.after(1).hears("insufficient_data")
    assert rollout.state.phase is phase
    assert rollout.state.denylist == ()


def test_a_lifted_hold_gives_the_time_budget_anew_but_not_the_trace() -> None:
    rollout = in_canary()
    since, began = rollout.state.since, rollout.state.began
    rollout.after(300).hears("insufficient_data")
    rollout.after(1000).observes(HoldLifted(release="r-new", by="mara"))
    assert rollout.state.phase is Phase.CANARY
    assert (rollout.state.since, rollout.state.began, rollout.state.step) == (since, began, 0)
    assert isinstance(rollout.after(299).hears("insufficient_data"), Wait)
    rollout.after(1).hears("insufficient_data")
    assert rollout.state.phase is Phase.HELD


def test_a_candidate_that_is_never_ready_leaves_in_one_commit_unblamed() -> None:
    rollout = serving_one()
    rollout.start("new")
    assert isinstance(rollout.after(900).sees(b=None), Wait)
    answer = rollout.after(1).sees(b=None)
    assert isinstance(answer, Transition)
    assert "not ready within 900 s" in answer.subject
    assert (rollout.state.phase, rollout.state.b) == (Phase.STABLE, None)
    assert rollout.state.denylist == ()


@pytest.mark.parametrize(
    ("seen", "reason", "denied"),
    [
        ({"b": fit(occupant("new"), ready=False, restarts=3)}, "crash loop", True),
        ({"b": fit(occupant("new"), ready=False, refusal="signature")}, "refuses", False),
        (
            {"smoke": SmokeResult(candidate=candidate("new").digest, ok=False, detail="!!!!")},
            "smoke generation: !!!!",
            True,
        ),
        (
            {
                "verification": Verification(
                    candidate=candidate("new").digest, ok=False, failures=("no provenance",)
                )
            },
            "verification: no provenance",
            False,
        ),
    ],
)
@pytest.mark.parametrize("phase", [Phase.DEPLOYING, Phase.CANARY, Phase.HELD])
def test_what_the_cluster_or_the_verification_refuses_ends_the_release_by_name(
    phase: Phase, seen: dict[str, object], reason: str, denied: bool
) -> None:
    rollout = serving_one()
    rollout.start("new")
    if phase is not Phase.DEPLOYING:
        rollout.sees()
    if phase is Phase.HELD:
        rollout.observes(HoldRequested(release="r-new", by="mara", reason="lunch"))
    assert rollout.state.phase is phase
    rollout.sees(**seen)
    assert rollout.state.weight == 0
    assert rollout.state.last is not None
    assert reason in rollout.state.last.reason
    assert (rollout.state.is_denied(candidate("new").digest) is not None) is denied


def test_a_step_with_approval_waits_for_one_of_that_step_and_candidate_that_has_not_expired() -> (
    None
):
    rollout = in_canary(SPEC_WITH_APPROVAL)
    rollout.after(60).hears("pass")
    assert (rollout.state.phase, rollout.state.weight) == (Phase.AWAITING_APPROVAL, 5)
    good = approval(rollout.state, 1)
    for wrong in (
        good.model_copy(update={"step": 0}),
        good.model_copy(update={"candidate": candidate("old").digest}),
        good.model_copy(update={"release": "r-other"}),
        good.model_copy(update={"expires": "2026-11-23T12:02:00Z"}),
    ):
        assert isinstance(rollout.sees(decision=wrong), Wait)
    answer = rollout.after(3600).sees(decision=good)
    assert isinstance(answer, Transition)
    assert answer.trailers["Approved-by"] == "mara@example.com"
    assert (rollout.state.phase, rollout.state.weight) == (Phase.CANARY, 50)


def test_a_first_release_takes_all_traffic_only_with_the_approval_that_any_of_its_steps_asks_for() -> (
    None
):
    rollout = Rollout()
    rollout.start("new", SPEC_WITH_APPROVAL)
    asked = rollout.after(60).sees()
    assert isinstance(asked, Transition)
    assert (asked.kind, rollout.state.stable) == (TransitionKind.AWAIT, None)
    assert asked.subject.endswith("waits for approval of step 1 (100%)")
    assert isinstance(rollout.sees(decision=approval(rollout.state, 1)), Wait), "of another step"
    given = rollout.sees(decision=approval(rollout.state, 0))
    assert isinstance(given, Transition)
    assert (given.kind, given.trailers["Approved-by"]) == (
        TransitionKind.PROMOTE,
        "mara@example.com",
    )
    by_hand = Rollout()
    by_hand.start("new", SPEC_WITH_APPROVAL)
    by_hand.observes(HoldRequested(release="r-new", by="p", reason="x"))
    for step in range(3):
        assert isinstance(by_hand.sees(decision=promotion(by_hand, step)), Wait)


def test_a_later_fail_overrides_an_approval() -> None:
    rollout = in_canary(SPEC_WITH_APPROVAL)
    rollout.after(60).hears("pass")
    rollout.sees(decision=approval(rollout.state, 1), verdict=verdict("fail", rollout.now))
    assert rollout.state.phase is Phase.DRAINING


def test_a_rejection_ends_the_release_without_denying_the_candidate() -> None:
    rollout = in_canary(SPEC_WITH_APPROVAL)
    rollout.after(60).hears("pass")
    no = Rejection(
        release="r-new", candidate=candidate("new").digest, by="mara", reason="not on Friday"
    )
    answer = rollout.sees(decision=no)
    assert isinstance(answer, Transition)
    assert "not on Friday" in answer.reason
    assert rollout.state.weight == 0
    assert rollout.state.denylist == ()


def test_a_fail_during_the_bake_returns_to_the_old_version_that_is_still_warm() -> None:
    rollout = in_bake()
    rollout.after(60).hears("fail")
    assert rollout.state.stable is Slot.A
    assert rollout.state.weights() == {Slot.A: 100, Slot.B: 0}
    assert rollout.state.is_denied(candidate("new").digest)
    assert rollout.state.last is not None
    assert rollout.state.last.outcome is Outcome.ROLLED_BACK
    rollout.after(60).sees()
    assert rollout.state.b is None


def test_a_new_version_that_dies_during_the_bake_makes_room_for_the_old_one() -> None:
    rollout = in_bake()
    rollout.after(200).sees(
        b=fit(occupant("new"), ready=False, sized=False, unready_seconds=121, restarts=1)
    )
    assert rollout.state.stable is Slot.A
    assert rollout.state.denylist == ()


def test_an_old_fail_of_the_bake_is_for_a_person_to_decide() -> None:
    rollout = in_bake()
    old = verdict("fail", rollout.now)
    rollout.after(21 * 60).sees(verdict=old)
    assert rollout.state.phase is Phase.HELD
    assert rollout.state.stable is Slot.B
    rollout.observes(HoldLifted(release="r-new", by="mara"))
    rollout.after(300).sees(verdict=old)
    rollout.after(60).sees(verdict=old)
    assert (rollout.state.phase, rollout.state.a) == (Phase.STABLE, None)


def test_a_fail_of_the_bake_waits_until_the_promotion_is_in_force() -> None:
    rollout = in_bake()
    early = rollout.sees(
        verdict=verdict("fail", rollout.now), live_generation=rollout.state.began - 1
    )
    assert isinstance(early, Wait)
    rollout.hears("fail")
    assert rollout.state.last is not None
    assert rollout.state.last.outcome is Outcome.ROLLED_BACK


def test_a_promotion_that_never_comes_into_force_under_a_fail_of_the_bake_is_told_a_person() -> (
    None
):
    rollout = in_bake()
    old_route = rollout.state.began - 1
    said = verdict("fail", rollout.now)
    for seconds, told in ((SPEC.outage_budget_seconds, False), (5000, True)):
        answer = rollout.after(seconds).sees(verdict=said, live_generation=old_route)
        assert isinstance(answer, Wait), "also where the verdict is old by now"
        assert (answer.page is not None) is told
    # In force at last: a fail of that moment takes the traffic back by itself.
    rollout.hears("fail")
    assert rollout.state.phase is Phase.DRAINING


def test_a_control_that_dies_gives_its_part_to_the_new_version_and_the_bake_goes_on() -> None:
    rollout = in_bake()
    ended = rollout.after(10).sees(a=fit(occupant("old"), ready=False, sized=False))
    assert isinstance(ended, Transition)
    assert ended.page is not None, "from here on nothing is compared"
    assert (rollout.state.phase, rollout.state.weights()[Slot.B]) == (Phase.BAKING, 100)
    assert rollout.state.a is not None
    assert isinstance(rollout.after(200).sees(), Wait)
    rollout.after(100).sees()
    assert (rollout.state.phase, rollout.state.a) == (Phase.STABLE, None)


def test_a_control_that_lacks_a_replica_stays_to_be_compared_with() -> None:
    rollout = in_bake()
    assert isinstance(rollout.after(2).sees(a=fit(occupant("old"), sized=False)), Wait)
    assert rollout.state.weight == 5


def test_a_bake_whose_metrics_are_away_at_its_end_is_no_pass_but_a_persons_to_decide() -> None:
    rollout = in_bake()
    waits = rollout.after(SPEC.bake_seconds + 1).hears("metrics_outage")
    assert isinstance(waits, Wait)
    back = Rollout(rollout.state)
    back.now = rollout.now
    back.hears("insufficient_data")
    assert kinds(back) == [TransitionKind.END_CONTROL], "the metrics are back in time"

    held = rollout.after(SPEC.outage_budget_seconds).hears("metrics_outage")
    assert isinstance(held, Transition)
    assert (held.kind, rollout.state.weight) == (TransitionKind.HOLD, 5)
    rollout.observes(HoldLifted(release="r-new", by="mara"))
    assert isinstance(rollout.after(10).hears("metrics_outage"), Wait), "it bakes anew"
    ended = rollout.after(SPEC.bake_seconds).hears("metrics_outage")
    assert isinstance(ended, Transition)
    assert ended.page is not None
    rollout.after(200).hears("metrics_outage")
    assert (rollout.state.phase, rollout.state.a) == (Phase.STABLE, None)


def test_a_driver_that_was_away_does_not_end_a_bake_in_the_dark() -> None:
    rollout = in_bake()
    waits = rollout.after(3600).sees(blind_seconds=3500)
    assert isinstance(waits, Wait)
    assert waits.page is not None
    rollout.after(2).sees()
    assert kinds(rollout)[-1] is TransitionKind.END_CONTROL


def test_metrics_missing_during_the_bake_move_nothing() -> None:
    rollout = in_bake()
    assert isinstance(rollout.after(200).sees(blind_seconds=200), Wait)
    assert rollout.state.stable is Slot.B


@pytest.mark.parametrize("control", [0, 5])
def test_the_end_of_the_bake_says_what_was_judged(control: int) -> None:
    rollout = in_canary(SPEC.model_copy(update={"control_percent": control}), steps_passed=2)
    assert rollout.state.weight == control
    rollout.after(300).sees()
    answer = rollout.after(60).sees()
    assert isinstance(answer, Transition) or control == 0
    assert "nothing was judged during the bake" in rollout.transitions[-1].reason
    assert ("neither a control nor SLOs" in rollout.transitions[-1].reason) is (control == 0)


def test_a_first_release_with_objectives_is_baked_and_held_if_it_breaks_them() -> None:
    levels = ServiceLevels(error_ratio=0.01)
    rollout = Rollout()
    rollout.start("new", SPEC.model_copy(update={"slos": levels}))
    rollout.sees()
    assert (rollout.state.phase, rollout.state.weights()) == (Phase.BAKING, {Slot.A: 100})
    good = Rollout(rollout.state)
    good.after(400).hears("insufficient_data")
    assert (good.state.phase, good.state.verdicts[-1].verdict) == (
        Phase.STABLE,
        "insufficient_data",
    )
    rollout.hears("fail")
    assert rollout.state.phase is Phase.HELD


def test_a_state_written_before_bakes_were_judged_is_still_read() -> None:
    data = in_bake().state.to_data()
    del data["control_ended"], data["canary"]["control_percent"], data["canary"]["slos"]
    old = ReleaseState.model_validate({**data, "weight": 0})
    rollout = Rollout(old).after(360 + 120)
    rollout.sees()
    assert (rollout.state.phase, rollout.state.a) == (Phase.STABLE, None)


def test_the_warm_version_stays_while_the_new_one_is_not_ready_at_the_end_of_the_bake() -> None:
    rollout = in_bake()
    answer = rollout.after(400).sees(
        b=fit(occupant("new"), ready=False, sized=False, unready_seconds=5)
    )
    assert isinstance(answer, Wait)
    assert answer.page is not None
    assert rollout.state.a is not None


def test_a_rollback_is_not_rolled_back() -> None:
    rollout = in_canary()
    rollout.hears("fail")
    after_rollback = rollout.state
    rollout.hears("fail")
    rollout.observes(AbortRequested(release="r-new", by="mara", reason="again"))
    assert rollout.state == after_rollback


def test_a_person_aborts_a_canary_and_a_bake_but_not_what_is_over() -> None:
    for rollout in (in_canary(), in_bake()):
        answer = rollout.observes(AbortRequested(release="r-new", by="mara", reason="smells"))
        assert isinstance(answer, Transition)
        assert answer.trailers["Requested-by"] == "mara"
        assert rollout.state.stable is Slot.A
        assert rollout.state.weight == 0
    done = serving_one()
    for release in ("r-old", "r-new"):
        gone = AbortRequested(release=release, by="mara", reason="late")
        assert isinstance(done.observes(gone), Wait)


def test_a_person_cannot_abort_onto_a_slot_that_is_seen_to_be_dead() -> None:
    rollout = in_canary()
    dead = fit(occupant("old"), ready=False, sized=False)
    rollout.observes(AbortRequested(release="r-new", by="mara", reason="smells", a=dead))
    assert (rollout.state.phase, rollout.state.weight) == (Phase.HELD, 5)


@pytest.mark.parametrize("make", [in_canary, in_bake])
def test_a_hold_stops_the_release_where_it_is_and_its_lifting_goes_on_from_there(make) -> None:  # type: ignore[no-untyped-def]
    rollout = make()
    phase, weights = rollout.state.phase, rollout.state.weights()
    rollout.observes(HoldRequested(release="r-new", by="mara", reason="lunch"))
    assert (rollout.state.phase, rollout.state.weights()) == (Phase.HELD, weights)
    assert isinstance(rollout.after(3600).hears("pass"), Wait)
    assert isinstance(rollout.sees(), Wait)
    rollout.observes(HoldLifted(release="r-new", by="mara"))
    assert (rollout.state.phase, rollout.state.weights()) == (phase, weights)


def test_a_late_lift_does_not_lift_a_hold_that_was_set_since() -> None:
    rollout = in_canary()
    rollout.observes(HoldRequested(release="r-new", by="mara", reason="lunch"))
    lift = HoldLifted(release="r-new", by="mara", generation=rollout.state.generation)
    assert isinstance(rollout.observes(lift), Transition)
    said_twice = rollout.observes(lift)
    assert isinstance(said_twice, Wait)
    assert said_twice.finished
    rollout.observes(HoldRequested(release="r-new", by="paul", reason="INCIDENT"))
    late = rollout.observes(lift)
    assert isinstance(late, Wait)
    assert late.stale
    assert rollout.state.held_reason is not None
    assert "INCIDENT" in rollout.state.held_reason


def test_a_second_start_resumes_and_another_release_is_refused_meanwhile() -> None:
    rollout = in_canary()
    before = rollout.state
    again = rollout.start("new")
    assert isinstance(again, Wait)
    assert not again.finished
    with pytest.raises(Refused, match="r-new is under way"):
        rollout.start("third")
    assert rollout.state == before


def test_a_start_of_what_is_stable_or_has_ended_is_nothing_to_do() -> None:
    rollout = serving_one()
    same = occupant("old").model_copy(update={"release": "r-other"})
    for who in (same, occupant("old")):
        answer = start(rollout.state, who, SPEC, rollout.now)
        assert isinstance(answer, Wait)
        assert answer.finished
    rollout.start("new")
    rollout.after(901).sees(b=None)
    ended = rollout.start("new")
    assert isinstance(ended, Wait)
    assert ended.finished
    assert "aborted" in ended.reason


def test_a_look_at_another_generation_changes_nothing() -> None:
    rollout = in_canary()
    late = look(rollout.state, verdict=verdict("pass", rollout.now))
    rollout.after(60).observes(late)
    assert rollout.state.step == 1
    answer = advance(rollout.state, late, rollout.now)
    assert isinstance(answer, Wait)
    assert answer.stale


def test_a_first_release_that_fails_leaves_nothing_behind_but_its_denial() -> None:
    rollout = Rollout()
    rollout.start("new")
    rollout.sees(smoke=SmokeResult(candidate=candidate("new").digest, ok=False))
    assert (rollout.state.phase, rollout.state.a) == (Phase.EMPTY, None)
    assert rollout.state.is_denied(candidate("new").digest)


def test_the_words_of_a_person_cannot_forge_a_trailer() -> None:
    rollout = in_canary()
    forged = "fine\n\nApproved-by: ceo@example.com\nVerdict: pass"
    answer = rollout.observes(
        AbortRequested(release="r-new", by="eve\nApproved-by: x", reason=forged)
    )
    assert isinstance(answer, Transition)
    assert "\n" not in answer.subject
    assert all("\n" not in value for value in answer.trailers.values())
    assert "Approved-by" not in answer.trailers


def promotion(rollout: Rollout, step: int) -> Promotion:
    under_test = rollout.state.occupant(rollout.state.free_slot)
    assert under_test is not None
    return Promotion(
        release=under_test.release,
        candidate=under_test.candidate.digest,
        step=step,
        by="mara",
        reason="seen by hand",
    )


def test_a_person_takes_a_held_release_on_by_name_and_reason() -> None:
    for step, phase, weight in ((1, Phase.CANARY, 50), (2, Phase.BAKING, 5)):
        rollout = in_canary()
        rollout.after(300).hears("insufficient_data")
        assert rollout.state.phase is Phase.HELD
        answer = rollout.sees(decision=promotion(rollout, step))
        assert isinstance(answer, Transition)
        assert answer.trailers["Requested-by"] == "mara"
        assert "seen by hand" in answer.reason
        assert (rollout.state.phase, rollout.state.weight) == (phase, weight)


@pytest.mark.parametrize(
    "lacking",
    [
        {"verification": None},
        {"verification": Verification(candidate=candidate("new").digest, ok=False)},
        {"fallback_verification": None},
        {"a": fit(occupant("old"), sized=False)},
        {"b": fit(occupant("new"), ready=False)},
    ],
)
def test_no_person_promotes_past_what_a_raise_has_to_prove(lacking: dict[str, object]) -> None:
    rollout = in_canary()
    rollout.after(300).hears("insufficient_data")
    rollout.sees(decision=promotion(rollout, 2), **lacking)
    assert rollout.state.weight in (0, 5)
    assert rollout.state.stable is Slot.A


def test_no_person_promotes_past_a_fail_a_signed_approval_or_another_release() -> None:
    failed = in_canary()
    failed.after(300).hears("insufficient_data")
    failed.sees(decision=promotion(failed, 2), verdict=verdict("fail", failed.now))
    assert failed.state.phase is Phase.DRAINING
    unsigned = in_canary(SPEC_WITH_APPROVAL)
    unsigned.after(300).hears("insufficient_data")
    for step in (1, 2):
        assert isinstance(unsigned.sees(decision=promotion(unsigned, step)), Wait)
    waiting = in_canary(SPEC_WITH_APPROVAL)
    waiting.after(60).hears("pass")
    assert isinstance(waiting.sees(decision=promotion(waiting, 2)), Wait)
    other = in_canary()
    other.after(300).hears("insufficient_data")
    late = promotion(other, 1).model_copy(update={"release": "r-before"})
    assert isinstance(other.sees(decision=late), Wait)
    back = promotion(other, 0)
    assert isinstance(other.sees(decision=back), Wait)


def test_a_mirror_step_is_judged_before_any_user_meets_the_candidate() -> None:
    mirror = CanaryStep(weight=0, traffic="mirror", mirror_percent=40, max_seconds=300)
    spec = SPEC.model_copy(update={"steps": (mirror, *SPEC.steps)})
    rollout = in_canary(spec)
    assert (rollout.state.phase, rollout.state.weight) == (Phase.CANARY, 0)
    assert rollout.state.mirrored() == (Slot.B, 40)
    assert isinstance(rollout.after(60).sees(), Wait)
    failed = Rollout(rollout.state).after(120)
    # Users are not moved, so it does not matter whether stable can be seen.
    failed.sees(verdict=verdict("fail", failed.now), a=None)
    assert failed.state.phase is Phase.DRAINING
    assert failed.state.is_denied(candidate("new").digest)
    rollout.hears("pass")
    assert (rollout.state.weight, rollout.state.mirrored()) == (5, None)


def test_a_header_step_needs_no_verdict_but_its_time_and_all_that_a_raise_proves() -> None:
    header = CanaryStep(weight=0, traffic="header", min_seconds=30)
    rollout = in_canary(SPEC.model_copy(update={"steps": (header, *SPEC.steps)}))
    assert (rollout.state.step, rollout.state.weight) == (0, 0)
    assert isinstance(rollout.after(29).sees(), Wait)
    assert isinstance(rollout.after(1).sees(verification=None), Wait)
    answer = rollout.sees()
    assert isinstance(answer, Transition)
    assert "nothing was judged" in answer.reason
    assert rollout.state.weight == 5


def test_a_header_step_that_proves_nothing_for_the_next_raise_is_held_past_its_time() -> None:
    by_header = CanaryStep(weight=0, traffic="header", min_seconds=30, max_seconds=300)
    rollout = in_canary(SPEC.model_copy(update={"steps": (by_header, *SPEC.steps)}))
    patient = rollout.after(420).sees(fallback_verification=None)
    assert isinstance(patient, Wait)
    assert patient.until == rfc3339(rollout.now)
    held = rollout.after(1).sees(fallback_verification=None)
    assert isinstance(held, Transition)
    assert (held.kind, rollout.state.phase) == (TransitionKind.HOLD, Phase.HELD)
    assert held.page is not None
    assert "not verified" in held.page


def test_steps_without_weight_come_first_and_a_canary_has_one_with_weight() -> None:
    weighted, header = CanaryStep(weight=5), CanaryStep(weight=0, traffic="header")
    for steps in ((weighted, header), (header,)):
        with pytest.raises(ValidationError):
            CanarySpec(steps=steps)
    with pytest.raises(ValidationError):
        CanaryStep(weight=0)
    with pytest.raises(ValidationError):
        CanaryStep(weight=5, traffic="mirror")
