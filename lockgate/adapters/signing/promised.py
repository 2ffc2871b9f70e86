"""Cosign's legacy form of a keyless signature: certificate, chain and the log's promise as annotations beside the payload.

The form has no inclusion proof: what stands in its place is the log's signed promise to include the entry, with the time. All
else is checked by sigstore-python as in a bundle (chain, SCT, identity, validity at that time, agreement of entry and payload).
Sources: cosign's SIGNATURE_SPEC and its `bundle.RekorBundle`; Sigstore bundle v0.1. Imported only where it is used, like Sigstore's
library itself.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import Certificate, load_pem_x509_certificate
from sigstore.models import Bundle, TransparencyLogEntry

from lockgate.adapters.signing.attachments import CERTIFICATE, LEGACY_SIGNATURE
from lockgate.domain.digests import read_json

CHAIN = "dev.sigstore.cosign/chain"
PROMISE = "dev.sigstore.cosign/bundle"
_BUNDLE_0_1 = "application/vnd.dev.sigstore.bundle+json;version=0.1"
_NO_PROOF = {
    "logIndex": "0", "treeSize": "1", "rootHash": "", "hashes": [], "checkpoint": {"envelope": ""},
}  # fmt: skip
"""The library's model of an entry wants one; it proves nothing."""


def to_annotations(bundle: Bundle, authorities: Sequence[Certificate]) -> dict[str, str] | None:
    """The annotations of a signed payload; None where its log gave no promise. `authorities` are those of the trust root."""
    certificate = bundle.signing_certificate
    (entry,) = json.loads(bundle.to_json())["verificationMaterial"]["tlogEntries"]
    promise = (entry.get("inclusionPromise") or {}).get("signedEntryTimestamp")
    if promise is None or "integratedTime" not in entry:
        return None
    rekor = {
        "SignedEntryTimestamp": promise,
        "Payload": {
            "body": entry["canonicalizedBody"],
            "integratedTime": int(entry["integratedTime"]),
            "logIndex": int(entry.get("logIndex", 0)),
            "logID": base64.b64decode(entry["logId"]["keyId"]).hex(),
        },
    }
    chain = _chain_of(certificate, authorities)
    return {
        LEGACY_SIGNATURE: base64.b64encode(bundle.signature).decode(),
        CERTIFICATE: certificate.public_bytes(Encoding.PEM).decode(),
        CHAIN: "".join(c.public_bytes(Encoding.PEM).decode() for c in chain),
        PROMISE: json.dumps(rekor, separators=(",", ":")),
    }


def from_annotations(payload: bytes, annotations: Mapping[str, str]) -> Bundle:
    """What `Verifier.verify_artifact` takes. The chain is not read: whom it leads to is the trust root's to say. Raises
    `ValueError`, and Sigstore's `Error`."""
    try:
        certificate = load_pem_x509_certificate(annotations[CERTIFICATE].encode())
        promised = read_json(annotations[PROMISE])
        said: Any = promised["Payload"]
        body = read_json(base64.b64decode(said["body"], validate=True))
        entry = {
            "logIndex": str(said["logIndex"]),
            "logId": {"keyId": _encoded(bytes.fromhex(said["logID"]))},
            "kindVersion": {"kind": body["kind"], "version": body["apiVersion"]},
            "integratedTime": str(said["integratedTime"]),
            "inclusionPromise": {"signedEntryTimestamp": promised["SignedEntryTimestamp"]},
            "inclusionProof": _NO_PROOF,
            "canonicalizedBody": said["body"],
        }
        signature = annotations[LEGACY_SIGNATURE]
    except (KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise ValueError(f"not a keyless legacy signature: {error!r}") from error
    return _PromisedBundle.from_json(
        json.dumps(
            {
                "mediaType": _BUNDLE_0_1,
                "verificationMaterial": {
                    "x509CertificateChain": {
                        "certificates": [
                            {"rawBytes": _encoded(certificate.public_bytes(Encoding.DER))}
                        ]
                    },
                    "tlogEntries": [entry],
                },
                "messageSignature": {
                    "messageDigest": {
                        "algorithm": "SHA2_256",
                        "digest": _encoded(hashlib.sha256(payload).digest()),
                    },
                    "signature": signature,
                },
            }
        )
    )


class _PromisedEntry(TransparencyLogEntry):
    def _verify(self, keyring: Any) -> None:
        # There is no proof to check. A promise that is missing or not the log's raises.
        self._verify_set(keyring)


class _PromisedBundle(Bundle):
    def _verify(self) -> None:
        super()._verify()
        self._log_entry = _PromisedEntry(self.log_entry._inner)


def _chain_of(certificate: Certificate, authorities: Sequence[Certificate]) -> list[Certificate]:
    """From the certificate's issuer up to the root."""
    chain: list[Certificate] = []
    while True:
        last = chain[-1] if chain else certificate
        issuer = next((c for c in authorities if c not in chain and _issued(c, last)), None)
        if issuer is None:
            return chain
        chain.append(issuer)


def _issued(authority: Certificate, certificate: Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _encoded(body: bytes) -> str:
    return base64.b64encode(body).decode()
