"""Keyless signing and verification: short-lived certificates for an OIDC identity, through sigstore-python.

Sigstore's library is large and only imported when it is used. Without a trust configuration of one's own the public good
instance is meant; both need the network, verification only when its trust root has to be refreshed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lockgate.adapters.signing.signer import Signer
from lockgate.domain.policy import SigningPolicy
from lockgate.errors import LockgateError, SigningError, VerificationError

if TYPE_CHECKING:
    from sigstore.models import ClientTrustConfig
    from sigstore.sign import Signer as SigstoreSigner
    from sigstore.verify import Verifier


LIMIT_SECONDS = 120.0
"""How long Sigstore's services may take for one answer: its library sets no time limit of its own."""

_Result = TypeVar("_Result")


class KeylessSigner(Signer):
    """Signs as whoever runs here: the ambient OIDC identity of a CI job or a workload.

    `policy` says whom verifiers expect: a signature by anybody else is an error here and now, not at the next deployment.
    `identity_token` overrides detection; `trust_config` is a Sigstore `ClientTrustConfig` JSON file for an instance of one's
    own. The certificate lasts ten minutes: make a signer when there is something to sign.
    """

    def __init__(
        self,
        policy: SigningPolicy,
        *,
        identity_token: str | None = None,
        trust_config: Path | None = None,
    ) -> None:
        """Raises `SigningError` where there is no identity, or the instance cannot be reached."""
        if policy.identity is None or policy.issuer is None:
            raise SigningError("the policy names no identity with its issuer to sign as")
        self._policy = policy
        self.trust_config = trust_config
        self._signer = _bounded(lambda: _sigstore_signer(identity_token, trust_config))

    @property
    def name(self) -> str:
        return f"{self._policy.identity} ({self._policy.issuer})"

    @property
    def own_policy(self) -> SigningPolicy:
        return self._policy

    def _sign_statement(self, statement: bytes) -> bytes:
        from sigstore import dsse

        bundle = _bounded(lambda: self._signer.sign_dsse(dsse.Statement(statement)))
        body = bundle.to_json().encode()
        try:
            verify_keyless(body, self._policy, self.trust_config)
        except VerificationError as error:
            raise SigningError(
                f"what was signed here would not be accepted from {self.name}: {error.message}",
                hint="the identity of this job and the one in policy.yaml differ",
            ) from error
        return body

    def _sign_payload(self, payload: bytes) -> dict[str, str] | None:
        # Cosign's legacy keyless form needs a promise of inclusion, which logs of the second version no longer give; its
        # verifiers of today read bundles.
        return None


def _sigstore_signer(identity_token: str | None, trust_config: Path | None) -> SigstoreSigner:
    from sigstore import oidc
    from sigstore.sign import SigningContext

    raw = identity_token or oidc.detect_credential()
    if not raw:
        raise SigningError(
            "there is no ambient OIDC identity here to sign with",
            hint="run where there is one (a CI job with an id-token permission), or sign with a release key",
        )
    context = SigningContext.from_trust_config(_trust_config(trust_config))
    with context.signer(oidc.IdentityToken(raw)) as signer:
        return signer


def verify_keyless(bundle: bytes, policy: SigningPolicy, trust_config: Path | None) -> bytes:
    """The payload of a keyless bundle whose certificate is of the policy's identity and issuer.

    Raises `VerificationError`, and `SigningError` where the trust root cannot be had.
    """
    if policy.identity is None or policy.issuer is None:
        raise VerificationError("signed by an identity, and the policy names none")
    from sigstore.errors import Error
    from sigstore.models import Bundle
    from sigstore.verify.policy import Identity

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

    return _bounded(lambda: Verifier(trusted_root=_trust_config(trust_config).trusted_root))


def _trust_config(path: Path | None) -> ClientTrustConfig:
    from sigstore.models import ClientTrustConfig

    if path is None:
        return ClientTrustConfig.production()
    try:
        return ClientTrustConfig.from_json(path.read_text())
    except OSError as error:
        raise SigningError(f"the trust configuration {path} cannot be read: {error}") from error


def _bounded(ask: Callable[[], _Result]) -> _Result:
    """What Sigstore's services answer, within `LIMIT_SECONDS`; every error becomes a `SigningError`."""
    results: list[_Result] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(ask())
        except Exception as error:
            errors.append(error)

    # A daemon: a request that hangs for good must not keep the program from ending.
    thread = threading.Thread(target=run, name="sigstore", daemon=True)
    thread.start()
    thread.join(LIMIT_SECONDS)
    if results:
        return results[0]
    hint = "check the network to the Sigstore instance, or use a release key"
    if not errors:
        raise SigningError(f"Sigstore gave no answer in {LIMIT_SECONDS:.0f} s", hint=hint)
    error = errors[0]
    if isinstance(error, LockgateError):
        raise error
    raise SigningError(f"Sigstore: {type(error).__name__}: {error}", hint=hint) from error
