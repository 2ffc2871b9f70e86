"""The endpoints: who is believed, what is kept, what is turned away, and that nothing makes them fail."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lockgate.adapters.webhooks import Limits, Outbox, Reception, create_app
from lockgate.domain.webhooks import Delivery, Sender
from lockgate.errors import DeliveryError
from tests.amounts import examples
from tests.unit.webhooks.payloads import (
    COMMIT,
    EVERY,
    IMAGE,
    NOW,
    SECRET,
    ZERO,
    Sent,
    distribution,
    generic,
    github_merge,
    github_push,
    gitlab_merge,
    hub,
    tracks,
)

SECRETS = {sender: (b"an-older-secret-still-in-use", SECRET.encode()) for sender in Sender}
ANSWERS = {200, 202, 400, 401, 404, 408, 413, 429, 503}
FAST = Limits(address_rate=1e9, address_burst=10**9, sender_rate=1e9, sender_burst=10**9)


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    box = Outbox(tmp_path / "deliveries.sqlite")
    yield box
    box.close()


def reception(outbox: Outbox, **changes: Any) -> Reception:
    return replace(Reception(SECRETS, tracks, outbox, FAST, clock=lambda: float(NOW)), **changes)


def post(to: Reception, sender: str, body: Any, headers: Any) -> httpx.Response:
    """One request to the endpoints, without a socket."""
    return asyncio.run(ask(create_app(to), sender, body, headers))


async def ask(app: FastAPI, sender: str, body: Any, headers: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app, client=("192.0.2.7", 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://hooks") as client:
        return await client.post(f"/hooks/{sender}", content=body, headers=headers)


def send(to: Reception, sent: Sent, secret: str = SECRET, now: int = NOW) -> httpx.Response:
    return post(to, sent.sender.value, sent.body, sent.signed(secret, now))


def kept(outbox: Outbox) -> list[Delivery]:
    return [pending.delivery for pending in outbox.due(NOW + 1)]


@pytest.mark.parametrize("make", EVERY)
def test_a_delivery_of_each_sender_is_kept_for_its_model(
    outbox: Outbox, make: Callable[[], Sent]
) -> None:
    sent = make()
    answer = send(reception(outbox), sent)
    assert (answer.status_code, answer.json()) == (202, {"kept": 1, "known": 0})
    (delivery,) = kept(outbox)
    in_registry = sent.sender in (Sender.DISTRIBUTION, Sender.HARBOR)
    assert delivery.model == ("oci-model" if in_registry else "hub-model")
    assert delivery.revision == (IMAGE if in_registry else COMMIT)
    assert delivery.source.startswith(f"{sent.sender}:")


@pytest.mark.parametrize("make", EVERY)
def test_a_wrong_secret_a_changed_body_or_none_at_all_is_not_believed(
    outbox: Outbox, make: Callable[[], Sent]
) -> None:
    to, sent = reception(outbox), make()
    name = sent.sender.value
    assert send(to, sent, secret="another-secret-that-is-not-known").status_code == 401
    assert send(to, sent, secret=SECRET + " ").status_code == 401
    assert post(to, name, sent.body, sent.headers).status_code == 401
    proof = sent.signed()
    twice = [*proof.items(), *((k, v) for k, v in proof.items() if k not in sent.headers)]
    assert post(to, name, sent.body, twice).status_code == 401
    if sent.sender in (Sender.GITHUB, Sender.GITEA, Sender.GENERIC):
        assert post(to, name, sent.body + b" ", proof).status_code == 401
    assert kept(outbox) == []


def test_an_older_secret_counts_as_long_as_it_is_listed(outbox: Outbox) -> None:
    to = reception(outbox)
    assert send(to, hub(), secret="an-older-secret-still-in-use").status_code == 202
    to = reception(outbox, secrets={Sender.HUB: (SECRET.encode(),)})
    assert send(to, hub(), secret="an-older-secret-still-in-use").status_code == 401


def test_a_sender_without_a_secret_is_not_listened_to(outbox: Outbox) -> None:
    to = reception(outbox, secrets={Sender.GITHUB: SECRETS[Sender.GITHUB], Sender.HUB: ()})
    assert send(to, hub(), secret="").status_code == 404
    assert send(to, generic()).status_code == 404
    assert kept(outbox) == []


@pytest.mark.parametrize("make", EVERY)
def test_a_replay_changes_nothing(outbox: Outbox, make: Callable[[], Sent]) -> None:
    to, sent = reception(outbox), make()
    answers = [send(to, sent) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202, 200, 200]
    assert len(kept(outbox)) == 1


def test_a_replay_after_the_delivery_was_handed_over_and_a_restart_changes_nothing(
    tmp_path: Path,
) -> None:
    first = Outbox(tmp_path / "deliveries.sqlite")
    assert send(reception(first), hub()).status_code == 202
    first.done(kept(first)[0], "run")
    first.close()
    second = Outbox(tmp_path / "deliveries.sqlite")
    assert send(reception(second), hub()).status_code == 200
    assert second.pending() == 0
    second.close()


def test_a_generic_delivery_is_believed_for_five_minutes(outbox: Outbox) -> None:
    to = reception(outbox)
    for late in (-301, 301):
        assert send(to, generic(), now=NOW + late).status_code == 401
    assert send(to, generic(), now=NOW + 299).status_code == 202


def test_generic_deliveries_without_a_commit_are_told_apart_by_the_time_that_was_signed(
    outbox: Outbox,
) -> None:
    to = reception(outbox)
    sent = generic(commit=None)
    statuses = [send(to, sent, now=NOW + second).status_code for second in (0, 1, 0)]
    assert statuses == [202, 202, 200]


@pytest.mark.parametrize(
    "sent",
    [
        hub(ref="refs/heads/experiment"),
        hub(ref="refs/pr/3"),
        hub(commit=None),
        hub(repo={"type": "model", "name": "org/other"}),
        hub(repo={"type": "dataset", "name": "org/name"}),
        hub(event={"action": "update", "scope": "repo.config"}),
        github_push(ref="refs/heads/feature/#12"),
        github_push(after=ZERO),
        github_merge(merged=False),
        Sent(Sender.GITHUB, {"zen": "Keep it logically awesome.", "hook_id": 1}, {"X-GitHub-Event": "ping"}),
        gitlab_merge(action="open"),
        distribution(tag="latest"),
        generic(model="not-tracked"),
    ],
)  # fmt: skip
def test_what_is_about_nothing_that_is_tracked_is_acknowledged_and_forgotten(
    outbox: Outbox, sent: Sent
) -> None:
    assert send(reception(outbox), sent).status_code == 200
    assert kept(outbox) == []


def test_a_merge_that_only_moved_the_branch_forward_has_its_last_commit(outbox: Outbox) -> None:
    assert send(reception(outbox), gitlab_merge(commit=None)).status_code == 202


@pytest.mark.parametrize("sent", [hub(), github_push()])
def test_a_body_that_is_too_large_is_refused_before_it_is_read(outbox: Outbox, sent: Sent) -> None:
    to = reception(outbox, limits=replace(FAST, body_bytes=1000))
    read = 0

    async def without_length() -> Any:
        nonlocal read
        for _ in range(1000):
            read += 100
            yield b" " * 100

    announced = post(to, sent.sender.value, b" " * 1001, sent.signed())
    streamed = post(to, sent.sender.value, without_length(), sent.signed())
    assert (announced.status_code, streamed.status_code) == (413, 413)
    lying = post(to, sent.sender.value, b"{}", {**sent.signed(), "Content-Length": "-5"})
    assert lying.status_code == 413


def test_a_static_secret_is_checked_before_the_body_is_read(outbox: Outbox) -> None:
    async def endless() -> Any:
        raise AssertionError("the body was read")
        yield b""

    answer = post(reception(outbox), "hub", endless(), {"X-Webhook-Secret": "x" * 32})
    assert answer.status_code == 401


def test_a_body_that_does_not_arrive_is_not_waited_for(outbox: Outbox) -> None:
    async def stalling() -> Any:
        yield b"{"
        await asyncio.sleep(60)

    to = reception(outbox, limits=replace(FAST, body_seconds=0.05))
    assert post(to, "hub", stalling(), hub().signed()).status_code == 408


def test_one_sender_that_sends_too_much_is_slowed_down_and_the_others_are_not(
    outbox: Outbox,
) -> None:
    to = reception(outbox, limits=replace(FAST, sender_rate=1e-9, sender_burst=2))
    commits = [f"{n:040x}" for n in range(1, 4)]
    assert [send(to, hub(c)).status_code for c in commits] == [202, 202, 429]
    assert send(to, github_push()).status_code == 202
    # Who does not know the secret uses nothing of it up.
    to = reception(outbox, limits=replace(FAST, sender_rate=1e-9, sender_burst=1))
    assert send(to, hub(), secret="wrong" * 8).status_code == 401
    assert send(to, hub("f" * 40)).status_code == 202
    to = reception(outbox, limits=replace(FAST, address_rate=1e-9, address_burst=1))
    assert send(to, hub(), secret="wrong" * 8).status_code == 401
    answer = send(to, hub())
    assert answer.status_code == 429 and answer.headers["Retry-After"]


def test_nothing_is_acknowledged_that_could_not_be_kept(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "deliveries.sqlite")
    to = reception(outbox)
    assert send(to, hub()).status_code == 202
    outbox._connection.executescript("DROP TABLE deliveries")
    assert send(to, hub("f" * 40)).status_code == 503
    outbox.close()

    def unknown() -> Any:
        raise DeliveryError("the tracked models are not known yet")

    later = Outbox(tmp_path / "other.sqlite")
    assert send(reception(later, tracks=unknown), hub()).status_code == 503
    later.close()


def test_no_secret_and_no_payload_is_logged(
    outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    to = reception(outbox)
    for make in EVERY:
        send(to, make())
        send(to, make(), secret="another-secret-that-is-not-known")
    post(to, "hub", b'{"event": "my-private-payload"}', hub().signed())
    assert "not a payload" in caplog.text
    for word in (SECRET, "another-secret", "my-private-payload", "sha256=", "somebody"):
        assert word not in caplog.text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=12,
)


def damaged(draw: st.DrawFn, value: Any) -> Any:
    """A payload with one of its parts replaced by anything."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(value)))
        if draw(st.booleans()) and draw(st.booleans()):
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: damaged(draw, value[key])}
    if isinstance(value, list) and value and draw(st.integers(0, 9)):
        return [damaged(draw, value[0]), *value[1:]]
    return draw(JSON)


@st.composite
def requests(draw: st.DrawFn) -> tuple[Sender, bytes, dict[str, str]]:
    """Rightly signed nonsense, mostly; also wrongly signed, and no JSON at all."""
    sent = draw(st.sampled_from(EVERY))()
    body = draw(
        st.one_of(
            st.just(json.dumps(damaged(draw, sent.payload)).encode()),
            st.just(json.dumps(damaged(draw, sent.payload)).encode()),
            st.binary(max_size=200),
            st.sampled_from([b"[" * 100_000, b"1" * 10_000, b"\xff\xfe", b"null", b"{}", b'"\\ud800"']),
        )
    )  # fmt: skip
    proof = _Raw(sent.sender, sent.payload, sent.headers, body).signed()
    strange = draw(
        st.dictionaries(
            st.sampled_from(
                ["X-GitHub-Event", "X-Gitea-Event", "X-Lockgate-Timestamp", "Content-Type",
                 "X-Webhook-Secret", "Authorization", "Content-Length", "X-Forwarded-For"]
            ),
            st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=30),
            max_size=2,
        )
    )  # fmt: skip
    if draw(st.integers(0, 2)):
        strange = {}
    return sent.sender, body, {**proof, **strange}


class _Raw(Sent):
    """Signs other bytes than its payload."""

    def __init__(self, sender: Sender, payload: Any, headers: dict[str, str], body: bytes) -> None:
        super().__init__(sender, payload, headers)
        object.__setattr__(self, "raw", body)

    @property
    def body(self) -> bytes:
        return bytes(getattr(self, "raw"))  # noqa: B009 - set past the frozen dataclass


@pytest.fixture
def fuzzed(outbox: Outbox) -> Iterator[Callable[..., httpx.Response]]:
    app = create_app(reception(outbox))
    with asyncio.Runner() as runner:
        yield lambda *request: runner.run(ask(app, *request))


@settings(max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=requests())
def test_no_body_and_no_header_makes_it_fail(
    outbox: Outbox,
    fuzzed: Callable[..., httpx.Response],
    request: tuple[Sender, bytes, dict[str, str]],
) -> None:
    sender, body, headers = request
    raw = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()]
    assert fuzzed(sender.value, body, raw).status_code in ANSWERS
    assert {d.model for d in kept(outbox)} <= {"hub-model", "oci-model"}


def test_its_openapi_tells_every_answer(outbox: Outbox) -> None:
    described = create_app(reception(outbox)).openapi()["paths"]
    assert set(described) == {"/healthz", *(f"/hooks/{sender.value}" for sender in Sender)}
    for sender in Sender:
        told = described[f"/hooks/{sender.value}"]["post"]["responses"]
        assert {int(status) for status in told} == ANSWERS
