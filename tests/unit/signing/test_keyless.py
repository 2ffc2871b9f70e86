"""Keyless signing end to end, against a Sigstore instance of the tests' own (local_sigstore.py)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sigstore import dsse

from lockgate.adapters.signing import KeylessSigner, attachments, attest, keyless, sign_image
from lockgate.domain.attestation import GATE_TYPE, PROVENANCE_TYPE, SIGNATURE_TYPE, statement
from lockgate.domain.gates.base import Decision
from lockgate.domain.policy import Policy, SigningPolicy
from lockgate.errors import LockgateError, Refused, SigningError
from lockgate.settings import Settings
from tasks.workspace import Workspace
from tests.unit.signing.local_sigstore import IDENTITY, ISSUER, LocalSigstore, token

World = Any


def test_an_identity_signs_and_only_its_own_policy_accepts_it(
    world: World, sigstore: LocalSigstore
) -> None:
    policy = sigstore.policy()
    for _ in range(2):
        signer = KeylessSigner(policy, identity_token=token(IDENTITY))
        sign_image(world.store, world.image, signer)
        attest(world.store, world.image, signer, PROVENANCE_TYPE, world.provenance())
        attest(world.store, world.image, signer, GATE_TYPE, world.gate())

    assert world.verify(policy=policy).ok
    assert len(world.store.referrers(world.image.repository, world.image.digest)) == 3
    assert len(list(attachments.legacy_signatures(world.store, world.image))) == 1
    assert sigstore.asked.count("/api/v1/log/entries") == 4, "nothing is signed twice"
    other = LocalSigstore()
    other.close()
    for refusing in (
        sigstore.policy(identity="eve@example.com"),
        sigstore.policy(issuer="https://other.example"),
        other.policy(),
        world.policy,  # a policy of keys takes no identities
    ):
        assert not world.verify(policy=refusing).ok
    failed = world.gate(report=world.report(scan=Decision.FAIL))
    with pytest.raises(Refused):
        attest(world.store, world.image, signer, GATE_TYPE, failed)


def test_what_an_identity_signed_as_something_else_is_no_statement_of_its_own(
    world: World, sigstore: LocalSigstore, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = sigstore.policy()
    session = KeylessSigner(policy, identity_token=token(IDENTITY))._session
    body = statement(world.image, SIGNATURE_TYPE, {})
    with monkeypatch.context() as patch:
        patch.setattr(dsse.Envelope, "_TYPE", "text/plain")
        bundle = session.signer.sign_dsse(dsse.Statement(body)).to_json().encode()
    attachments.attach_bundle(
        world.store, world.image, bundle, SIGNATURE_TYPE, "2026-01-02T00:00:00Z"
    )
    report = world.verify(policy=policy)
    assert "signature" in {failure.rule for failure in report.failures}
    assert any("payload type 'text/plain'" in line for line in report.ignored)


def test_a_job_with_another_identity_than_the_policys_finds_out_before_anything_is_attached(
    world: World, sigstore: LocalSigstore
) -> None:
    signer = KeylessSigner(sigstore.policy(), identity_token=token("eve@example.com"))
    with pytest.raises(SigningError, match="would not be accepted"):
        sign_image(world.store, world.image, signer)
    assert world.store.referrers(world.image.repository, world.image.digest) == []


def test_a_sigstore_that_does_not_answer_is_given_up(
    sigstore: LocalSigstore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sigstore.hangs.clear()
    monkeypatch.setattr(keyless, "LIMIT_SECONDS", 0.2)
    with pytest.raises(SigningError, match="no answer"):
        KeylessSigner(sigstore.policy(), identity_token=token(IDENTITY))


def test_a_job_signs_as_itself_where_the_settings_say_keyless(
    world: World, sigstore: LocalSigstore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**sigstore.job(), "LOCKGATE_KEYLESS": "true"}.items():
        monkeypatch.setenv(name, value)
    workspace = Workspace(Settings(workspace=tmp_path))
    monkeypatch.setattr(Workspace, "policy", Policy(signing=sigstore.policy()))
    world.signer = workspace.signer()
    assert "/token?api-version=2.0&audience=sigstore" in sigstore.asked
    world.release()
    assert world.verify(policy=sigstore.policy()).signer == f"{IDENTITY} ({ISSUER})"
    monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "somebody else's")
    with pytest.raises(SigningError, match="403"):
        workspace.signer()


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A proxy that lets nothing through; gives the names that were asked for."""
    asked: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            asked.append(self.path)
            self.send_error(403)

        def log_message(self, *_: object) -> None:
            return

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True).start()
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.server_port}")
    for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    keyless._verifier.cache_clear()
    yield asked
    proxy.shutdown()
    proxy.server_close()


@pytest.mark.parametrize(
    ("instance", "host"),
    [
        ("production", "tuf-repo-cdn.sigstore.dev:443"),
        ("staging", "tuf-repo-cdn.sigstage.dev:443"),
    ],
)
def test_the_policy_says_which_public_instance_is_meant(
    instance: str, host: str, no_network: list[str]
) -> None:
    """To sign and to verify its trust root is asked for, and without that neither is done."""
    said = {"identity": IDENTITY, "issuer": ISSUER, "sigstore": instance}
    policy = SigningPolicy.model_validate(said)
    asks: tuple[Callable[[], object], ...] = (
        lambda: KeylessSigner(policy, identity_token=token(IDENTITY)),
        lambda: keyless.verify_keyless(b"{}", policy),
        lambda: keyless.verify_keyless_payload(b"{}", {}, policy),
    )
    for ask in asks:
        no_network.clear()
        with pytest.raises(SigningError, match="TUF"):
            ask()
        assert set(no_network) == {host}


def test_a_bundle_by_an_identity_is_no_verdict_while_the_trust_root_cannot_be_had(
    world: World, sigstore: LocalSigstore, no_network: list[str]
) -> None:
    world.signer = KeylessSigner(sigstore.policy(), identity_token=token(IDENTITY))
    world.release()
    public = SigningPolicy(identity=IDENTITY, issuer=ISSUER)
    report = world.verify(policy=public)
    assert not report.ok
    assert {failure.rule for failure in report.failures} == {"store"}
    with pytest.raises(LockgateError, match="TUF"):
        report.require()


def test_without_an_ambient_identity_keyless_signing_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sigstore.oidc.detect_credential", lambda: None)
    with pytest.raises(SigningError, match="no ambient OIDC identity"):
        KeylessSigner(SigningPolicy(identity=IDENTITY, issuer=ISSUER))
    with pytest.raises(SigningError, match="names no identity"):
        KeylessSigner(SigningPolicy())
