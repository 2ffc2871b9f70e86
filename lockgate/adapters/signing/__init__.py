"""Signatures and attestations on images: made by a release key or keyless, kept beside the image, verified before use."""

from lockgate.adapters.signing.directories import sign_snapshot
from lockgate.adapters.signing.keyless import KeylessSigner
from lockgate.adapters.signing.keys import KeySigner, generate_key
from lockgate.adapters.signing.kms import ServiceKeySigner
from lockgate.adapters.signing.signatures import attest, sign_image
from lockgate.adapters.signing.signer import Signer
from lockgate.adapters.signing.verification import (
    Failure,
    SignedStatement,
    VerificationReport,
    verify,
    verify_runtime,
)

__all__ = [
    "Failure",
    "KeySigner",
    "KeylessSigner",
    "ServiceKeySigner",
    "SignedStatement",
    "Signer",
    "VerificationReport",
    "attest",
    "generate_key",
    "sign_image",
    "sign_snapshot",
    "verify",
    "verify_runtime",
]
