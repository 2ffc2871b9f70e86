"""Release keys that never leave their service: AWS, Google and Azure key management, PKCS#11 tokens, through securesystemslib.

The vendors' libraries are no dependencies of Lockgate: who uses a service installs its library beside
(`pip install "securesystemslib[awskms]"`, and `gcpkms`, `azurekms`, `hsm`). The service signs a digest; what is signed stays here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lockgate.adapters.signing.keys import EcdsaSigner, PublicKey
from lockgate.errors import SigningError

if TYPE_CHECKING:
    from securesystemslib.signer._signer import Signer as ServiceSigner

SCHEMES = ("awskms", "gcpkms", "azurekms", "hsm", "file2")
"""securesystemslib's own (Vault's and GnuPG's are left out: they do not sign with ECDSA P-256 over SHA-256)."""


class ServiceKeySigner(EcdsaSigner):
    """Signs with a key in a service.

    Every signature is verified with the public half before it is used: a service that signs with another key, or in another
    encoding, is found out here and not at the next deployment.
    """

    def __init__(self, uri: str, public_key_pem: str) -> None:
        """Raises `SigningError` where the scheme is unknown, its library is missing, or the service refuses."""
        scheme = uri.partition(":")[0]
        if scheme not in SCHEMES:
            raise SigningError(
                f"no keys of the scheme {scheme!r} are known", hint=f"known: {', '.join(SCHEMES)}"
            )
        try:
            self._public = PublicKey(public_key_pem)
        except ValueError as error:
            raise SigningError(f"the public half of {scheme}:…: {error}") from error
        self._scheme, self._service = scheme, _service_signer(uri, public_key_pem, scheme)

    @property
    def public_key(self) -> PublicKey:
        return self._public

    def _sign(self, message: bytes) -> bytes:
        try:
            signature = bytes.fromhex(self._service.sign(message).signature)
        except Exception as error:  # each vendor's library raises its own
            raise SigningError(f"{self._scheme}: {type(error).__name__}: {error}") from error
        if not self._public.has_signed(message, signature):
            raise SigningError(
                f"{self._scheme} signed with another key than {self._public.name}",
                hint="name the public half of the service's key in LOCKGATE_SIGNING_PUBLIC_KEY",
            )
        return signature


def _service_signer(uri: str, public_key_pem: str, scheme: str) -> ServiceSigner:
    # Imported here: nobody pays for what is not used.
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib import signer  # registers the schemes
    from securesystemslib.exceptions import UnsupportedLibraryError

    try:
        key = signer.SSlibKey.from_crypto(load_pem_public_key(public_key_pem.encode()))  # type: ignore[attr-defined]  # a re-export
        return signer.Signer.from_priv_key_uri(uri, key)  # type: ignore[attr-defined]  # a re-export
    except UnsupportedLibraryError as error:
        raise SigningError(
            f"{scheme}: {error}",
            hint=f"install the vendor's library beside Lockgate: securesystemslib[{scheme}]",
        ) from error
    except Exception as error:  # each vendor's library raises its own
        raise SigningError(
            f"{scheme}: {type(error).__name__}: {error}",
            hint="compare LOCKGATE_SIGNING_KEY_URI and the credentials of this process",
        ) from error
