"""Signed envelopes and the bundles cosign v3 keeps them in, for self-managed keys.

Sources: DSSE v1.0.0 (pre-authentication encoding); Sigstore bundle v0.3. The library of Sigstore reads and writes such
bundles only with certificates.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Any

from lockgate.domain.digests import canonical_json, read_json, shown

BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"


@dataclass(frozen=True)
class Envelope:
    """A payload with its one signature."""

    payload: bytes
    signature: bytes

    @property
    def signed_bytes(self) -> bytes:
        """What the signature is over."""
        return pre_authentication_encoding(self.payload)


def pre_authentication_encoding(payload: bytes) -> bytes:
    """DSSE's PAE of an in-toto payload."""
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def key_bundle(envelope: Envelope, hint: str) -> bytes:
    """The bundle of an envelope signed with a key; `hint` tells a verifier which."""
    return canonical_json(
        {
            "mediaType": BUNDLE_TYPE,
            "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": base64.b64encode(envelope.payload).decode(),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": base64.b64encode(envelope.signature).decode()}],
            },
        }
    )


def has_certificate(bundle: Any) -> bool:
    """Whether a parsed bundle is keyless: verified by a certificate instead of a known key."""
    material = bundle.get("verificationMaterial") if isinstance(bundle, dict) else None
    return isinstance(material, dict) and not material.keys().isdisjoint(
        ("certificate", "x509CertificateChain")
    )


def parse_bundle(body: bytes) -> Any:
    """The bundle as data. Raises `ValueError` if it is none."""
    bundle = read_json(body)
    kind = bundle.get("mediaType") if isinstance(bundle, dict) else None
    if not isinstance(kind, str) or not kind.startswith("application/vnd.dev.sigstore.bundle"):
        raise ValueError(f"not a Sigstore bundle: {shown(kind)}")
    return bundle


def envelope_of(bundle: Any) -> Envelope:
    """The envelope in a parsed bundle. Raises `ValueError` unless it holds an in-toto payload with exactly one signature."""
    try:
        envelope = bundle["dsseEnvelope"]
        if envelope["payloadType"] != PAYLOAD_TYPE:
            raise ValueError(f"payload type {shown(envelope['payloadType'])}")
        (signature,) = envelope["signatures"]
        return Envelope(
            base64.b64decode(envelope["payload"], validate=True),
            base64.b64decode(signature["sig"], validate=True),
        )
    except (KeyError, TypeError, binascii.Error) as error:
        raise ValueError(f"not a DSSE envelope in a bundle: {error!r}") from error
