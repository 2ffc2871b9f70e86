"""Self-managed release keys: ECDSA P-256, PEM, encrypted (PKCS#8, or cosign's own format) or not.

Where there is no Internet, or no Sigstore, the key is the identity. Sources: RFC 5915, RFC 5958; cosign signs the same way.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
from abc import abstractmethod
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
    load_der_private_key,
    load_pem_private_key,
    load_pem_public_key,
)

from lockgate.adapters.signing.attachments import LEGACY_SIGNATURE
from lockgate.adapters.signing.cosign_keys import (
    WrongPassword,
    decrypt_cosign_key,
    is_cosign_key,
)
from lockgate.adapters.signing.dsse import Envelope, key_bundle, pre_authentication_encoding
from lockgate.adapters.signing.signer import Signer
from lockgate.domain.policy import SigningPolicy
from lockgate.errors import SigningError

_ALGORITHM = ec.ECDSA(hashes.SHA256())
_HINT = (
    "set LOCKGATE_SIGNING_KEY_PASSPHRASE, or name a file with LOCKGATE_SIGNING_KEY_PASSPHRASE_FILE"
)


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
    def pem(self) -> str:
        return _public_pem(self._key)

    @property
    def hint(self) -> str:
        """What a bundle says about the key it needs: base64 of the sha256 over its DER form."""
        der = self._key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return base64.b64encode(hashlib.sha256(der).digest()).decode()

    @property
    def name(self) -> str:
        """The key's fingerprint, for people."""
        return f"key {self.hint}"

    def has_signed(self, message: bytes, signature: bytes) -> bool:
        try:
            self._key.verify(signature, message, _ALGORITHM)
        except InvalidSignature:
            return False
        return True


class EcdsaSigner(Signer):
    """Signs with one ECDSA P-256 key, wherever it lies. Signatures are DER."""

    @property
    @abstractmethod
    def public_key(self) -> PublicKey: ...

    @abstractmethod
    def _sign(self, message: bytes) -> bytes: ...

    @property
    def public_pem(self) -> str:
        """The public half, as `policy.yaml` holds it."""
        return self.public_key.pem

    @property
    def name(self) -> str:
        return self.public_key.name

    @property
    def own_policy(self) -> SigningPolicy:
        return SigningPolicy(public_keys=(self.public_pem,))

    def _sign_statement(self, statement: bytes) -> bytes:
        signature = self._sign(pre_authentication_encoding(statement))
        return key_bundle(Envelope(statement, signature), self.public_key.hint)

    def _sign_payload(self, payload: bytes) -> dict[str, str]:
        return {LEGACY_SIGNATURE: base64.b64encode(self._sign(payload)).decode()}


class KeySigner(EcdsaSigner):
    """Signs with a private key from a file or a PEM."""

    def __init__(self, private_key: Path | str | bytes, passphrase: str | None = None) -> None:
        """Raises `SigningError` if the key cannot be read or opened; neither its content nor the passphrase is repeated."""
        what = str(private_key) if isinstance(private_key, Path) else "the given key"
        try:
            if isinstance(private_key, Path):
                pem = private_key.read_bytes()
            else:
                pem = private_key.encode() if isinstance(private_key, str) else private_key
        except OSError as error:
            raise SigningError(
                f"the private key {what} cannot be read: {error.strerror}",
                hint="`lockgate init` makes one",
            ) from error
        key = _private_key(pem, passphrase or "", what)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
            raise SigningError(f"{what} is not an ECDSA P-256 key")
        self._key = key

    @property
    def public_key(self) -> PublicKey:
        return PublicKey(_public_pem(self._key.public_key()))

    def _sign(self, message: bytes) -> bytes:
        return self._key.sign(message, _ALGORITHM)


def _private_key(pem: bytes, passphrase: str, what: str) -> object:
    """Raises `SigningError` that tells a missing passphrase, a wrong one, and a file that holds no key apart."""
    own_format = is_cosign_key(pem)
    encrypted = own_format or b"ENCRYPTED" in pem
    try:
        if own_format:
            return load_der_private_key(decrypt_cosign_key(pem, passphrase.encode()), None)
        return load_pem_private_key(pem, passphrase.encode() or None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        # TypeError: a passphrase is missing, or given for a key that has none. ValueError: a wrong one, or no key.
        if encrypted and not passphrase and isinstance(error, TypeError | WrongPassword):
            raise SigningError(
                f"{what} is encrypted, and no passphrase is given", hint=_HINT
            ) from error
        if isinstance(error, WrongPassword) or (encrypted and "password" in str(error).lower()):
            raise SigningError(f"the passphrase does not open {what}", hint=_HINT) from error
        if passphrase and isinstance(error, TypeError):
            raise SigningError(
                f"{what} is not encrypted, and a passphrase is given",
                hint="leave the passphrase out",
            ) from error
        why = f": {error}" if own_format else ""
        raise SigningError(f"{what} is not a private key{why}") from error
