"""The repository's language: states, policies and messages survive being written and read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.domain import gitops
from lockgate.domain.digests import Digest
from lockgate.domain.policy import Policy, SigningPolicy
from lockgate.domain.release_state import (
    Denied,
    LastRelease,
    Outcome,
    Phase,
    ReleaseState,
    Slot,
    VerdictRef,
)
from lockgate.errors import GitError, UsageError
from tests.unit.rollout.world import SPEC, in_bake, in_canary, occupant

DIGEST = Digest.of_bytes(b"x")
WORDS = st.text(max_size=60)


@given(reason=WORDS, summary=WORDS, generation=st.integers(0, 10**6))
def test_a_state_read_back_is_the_state_written(reason: str, summary: str, generation: int) -> None:
    state = ReleaseState(
        model="m",
        environment="prod",
        generation=generation,
        phase=Phase.CANARY,
        a=occupant("old"),
        b=occupant("new"),
        stable=Slot.A,
        canary=SPEC,
        step=1,
        weight=50,
        since="2026-11-23T12:00:00.000Z",
        denylist=(
            Denied(candidate=DIGEST, release="r-1", reason=reason, at="2026-11-23T11:00:00Z"),
        ),
        verdicts=(
            VerdictRef(
                step=0,
                weight=5,
                verdict="pass",
                report=DIGEST,
                at="2026-11-23T12:00:00Z",
                summary=summary,
            ),
        ),
        last=LastRelease(
            release="r-1",
            candidate=DIGEST,
            outcome=Outcome.ROLLED_BACK,
            reason=reason,
            at="2026-11-23T11:00:00Z",
        ),
    )
    text = gitops.dump_state(state)
    assert gitops.load_state(text) == state
    assert gitops.dump_state(gitops.load_state(text)) == text


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(weight=5),
        lambda data: data.update(stable="b", b=None),
        lambda data: data.update(phase="held"),
        lambda data: data.update(phase="canary"),
        lambda data: data.update(phase="empty"),
        lambda data: data.update(b=data["a"]),
        lambda data: data.update(step=0),
        lambda data: data.update(surprise=1),
        lambda data: data["a"]["candidate"].update(model="example.com/m:latest"),
    ],
)
def test_a_state_edited_into_nonsense_is_refused_by_name(change) -> None:  # type: ignore[no-untyped-def]
    data = in_bake().state.to_data()
    data.update(phase="stable", weight=0)
    data["b"], data["a"], data["stable"] = None, data["b"], "a"
    gitops.load_state(gitops.dump_yaml(data))
    change(data)
    with pytest.raises(GitError, match=r"models/m/prod/release\.yaml"):
        gitops.load_state(gitops.dump_yaml(data), "models/m/prod/release.yaml")


@pytest.mark.parametrize("text", ["", "a: [", "- 1\n", "!!python/object:os.system {}\n"])
def test_what_is_no_state_at_all_is_refused(text: str) -> None:
    with pytest.raises(GitError):
        gitops.load_state(text)


def test_weight_on_a_denylisted_candidate_is_no_state() -> None:
    data = in_canary().state.to_data()
    digest = occupant("new").candidate.digest
    data["denylist"] = [
        {"candidate": digest, "release": "r", "reason": "x", "at": "2026-11-23T12:00:00Z"}
    ]
    with pytest.raises(GitError, match="denylisted"):
        gitops.load_state(gitops.dump_yaml(data))


@pytest.mark.parametrize("name", ["../etc", "a/b", "", "A", "x" * 41, "-a", "a.b"])
def test_no_name_leads_out_of_its_directory(name: str) -> None:
    with pytest.raises(UsageError):
        gitops.state_path(name, "prod")
    with pytest.raises(UsageError):
        gitops.manifests_directory("m", name)


def test_a_state_is_found_by_its_path_and_nothing_else_is() -> None:
    assert gitops.model_of_state_path(str(gitops.state_path("m", "prod"))) == ("m", "prod")
    for other in (
        "models/m/release.yaml",
        "models/m/prod/manifests/release.yaml",
        "apps/m/prod/release.yaml",
    ):
        assert gitops.model_of_state_path(other) is None


@given(
    subject=st.text(min_size=1, max_size=80).filter(str.strip),
    body=st.text(max_size=200),
    by=st.text(max_size=40).map(lambda t: " ".join(t.split())).filter(str.isprintable),
)
def test_trailers_are_read_back_whatever_subject_and_body_say(
    subject: str, body: str, by: str
) -> None:
    trailers = {"Lockgate-Release": "r-1", "Requested-by": by}
    text = gitops.format_message(subject, body, trailers)
    message = gitops.parse_message(text)
    assert message.trailers == trailers
    assert message.subject == " ".join(subject.split())


def test_trailers_in_a_body_are_words() -> None:
    text = gitops.format_message("s", "Approved-by: eve", {"Lockgate-Release": "r-1"})
    assert gitops.parse_message(text).trailers == {"Lockgate-Release": "r-1"}
    doubled = "s\n\nApproved-by: eve\nApproved-by: mara\n"
    assert gitops.parse_message(doubled).trailers == {}
    mixed = "s\n\nthe body\nApproved-by: eve\n"
    assert gitops.parse_message(mixed).trailers == {}


def test_the_message_of_a_transition_tells_what_it_stands_on() -> None:
    rollout = in_canary()
    rollout.hears("fail")
    message = gitops.parse_message(gitops.commit_message(rollout.transitions[-1]))
    new = occupant("new")
    assert message.trailers["Lockgate-Release"] == "r-new"
    assert message.trailers["Lockgate-Phase"] == "draining"
    assert message.trailers["Candidate"] == new.candidate.digest
    assert message.trailers["Image-Digest"] == new.candidate.model.digest
    assert message.trailers["Evidence"] == new.evidence
    assert message.trailers["Verdict"].startswith("fail sha256:")
    assert "said the judge" in message.subject


def test_a_policy_read_back_is_the_policy_written_keys_as_blocks() -> None:
    pem = "-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----\n"
    policy = Policy(signing=SigningPolicy(public_keys=(pem,)))
    text = gitops.dump_yaml(policy.to_data())
    assert "|\n" in text
    assert gitops.load_policy(text) == policy


@pytest.mark.parametrize(
    "text", ["", "kind: Policy\ngates: []\n", "kind: Other\n", "trivy: maybe\n"]
)
def test_a_policy_that_cannot_be_read_allows_nothing(text: str) -> None:
    with pytest.raises(GitError):
        gitops.load_policy(text)
