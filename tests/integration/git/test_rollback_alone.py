"""A rollback needs Git and a slot to go back to. Nothing else has to be there."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from lockgate.domain import gitops
from lockgate.domain.digests import Digest
from lockgate.domain.release_state import Outcome, Phase, ReleaseState
from lockgate.domain.rollout import HoldRequested, Look, advance
from lockgate.errors import GitError, Refused, UsageError
from tasks import by_hand, driving
from tasks.watching import Slots
from tests.integration.git.repositories import (
    commits,
    git,
    make_remote,
    releasing,
    render,
    repository,
    somebody_pushes,
)
from tests.unit.rollout.world import BEGIN, Rollout, in_canary, look, occupant, verdict

NOTHING_ELSE = {"baseline": None, "live_generation": None}
REPORT = {"verdict": "fail", "reasons": ["slow"]}


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rollout:
    """A canary in a repository whose workspace has a registry that refuses connections."""
    make_remote(tmp_path)
    rollout = in_canary()
    repo = repository(tmp_path)
    for transition in rollout.transitions:
        repo.commit_transition("m", "prod", lambda _, t=transition: t, render)
    monkeypatch.setenv("LOCKGATE_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setenv("LOCKGATE_REMOTE", str(tmp_path / "remote.git"))
    monkeypatch.setenv("LOCKGATE_STORE", "127.0.0.1:9")
    monkeypatch.setenv("LOCKGATE_PLAIN_HTTP", "true")
    monkeypatch.setattr(driving, "rendering", lambda workspace: render)
    return rollout


def seeing(state: ReleaseState, before_committing: Callable[[], object] = list) -> type:
    """A watcher that sees all well in `state`."""

    class Seeing:
        def __init__(self, *_: object, **__: object) -> None: ...

        def look(self) -> Look:
            return look(state)

        def keep_report(self) -> None:
            before_committing()

    return Seeing


def test_a_registry_outage_does_not_stop_a_rollback(canary: Rollout, tmp_path: Path) -> None:
    failed = look(canary.state, verdict=verdict("fail", BEGIN))
    began = time.monotonic()
    state = driving.commit("m", "prod", failed)
    assert time.monotonic() - began < 60
    assert state.phase is Phase.DRAINING
    assert state.last is not None
    assert state.last.outcome is Outcome.ROLLED_BACK
    assert state.is_denied(state.last.candidate)


def test_the_report_comes_from_this_machine_where_the_registry_is_away(
    canary: Rollout, tmp_path: Path
) -> None:
    digest = Digest.of_json(REPORT)
    kept = driving.Workspace.current().layout.kept_report(digest.hex)
    kept.parent.mkdir(parents=True)
    kept.write_text('{"reasons": ["slow"], "verdict": "fail"}')
    said = verdict("fail", BEGIN).model_copy(update={"report": digest})
    driving.commit("m", "prod", look(canary.state, verdict=said))
    newest = commits(tmp_path / "remote.git")[0]
    names = git("show", "--name-only", "--format=", newest, at=tmp_path / "remote.git")
    assert f"verdicts/{digest.hex}.json" in names


def test_a_rollback_that_cannot_be_committed_pages(
    canary: Rollout, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "remote.git").rename(tmp_path / "gone.git")
    failed = look(canary.state, verdict=verdict("fail", BEGIN), live_generation=None)
    logging.getLogger("lockgate").propagate = True
    with caplog.at_level(logging.ERROR), pytest.raises(GitError):
        driving.commit("m", "prod", failed)
    assert any(r.message.startswith("PAGE: it may not have been committed") for r in caplog.records)


def test_a_lift_that_is_said_again_lifts_no_hold_but_the_one_that_was_seen(
    canary: Rollout,
) -> None:
    driving.commit("m", "prod", HoldRequested(release="r-new", by="mara", reason="lunch"))
    seen = by_hand.read_held.fn("m", "prod")
    lifted = by_hand.commit_resume.fn("m", "prod", "back", "mara", seen)
    again = by_hand.commit_resume.fn("m", "prod", "back", "mara", seen)
    assert again == lifted, "the attempt before had landed"
    driving.commit("m", "prod", HoldRequested(release="r-new", by="paul", reason="INCIDENT"))
    with pytest.raises(Refused, match="INCIDENT"):
        by_hand.commit_resume.fn("m", "prod", "back", "mara", seen)
    assert driving.read_state.fn("m", "prod").phase is Phase.HELD


def test_a_rollback_that_is_tried_again_is_done_and_ends_no_release_but_the_one_that_was_meant(
    canary: Rollout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = look(canary.state)
    monkeypatch.setattr(by_hand.Watcher, "slots", lambda _: Slots(seen.a, seen.b, **NOTHING_ELSE))
    meant = by_hand.read_under_way.fn("m", "prod")
    asked = "m", "prod", "it is slow", "mara", meant
    landed = by_hand.commit_abort.fn(*asked)
    assert by_hand.commit_abort.fn(*asked) == landed
    later = datetime.now(UTC) + timedelta(hours=1)
    repo = repository(tmp_path)
    for build in (lambda drained: advance(drained, look(drained), later), releasing("next")):
        assert repo.commit_transition("m", "prod", build, render).committed
    newest = by_hand.commit_abort.fn(*asked)
    assert newest.release_under_way == "r-next"
    assert newest.is_denied(occupant("next").candidate.digest) is None


def test_a_promotion_that_is_tried_again_is_done_and_a_new_hold_is_not_lifted_by_it(
    canary: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    driving.commit("m", "prod", HoldRequested(release="r-new", by="mara", reason="lunch"))
    held = by_hand.read_held.fn("m", "prod")
    monkeypatch.setattr(by_hand, "Watcher", seeing(held))
    asked = "m", "prod", None, "good enough", "mara", held
    landed = by_hand.commit_promotion.fn(*asked)
    assert landed.phase is Phase.BAKING
    assert by_hand.commit_promotion.fn(*asked) == landed
    driving.commit("m", "prod", HoldRequested(release="r-new", by="paul", reason="INCIDENT"))
    with pytest.raises(Refused, match="INCIDENT"):
        by_hand.commit_promotion.fn(*asked)


def test_a_state_that_cannot_be_read_stands_in_no_other_models_way(
    canary: Rollout, tmp_path: Path
) -> None:
    def under_way(environment: str, model: str | None = None) -> list[str]:
        return [s.model for s in driving.releases_under_way.fn(environment, model)]

    somebody_pushes(
        tmp_path, str(gitops.state_path("broken", "prod")), "newField: of a newer Lockgate\n"
    )
    assert under_way("prod") == under_way("prod", "m") == ["m"]
    with pytest.raises(GitError, match="broken"):
        under_way("prod", "broken")
    somebody_pushes(
        tmp_path, str(gitops.state_path("broken", "staging")), "newField: of a newer Lockgate\n"
    )
    with pytest.raises(GitError, match="broken"):
        under_way("staging")
    assert under_way("dev") == []


def test_a_person_resumes_a_held_release_and_the_commit_says_who_and_why(
    canary: Rollout, tmp_path: Path
) -> None:
    held = HoldRequested(release="r-new", by="mara", reason="lunch")
    driving.commit("m", "prod", held)
    state = by_hand.commit_resume.fn("m", "prod", "back from lunch", "mara")
    assert (state.phase, state.weight) == (Phase.CANARY, canary.state.weight)
    message = git("log", "-1", "--format=%B", at=tmp_path / "remote.git")
    assert "back from lunch" in message
    assert "Requested-by: mara" in message
    with pytest.raises(UsageError, match="no release of m is held"):
        by_hand.commit_resume.fn("m", "prod", "again", "mara")


def test_a_rollback_onto_a_slot_that_is_not_ready_is_no_success(
    canary: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = look(canary.state)
    unfit = {
        slot: getattr(seen, slot).model_copy(update={"ready": False, "sized": False})
        for slot in ("a", "b")
    }
    monkeypatch.setattr(by_hand.Watcher, "slots", lambda _: Slots(**unfit, **NOTHING_ELSE))
    for _ in range(2):
        with pytest.raises(Refused, match=r"was not rolled back.*not ready"):
            by_hand.commit_abort.fn("m", "prod", "it is slow", "mara")
    assert driving.read_state.fn("m", "prod").weight == canary.state.weight
    monkeypatch.setattr(by_hand.Watcher, "slots", lambda _: Slots(seen.a, seen.b, **NOTHING_ELSE))
    state = by_hand.commit_abort.fn("m", "prod", "it is slow", "mara")
    assert (state.phase, state.weight) == (Phase.DRAINING, 0)
    by_hand.commit_abort.fn("m", "prod", "said twice", "mara")


def test_a_promotion_that_another_commit_has_overtaken_is_no_success(
    canary: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    driving.commit("m", "prod", HoldRequested(release="r-new", by="mara", reason="lunch"))
    held = driving.read_state.fn("m", "prod")

    def somebody_is_first() -> None:
        by_hand.commit_resume.fn("m", "prod", "somebody else was first", "paul")

    monkeypatch.setattr(by_hand, "Watcher", seeing(held, somebody_is_first))
    with pytest.raises(Refused, match="not promoted: the release has changed meanwhile"):
        by_hand.commit_promotion.fn("m", "prod", None, "why", "mara")


def test_nothing_is_promoted_by_hand_while_the_cluster_cannot_be_seen(
    canary: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_hand, "PROVING_SECONDS", 0.0)
    with pytest.raises(UsageError, match="no release of m is held"):
        by_hand.commit_promotion.fn("m", "prod", None, "why", "mara")
    driving.commit("m", "prod", HoldRequested(release="r-new", by="mara", reason="lunch"))
    with pytest.raises(UsageError, match="no step 1 before it"):
        by_hand.commit_promotion.fn("m", "prod", 1, "why", "mara")
    with pytest.raises(Refused, match=r"not seen in its slot|could not be observed"):
        by_hand.commit_promotion.fn("m", "prod", None, "why", "mara")
