"""Signing images and attesting to them, once: what this signer said before is not said again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from lockgate.adapters.signing import attachments
from lockgate.adapters.signing.keys import PublicKey
from lockgate.adapters.signing.legacy import legacy_signer
from lockgate.adapters.signing.signer import Signer
from lockgate.adapters.signing.verification import SignedStatement, verify
from lockgate.domain.attestation import SIGNATURE_TYPE, statement
from lockgate.domain.base import Frozen
from lockgate.domain.digests import Digest
from lockgate.domain.images import ImageRef
from lockgate.domain.stores import ImageStore
from lockgate.errors import IntegrityError, VerificationError


def _now() -> datetime:
    return datetime.now(UTC)


def sign_image(
    store: ImageStore, ref: ImageRef, signer: Signer, *, clock: Callable[[], datetime] = _now
) -> None:
    """Sign the image in both forms that verifiers look for: cosign v3's bundle as a referrer, and the legacy `.sig` tag.

    Forms that this signer wrote before are left alone. Without a promise of its log a keyless signer has no legacy form. Raises
    `SigningError`, `RegistryError`; a missing image is a `RegistryError`.
    """
    if _said_before(store, ref, signer, SIGNATURE_TYPE, {}) is None:
        bundle = signer.sign_statement(statement(ref, SIGNATURE_TYPE, {}))
        attachments.attach_bundle(store, ref, bundle, SIGNATURE_TYPE, _rfc3339(clock()))
    if not _has_legacy(store, ref, signer):
        payload = attachments.legacy_payload(ref)
        annotations = signer.sign_image_digest(payload, ref.digest)
        if annotations is not None:
            attachments.attach_legacy(store, ref, payload, annotations)


def attest(
    store: ImageStore,
    ref: ImageRef,
    signer: Signer,
    predicate_type: str,
    predicate: Mapping[str, Any] | Frozen,
    *,
    clock: Callable[[], datetime] = _now,
) -> Digest:
    """Sign that `predicate` holds of the image, and attach it; gives the digest of the bundle's manifest.

    The same predicate by the same signer is found again, not signed twice. Raises `Refused` for a gate predicate that did
    not pass, `SigningError`, `RegistryError`.
    """
    data = predicate.to_data() if isinstance(predicate, Frozen) else dict(predicate)
    body = statement(ref, predicate_type, data)
    known = _said_before(store, ref, signer, predicate_type, data)
    if known is not None:
        return known.bundle
    bundle = signer.sign_statement(body)
    return attachments.attach_bundle(store, ref, bundle, predicate_type, _rfc3339(clock()))


def _said_before(
    store: ImageStore, ref: ImageRef, signer: Signer, predicate_type: str, predicate: dict[str, Any]
) -> SignedStatement | None:
    report = verify(store, ref, signer.own_policy, candidate=None, require_gates=())
    if report.outage is not None:
        raise report.outage
    for signed in report.statements:
        said = signed.statement
        if said.predicate_type == predicate_type and dict(said.predicate) == predicate:
            return signed
    return None


def _has_legacy(store: ImageStore, ref: ImageRef, signer: Signer) -> bool:
    policy = signer.own_policy
    keys = [PublicKey(pem) for pem in policy.public_keys]
    with contextlib.suppress(IntegrityError):
        for layer in attachments.legacy_descriptors(store, ref):
            with contextlib.suppress(IntegrityError, VerificationError):
                legacy_signer(attachments.read_legacy(store, ref, layer), ref.digest, policy, keys)
                return True
    return False


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
