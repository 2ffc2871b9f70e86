"""What a merged or closed pull request comes to: whose word counts, and every attack refused by its name."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from lockgate.domain.approval import (
    Account,
    ApprovalRequest,
    Approver,
    PullRecord,
    PullRequest,
    Review,
    Weighed,
    request_branch,
    weigh_pull,
)
from lockgate.domain.policy import Policy
from lockgate.domain.rollout import Rejection
from lockgate.domain.rollout.transitions import parse_time, rfc3339
from lockgate.errors import GitError
from tests.unit.approvals.people import RULE, Person, listed, make_person, request_of, waiting
from tests.unit.rollout.world import BEGIN

HEAD, LANDED = "a" * 40, "b" * 40
MARA, JOE, EVE, DEV = (
    Account(login=n, id=i) for i, n in enumerate(("mara", "joe", "eve", "dev"), 1)
)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Person]:
    root = tmp_path_factory.mktemp("keys")
    return {name: make_person(root, f"{name}.m@example.com", key=name) for name in ("mara", "joe")}


@pytest.fixture(scope="module")
def approvers(people: dict[str, Person]) -> tuple[Approver, ...]:
    return listed(*(p.line(roles=f"roles=release-manager github={n}") for n, p in people.items()))


def asked(**rule: Any) -> ApprovalRequest:
    return request_of(waiting().state, RULE.model_copy(update=rule))


def record(request: ApprovalRequest, **said: Any) -> PullRecord:
    facts = {
        "number": 7, "url": "https://github.com/org/gitops/pull/7", "state": "merged",
        "base": "protected", "branch": request_branch(request), "fork": False, "head": HEAD,
        "landed": LANDED, "by": MARA, "at": rfc3339(BEGIN), **said,
    }  # fmt: skip
    return PullRecord(
        forge="github", repository="org/gitops", request=request, pushed=HEAD,
        said=PullRequest.model_validate(facts),
    )  # fmt: skip


def weighed(
    pull: PullRecord,
    approvers: tuple[Approver, ...],
    *,
    request: ApprovalRequest | None = None,
    now: datetime = BEGIN,
    landed: bool = True,
) -> Weighed:
    found = Weighed(request=request or pull.request)
    return weigh_pull(pull, found, approvers, now, base="protected", landed=landed)


def flaws(found: Weighed) -> list[str]:
    assert not found.approved
    assert found.outcome is None
    return [refusal.flaw.value for refusal in found.refusals]


def test_whoever_merged_and_whoever_approved_exactly_that_have_approved(
    approvers: tuple[Approver, ...],
) -> None:
    request = asked(needed=2)
    pull = record(
        request, by=JOE, approvals=[Review(by=MARA, commit=HEAD), Review(by=JOE, commit=HEAD)]
    )
    found = weighed(pull, approvers)
    assert found.names == ("joe.m@example.com", "mara.m@example.com")
    assert found.enough
    assert {yes.told_by for yes in found.approved} == {"github"}
    stale = record(request, by=JOE, approvals=[Review(by=MARA, commit="c" * 40)])
    found = weighed(stale, approvers)
    assert (found.names, found.enough) == (("joe.m@example.com",), False)
    assert [r.flaw for r in found.refusals] == ["head_changed"]


@pytest.mark.parametrize(
    ("said", "flaw"),
    [
        ({"by": EVE}, "not_listed"),
        ({"by": None}, "not_listed"),
        ({"head": "c" * 40}, "head_changed"),
        ({"base": "scratch"}, "other_base"),
        ({"branch": "lockgate/approve/0123456789abcdef0123"}, "replayed"),
        ({"fork": True}, "replayed"),
        ({"at": None}, "expired"),
        ({"at": rfc3339(BEGIN + timedelta(hours=73))}, "expired"),
    ],
)
def test_a_merge_that_does_not_count_is_refused_by_name(
    approvers: tuple[Approver, ...], said: dict[str, Any], flaw: str
) -> None:
    assert flaws(weighed(record(asked(), **said), approvers)) == [flaw]


def test_a_merge_of_another_request_is_a_replay(approvers: tuple[Approver, ...]) -> None:
    now_waits = asked(valid_hours=71)
    assert flaws(weighed(record(asked()), approvers, request=now_waits)) == ["replayed"]


def test_a_merge_that_git_does_not_have_is_forged(approvers: tuple[Approver, ...]) -> None:
    assert flaws(weighed(record(asked()), approvers, landed=False)) == ["forged"]


def test_an_expired_request_is_not_approved_by_a_merge_but_still_rejected(
    approvers: tuple[Approver, ...],
) -> None:
    request = asked()
    late = parse_time(request.expires)
    assert flaws(weighed(record(request), approvers, now=late)) == ["expired"]
    closed = weighed(record(request, state="closed", landed=None), approvers, now=late)
    assert closed.rejected is not None
    assert closed.rejected.decision.by == "mara.m@example.com"
    no = closed.outcome
    assert isinstance(no, Rejection)
    assert "pull request 7 was closed" in no.reason
    by_eve = weighed(record(request, state="closed", landed=None, by=EVE), approvers)
    assert flaws(by_eve) == ["not_listed"]


def test_the_requester_approves_under_no_name_and_no_account(people: dict[str, Person]) -> None:
    line = people["mara"].line(roles="roles=release-manager github=dev")
    assert flaws(weighed(record(asked(), by=DEV), listed(line))) == ["self_given"]
    # Two lines with one account are one person's: neither name is free to approve the other's release.
    lines = (
        people["joe"].line(names="dev", roles="roles=release-manager github=joe"),
        people["mara"].line(roles="roles=release-manager github=joe,mara"),
    )
    assert flaws(weighed(record(asked()), listed(*lines))) == ["self_given"]
    nobody = request_of(waiting(requested_by=None).state)
    lone = listed(people["mara"].line(roles="roles=release-manager github=mara"))
    assert flaws(weighed(record(nobody), lone)) == ["requester_unknown"]


@pytest.mark.parametrize(
    ("options", "words", "flaw"),
    [
        (None, "roles=security github=mara", "wrong_role"),
        ('valid-before="20200101Z"', "roles=release-manager github=mara", "key_not_valid"),
        ('valid-after="20300101000000Z"', "roles=release-manager github=mara", "key_not_valid"),
        ('namespaces="git"', "roles=release-manager github=mara", "not_listed"),
        (None, "roles=release-manager gitlab=mara", "not_listed"),
        (None, "roles=release-manager github=mara:2", "not_listed"),
    ],
)
def test_a_line_of_approvers_means_for_a_merge_what_it_means_for_a_signature(
    people: dict[str, Person], options: str | None, words: str, flaw: str
) -> None:
    line = people["mara"].line(options=options, roles=words)
    assert flaws(weighed(record(asked()), listed(line))) == [flaw]


def test_an_account_may_be_pinned_to_its_number_and_is_read_strictly(
    people: dict[str, Person],
) -> None:
    line = people["mara"].line(
        options='valid-after="20200101Z",valid-before="20400101Z"',
        roles="roles=release-manager github=Mara:1",
    )
    assert weighed(record(asked()), listed(line)).enough
    for word in ("github=", "github=ma/ra", "gitlab=a,,b", "github=mara:x"):
        with pytest.raises(GitError, match="login"):
            listed(people["mara"].line(roles=word))


def test_merges_count_nowhere_unless_the_policy_says_so_and_whose_word_it_is() -> None:
    assert not Policy().approval_rule("prod").merge_counts
    with pytest.raises(ValueError, match="merge_counts"):
        Policy.model_validate({"approvals": {"prod": {"merge_counts": True}}})
