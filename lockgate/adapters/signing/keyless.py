"""Keyless signing and verification: short-lived certificates for an OIDC identity, through sigstore-python.

Sigstore's library is large and only imported when it is used. Without a trust configuration of one's own the public good
instance is meant; both need the network, verification only when its trust root has to be refreshed.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from lockgate.adapters.signing.signer import Signer
from lockgate.domain.policy import SigningPolicy
from lockgate.errors import LockgateError, SigningError, VerificationError

if TYPE_CHECKING:
    from sigstore.models import ClientTrustConfig
    from sigstore.sign import Signer as SigstoreSigner
    from sigstore.verify import Verifier


class KeylessSigner(Signer):
    """Signs as whoever runs here: the ambient OIDC identity of a CI job or a workload.

    `identity_token` overrides detection; `trust_config` is a Sigstore `ClientTrustConfig` JSON file for an instance of one's
    own. The certificate lasts ten minutes: make a signer when there is something to sign.
    """

    def __init__(
        self, *, identity_token: str | None = None, trust_config: Path | None = None
    ) -> None:
        """Raises `SigningError` where there is no identity, or the instance cannot be reached."""
        from sigstore import oidc
        from sigstore.sign import SigningContext

        try:
            raw = identity_token or oidc.detect_credential()
        except Exception as error:
            raise SigningError(f"the ambient identity cannot be read: {error}") from error
        if not raw:
            raise SigningError(
                "there is no ambient OIDC identity here to sign with",
                hint="run where there is one (a CI job with an id-token permission), or sign with a release key",
            )
        try:
            token = oidc.IdentityToken(raw)
            context = SigningContext.from_trust_config(_trust_config(trust_config))
            with context.signer(token) as signer:
                self._signer: SigstoreSigner = signer
        except Exception as error:
            raise _signing_error(error) from error
        self._identity = token.identity
        self._issuer = token.federated_issuer

    @property
    def name(self) -> str:
        return f"{self._identity} ({self._issuer})"

    @property
    def own_policy(self) -> SigningPolicy:
        return SigningPolicy(identity=self._identity, issuer=self._issuer)

    def _sign_statement(self, statement: bytes) -> bytes:
        from sigstore import dsse

        try:
            return self._signer.sign_dsse(dsse.Statement(statement)).to_json().encode()
        except Exception as error:
            raise _signing_error(error) from error

    def _sign_payload(self, payload: bytes) -> dict[str, str] | None:
        # Cosign's legacy keyless form needs a promise of inclusion, which logs of the second version no longer give; its
        # verifiers of today read bundles.
        return None


def verify_keyless(bundle: bytes, policy: SigningPolicy, trust_config: Path | None) -> bytes:
    """The payload of a keyless bundle whose certificate is of the policy's identity and issuer.

    Raises `VerificationError`, and `SigningError` where the trust root cannot be had.
    """
    from sigstore.errors import Error
    from sigstore.models import Bundle
    from sigstore.verify.policy import Identity

    if policy.identity is None or policy.issuer is None:
        raise VerificationError("the policy names no identity with its issuer")
    verifier = _verifier(trust_config)
    try:
        identity = Identity(identity=policy.identity, issuer=policy.issuer)
        _, payload = verifier.verify_dsse(Bundle.from_json(bundle), identity)
    except (Error, ValueError) as error:
        raise VerificationError(f"keyless signature: {error}") from error
    return payload


@lru_cache(maxsize=8)
def _verifier(trust_config: Path | None) -> Verifier:
    from sigstore.verify import Verifier

    try:
        return Verifier(trusted_root=_trust_config(trust_config).trusted_root)
    except LockgateError:
        raise
    except Exception as error:
        raise _signing_error(error) from error


def _trust_config(path: Path | None) -> ClientTrustConfig:
    from sigstore.models import ClientTrustConfig

    if path is None:
        return ClientTrustConfig.production()
    try:
        return ClientTrustConfig.from_json(path.read_text())
    except OSError as error:
        raise SigningError(f"the trust configuration {path} cannot be read: {error}") from error


def _signing_error(error: Exception) -> SigningError:
    if isinstance(error, SigningError):
        return error
    return SigningError(
        f"Sigstore: {type(error).__name__}: {error}",
        hint="check the network to the Sigstore instance, or use a release key",
    )
