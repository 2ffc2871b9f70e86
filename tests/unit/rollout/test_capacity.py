"""Releases with less room than for a second copy (one replica is borrowed, or the place is taken) or with more (a fresh baseline)."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from lockgate.domain.candidates import Candidate
from lockgate.domain.release_state import Outcome, Phase, Slot
from lockgate.domain.rollout import (
    AbortRequested,
    HoldLifted,
    Transition,
    TransitionKind,
    Verification,
    Wait,
)
from lockgate.domain.rollout.capacity import impediment
from lockgate.domain.spec import CanarySpec, CanaryStep, Strategy
from lockgate.errors import Refused
from tasks.judging import judge_config
from tests.unit.rollout.world import (
    REPLICAS,
    SPEC,
    Rollout,
    candidate,
    fit,
    in_canary,
    occupant,
    serving_one,
)

BORROW = SPEC.model_copy(
    update={"strategy": Strategy.BORROW, "steps": (SPEC.steps[0], CanaryStep(weight=25))}
)
RECREATE = CanarySpec(strategy=Strategy.RECREATE, bake_seconds=300)


def sizes(rollout: Rollout) -> tuple[int, int]:
    return rollout.state.replicas(Slot.A), rollout.state.replicas(Slot.B)


def borrowing(steps_passed: int = 0) -> Rollout:
    return in_canary(BORROW, steps_passed=steps_passed)


def borrowed_bake() -> Rollout:
    rollout = borrowing(2)
    while rollout.state.phase is not Phase.BAKING:
        assert isinstance(rollout.after(60).sees(), Transition)
    return rollout


def test_a_borrowed_replica_is_given_back_by_the_commit_that_empties_the_slot() -> None:
    rollout = serving_one()
    rollout.start("new", BORROW)
    assert sizes(rollout) == (REPLICAS - 1, 1)
    rollout.after(60).sees()
    assert rollout.state.weight == 5
    rollout.after(5).hears("fail")
    # Three replicas carry all traffic, as they do in every step of this strategy: no need to wait.
    assert (rollout.state.phase, rollout.state.weight) == (Phase.DRAINING, 0)
    assert sizes(rollout) == (REPLICAS - 1, 1)
    rollout.after(60).sees()
    assert sizes(rollout) == (REPLICAS, 0)
    never = serving_one()
    never.start("new", BORROW)
    never.after(901).sees(b=None)
    assert (never.state.phase, sizes(never)) == (Phase.STABLE, (REPLICAS, 0))


def test_after_the_last_step_the_replicas_follow_one_by_one_and_weights_by_what_is_ready() -> None:
    rollout = borrowing(1)
    seen = []
    rollout.after(60).hears("pass")
    while rollout.state.phase is Phase.CANARY:
        seen.append((sizes(rollout), rollout.state.weight))
        loading = fit(rollout.state.b, sized=False)
        assert isinstance(rollout.after(60).sees(b=loading), Wait)
        rollout.after(60).sees()
    assert seen == [((2, 2), 33), ((1, 3), 67)]
    assert (rollout.state.stable, rollout.state.weight, sizes(rollout)) == (Slot.B, 5, (1, 3))
    for _ in range(3):
        rollout.after(400).sees()
    assert (rollout.state.phase, sizes(rollout)) == (Phase.STABLE, (0, REPLICAS))


def test_a_fail_of_the_bake_goes_back_replica_by_replica_and_survives_a_restart() -> None:
    rollout = borrowed_bake()
    rollout.after(10).hears("fail")
    seen = []
    while rollout.state.phase is Phase.BAKING:
        seen.append((sizes(rollout), rollout.state.weights()[Slot.A]))
        assert rollout.state.denylist == (), "denied while it still has traffic"
        loading = fit(rollout.state.a, sized=False)
        assert isinstance(rollout.after(60).sees(a=loading), Wait)
        # Nobody says fail any more, and another driver has taken over: the state knows why it ends.
        rollout = Rollout(rollout.state.model_validate_json(rollout.state.model_dump_json()))
        rollout.now = rollout.now.replace(hour=13)
        rollout.sees()
    assert seen == [((2, 2), 33), ((3, 1), 67)]
    assert (rollout.state.stable, rollout.state.weight, sizes(rollout)) == (Slot.A, 0, (3, 1))
    assert rollout.state.is_denied(candidate("new").digest)
    assert rollout.state.last is not None
    assert rollout.state.last.outcome is Outcome.ROLLED_BACK
    rollout.after(60).sees()
    assert sizes(rollout) == (REPLICAS, 0)


def test_a_candidate_that_died_gives_all_back_at_once_and_the_commit_says_how_few_are_left() -> (
    None
):
    rollout = borrowed_bake()
    dead = fit(rollout.state.b, ready=False, sized=False, restarts=3)
    answer = rollout.after(10).sees(b=dead)
    assert isinstance(answer, Transition)
    assert f"1 of {REPLICAS} replicas carry all traffic" in answer.reason
    assert (rollout.state.weights()[Slot.A], sizes(rollout)) == (100, (3, 1))


def test_a_hand_back_that_finds_no_ready_replica_is_held_for_a_person() -> None:
    rollout = borrowed_bake()
    rollout.observes(AbortRequested(release="r-new", by="mara", reason="smells"))
    assert sizes(rollout) == (2, 2)
    again = rollout.observes(AbortRequested(release="r-new", by="mara", reason="now"))
    assert isinstance(again, Wait)
    loading = fit(rollout.state.a, sized=False)
    rollout.after(901).sees(a=loading)
    assert (rollout.state.phase, sizes(rollout)) == (Phase.HELD, (2, 2))
    assert isinstance(rollout.after(60).sees(a=loading), Wait)
    rollout.observes(HoldLifted(release="r-new", by="mara"))
    for _ in range(4):
        rollout.after(60).sees()
    assert (rollout.state.phase, sizes(rollout)) == (Phase.STABLE, (REPLICAS, 0))
    assert rollout.state.denylist == ()


@pytest.mark.parametrize(
    ("steps", "replicas", "why"),
    [
        ((5, 25), 1, "cannot lend"),
        ((5, 25), 3, "the sum stays"),
        ((5, 50), REPLICAS, "step 2 sends 50%"),
    ],
)
def test_borrowing_is_refused_where_it_cannot_work(
    steps: tuple[int, ...], replicas: int, why: str
) -> None:
    rollout = serving_one()
    spec = BORROW.model_copy(update={"steps": tuple(CanaryStep(weight=w) for w in steps)})
    new = candidate("new")
    new = new.model_copy(update={"serving": new.serving.model_copy(update={"replicas": replicas})})
    state = rollout.state
    if replicas == 1:
        old = state.occupant(Slot.A)
        assert old is not None
        state = state.model_copy(
            update={"a": old.model_copy(update={"candidate": _single(old.candidate)})}
        )
    found = impediment(state, new, spec)
    assert found is not None
    assert why in found
    if steps == (5, 50):
        with pytest.raises(Refused, match="borrow is not possible"):
            rollout.start("new", spec)


def _single(of: Candidate) -> Candidate:
    return of.model_copy(update={"serving": of.serving.model_copy(update={"replicas": 1})})


def replaced() -> Rollout:
    rollout = serving_one()
    rollout.start("new", RECREATE)
    assert sizes(rollout) == (REPLICAS, 0)
    assert isinstance(rollout.sees(), Transition)
    assert sizes(rollout) == (0, REPLICAS)
    return rollout


def test_stable_is_not_stopped_before_both_versions_are_verified() -> None:
    for lacking in ("verification", "fallback_verification"):
        rollout = serving_one()
        rollout.start("new", RECREATE)
        assert isinstance(rollout.sees(**{lacking: None}), Wait)
        assert sizes(rollout) == (REPLICAS, 0)
    refused = serving_one()
    refused.start("new", RECREATE)
    bad = Verification(candidate=candidate("new").digest, ok=False, failures=("no provenance",))
    refused.sees(verification=bad)
    assert (refused.state.phase, sizes(refused)) == (Phase.STABLE, (REPLICAS, 0))


def test_a_recreation_is_promoted_without_live_evidence_and_says_so() -> None:
    rollout = replaced()
    assert isinstance(rollout.after(60).sees(a=None, smoke=None), Wait)
    answer = rollout.sees(a=None)
    assert isinstance(answer, Transition)
    assert answer.kind is TransitionKind.PROMOTE
    assert answer.trailers["Live-Evidence"] == "none"
    assert "no live evidence" in answer.reason
    assert rollout.state.last is not None
    assert "offline evidence only" in rollout.state.last.reason
    assert (rollout.state.weights()[Slot.B], sizes(rollout)) == (100, (0, REPLICAS))
    rollout.after(400).sees(a=None)
    assert (rollout.state.phase, rollout.state.a) == (Phase.STABLE, None)


@pytest.mark.parametrize("promoted", [False, True])
def test_a_rollback_of_a_recreation_deploys_the_old_version_and_is_over_when_it_serves(
    promoted: bool,
) -> None:
    rollout = replaced()
    if promoted:
        rollout.after(60).sees(a=None)
    answer = rollout.after(10).sees(a=None, b=fit(occupant("new"), ready=False, restarts=3))
    assert isinstance(answer, Transition)
    assert answer.kind is TransitionKind.ROLLBACK
    assert "deployed anew" in answer.reason
    assert (rollout.state.phase, rollout.state.stable) == (Phase.DRAINING, Slot.A)
    assert sizes(rollout) == (REPLICAS, 0)
    waiting = rollout.after(1000).sees(a=None)
    assert isinstance(waiting, Wait)
    assert waiting.page is not None
    rollout.sees()
    assert (rollout.state.phase, rollout.state.b) == (Phase.STABLE, None)
    assert rollout.state.is_denied(candidate("new").digest)


def test_a_first_release_has_the_place_for_itself_whatever_the_strategy() -> None:
    for spec in (BORROW, RECREATE):
        rollout = Rollout()
        rollout.start("new", spec)
        rollout.sees()
        assert (rollout.state.phase, sizes(rollout)) == (Phase.STABLE, (REPLICAS, 0))


def test_a_recreation_takes_no_steps() -> None:
    assert RECREATE.steps == ()
    with pytest.raises(ValidationError, match="takes no steps"):
        CanarySpec(strategy=Strategy.RECREATE, steps=SPEC.steps)
    with pytest.raises(ValidationError):
        CanarySpec(steps=())


FRESH = CanarySpec.model_validate({**SPEC.model_dump(), "baseline": "fresh"})


def test_a_fresh_baseline_stands_with_the_canary_takes_as_much_and_leaves_after_its_last_request() -> (
    None
):
    rollout = serving_one()
    rollout.start("new", FRESH)
    old = rollout.state.occupant(Slot.A)
    assert rollout.state.occupant(Slot.BASELINE) == old
    missing = rollout.after(60).sees(baseline=None)
    assert isinstance(missing, Wait)
    assert "fresh baseline" in missing.reason
    weights = []
    while rollout.state.phase is not Phase.BAKING:
        rollout.after(60).hears("pass")
        weights.append(rollout.state.weights())
    assert weights == [
        {Slot.A: 90, Slot.B: 5, Slot.BASELINE: 5},
        {Slot.A: 0, Slot.B: 50, Slot.BASELINE: 50},
        {Slot.A: 5, Slot.B: 95, Slot.BASELINE: 0},
    ]
    assert rollout.state.release_under_way == "r-new"
    assert isinstance(rollout.after(44).sees(), Wait)
    answer = rollout.after(1).sees()
    assert isinstance(answer, Transition)
    assert answer.kind is TransitionKind.END_BASELINE
    assert rollout.state.occupant(Slot.BASELINE) is None
    assert rollout.state.phase is Phase.BAKING


def test_a_rollback_takes_the_traffic_of_the_fresh_baseline_too_and_empties_both_at_once() -> None:
    rollout = in_canary(FRESH, steps_passed=1)
    rollout.after(5).hears("fail")
    assert rollout.state.weights() == {Slot.A: 100, Slot.B: 0, Slot.BASELINE: 0}
    rollout.after(60).sees()
    assert (rollout.state.phase, rollout.state.weights()) == (Phase.STABLE, {Slot.A: 100})


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": "borrow"},
        {"strategy": "recreate", "steps": ()},
        {"steps": ({"weight": 60},)},
        {"steps": ({"weight": 0, "traffic": "mirror"}, {"weight": 5})},
    ],
)
def test_a_fresh_baseline_is_refused_where_it_could_not_be_what_it_is_for(
    changes: dict[str, object],
) -> None:
    with pytest.raises(ValidationError):
        CanarySpec.model_validate({**FRESH.model_dump(), **changes})


def test_the_canary_is_judged_as_half_of_what_both_get_where_the_baseline_is_fresh() -> None:
    state = in_canary(FRESH).state
    assert judge_config(state).canary_weight == 0.5
    assert judge_config(in_canary(SPEC).state).canary_weight == 0.05
