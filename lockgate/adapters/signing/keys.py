"""Self-managed release keys: ECDSA P-256, PEM.

Where there is no Internet, or no Sigstore, the key is the identity. Sources: RFC 5915, RFC 5958; cosign signs the same way.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from lockgate.adapters.signing.dsse import Envelope, key_bundle, pre_authentication_encoding
from lockgate.adapters.signing.signer import Signer
from lockgate.domain.policy import SigningPolicy
from lockgate.errors import SigningError

LEGACY_SIGNATURE = "dev.cosignproject.cosign/signature"
_ALGORITHM = ec.ECDSA(hashes.SHA256())


def generate_key(private: Path, public: Path, passphrase: str | None = None) -> None:
    """Make a release key: `private` readable by its owner only, `public` for everyone.

    An existing private key is never replaced: then only its public half is written, where that is missing. Raises
    `SigningError`.
    """
    if private.exists():
        pem = KeySigner(private, passphrase).public_pem
    else:
        key = ec.generate_private_key(ec.SECP256R1())
        encryption: KeySerializationEncryption = NoEncryption()
        if passphrase:
            encryption = BestAvailableEncryption(passphrase.encode())
        _write_once(
            private, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption), 0o600
        )
        pem = _public_pem(key.public_key())
    if not public.exists():
        _write_once(public, pem.encode(), 0o644)
    elif public.read_text().strip() != pem.strip():
        raise SigningError(
            f"{public} is not the public half of {private}",
            hint="move one of the two away; a release key that changed has to be changed in policy.yaml too",
        )


def _write_once(path: Path, body: bytes, mode: int) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(handle, "wb") as file:
            try:
                file.write(body)
                file.flush()
            except OSError:
                with contextlib.suppress(OSError):
                    path.unlink()
                raise
    except OSError as error:
        raise SigningError(f"the key {path} cannot be written: {error.strerror}") from error


def _public_pem(key: ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def key_hint(key: ec.EllipticCurvePublicKey) -> str:
    """What a bundle says about the key it needs: base64 of the sha256 over its DER form."""
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(der).digest()).decode()


class PublicKey:
    """A key whose signatures count."""

    def __init__(self, pem: str) -> None:
        """Raises `ValueError` if it is not a PEM of an ECDSA P-256 public key."""
        try:
            key = load_pem_public_key(pem.encode())
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ValueError(f"not a PEM public key: {error}") from error
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
            raise ValueError("not an ECDSA P-256 public key")
        self._key = key

    @property
    def name(self) -> str:
        """The key's fingerprint, for people."""
        return f"key {key_hint(self._key)}"

    def has_signed(self, message: bytes, signature: bytes) -> bool:
        try:
            self._key.verify(signature, message, _ALGORITHM)
        except InvalidSignature:
            return False
        return True


class KeySigner(Signer):
    """Signs with a private key from a file or a PEM."""

    def __init__(self, private_key: Path | str | bytes, passphrase: str | None = None) -> None:
        """Raises `SigningError` if the key cannot be read; its content is never repeated."""
        what = str(private_key) if isinstance(private_key, Path) else "the given key"
        try:
            if isinstance(private_key, Path):
                pem = private_key.read_bytes()
            else:
                pem = private_key.encode() if isinstance(private_key, str) else private_key
            key = load_pem_private_key(pem, passphrase.encode() if passphrase else None)
        except OSError as error:
            raise SigningError(
                f"the private key {what} cannot be read: {error.strerror}",
                hint="`lockgate init` makes one",
            ) from error
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            # TypeError: a passphrase is missing, or given for a key that has none.
            raise SigningError(
                f"{what} is not a private key, or the passphrase is not its own"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
            raise SigningError(f"{what} is not an ECDSA P-256 key")
        self._key = key

    @property
    def public_pem(self) -> str:
        """The public half, as `policy.yaml` holds it."""
        return _public_pem(self._key.public_key())

    @property
    def name(self) -> str:
        return f"key {key_hint(self._key.public_key())}"

    @property
    def own_policy(self) -> SigningPolicy:
        return SigningPolicy(public_keys=(self.public_pem,))

    def _sign_statement(self, statement: bytes) -> bytes:
        signature = self._key.sign(pre_authentication_encoding(statement), _ALGORITHM)
        return key_bundle(Envelope(statement, signature), key_hint(self._key.public_key()))

    def _sign_payload(self, payload: bytes) -> dict[str, str]:
        signature = self._key.sign(payload, _ALGORITHM)
        return {LEGACY_SIGNATURE: base64.b64encode(signature).decode()}
