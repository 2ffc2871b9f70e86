"""Cosign's legacy form of a keyless signature: written as cosign does, read by openssl, and believed only as a whole."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lockgate.adapters.signing import KeylessSigner, attachments, sign_image
from lockgate.domain.images import ImageRef
from tests.unit.signing.local_sigstore import (
    IDENTITY,
    ISSUER,
    LocalSigstore,
    b64,
    sign,
    token,
)

World = Any
Annotations = dict[str, str]
SIGNATURE = "dev.cosignproject.cosign/signature"
CERTIFICATE = "dev.sigstore.cosign/certificate"
CHAIN = "dev.sigstore.cosign/chain"
PROMISE = "dev.sigstore.cosign/bundle"


def signer(sigstore: LocalSigstore, subject: str = IDENTITY, **changes: Any) -> KeylessSigner:
    policy = sigstore.policy(identity=subject, **changes)
    return KeylessSigner(policy, identity_token=token(subject))


def sign_only_legacy(world: World, by: KeylessSigner, image: ImageRef | None = None) -> Annotations:
    image = image or world.image
    payload = attachments.legacy_payload(image)
    annotations = by.sign_image_digest(payload, image.digest)
    assert annotations is not None
    attachments.attach_legacy(world.store, image, payload, annotations)
    return annotations


def refusals(world: World, policy: Any) -> str:
    """Why the image has no signature; empty if it has one."""
    report = world.verify(candidate=None, require_gates=(), policy=policy)
    assert {failure.rule for failure in report.failures} <= {"signature"}
    return "; ".join(failure.message for failure in report.failures)


def test_an_identitys_legacy_signature_alone_is_a_signature_of_that_identity_only(
    world: World, sigstore: LocalSigstore
) -> None:
    sign_only_legacy(world, signer(sigstore))
    report = world.verify(candidate=None, require_gates=(), policy=sigstore.policy())
    assert report.ok
    assert report.signer == f"{IDENTITY} ({ISSUER})"
    assert "do not match eve" in refusals(world, sigstore.policy(identity="eve@example.com"))
    assert refusals(world, sigstore.policy(issuer="https://other.example"))
    assert "names none" in refusals(world, world.policy), "a policy of keys takes no identities"
    other = LocalSigstore()
    other.close()
    assert refusals(world, other.policy())


def test_the_annotations_are_cosigns_and_openssl_verifies_chain_and_signature(
    world: World, sigstore: LocalSigstore, openssl: Path, tmp_path: Path
) -> None:
    sign_image(world.store, world.image, signer(sigstore))
    (legacy,) = attachments.legacy_signatures(world.store, world.image)
    assert set(legacy.annotations) == {SIGNATURE, CERTIFICATE, CHAIN, PROMISE}
    promise = json.loads(legacy.annotations[PROMISE])
    assert set(promise) == {"SignedEntryTimestamp", "Payload"}
    assert set(promise["Payload"]) == {"body", "integratedTime", "logIndex", "logID"}
    body = json.loads(base64.b64decode(promise["Payload"]["body"]))
    assert body["kind"] == "hashedrekord"
    assert body["spec"]["signature"]["content"] == legacy.annotations[SIGNATURE]
    certificates = legacy.annotations[CHAIN].split("-----BEGIN")[1:]
    assert len(certificates) == 2, "intermediate and root"

    leaf, payload, signature = (tmp_path / name for name in ("leaf", "payload", "signature"))
    leaf.write_text(legacy.annotations[CERTIFICATE])
    (tmp_path / "intermediate").write_text("-----BEGIN" + certificates[0])
    (tmp_path / "root").write_text("-----BEGIN" + certificates[1])
    payload.write_bytes(legacy.payload)
    signature.write_bytes(base64.b64decode(legacy.annotations[SIGNATURE]))

    def said(*arguments: str | Path) -> str:
        done = subprocess.run(
            [openssl, *arguments], capture_output=True, text=True, timeout=50, check=False
        )
        return done.stdout + done.stderr

    # Its SCT and the critical name are Sigstore's business; what openssl checks is the chain.
    chain = ["-untrusted", tmp_path / "intermediate", "-CAfile", tmp_path / "root"]
    assert f"{leaf}: OK" in said("verify", "-purpose", "any", *chain, leaf)
    (tmp_path / "key").write_text(said("x509", "-in", leaf, "-noout", "-pubkey"))
    verify = ["dgst", "-sha256", "-verify", tmp_path / "key", "-signature", signature, payload]
    assert "Verified OK" in said(*verify)
    payload.write_bytes(legacy.payload.replace(b"critical", b"Critical"))
    assert "Verification failure" in said(*verify)


def test_a_legacy_signature_of_another_image_counts_for_nothing(
    world: World, sigstore: LocalSigstore
) -> None:
    annotations = sign_only_legacy(world, signer(sigstore))
    victim = world.push(b'{"evil": true}')
    for payload in (attachments.legacy_payload(world.image), attachments.legacy_payload(victim)):
        attachments.attach_legacy(world.store, victim, payload, annotations)
    report = world.verify(image=victim, candidate=None, require_gates=(), policy=sigstore.policy())
    assert [failure.rule for failure in report.failures] == ["signature"]
    assert len(report.ignored) == 2


def _promised(change: Callable[[dict[str, Any]], None]) -> Callable[..., Annotations]:
    def apply(annotations: Annotations, *_: object) -> Annotations:
        promise = json.loads(annotations[PROMISE])
        change(promise)
        return {**annotations, PROMISE: json.dumps(promise)}

    return apply


def _later(annotations: Annotations, *_: object) -> Annotations:
    return _promised(lambda p: p["Payload"].update(integratedTime=2_000_000_000))(annotations)


def _own_log(annotations: Annotations, sigstore: LocalSigstore, _: Annotations) -> Annotations:
    """A promise that whoever signed made himself."""

    def change(promise: dict[str, Any]) -> None:
        said = json.dumps(promise["Payload"], sort_keys=True, separators=(",", ":"))
        promise["SignedEntryTimestamp"] = b64(sign(sigstore.ca, said.encode()))

    return _promised(change)(annotations)


def _entry_of_another(annotations: Annotations, _: object, other: Annotations) -> Annotations:
    return {**annotations, PROMISE: other[PROMISE]}


def _certificate_of_another(annotations: Annotations, _: object, other: Annotations) -> Annotations:
    return {**annotations, CERTIFICATE: other[CERTIFICATE]}


def _authority_as_leaf(annotations: Annotations, *_: object) -> Annotations:
    return {**annotations, CERTIFICATE: annotations[CHAIN]}


@pytest.mark.parametrize(
    "change",
    [
        lambda a, *_: {k: v for k, v in a.items() if k != PROMISE},
        lambda a, *_: {**a, PROMISE: "{}"},
        lambda a, *_: {**a, PROMISE: "[]"},
        lambda a, *_: {**a, CERTIFICATE: "no certificate"},
        lambda a, *_: {**a, SIGNATURE: b64(b"no signature")},
        _promised(lambda p: p.update(SignedEntryTimestamp=None)),
        _promised(lambda p: p.update(SignedEntryTimestamp="")),
        _promised(lambda p: p["Payload"].update(integratedTime=None)),
        _promised(lambda p: p["Payload"].update(logID="zz")),
        _promised(lambda p: p["Payload"].update(body=b64(b"[]"))),
        _promised(lambda p: p["Payload"].update(integratedTime=p["Payload"]["integratedTime"] - 1)),
        _promised(lambda p: p["Payload"].update(logIndex=7)),
        _later,
        _own_log,
        _entry_of_another,
        _certificate_of_another,
        _authority_as_leaf,
    ],
    ids=[
        *(
            "no promise",
            "empty promise",
            "list",
            "no certificate",
            "other signature",
            "null promise",
        ),
        *("unsigned promise", "no time", "no log", "no entry", "earlier", "other index", "later"),
        *("own log", "entry of another", "certificate of another", "authority as leaf"),
    ],
)
def test_a_legacy_signature_with_a_part_missing_or_changed_counts_for_nothing(
    world: World, sigstore: LocalSigstore, change: Callable[..., Annotations]
) -> None:
    by, payload = signer(sigstore), attachments.legacy_payload(world.image)
    annotations = by.sign_image_digest(payload, world.image.digest)
    other_image = world.push(b'{"other": "model"}')
    other = signer(sigstore).sign_image_digest(
        attachments.legacy_payload(other_image), other_image.digest
    )
    attachments.attach_legacy(
        world.store, world.image, payload, change(annotations, sigstore, other)
    )
    assert refusals(world, sigstore.policy())
    attachments.attach_legacy(world.store, world.image, payload, annotations)
    assert not refusals(world, sigstore.policy()), "the sound one beside it counts"


def test_the_chain_beside_a_signature_is_not_trusted(world: World, sigstore: LocalSigstore) -> None:
    """Whoever signs brings his own; whom it leads to is the policy's trust root to say."""
    other = LocalSigstore()
    try:
        sign_only_legacy(world, signer(other))
    finally:
        other.close()
    assert refusals(world, sigstore.policy())
    assert not refusals(world, other.policy())


def test_a_log_that_makes_no_promises_gives_no_legacy_form_and_is_not_asked_for_one(
    world: World, sigstore: LocalSigstore
) -> None:
    by = signer(sigstore, log=2)
    payload = attachments.legacy_payload(world.image)
    assert by.sign_image_digest(payload, world.image.digest) is None
    assert sigstore.asked == ["/api/v2/signingCert"]
