"""Tracks: what is followed, when nothing starts, and what follows from what is known of a revision."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lockgate.domain import gitops, tracking
from lockgate.domain.release_state import Denied, LastRelease, Outcome, Phase, ReleaseState, Slot
from lockgate.domain.sources import ModelRevision
from lockgate.domain.tracks import Follow, Freeze, Pinned, Track, TrackRecord
from lockgate.errors import GitError
from tests.unit.rollout.world import BEGIN, SPEC, in_canary, occupant

SPECIFICATION: dict[str, Any] = {
    "serving": {"served_model_name": "m"},
    "evaluation": {"tasks": [{"name": "t", "metric": "acc,none", "margin": 0.1, "floor": 0.1}]},
    "benchmark": {"profiles": [{"name": "chat", "requests": 8}]},
}
PINNED = Pinned(
    revision=ModelRevision(repo="org/name", commit="0" * 40), source=f"hf://org/name@{'0' * 40}"
)


def track(**changes: Any) -> Track:
    data = {
        "model": "m",
        "source": "hf://org/name",
        "spec": SPECIFICATION,
        "environments": [{"name": "staging"}, {"name": "prod", "promotion": "approval"}],
    }
    return Track.model_validate({**data, **changes})


def record(name: str, result: str = "promoted") -> TrackRecord:
    return TrackRecord.model_validate(
        {
            "pinned": PINNED,
            "candidate": occupant(name).candidate.digest,
            "result": result,
            "reason": "said the flow",
        }
    )


def stable(name: str, **changes: Any) -> ReleaseState:
    data = {"model": "m", "environment": "staging", "phase": Phase.STABLE, "a": occupant(name)}
    return ReleaseState.model_validate({**data, "stable": Slot.A, "canary": SPEC, **changes})


def decide(state: ReleaseState, known: TrackRecord | None, at: datetime = BEGIN, **of: Any) -> str:
    tracked = track(**of)
    return tracking.decide(tracked, tracked.environments[0], state, known, at).why


def test_a_track_read_back_is_the_track_written() -> None:
    written = track(freezes=[{"reason": "weekend", "start": "Fri 16:00", "end": "Mon 08:00"}])
    assert gitops.load_track(gitops.dump_yaml(written.to_data()), "models/m/track.yaml") == written


def test_a_track_at_another_models_place_is_refused() -> None:
    with pytest.raises(GitError, match="the track of m"):
        gitops.load_track(gitops.dump_yaml(track().to_data()), "models/other/track.yaml")


@pytest.mark.parametrize(
    "wrong",
    [
        {"source": "hf://org/name@main"},
        {"source": "dir:relative"},
        {"source": "dir:/models/m", "follow": {"branch": "main"}},
        {"source": "oci://example.com/m"},
        {"source": "oci://example.com/m", "follow": {"branch": "main"}},
        {"follow": {"branch": "main", "tag": "v*"}},
        {"spec": {**SPECIFICATION, "model": "another"}},
        {"spec": {**SPECIFICATION, "canary": {"alpha": 2}}},
        {"spec": "../elsewhere.yaml"},
        {"environments": [{"name": "prod"}, {"name": "prod"}]},
        {"environments": [{"name": "prod", "override": {"source": "hf://evil/model"}}]},
        {
            "environments": [{"name": "prod", "promotion": "approval"}],
            "spec": {**SPECIFICATION, "canary": {"strategy": "recreate"}},
        },
        {"freezes": [{"reason": "r", "start": "Fri 16:00", "end": "Fri 16:00"}]},
        {"freezes": [{"reason": "r", "start": "Fri 16:00", "cron": "* * * * *", "hours": 1}]},
        {"freezes": [{"reason": "r", "cron": "0 0 30 2 *", "hours": 1}]},
        {"freezes": [{"reason": "r", "cron": "0 0 1 1 *", "hours": 1, "time_zone": "../UTC"}]},
        {"freezes": [{"reason": "r", "cron": "0 0 1 1 *", "hours": 1, "environments": ["qa"]}]},
    ],
)
def test_a_track_that_contradicts_itself_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        track(**wrong)


def test_the_highest_version_is_followed_and_no_pre_release_before_its_release() -> None:
    tags = ["v1.9", "v1.10-rc2", "v1.10", "v1.10-rc10", "w2", "v0.99"]
    assert Follow(tag="v*").choose(tags) == "v1.10"
    assert Follow(tag="v*").choose(t for t in tags if t != "v1.10") == "v1.10-rc10"
    assert Follow(tag="x*").choose(tags) is None


@given(st.lists(st.text("aBv019.-_/", min_size=1, max_size=12), min_size=1))
def test_any_names_can_be_put_in_order(names: list[str]) -> None:
    assert Follow(branch="*").choose(names) in names


@given(minutes=st.integers(0, 8 * 24 * 60), weeks=st.integers(0, 60))
def test_a_weekly_freeze_holds_by_the_clock_on_the_wall_in_summer_and_winter(
    minutes: int, weeks: int
) -> None:
    freeze = Freeze(reason="r", time_zone="Europe/Berlin", start="Fri 16:00", end="Mon 08:00")
    at = datetime(2026, 1, 2, tzinfo=UTC) + timedelta(weeks=weeks, minutes=minutes)
    local = at.astimezone(ZoneInfo("Europe/Berlin"))
    day, hour = local.weekday(), local.hour
    expected = (day == 4 and hour >= 16) or day in (5, 6) or (day == 0 and hour < 8)
    assert freeze.holds(at) == expected


def test_a_cron_freeze_holds_for_its_hours_from_each_time_that_it_fires() -> None:
    freeze = Freeze(reason="year's end", cron="0 0 20 12 *", hours=16 * 24, time_zone="Asia/Tokyo")
    fires = datetime(2026, 12, 19, 15, tzinfo=UTC)
    second = timedelta(seconds=1)
    assert [freeze.holds(fires + d) for d in (-second, timedelta(0))] == [False, True]
    ends = fires + timedelta(days=16)
    assert [freeze.holds(ends + d) for d in (-second, timedelta(0))] == [True, False]
    # The clocks go back on 2026-10-25: an hour that comes twice makes no window longer.
    night = Freeze(reason="r", cron="30 1 * * *", hours=1, time_zone="Europe/Berlin")
    open_minutes = sum(
        night.holds(datetime(2026, 10, 24, 20, tzinfo=UTC) + timedelta(minutes=n))
        for n in range(10 * 60)
    )
    assert open_minutes == 60


def test_a_freeze_without_a_time_zone_of_the_moment_is_no_answer() -> None:
    with pytest.raises(ValueError, match="zone"):
        Freeze(reason="r", start="Fri 16:00", end="Mon 08:00").holds(datetime(2026, 1, 1))


def test_a_new_revision_is_released_once() -> None:
    assert decide(stable("old"), None) == "new"
    assert decide(stable("new"), record("new")) == "released"
    # Another one came after it: it is not brought back.
    assert decide(stable("newer"), record("new")) == "released"


def test_a_refused_revision_is_not_released_again() -> None:
    assert decide(stable("old"), record("new", "refused")) == "refused"


def test_a_denied_candidate_is_not_released_until_a_person_lifts_the_denial() -> None:
    digest = occupant("new").candidate.digest
    denial = Denied(candidate=digest, release="r-new", reason="slow", at="2026-11-23T12:00:00Z")
    last = LastRelease(
        release="r-new", candidate=digest, outcome=Outcome.ROLLED_BACK, reason="slow",
        at="2026-11-23T12:00:00Z",
    )  # fmt: skip
    for known in (record("new", "rolled_back"), record("new", "waiting"), record("new", "aborted")):
        assert decide(stable("old", denylist=(denial,), last=last), known) == "denied"
    assert decide(stable("old", last=last), record("new", "rolled_back")) == "new"


def test_what_ended_without_blame_is_started_again() -> None:
    assert decide(stable("old"), record("new", "aborted")) == "new"


def test_one_release_at_a_time() -> None:
    state = in_canary().state
    tracked = track()
    other = tracking.decide(tracked, tracked.environments[0], state, None, BEGIN)
    assert (other.why, other.start) == ("busy", False)
    slot = state.canary_slot
    assert slot is not None
    under_way = state.occupant(slot)
    assert under_way is not None
    known = record("new", "waiting").model_copy(update={"candidate": under_way.candidate.digest})
    assert tracking.decide(tracked, tracked.environments[0], state, known, BEGIN).why == "busy"


def test_nothing_is_started_in_a_freeze_not_even_by_a_person() -> None:
    monday = datetime(2026, 11, 23, 12, tzinfo=UTC)
    freezes = [{"reason": "audit", "start": "Mon 00:00", "end": "Tue 00:00"}]
    assert decide(stable("old"), None, monday, freezes=freezes) == "frozen"
    tracked = track(freezes=freezes)
    staging = tracked.environments[0]
    asked = tracking.decide(tracked, staging, stable("old"), None, monday, asked=True)
    assert not asked.start and "audit" in asked.reason
    assert decide(stable("old"), None, monday + timedelta(days=1), freezes=freezes) == "new"


def test_a_manual_environment_waits_for_a_person_who_names_it() -> None:
    tracked = track(environments=[{"name": "prod", "promotion": "manual"}])
    (prod,) = tracked.environments
    assert tracking.decide(tracked, prod, stable("old"), None, BEGIN).why == "manual"
    assert tracking.decide(tracked, prod, stable("old"), None, BEGIN, asked=True).start


def test_an_approval_is_asked_for_at_the_first_raise_and_never_skipped() -> None:
    tracked = track()
    staging, prod = tracked.environments
    released = tracked.release(SPECIFICATION, prod, PINNED.source)
    assert [step.approval for step in released.canary.steps] == [True, False]
    assert released.environment == "prod" and released.source == PINNED.source
    without = tracked.release(SPECIFICATION, staging, PINNED.source)
    assert not any(step.approval for step in without.canary.steps)
    # A first release takes all traffic without a raise: nothing would ask.
    empty = ReleaseState(model="m", environment="prod")
    assert tracking.decide(tracked, prod, empty, None, BEGIN).why == "unapprovable"


def test_only_what_stands_goes_on_to_the_next_environment() -> None:
    assert tracking.stands(stable("new"), record("new")) == PINNED
    assert tracking.stands(stable("old"), record("new")) is None
    assert tracking.stands(stable("new"), None) is None
    assert tracking.stands(in_canary().state, record("old")) is None
