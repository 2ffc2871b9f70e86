"""An engine with one object for both versions: a candidate leaves only when stable's version stands there again."""

from __future__ import annotations

from typing import Any

import pytest

from lockgate.domain.release_state import Phase, Restoring
from lockgate.domain.rollout import AbortRequested, Successor, Transition, TransitionKind, Wait
from tests.unit.rollout.world import SPEC, Rollout, candidate, serving_one


def one_object(*, raised: bool) -> Rollout:
    rollout = serving_one()
    rollout.start("new", one_object=True)
    if raised:
        rollout.after(60).sees()
        assert rollout.state.phase is Phase.CANARY
    return rollout


def kind(answer: Transition | Wait) -> TransitionKind | None:
    return answer.kind if isinstance(answer, Transition) else None


@pytest.mark.parametrize("raised", [False, True])
def test_a_candidate_drains_then_stable_is_put_back_and_only_when_it_is_ready_the_release_ends(
    raised: bool,
) -> None:
    rollout = one_object(raised=raised)
    rollout.observes(AbortRequested(release="r-new", by="p", reason="x"))
    assert (rollout.state.phase, rollout.state.restoring) == (Phase.DRAINING, Restoring.DUE)
    assert isinstance(rollout.after(1).sees(), Wait), "it drains"
    assert isinstance(rollout.after(600).sees(shares={"a": 95, "b": 5}), Wait), "it has traffic"
    assert isinstance(rollout.sees(shares=None), Wait), "nobody knows"
    assert kind(rollout.sees()) is TransitionKind.RESTORE
    assert rollout.state.b is not None
    rollout.after(600)
    well: dict[str, Any] = {"candidate": candidate("old").digest, "ready": True, "sized": True}
    began = rollout.state.began
    for unfit in (
        None,
        Successor(**well, generation=began - 1),
        Successor(**{**well, "sized": False}, generation=began),
        Successor(**{**well, "candidate": candidate("new").digest}, generation=began),
    ):
        assert isinstance(rollout.sees(successor=unfit), Wait)
    late = rollout.after(SPEC.ready_seconds).sees(successor=None)
    assert isinstance(late, Wait)
    assert late.page is not None
    assert kind(rollout.sees()) is TransitionKind.FINISH
    assert (rollout.state.phase, rollout.state.b) == (Phase.STABLE, None)
    assert rollout.state.restoring is None


def test_nothing_is_raised_while_stable_is_not_seen_to_have_its_traffic() -> None:
    rollout = one_object(raised=False)
    for shares in (None, {}, {"a": 95, "": 5}):
        answer = rollout.after(60).sees(shares=shares)
        assert isinstance(answer, Wait)
        assert "traffic that it is to have" in answer.reason
    assert kind(rollout.sees()) is TransitionKind.RAISE


def test_a_promoted_version_is_not_put_back_and_a_bake_that_fails_still_does_it() -> None:
    rollout = one_object(raised=True)
    rollout.after(60).hears("pass")
    rollout.after(60).hears("pass")
    assert rollout.state.phase is Phase.BAKING
    promoted = Rollout(rollout.state)
    promoted.now = rollout.now
    for _ in range(3):
        promoted.after(1000).sees()
    assert promoted.state.phase is Phase.STABLE
    assert TransitionKind.RESTORE not in [t.kind for t in promoted.transitions]
    rollout.after(60).hears("fail")
    rollout.after(600).sees()
    rollout.after(600).sees()
    assert [t.kind for t in rollout.transitions[-2:]] == [
        TransitionKind.RESTORE,
        TransitionKind.FINISH,
    ]
