"""What `lockgate release` says of a release that a driver let go of."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lockgate.domain.digests import Digest
from lockgate.domain.gates import GateReport
from lockgate.domain.release_state import Phase, ReleaseState
from lockgate.domain.rollout import AbortRequested, HoldRequested, start
from lockgate.domain.spec import Recipe
from lockgate.domain.steps import ReleaseOutcome
from lockgate.errors import Refused
from tasks import by_hand, releasing
from tests.unit.rollout.world import (
    SPEC_WITH_APPROVAL,
    candidate,
    fit,
    in_bake,
    in_canary,
    occupant,
    verdict,
)


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = SimpleNamespace(current=lambda: SimpleNamespace(records=None))
    monkeypatch.setattr(releasing, "Workspace", workspace)
    monkeypatch.setattr(releasing, "durations", SimpleNamespace(remember=lambda *_, **__: None))


def concluded(begun: ReleaseState, ended: ReleaseState) -> ReleaseOutcome:
    new = candidate("new")
    draft = releasing.Draft(
        model="m", environment="prod", candidate=new, recipe=Recipe.NONE, stable=None,
        phase=begun.phase, stages=(),
    )  # fmt: skip
    gates = GateReport(candidate=new.digest, results=())
    return releasing.conclude(draft, gates, Digest.of_bytes(b"e"), begun, ended)


def test_a_bake_that_should_be_taken_back_and_cannot_be_is_not_called_promoted() -> None:
    release = in_bake()
    begun = release.state
    short = fit(begun.a, sized=False, enough=False)
    release.after(60).sees(a=short, verdict=verdict("fail", release.now))
    assert release.state.phase is Phase.HELD
    outcome = concluded(begun, release.state)
    assert (outcome.result, outcome.accepted) == ("waiting", False)
    assert "judge says fail" in outcome.reason


def test_a_second_attempt_that_waits_is_not_called_what_the_first_one_was() -> None:
    release = in_canary()
    release.sees(blind_seconds=500)
    release.after(2000).sees()
    again = occupant("new").model_copy(update={"release": "r-new-2"})
    release._apply(start(release.state, again, SPEC_WITH_APPROVAL, release.now))
    begun = release.state
    release.after(60).sees()
    release.after(60).hears("pass")
    assert release.state.phase is Phase.AWAITING_APPROVAL
    outcome = concluded(begun, release.state)
    assert (outcome.result, outcome.release, outcome.accepted) == ("waiting", "r-new-2", True)


@pytest.mark.parametrize("what", ["the judge", "a colleague", "an outage"])
def test_a_promotion_by_hand_that_a_rollback_has_overtaken_is_no_success(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    release = in_canary()
    release.after(5).observes(HoldRequested(release="r-new", by="mara", reason="lunch"))
    held = release.state
    if what == "the judge":
        release.after(5).hears("fail")
    elif what == "a colleague":
        asked = AbortRequested(
            release="r-new", by="paul", reason="INCIDENT", deny=True, a=fit(held.a), b=fit(held.b)
        )
        release.observes(asked)
    else:
        release.sees(blind_seconds=500)
    ended = release.state
    assert ended.generation == held.generation + 1
    gitops = SimpleNamespace(sync=lambda: None, read_state=lambda *_: ended)
    workspace = SimpleNamespace(current=lambda: SimpleNamespace(gitops=gitops))
    monkeypatch.setattr(by_hand, "Workspace", workspace)
    with pytest.raises(Refused, match="not promoted"):
        by_hand.commit_promotion.fn("m", "prod", None, "good", "mara", held)
