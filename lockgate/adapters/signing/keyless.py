"""Keyless signing and verification: short-lived certificates for an OIDC identity, through sigstore-python.

Sigstore's library is large and only imported when it is used. The policy says which instance is meant: production, staging
(both need the network, verification only when the trust root has to be refreshed), or one's own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from lockgate.adapters.signing.dsse import PAYLOAD_TYPE
from lockgate.adapters.signing.signer import Signer
from lockgate.domain.digests import canonical_json, shown
from lockgate.domain.policy import SigningPolicy
from lockgate.errors import LockgateError, SigningError, VerificationError

if TYPE_CHECKING:
    from cryptography.x509 import Certificate
    from sigstore.models import ClientTrustConfig
    from sigstore.sign import Signer as SigstoreSigner
    from sigstore.verify import Verifier


LIMIT_SECONDS = 120.0
"""How long Sigstore's services may take for one answer: its library sets no time limit of its own."""

_Result = TypeVar("_Result")


class KeylessSigner(Signer):
    """Signs as whoever runs here: the ambient OIDC identity of a CI job or a workload.

    `policy` says whom verifiers expect: a signature by anybody else is an error here and now, not at the next deployment.
    `identity_token` overrides detection. The certificate lasts ten minutes: make a signer when there is something to sign.
    """

    def __init__(self, policy: SigningPolicy, *, identity_token: str | None = None) -> None:
        """Raises `SigningError` where there is no identity, or the instance cannot be reached."""
        if policy.identity is None or policy.issuer is None:
            raise SigningError("the policy names no identity with its issuer to sign as")
        self._policy = policy
        self._session = _bounded(lambda: _begin(identity_token, _instance(policy)))

    @property
    def name(self) -> str:
        return f"{self._policy.identity} ({self._policy.issuer})"

    @property
    def own_policy(self) -> SigningPolicy:
        return self._policy

    def _sign_statement(self, statement: bytes) -> bytes:
        from sigstore import dsse

        bundle = _bounded(lambda: self._session.signer.sign_dsse(dsse.Statement(statement)))
        body = bundle.to_json().encode()
        self._check(lambda: verify_keyless(body, self._policy))
        return body

    def _sign_payload(self, payload: bytes) -> dict[str, str] | None:
        # The legacy form lives on the log's promise of inclusion, which logs of the second version no longer give: they are
        # not asked. Cosign's verifiers of today read bundles.
        if not self._session.promises:
            return None
        from lockgate.adapters.signing.promised import to_annotations

        bundle = _bounded(lambda: self._session.signer.sign_artifact(payload))
        annotations = to_annotations(bundle, self._session.authorities)
        if annotations is not None:
            self._check(lambda: verify_keyless_payload(payload, annotations, self._policy))
        return annotations

    def _check(self, verify: Callable[[], object]) -> None:
        try:
            verify()
        except VerificationError as error:
            raise SigningError(
                f"what was signed here would not be accepted from {self.name}: {error.message}",
                hint="the identity of this job and the one in policy.yaml differ",
            ) from error


@dataclass(frozen=True)
class _Session:
    """A certificate and its key, with what the instance is like."""

    signer: SigstoreSigner
    authorities: Sequence[Certificate]
    promises: bool
    """Whether its log promises inclusion at once (Rekor's first version)."""


def _begin(identity_token: str | None, instance: str) -> _Session:
    from sigstore import oidc
    from sigstore._internal.rekor.client import RekorClient
    from sigstore.sign import SigningContext

    raw = identity_token or oidc.detect_credential()
    if not raw:
        raise SigningError(
            "there is no ambient OIDC identity here to sign with",
            hint="run where there is one (a CI job with an id-token permission), or sign with a release key",
        )
    trust = _trust_config(instance)
    promises = isinstance(trust.signing_config.get_tlogs()[0], RekorClient)
    with SigningContext.from_trust_config(trust).signer(oidc.IdentityToken(raw)) as signer:
        return _Session(signer, trust.trusted_root.get_fulcio_certs(), promises)


def verify_keyless(bundle: bytes, policy: SigningPolicy) -> bytes:
    """The payload of a keyless bundle whose certificate is of the policy's identity and issuer.

    Raises `VerificationError`, and `SigningError` where the trust root cannot be had.
    """
    if policy.identity is None or policy.issuer is None:
        raise VerificationError("signed by an identity, and the policy names none")
    from sigstore.models import Bundle
    from sigstore.verify.policy import Identity

    verifier = _verifier(_instance(policy))
    try:
        identity = Identity(identity=policy.identity, issuer=policy.issuer)
        kind, payload = verifier.verify_dsse(Bundle.from_json(bundle), identity)
    except Exception as error:  # its own, and those of a certificate that nobody issued
        raise VerificationError(f"keyless signature: {error}") from error
    # Signed as something else, it was not said as a statement, whatever its bytes look like. Sigstore's library leaves this to us.
    if kind != PAYLOAD_TYPE:
        raise VerificationError(f"keyless signature: payload type {shown(kind)}")
    return payload


def verify_keyless_payload(
    payload: bytes, annotations: Mapping[str, str], policy: SigningPolicy
) -> None:
    """Check cosign's legacy form of a keyless signature over a payload, as `verify_keyless` checks a bundle.

    Raises `VerificationError`, and `SigningError` where the trust root cannot be had.
    """
    if policy.identity is None or policy.issuer is None:
        raise VerificationError("signed by an identity, and the policy names none")
    from sigstore.verify.policy import Identity

    from lockgate.adapters.signing.promised import from_annotations

    verifier = _verifier(_instance(policy))
    try:
        identity = Identity(identity=policy.identity, issuer=policy.issuer)
        verifier.verify_artifact(payload, from_annotations(payload, annotations), identity)
    except Exception as error:  # its own, and those of a certificate that nobody issued
        raise VerificationError(f"keyless signature: {error}") from error


def _instance(policy: SigningPolicy) -> str:
    """`production`, `staging`, or the trust configuration of another instance as JSON."""
    if isinstance(policy.sigstore, str):
        return policy.sigstore
    return canonical_json(policy.sigstore).decode()


@lru_cache(maxsize=8)
def _verifier(instance: str) -> Verifier:
    from sigstore.verify import Verifier

    return _bounded(lambda: Verifier(trusted_root=_trust_config(instance).trusted_root))


def _trust_config(instance: str) -> ClientTrustConfig:
    from sigstore.models import ClientTrustConfig

    if instance == "production":
        return ClientTrustConfig.production()
    if instance == "staging":
        return ClientTrustConfig.staging()
    return ClientTrustConfig.from_json(instance)


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
