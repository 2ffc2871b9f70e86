"""Whose a legacy signature is: a key's, or an identity's with its certificate beside the payload."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

from lockgate.adapters.signing.attachments import (
    CERTIFICATE,
    LEGACY_SIGNATURE,
    LegacySignature,
    digest_in_legacy_payload,
)
from lockgate.adapters.signing.keys import PublicKey
from lockgate.domain.digests import Digest
from lockgate.domain.policy import SigningPolicy
from lockgate.errors import VerificationError


def key_of(keys: Sequence[PublicKey], message: bytes, signature: bytes) -> PublicKey | None:
    """The key that made a signature."""
    return next((key for key in keys if key.has_signed(message, signature)), None)


def legacy_signer(
    legacy: LegacySignature, digest: Digest, policy: SigningPolicy, keys: Sequence[PublicKey]
) -> str:
    """The name of the policy's signer who signed `digest`; `keys` are the policy's.

    Raises `VerificationError`, and `SigningError` where the trust root cannot be had.
    """
    try:
        signature = base64.b64decode(legacy.annotations[LEGACY_SIGNATURE], validate=True)
        signed = digest_in_legacy_payload(legacy.payload)
    except (KeyError, binascii.Error, ValueError) as error:
        raise VerificationError(repr(error)) from error
    if signed != digest:
        raise VerificationError(f"signed for {signed}")
    key = key_of(keys, legacy.payload, signature)
    if key is not None:
        return key.name
    if CERTIFICATE not in legacy.annotations:
        raise VerificationError("not signed by a key of the policy")
    # Imported here: Sigstore's library takes longer to load than everything else takes to run.
    from lockgate.adapters.signing.keyless import verify_keyless_payload

    verify_keyless_payload(legacy.payload, legacy.annotations, policy)
    return f"{policy.identity} ({policy.issuer})"
