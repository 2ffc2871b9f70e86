"""Approvals that do not count, each refused by its name; and those that do."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.domain.approval import (
    ApprovalRequest,
    Approver,
    Decision,
    Flaw,
    LiftRequest,
    SignedDecision,
    Weighed,
    approval_request,
    manifests_digest,
    read_approvers,
    weigh,
)
from lockgate.domain.digests import Digest
from lockgate.domain.policy import ApprovalRule
from lockgate.domain.release_state import Phase
from lockgate.domain.rollout import (
    Approval,
    HoldLifted,
    HoldRequested,
    Rejection,
    Transition,
    start,
)
from lockgate.errors import GitError
from tests.unit.approvals.people import (
    MANIFESTS,
    RULE,
    Person,
    listed,
    make_person,
    request_of,
    verify_at,
    waiting,
)
from tests.unit.rollout.world import BEGIN, SPEC_WITH_APPROVAL, Rollout, occupant

MANAGER = "roles=release-manager"


@dataclass
class Desk:
    """A release that waits, and the people around it."""

    rollout: Rollout
    mara: Person
    joe: Person
    eve: Person

    @property
    def request(self) -> ApprovalRequest:
        return request_of(self.rollout.state)

    @property
    def approvers(self) -> tuple[Approver, ...]:
        return listed(self.mara.line(roles=MANAGER), self.joe.line(roles=MANAGER))

    def weigh(
        self,
        *signed: SignedDecision | str,
        request: ApprovalRequest | None = None,
        approvers: tuple[Approver, ...] | None = None,
        after: timedelta = timedelta(0),
        names: tuple[str, ...] = (),
    ) -> Weighed:
        """The decisions as they would lie in the repository, each in its signer's file."""
        files = {}
        for number, one in enumerate(signed):
            text = one if isinstance(one, str) else one.text()
            name = names[number] if names else json.loads(text)["decision"]["by"]
            files[f"models/m/prod/approvals/x/{name}.json"] = text
        now = self.rollout.now + after
        return weigh(
            files,
            request or self.request,
            self.approvers if approvers is None else approvers,
            now,
            verify_at(now),
        )


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> tuple[Person, Person, Person]:
    place = tmp_path_factory.mktemp("keys")
    mara, joe, eve = (make_person(place, f"{name}@example.com") for name in ("mara", "joe", "eve"))
    return mara, joe, eve


@pytest.fixture
def desk(people: tuple[Person, Person, Person]) -> Desk:
    return Desk(waiting(), *people)


def test_an_approval_by_a_listed_manager_raises_the_weight_and_is_named_in_the_commit(
    desk: Desk,
) -> None:
    request = desk.request
    found = desk.weigh(desk.mara.signs(request))
    assert found.refusals == ()
    assert isinstance(found.outcome, Approval)
    answer = desk.rollout.sees(decision=found.outcome)
    assert isinstance(answer, Transition)
    assert answer.state.weight == 50
    assert answer.trailers["Approved-by"] == "mara@example.com"
    assert answer.trailers["Lockgate-Request"] == request.content_digest()


def test_what_is_signed_of_a_first_release_is_all_traffic_and_nobodys_word_on_less_counts(
    people: tuple[Person, Person, Person],
) -> None:
    first = Rollout()
    who = occupant("new").model_copy(update={"requested_by": "dev"})
    first._apply(start(first.state, who, SPEC_WITH_APPROVAL, first.now))
    first.after(60).sees()
    desk = Desk(first, *people)
    request = desk.request
    assert (request.step, request.weight) == (0, 100)
    # As it was asked before: of the first step's weight.
    of_less = desk.weigh(desk.mara.signs(request.model_copy(update={"weight": 5})))
    assert of_less.outcome is None
    assert [refusal.flaw for refusal in of_less.refusals] == [Flaw.REPLAYED]
    assert isinstance(desk.weigh(desk.mara.signs(request)).outcome, Approval)


def other_release(desk: Desk) -> SignedDecision:
    return desk.mara.signs(desk.request.model_copy(update={"release": "r-before"}))


def other_step(desk: Desk) -> SignedDecision:
    return desk.mara.signs(desk.request.model_copy(update={"step": 0, "weight": 5}))


def other_candidate(desk: Desk) -> SignedDecision:
    return desk.mara.signs(desk.request.model_copy(update={"candidate": Digest.of_bytes(b"x")}))


def other_evidence(desk: Desk) -> SignedDecision:
    return desk.mara.signs(desk.request.model_copy(update={"evidence": Digest.of_bytes(b"x")}))


def other_environment(desk: Desk) -> SignedDecision:
    return desk.mara.signs(desk.request.model_copy(update={"environment": "staging"}))


def other_manifests(desk: Desk) -> SignedDecision:
    changed = {**MANIFESTS, "a/service.yaml": "kind: Service\n"}
    request = approval_request(desk.rollout.state, changed, RULE)
    assert request is not None
    return desk.mara.signs(request)


def before_a_hold(desk: Desk) -> SignedDecision:
    signed = desk.mara.signs(desk.request)
    release = str(desk.rollout.state.release_under_way)
    desk.rollout.observes(HoldRequested(release=release, by="p", reason="x"))
    desk.rollout.after(60).observes(HoldLifted(release=release, by="p"))
    assert desk.rollout.state.phase is Phase.AWAITING_APPROVAL
    return signed


def of_a_weaker_rule(desk: Desk) -> SignedDecision:
    return desk.mara.signs(request_of(desk.rollout.state, ApprovalRule()))


def lift_as_approval(desk: Desk) -> SignedDecision:
    request = LiftRequest(
        model="m", environment="prod", candidate=desk.request.candidate, release="r-new",
        denied_at="x", denied_for="x", roles=(), expires="2030-01-01T00:00:00Z",
    )  # fmt: skip
    return desk.mara.signs(request, "lift")  # type: ignore[arg-type]  # the attack itself


def word_changed(desk: Desk) -> SignedDecision:
    signed = desk.mara.signs(desk.request, "reject")
    return signed.model_copy(update={"decision": {**signed.decision, "word": "approve"}})


def request_changed(desk: Desk) -> SignedDecision:
    signed = other_release(desk)
    return signed.model_copy(
        update={"decision": {**signed.decision, "request": desk.request.to_data()}}
    )


def key_claimed(desk: Desk) -> SignedDecision:
    """Eve's signature with Mara's public key written over hers."""
    theirs = desk.eve.signs(desk.request, by=desk.mara.name)
    keys = [base64.b64decode(p.public.split()[1]) for p in (desk.eve, desk.mara)]
    head, *body, foot = theirs.signature.strip().splitlines()
    blob = base64.b64decode("".join(body)).replace(*keys)
    return theirs.model_copy(
        update={"signature": f"{head}\n{base64.b64encode(blob).decode()}\n{foot}\n"}
    )


def stranger(desk: Desk) -> SignedDecision:
    return desk.eve.signs(desk.request)


def strangers_key(desk: Desk) -> SignedDecision:
    return desk.eve.signs(desk.request, by=desk.mara.name)


def for_git(desk: Desk) -> SignedDecision:
    return desk.mara.signs(desk.request, namespace="git")


def field_added(desk: Desk) -> SignedDecision:
    signed = desk.mara.signs(desk.request)
    return signed.model_copy(update={"decision": {**signed.decision, "also": "everything"}})


ATTACKS: dict[Callable[[Desk], SignedDecision], Flaw] = {
    other_release: Flaw.REPLAYED,
    other_step: Flaw.REPLAYED,
    other_candidate: Flaw.REPLAYED,
    other_evidence: Flaw.REPLAYED,
    other_environment: Flaw.REPLAYED,
    other_manifests: Flaw.REPLAYED,
    before_a_hold: Flaw.REPLAYED,
    of_a_weaker_rule: Flaw.REPLAYED,
    lift_as_approval: Flaw.REPLAYED,
    word_changed: Flaw.FORGED,
    request_changed: Flaw.FORGED,
    key_claimed: Flaw.FORGED,
    stranger: Flaw.NOT_LISTED,
    strangers_key: Flaw.NOT_LISTED,
    for_git: Flaw.WRONG_NAMESPACE,
    field_added: Flaw.MALFORMED,
}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_an_attack_is_refused_by_its_name(
    desk: Desk, attack: Callable[[Desk], SignedDecision]
) -> None:
    signed = attack(desk)
    found = desk.weigh(signed)
    assert [r.flaw for r in found.refusals] == [ATTACKS[attack]]
    assert found.outcome is None
    desk.rollout.sees(decision=found.outcome)
    assert desk.rollout.state.phase is Phase.AWAITING_APPROVAL


def test_an_approval_expires(desk: Desk) -> None:
    signed = desk.mara.signs(desk.request)
    hours = timedelta(hours=RULE.valid_hours)
    assert desk.weigh(signed, after=hours - timedelta(seconds=1)).enough
    found = desk.weigh(signed, after=hours)
    assert [r.flaw for r in found.refusals] == [Flaw.EXPIRED]


@pytest.mark.parametrize(
    ("started_by", "flaw"),
    [
        ("mara@example.com", Flaw.SELF_GIVEN),
        ("mara", Flaw.SELF_GIVEN),
        ("MARA@EXAMPLE.COM", Flaw.SELF_GIVEN),
        ("mmeier", Flaw.SELF_GIVEN),
        # As Git names the author of the track that an unattended release comes from.
        ("Mara Koch <mara@example.com>", Flaw.SELF_GIVEN),
        ("M. <583231+mmeier@users.noreply.github.com>", Flaw.SELF_GIVEN),
        (None, Flaw.REQUESTER_UNKNOWN),
        ("unknown", Flaw.REQUESTER_UNKNOWN),
    ],
)
def test_nobody_approves_what_they_started_under_any_name(
    desk: Desk, started_by: str | None, flaw: Flaw
) -> None:
    desk.rollout = waiting(requested_by=started_by)
    lines = listed(
        desk.mara.line(names="mara@example.com", roles=MANAGER),
        # The same key under her login: one person.
        desk.mara.line(names="mmeier", roles=MANAGER),
    )
    found = desk.weigh(desk.mara.signs(desk.request), approvers=lines)
    assert [r.flaw for r in found.refusals] == [flaw]
    no = desk.weigh(desk.mara.signs(desk.request, "reject"), approvers=lines)
    assert isinstance(no.outcome, Rejection), "but anybody listed may stop it"


def test_two_of_three_are_two_people(desk: Desk, tmp_path: Path) -> None:
    rule = RULE.model_copy(update={"needed": 2})
    request = request_of(desk.rollout.state, rule)
    second_key = make_person(tmp_path, "mara@example.com", key="second")
    alias = Person("mara.meier", desk.mara.key)
    lines = listed(
        desk.mara.line(roles=MANAGER),
        second_key.line(names="mara@example.com,mara2", roles=MANAGER),
        alias.line(roles=MANAGER),
        desk.joe.line(roles=MANAGER),
    )
    mara = desk.mara.signs(request)
    for other in (alias.signs(request), second_key.signs(request, by="mara2")):
        found = desk.weigh(mara, other, request=request, approvers=lines)
        assert [r.flaw for r in found.refusals] == [Flaw.DUPLICATE]
        assert found.outcome is None
    found = desk.weigh(mara, desk.joe.signs(request), request=request, approvers=lines)
    assert isinstance(found.outcome, Approval)
    assert found.outcome.by == "joe@example.com, mara@example.com"
    found = desk.weigh(mara, desk.joe.signs(request, "reject"), request=request, approvers=lines)
    assert isinstance(found.outcome, Rejection), "one no is stronger than any yes"


def test_a_decision_counts_in_its_signers_file_only(desk: Desk) -> None:
    signed = desk.mara.signs(desk.request)
    found = desk.weigh(signed, signed, names=("mara@example.com", "joe@example.com"))
    assert [r.flaw for r in found.refusals] == [Flaw.MALFORMED]
    assert found.names == ("mara@example.com",)


def test_a_key_without_the_role_or_out_of_its_time_does_not_count(desk: Desk) -> None:
    signed = desk.mara.signs(desk.request)
    for line, flaw in (
        (desk.mara.line(roles="roles=developer"), Flaw.WRONG_ROLE),
        (desk.mara.line(options='valid-before="20200101Z"', roles=MANAGER), Flaw.KEY_NOT_VALID),
        (desk.mara.line(options='valid-after="20400101Z"', roles=MANAGER), Flaw.KEY_NOT_VALID),
        (desk.mara.line(options='namespaces="git"', roles=MANAGER), Flaw.NOT_LISTED),
    ):
        found = desk.weigh(signed, approvers=listed(line))
        assert [r.flaw for r in found.refusals] == [flaw]
    for options in ("", 'namespaces="git,lockgate-approval",valid-before="20400101Z"'):
        line = desk.mara.line(options=options, roles=MANAGER)
        assert desk.weigh(signed, approvers=listed(line)).enough


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[" * 60_000, '{"decision": {}, "signature": "x"}', '{"a": NaN}', "x" * (1 << 17)],
    ids=["empty", "nothing", "deep", "hollow", "nan", "long"],
)
def test_a_file_that_is_no_decision_is_named_and_stands_in_nobodys_way(
    desk: Desk, text: str
) -> None:
    found = desk.weigh(text, desk.joe.signs(desk.request), names=("a", "joe@example.com"))
    assert [r.flaw for r in found.refusals] == [Flaw.MALFORMED]
    assert found.enough


@pytest.mark.slow
@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_changed_bit_of_a_signed_decision_counts(
    people: tuple[Person, Person, Person], at: int, bit: int
) -> None:
    desk = Desk(waiting(), *people)
    whole = desk.mara.signs(desk.request)
    raw = bytearray(whole.text().encode())
    raw[at % len(raw)] ^= 1 << bit
    found = desk.weigh(raw.decode(errors="replace"), names=("mara@example.com",))
    if found.enough:
        # White space of the file, or of the armor, is no part of what was signed.
        kept = json.loads(raw)
        assert kept["decision"] == whole.decision


@pytest.mark.parametrize(
    "line",
    [
        "*@example.com KEY",
        "!mara KEY",
        "mara cert-authority KEY",
        "mara namespaces=lockgate KEY",
        'mara valid-before="soon" KEY',
        "mara verify-required KEY",
        "mara",
        "mara ssh-ed25519",
        "mara ssh-ed25519 AAAA",
        "mara ecdsa-sha2-nistp256 BLOB",
        "../x KEY",
        "mara KEY roles=A!",
    ],
)
def test_a_list_of_approvers_that_is_not_wholly_understood_names_nobody(
    people: tuple[Person, Person, Person], line: str
) -> None:
    key = people[0].public
    text = line.replace("KEY", key).replace("BLOB", key.split()[1])
    with pytest.raises(GitError, match="approvers, line 2"):
        read_approvers(people[1].line() + text + "\n")


def test_the_manifests_digest_is_that_before_and_after_the_raise_and_of_nothing_else() -> None:
    before = manifests_digest(MANIFESTS)
    route, deployment = (
        next(path for path in MANIFESTS if kind in path) for kind in ("httproute", "deployment")
    )
    mirror = "    filters: [{type: RequestMirror}]\n"
    raised = {
        route: MANIFESTS[route].replace("95", "50").replace(": 5}", ": 50}").replace("'4'", "'5'")
        + mirror,
        deployment: MANIFESTS[deployment].replace("4", "3"),
    }
    assert raised[route] != MANIFESTS[route]
    assert manifests_digest(raised) == before
    for path, old, new in (
        (route, "m-b", "m-c"),
        (route, "other: x", "other: y"),
        (deployment, "replicas", "paused"),
    ):
        changed = {**MANIFESTS, path: MANIFESTS[path].replace(old, new)}
        assert manifests_digest(changed) != before
    assert manifests_digest({route: MANIFESTS[route]}) != before


def test_what_is_signed_is_the_same_bytes_however_the_file_was_written(desk: Desk) -> None:
    decision = Decision.model_validate(
        {"word": "approve", "request": desk.request, "by": "mara@example.com", "at": "now"}
    )
    again = Decision.model_validate_json(json.dumps(decision.to_data(), indent=7))
    assert again.signed_bytes() == decision.signed_bytes()
    assert BEGIN.isoformat()[:10] in desk.request.asked_at
