"""Approving by merging the promotion pull request: the real client libraries, a double of the forge, a real Git remote."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from desk import Desk
from forges import TOKEN, ForgeDouble, now

from lockgate.adapters.forges import limited, open_forge
from lockgate.domain.release_state import Phase
from lockgate.domain.rollout import Approval, HoldLifted, Rejection
from lockgate.errors import GitError
from tasks import driving, promotion_requests
from tasks import workspace as workspace_module
from tasks.approving import decision_on
from tasks.promotion_requests import attend
from tasks.workspace import Workspace
from tests.integration.git.repositories import git
from tests.unit.rollout.world import look, verdict


class Office:
    """The desk, with a forge that the policy names."""

    def __init__(self, desk: Desk, forge: ForgeDouble) -> None:
        self.desk, self.forge = desk, forge

    def write(self, path: str, text: str) -> None:
        """On the protected branch."""
        work = self.desk.root / "somebody"
        git("fetch", "--quiet", "origin", at=work)
        git("checkout", "--quiet", "--detach", "origin/protected", at=work)
        (work / path).write_text(text)
        git("add", "--all", at=work)
        git("commit", "--quiet", "-m", f"Write {path}", at=work)
        git("push", "--quiet", "origin", "HEAD:protected", at=work)

    def rule(self, **rule: object) -> None:
        prod = {"merge_counts": True, "roles": ["release-manager"], **rule}
        policy = {"apiVersion": "lockgate.dev/v1", "kind": "Policy", "forge": self.forge.policy,
                  "approvals": {"prod": prod}}  # fmt: skip
        self.write("policy.yaml", yaml.safe_dump(policy))

    def approvers(self, **changes: str) -> None:
        lines = {
            name: person.line(roles=f"roles=release-manager {self.forge.kind}={name}-gh")
            for name, person in self.desk.people.items() if name != "eve"
        }  # fmt: skip
        self.write("approvers", "".join({**lines, **changes}.values()))

    def looks(self) -> Approval | Rejection | None:
        """One round of a driver: it sees to the pull request, then reads what was decided."""
        workspace = Workspace.current()
        workspace.gitops.sync()
        state = workspace.gitops.read_state("m", "prod")
        attend(workspace, state)
        workspace.gitops.sync()
        return decision_on(workspace, state)

    def shown(self) -> str:
        """What `lockgate approve` says of what waits."""
        code, said = self.desk.lockgate("approve", "m", "--env", "prod")
        assert code == 0, said
        return " ".join(said.split())

    def refused(self, flaw: str) -> None:
        """The driver decides nothing, the release waits, and the flaw is named."""
        assert self.looks() is None
        assert self.raises(None) is Phase.AWAITING_APPROVAL
        said = self.shown()
        assert f": {flaw}: " in said
        assert "approved by nobody yet" in said

    def kinds(self) -> list[str]:
        """Problems that the audit finds, in order."""
        code, audit = self.audit()
        found = [p["kind"] for c in audit["commits"] for p in c["problems"]]
        assert code == (3 if found else 0)
        return found

    def tampers(self, **said: object) -> None:
        """Somebody who may push to `main` writes there what the forge is to have said."""
        ((path, text),) = self.desk.repository().files("models/m/prod/pulls").items()
        record = json.loads(text)
        record["said"] |= said
        self.desk.push(path, json.dumps(record))

    def raises(self, decision: Approval | Rejection | None) -> Phase:
        return driving.commit("m", "prod", look(self.desk.state(), decision=decision)).phase

    def audit(self) -> tuple[int, Any]:
        code, said = self.desk.lockgate("audit", "m", "--json")
        return code, json.loads(said)


@pytest.fixture(params=["github", "gitlab"])
def office(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Office]:
    """`new` waits, and the policy of the protected branch counts merges; dev started the release."""
    git("push", "--quiet", "origin", "HEAD:protected", at=tmp_path / "somebody")
    git("clone", "--quiet", str(desk.remote), str(tmp_path / "button"), at=tmp_path)
    monkeypatch.setenv("LOCKGATE_POLICY_BRANCH", "protected")
    monkeypatch.setenv("LOCKGATE_FORGE_TOKEN", TOKEN)
    forge = ForgeDouble(request.param, desk.remote, tmp_path / "button")
    try:
        made = Office(desk, forge)
        made.rule()
        made.approvers()
        yield made
    finally:
        forge.close()


only_github = pytest.mark.parametrize("office", ["github"], indirect=True)
"""What is Lockgate's business or Git's, whatever the forge."""


def test_a_request_is_opened_once_and_its_merge_lets_the_release_go_on(office: Office) -> None:
    # A driver's own look; nothing of the cluster can be seen here, and it says so.
    seen = driving.observe.fn(office.desk.state())
    assert seen is not None
    assert seen.decision is None
    assert office.looks() is None
    pull = office.forge.pull
    assert pull.base == "protected"
    changed = git("diff", "--name-status", "protected", pull.branch, at=office.desk.remote)
    (mark, path), *rest = (line.split() for line in changed.splitlines())
    assert (mark, rest) == ("A", [])
    frozen = json.loads(git("show", f"{pull.branch}:{path}", at=office.desk.remote))
    assert (frozen["release"], frozen["weight"], frozen["requested_by"]) == ("r-new", 50, "dev")
    for word in (frozen["evidence"], frozen["candidate"], "50% of the traffic", "dev", "against"):
        assert word in pull.body

    office.forge.merge("mara-gh")
    yes = office.looks()
    assert isinstance(yes, Approval)
    assert yes.by == "mara@example.com"
    assert office.raises(yes) is Phase.CANARY
    assert office.desk.state().weight == 50
    message = office.desk.git("log", "-1", "--format=%B", "main")
    assert "Approved-by: mara@example.com" in message

    code, audit = office.audit()
    assert code == 0, audit
    commits = audit["commits"]
    assert [c["kind"] for c in commits[-3:]] == ["asks", "merge", "raise"]
    word = f"approve by mara@example.com: {office.forge.kind}'s word on {office.forge.address}"
    assert [len(c["told"]) for c in commits[-3:]] == [0, 1, 1]
    assert all(c["told"][0].startswith(word) for c in commits[-2:])
    assert not any(c["verified"] for c in commits), "nothing was signed, and nothing says so"
    assert commits[-2]["who"] == f"{office.forge.kind}:mara-gh"
    assert commits[-1]["evidence"] == frozen["evidence"]
    _, said = office.desk.lockgate("audit", "m")
    assert "0 decisions verified, 2 on a forge's word, unsigned, 0 problems" in said
    # What the policy says today is no problem of yesterday's merge.
    office.rule(merge_counts=False)
    assert office.kinds() == []


def test_reviewers_and_signatures_count_beside_the_merge_and_nobody_twice(office: Office) -> None:
    office.rule(needed=2)
    office.looks()
    office.forge.review("joe-gh")
    assert office.looks() is None, "nothing is decided before it is merged"
    office.forge.merge("mara-gh")
    yes = office.looks()
    assert isinstance(yes, Approval)
    assert sorted(yes.by.split(", ")) == ["joe@example.com", "mara@example.com"]


def test_one_merge_is_not_two_approvals_until_somebody_else_signs(office: Office) -> None:
    office.rule(needed=2)
    office.looks()
    office.forge.merge("mara-gh", "squash")
    assert office.looks() is None
    assert office.desk.decides("mara")[0] == 0
    assert office.looks() is None
    assert ": duplicate: " in office.shown()
    assert office.desk.decides("joe")[0] == 0
    yes = office.looks()
    assert isinstance(yes, Approval)
    assert office.raises(yes) is Phase.CANARY
    assert office.kinds() == []
    _, said = office.desk.lockgate("audit", "m")
    assert "forge's word" in said


def test_an_approval_of_an_earlier_head_is_none_of_what_was_merged(office: Office) -> None:
    office.rule(needed=2)
    office.looks()
    office.forge.review("joe-gh", head="c" * 40)
    if (
        office.forge.kind == "gitlab"
    ):  # does not say of which head: that there was another one is enough
        office.forge.pull.heads.insert(0, "c" * 40)
    office.forge.merge("mara-gh")
    assert office.looks() is None
    assert "approved by mara@example.com" in office.shown()
    assert "decision of joe-gh: head_changed" in office.shown()


def test_closing_is_a_rejection_by_whoever_may_decide_only(office: Office) -> None:
    office.looks()
    office.forge.shut("eve-gh")
    office.refused("not_listed")
    office.forge.pull.by = "joe-gh"
    no = office.looks()
    assert isinstance(no, Rejection)
    # One no is stronger than any number of yes, and is not overlooked while the forge is away.
    assert office.desk.decides("mara")[0] == 0
    assert isinstance(office.looks(), Rejection)
    office.forge.fault = "500"
    assert office.looks() is None
    assert "mara@example.com" in office.shown()
    office.forge.fault = None
    assert office.raises(office.looks()) is Phase.DRAINING
    last = office.desk.state().last
    assert last is not None
    assert "rejected by joe@example.com: pull request 1 was closed" in last.reason


@pytest.mark.parametrize(("who", "flaw"), [("eve-gh", "not_listed"), ("dev", "self_given")])
def test_a_merge_by_no_approver_or_by_the_requester_is_refused(
    office: Office, who: str, flaw: str
) -> None:
    line = office.desk.people["joe"].line(
        roles=f"roles=release-manager {office.forge.kind}=joe-gh,dev"
    )
    office.approvers(joe=line)
    office.looks()
    office.forge.merge(who)
    office.refused(flaw)
    assert office.kinds() == [flaw]


def test_a_head_that_changed_after_lockgates_push_is_refused(office: Office) -> None:
    office.looks()
    branch = office.forge.pull.branch
    work = office.forge.work
    git("fetch", "--quiet", "origin", at=work)
    git("checkout", "--quiet", "--detach", f"origin/{branch}", at=work)
    (work / "approvers").write_text(office.desk.people["eve"].line())
    git("commit", "--quiet", "-am", "A small fix", at=work)
    git("push", "--quiet", "origin", f"HEAD:{branch}", at=work)
    office.forge.review("joe-gh")
    office.forge.merge("mara-gh")
    # What was smuggled in stands on the protected branch now, as any merge would put it there.
    office.approvers()
    office.refused("head_changed")
    assert office.kinds() == ["head_changed"]


def test_a_merge_into_another_branch_is_refused(office: Office) -> None:
    office.looks()
    git(
        "push",
        "--quiet",
        "origin",
        "origin/protected:refs/heads/scratch",
        at=office.desk.root / "somebody",
    )
    office.forge.pull.base = "scratch"
    office.forge.merge("mara-gh")
    office.refused("other_base")


def test_a_merge_that_was_pushed_without_the_forge_is_refused(office: Office) -> None:
    office.looks()
    pull = office.forge.pull
    landed = office.forge.lands(pull)
    office.refused("forged")
    # Whoever can push to both branches writes down besides that the forge had said so.
    who = {"login": "mara-gh", "id": 101}
    office.tampers(state="merged", landed=landed, by=who, at="2026-01-01T00:00:00.000Z")
    workspace = Workspace.current()
    workspace.gitops.sync()
    assert decision_on(workspace, office.desk.state()) is None
    assert ": forged: Git has another word of it" in office.shown()
    office.refused("forged")


@only_github
def test_a_merge_that_brought_more_than_the_request_is_refused(office: Office) -> None:
    office.looks()
    pull, work = office.forge.pull, office.forge.work
    git("fetch", "--quiet", "origin", at=work)
    git("checkout", "--quiet", "--detach", "origin/protected", at=work)
    git("merge", "--quiet", "--no-ff", "--no-commit", f"origin/{pull.branch}", at=work)
    (work / "more").write_text("Something that no reviewer saw\n")
    git("add", "--all", at=work)
    git("commit", "--quiet", "-m", "Merged", at=work)
    git("push", "--quiet", "origin", "HEAD:protected", at=work)
    pull.landed, pull.by, pull.at = git("rev-parse", "HEAD", at=work).strip(), "mara-gh", now()
    pull.state = "merged"
    office.refused("forged")
    assert office.kinds() == ["forged"]


@only_github
def test_a_record_of_a_merge_that_never_was_is_found_by_driver_and_audit(office: Office) -> None:
    office.looks()
    head = office.forge.pull.heads[-1]
    who = {"login": "mara-gh", "id": 101}
    office.tampers(state="merged", landed=head, by=who, at="2026-01-01T00:00:00.000Z")
    workspace = Workspace.current()
    workspace.gitops.sync()
    assert decision_on(workspace, office.desk.state()) is None
    assert office.looks() is None
    assert office.kinds() == ["forged"]


def test_the_merged_request_of_another_question_is_a_replay(office: Office) -> None:
    office.looks()
    office.forge.merge("mara-gh")
    assert isinstance(office.looks(), Approval)
    # A hold voids it: the same step is asked anew.
    office.desk.lockgate("hold", "m", "--env", "prod", "--reason", "x")
    release = str(office.desk.state().release_under_way)
    driving.commit("m", "prod", HoldLifted(release=release, by="p"))
    assert office.looks() is None
    assert [p.state for p in office.forge.pulls] == ["merged", "open"]
    assert office.looks() is None
    # Somebody points Git's record of the new question to the old pull request.
    repository = office.desk.repository()
    new = next(
        p for p, t in repository.files("models/m/prod/pulls").items() if '"state": "open"' in t
    )
    record = json.loads(str(repository.read_text(new)))
    record["said"]["number"] = 1
    office.desk.push(new, json.dumps(record))
    office.refused("replayed")


def test_a_forge_that_kept_one_driver_waiting_keeps_no_other_one_waiting(
    office: Office, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workspace_module, "open_forge", partial(open_forge, seconds=1))
    monkeypatch.setattr(limited, "_away", {})
    office.forge.fault = "hangs"
    assert office.looks() is None
    asked = len(office.forge.asked)
    assert office.looks() is None
    assert len(office.forge.asked) == asked
    assert "is let be" in caplog.text


def test_a_no_at_the_forge_is_heard_before_signatures_raise_what_it_was_said_to(
    office: Office,
) -> None:
    office.looks()
    office.forge.shut("joe-gh")
    assert office.desk.decides("mara")[0] == 0
    # A driver that has not yet written down that it was closed.
    workspace = Workspace.current()
    workspace.gitops.sync()
    assert decision_on(workspace, office.desk.state()) is None
    assert isinstance(office.looks(), Rejection)


@only_github
def test_a_no_is_not_lost_with_the_branch_before_it_was_written_down(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(promotion_requests, "_record", lambda *_: None)
        office.looks()
    office.forge.shut("joe-gh")
    git("update-ref", "-d", f"refs/heads/{office.forge.pull.branch}", at=office.desk.remote)
    assert isinstance(office.looks(), Rejection)


@only_github
def test_a_merge_that_was_reverted_approves_no_more(office: Office) -> None:
    office.looks()
    office.forge.merge("mara-gh")
    assert isinstance(office.looks(), Approval)
    work = office.forge.work
    git("revert", "--no-edit", "-m", "1", "HEAD", at=work)
    git("push", "--quiet", "origin", "HEAD:protected", at=work)
    office.refused("forged")


def test_a_rollback_is_committed_without_a_word_of_the_forge(office: Office) -> None:
    office.looks()
    office.forge.merge("mara-gh")
    yes = office.looks()
    assert isinstance(yes, Approval)
    asked = len(office.forge.asked)
    failed = look(office.desk.state(), decision=yes, verdict=verdict("fail"))
    assert driving.commit("m", "prod", failed).phase is Phase.DRAINING
    assert len(office.forge.asked) == asked


FAULTS = (
    "down",
    "hangs",
    "drips",
    "429",
    "deep",
    "500",
    "html",
    "cut",
    "empty",
    "other",
    "301",
    "302",
    "307",
)


def test_a_forge_that_is_away_or_talks_nonsense_decides_nothing_and_loses_nothing(
    office: Office, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workspace_module, "open_forge", partial(open_forge, seconds=1))

    def are_waited_out(*faults: str) -> None:
        before = office.desk.commits
        for fault in faults:
            office.forge.fault = fault
            monkeypatch.setattr(limited, "_away", {})
            caplog.clear()
            assert office.looks() is None
            assert "the promotion pull request of m/prod" in caplog.text, fault
        assert office.desk.commits == before
        assert office.raises(None) is Phase.AWAITING_APPROVAL
        office.forge.fault = None
        monkeypatch.setattr(limited, "_away", {})

    are_waited_out(*FAULTS)
    assert office.forge.pulls == []
    assert office.looks() is None
    office.forge.merge("mara-gh")
    are_waited_out("down", "html", "307")
    yes = office.looks()
    assert isinstance(yes, Approval)
    # It was said, and is written down; yet it is asked again before it raises anything.
    office.forge.fault = "down"
    assert office.raises(yes) is Phase.AWAITING_APPROVAL
    # Signatures need no forge.
    assert office.desk.decides("joe")[0] == 0
    assert isinstance(office.looks(), Approval)
    assert not any("elsewhere" in asked for asked in office.forge.asked), "no redirect is followed"


def test_without_a_token_nothing_is_asked_and_a_wrong_one_is_never_shown(
    office: Office, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("LOCKGATE_FORGE_TOKEN")
    assert office.looks() is None
    assert "LOCKGATE_FORGE_TOKEN" in caplog.text
    assert office.forge.asked == []
    monkeypatch.setenv("LOCKGATE_FORGE_TOKEN", "wrong-and-secret")
    with caplog.at_level(logging.DEBUG):
        assert office.looks() is None
    assert "answers 401" in caplog.text
    token = office.desk.root / "token"
    token.write_text(f"{TOKEN}\n")
    monkeypatch.delenv("LOCKGATE_FORGE_TOKEN")
    monkeypatch.setenv("LOCKGATE_FORGE_TOKEN_FILE", str(token))
    with caplog.at_level(logging.DEBUG):
        assert office.looks() is None
    assert office.forge.pull.state == "open"
    assert "wrong-and-secret" not in caplog.text
    assert TOKEN not in caplog.text


@only_github
def test_where_the_policy_asks_for_signatures_no_merge_counts_and_no_forge_is_asked(
    office: Office,
) -> None:
    office.looks()
    office.forge.merge("mara-gh")
    assert isinstance(office.looks(), Approval)
    office.rule(merge_counts=False)
    asked = len(office.forge.asked)
    assert office.looks() is None
    assert office.raises(None) is Phase.AWAITING_APPROVAL
    assert len(office.forge.asked) == asked
    assert office.desk.decides("mara")[0] == 0
    assert isinstance(office.looks(), Approval)


@only_github
def test_a_run_that_ended_between_opening_and_writing_it_down_is_gone_on_with(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(*_: object) -> None:
        raise GitError("the run was ended")

    with monkeypatch.context() as patched:
        patched.setattr(promotion_requests, "_record", ended)
        assert office.looks() is None
        assert office.looks() is None
    assert len(office.forge.pulls) == 1
    office.forge.merge("mara-gh")
    assert isinstance(office.looks(), Approval)


@only_github
def test_nothing_is_opened_for_a_request_that_nobody_can_answer_any_more(office: Office) -> None:
    office.rule(valid_hours=0.1)
    assert office.looks() is None
    assert office.forge.pulls == []
    assert git("branch", "--list", "lockgate/*", at=office.desk.remote) == ""
