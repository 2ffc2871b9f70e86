"""Decisions at the command line, with real keys and a real remote: what is committed, and what is refused by its name."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from desk import Desk, render

from lockgate.domain import gitops
from lockgate.domain.approval import SignedDecision
from lockgate.domain.release_state import Phase
from lockgate.domain.rollout import (
    Approval,
    DenialLifted,
    HoldLifted,
    Rejection,
    Transition,
    advance,
)
from tasks import deciding, driving
from tasks.approving import decision_on
from tasks.workspace import Workspace
from tests.integration.git.repositories import git
from tests.unit.approvals.people import request_of
from tests.unit.rollout.world import look, verdict


def decided(desk: Desk) -> Approval | Rejection | None:
    """As a driver reads it."""
    workspace = Workspace.current()
    workspace.gitops.sync()
    return decision_on(workspace, desk.state())


def waiting_digest() -> str:
    return deciding.ask(Workspace.current(), "m", "prod").request.content_digest()


def test_what_waits_is_shown_signed_raised_by_the_driver_and_audited(desk: Desk) -> None:
    before = desk.commits
    code, said = desk.lockgate("approve", "m", "--env", "prod")
    assert code == 0
    for word in ("r-new", "50% of the traffic", "started by   dev", "nobody yet", "against"):
        assert word in said
    assert desk.commits == before, "without a key nothing is decided"

    code, said = desk.decides("mara", "--step", "2", "--reason", "looks well")
    assert code == 0, said
    assert "approved by mara@example.com; 1 of 1 approvals" in said
    again, said = desk.decides("mara")
    assert (again, "nothing was committed" in said) == (0, True)
    assert len(desk.commits) == len(before) + 1
    message = desk.git("log", "-1", "--format=%B", "main")
    assert f"Lockgate-Request: {waiting_digest()}" in message
    assert "Decided-by: mara@example.com" in message

    yes = decided(desk)
    assert isinstance(yes, Approval)
    state = driving.commit("m", "prod", look(desk.state(), decision=yes))
    assert (state.phase, state.weight) == (Phase.CANARY, 50)
    assert "Approved-by: mara@example.com" in desk.git("log", "-1", "--format=%B", "main")

    code, said = desk.lockgate("audit", "m", "--json")
    audit = json.loads(said)
    assert code == 0, said
    assert [c["verified"] for c in audit["commits"] if c["verified"]] == [
        ["approve by mara@example.com"], ["approved by mara@example.com"],
    ]  # fmt: skip
    raised = audit["commits"][-1]
    assert (raised["kind"], raised["who"]) == ("raise", "mara@example.com")
    assert raised["evidence"] == desk.rollout.transitions[-1].trailers["Evidence"]


@pytest.mark.parametrize(
    ("who", "arguments", "code", "named"),
    [
        ("eve", (), 3, "not_listed"),
        ("eve", ("--as", "mara@example.com"), 3, "not_listed"),
        ("mara", ("--as", "joe@example.com"), 3, "not_listed"),
        ("mara", ("--as", "../../release"), 2, "no name of an approver"),
        ("mara", ("--step", "1"), 3, "step 2 waits, not step 1"),
        ("mara", ("--request", "abcdef012345"), 3, "the request that waits is"),
    ],
)
def test_what_would_not_count_is_refused_by_name_and_not_committed(
    desk: Desk, who: str, arguments: tuple[str, ...], code: int, named: str
) -> None:
    before = desk.commits
    ended, said = desk.decides(who, *arguments)
    assert ended == code, said
    assert named in said
    assert desk.commits == before


def test_roles_and_the_requester_are_the_policys_and_the_states_business(desk: Desk) -> None:
    desk.rule(roles=["security"])
    code, said = desk.decides("mara")
    assert (code, "wrong_role" in said) == (3, True)
    desk.push("approvers", desk.people["mara"].line(names="dev,mara@example.com"))
    desk.rule()
    code, said = desk.decides("mara")
    assert (code, "self_given" in said) == (3, True)


def test_a_request_that_changed_while_it_was_read_is_not_signed_into_git(desk: Desk) -> None:
    workspace = Workspace.current()
    question = deciding.ask(workspace, "m", "prod")
    desk.push("models/m/prod/manifests/service.yaml", "kind: Service\n")
    before = desk.commits
    with pytest.raises(Exception, match="not what waits any more"):
        deciding.decide(
            workspace,
            question.request,
            "approve",
            key=desk.people["mara"].key,
            name=None,
            reason="",
        )
    assert desk.commits == before


def test_two_people_who_approve_at_once_both_land(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.rule(needed=2, roles=["release-manager"])
    places = []
    for name in ("mara", "joe"):
        monkeypatch.setenv("LOCKGATE_WORKSPACE", str(tmp_path / f"laptop-{name}"))
        places.append((name, Workspace.current()))
    request = deciding.ask(places[0][1], "m", "prod").request

    def approve(place: tuple[str, Workspace]) -> int:
        name, workspace = place
        key = desk.people[name].key
        return deciding.decide(
            workspace, request, "approve", key=key, name=None, reason=""
        ).approved

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(approve, places))[-1] == 2
    yes = decided(desk)
    assert isinstance(yes, Approval)
    assert yes.by == "joe@example.com, mara@example.com"


def test_decisions_that_somebody_pushes_by_hand_raise_nothing_and_are_named_by_the_audit(
    desk: Desk,
) -> None:
    state = desk.state()
    request = deciding.ask(Workspace.current(), "m", "prod").request
    place = gitops.approvals_directory("m", "prod", request.content_digest())
    mara, eve = desk.people["mara"], desk.people["eve"]
    forged = eve.signs(request, by="mara@example.com")
    other = mara.signs(request.model_copy(update={"release": "r-old"}))
    rejected = mara.signs(request, "reject")
    turned = rejected.model_copy(update={"decision": {**rejected.decision, "word": "approve"}})
    git_signed = mara.signs(request, namespace="git")
    for signed, flaw in (
        (forged, "not_listed"), (other, "replayed"), (turned, "forged"),
        (git_signed, "wrong_namespace"), (eve.signs(request), "not_listed"),
    ):  # fmt: skip
        name = str(signed.decision["by"])
        desk.push(str(place / f"{name}.json"), signed.text())
        assert decided(desk) is None
        driving.commit("m", "prod", look(state, decision=decided(desk)))
        assert desk.state().phase is Phase.AWAITING_APPROVAL
        code, said = desk.lockgate("audit", "m", "--env", "prod", "--json")
        newest = json.loads(said)["commits"][-1]
        assert code == 3
        assert [p["kind"] for p in newest["problems"]] == [flaw]


def test_a_rejection_overtakes_an_approval_that_was_already_seen(desk: Desk) -> None:
    desk.decides("mara")
    yes = decided(desk)
    assert isinstance(yes, Approval)
    seen = look(desk.state(), decision=yes)
    code, said = desk.decides("joe", "--reason", "not before the weekend", word="reject")
    assert code == 0, said
    state = driving.commit("m", "prod", seen)
    assert state.phase is Phase.DRAINING
    assert state.last is not None
    assert state.last.reason == "rejected by joe@example.com: not before the weekend"


def test_a_fail_overrides_an_approval(desk: Desk) -> None:
    desk.decides("mara")
    seen = look(desk.state(), decision=decided(desk), verdict=verdict("fail", datetime.now(UTC)))
    assert driving.commit("m", "prod", seen).phase is Phase.DRAINING


def test_a_hold_voids_what_was_approved_and_asks_anew_when_it_is_lifted(desk: Desk) -> None:
    desk.decides("mara")
    code, said = desk.lockgate("hold", "m", "--env", "prod", "--reason", "freeze")
    assert (code, desk.state().phase) == (0, Phase.HELD), said
    assert "freeze" in str(desk.state().held_reason)
    code, said = desk.decides("mara")
    assert (code, "nothing of m waits" in said) == (2, True)
    release = str(desk.state().release_under_way)
    driving.commit("m", "prod", HoldLifted(release=release, by="p"))
    assert desk.state().phase is Phase.AWAITING_APPROVAL
    assert decided(desk) is None
    code, said = desk.decides("mara")
    assert (code, "1 of 1" in said) == (0, True)


def test_approvers_are_those_of_the_protected_branch_alone(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    git("push", "--quiet", "origin", "HEAD:protected", at=desk.root / "somebody")
    monkeypatch.setenv("LOCKGATE_POLICY_BRANCH", "protected")
    # The pipeline's own identity can write `main`, and its checkout.
    desk.push("approvers", desk.people["eve"].line(roles="roles=release-manager"))
    code, said = desk.decides("eve")
    assert (code, "not_listed" in said) == (3, True)
    checkout = Workspace.current().layout.checkout("driver")
    (checkout / "approvers").write_text(desk.people["eve"].line())
    code, said = desk.decides("eve")
    assert (code, "not_listed" in said) == (3, True)
    assert desk.decides("mara")[0] == 0


def deny(desk: Desk) -> str:
    """The candidate fails and leaves its slot; its digest."""
    failed = look(desk.state(), verdict=verdict("fail", datetime.now(UTC)))
    driving.commit("m", "prod", failed)
    state = desk.state()
    later = state.model_copy(update={"since": "2026-01-01T00:00:00.000Z"})
    answer = advance(later, look(state), datetime.now(UTC))
    assert isinstance(answer, Transition)
    desk.commit(answer)
    (denied,) = desk.state().denylist
    return denied.candidate


def test_a_denial_is_lifted_by_a_signature_and_the_audit_tells_it_from_one_without(
    desk: Desk,
) -> None:
    candidate = deny(desk)
    arguments = ("lift", "m", "--env", "prod", "--reason", "the probe was wrong")
    eve, mara = (str(desk.people[name].key) for name in ("eve", "mara"))
    code, said = desk.lockgate(*arguments, "--candidate", candidate, "--key", eve)
    assert (code, "not_listed" in said) == (3, True)
    code, said = desk.lockgate(*arguments, "--candidate", "00000000", "--key", mara)
    assert (code, "no denied candidate" in said) == (2, True)
    assert desk.state().denylist
    code, said = desk.lockgate(*arguments, "--candidate", candidate[7:19], "--key", mara)
    assert (code, desk.state().denylist) == (0, ()), said
    message = desk.git("log", "-1", "--format=%B", "main")
    assert "Requested-by: mara@example.com" in message
    assert "the probe was wrong" in message
    code, said = desk.lockgate("audit", "m", "--json")
    assert code == 0, said
    assert json.loads(said)["commits"][-1]["verified"] == ["lift by mara@example.com"]

    # The signed file again, for a later denial of the same candidate.
    ((place, text),) = desk.decision_files().items()
    state = desk.state()
    denied = state.model_copy(
        update={
            "generation": state.generation + 1,
            "denylist": (desk.rollout.state.denylist or (deny_again(candidate),)),
        }
    )
    desk.push(str(gitops.state_path("m", "prod")), gitops.dump_state(denied))
    driving.commit("m", "prod", DenialLifted(candidate=candidate, by="eve", reason="x"))
    assert desk.state().denylist == ()
    code, said = desk.lockgate("audit", "m", "--json")
    kinds = [p["kind"] for c in json.loads(said)["commits"] for p in c["problems"]]
    assert code == 3
    assert kinds == ["changed_by_hand", "unsigned_lift"]
    assert SignedDecision.model_validate(json.loads(text)).decision["word"] == "lift"
    assert place.endswith("mara@example.com.json")


def deny_again(candidate: str) -> object:
    from lockgate.domain.digests import Digest
    from lockgate.domain.release_state import Denied

    return Denied(
        candidate=Digest(candidate), release="r-new", reason="again", at="2026-11-25T00:00:00.000Z"
    )


def test_a_raise_that_nobody_approved_is_found_by_the_audit(desk: Desk) -> None:
    state = desk.state()
    yes = Approval(
        release="r-new",
        candidate=state.b.candidate.digest,  # type: ignore[union-attr]
        step=1,
        by="mara@example.com",
        request=request_of(state).content_digest(),
    )
    answer = advance(state, look(state, decision=yes), datetime.now(UTC))
    assert isinstance(answer, Transition)
    desk.repository("intruder").commit_transition("m", "prod", lambda _: answer, render)
    code, said = desk.lockgate("audit", "m")
    assert code == 3
    assert "approval_missing: step 2" in said
    assert "1 problems" in said


def test_a_key_that_is_listed_no_longer_makes_its_approvals_problems(desk: Desk) -> None:
    desk.decides("mara")
    driving.commit("m", "prod", look(desk.state(), decision=decided(desk)))
    desk.push("approvers", desk.people["joe"].line())
    code, said = desk.lockgate("audit", "m")
    assert code == 3
    assert "not_listed: decision of mara@example.com" in said
    desk.push("approvers", desk.people["mara"].line(options='valid-before="20200101Z"'))
    code, said = desk.lockgate("audit", "m")
    assert (code, "key_not_valid" in said) == (3, True)
