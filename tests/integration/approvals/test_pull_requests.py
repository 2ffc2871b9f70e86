"""Approving by merging the promotion pull request: the real client libraries, a double of the forge, a real Git remote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from desk import Desk
from forges import TOKEN, ForgeDouble

from lockgate.domain.release_state import Phase
from lockgate.domain.rollout import Approval, Rejection
from tasks import driving
from tasks.approving import decision_on
from tasks.promotion_requests import attend
from tasks.workspace import Workspace
from tests.integration.git.repositories import git
from tests.unit.rollout.world import look


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

    def raises(self, decision: Approval | Rejection | None) -> Phase:
        return driving.commit("m", "prod", look(self.desk.state(), decision=decision)).phase

    def audit(self) -> tuple[int, dict[str, object]]:
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


def test_a_request_is_opened_once_and_its_merge_lets_the_release_go_on(office: Office) -> None:
    assert office.looks() is None
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
