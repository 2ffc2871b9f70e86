"""What every way of signing has in common: the rules about what may be signed at all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

from lockgate.domain.attestation import (
    GATE_TYPE,
    PASSED,
    RUNTIME_TYPE,
    GatePredicate,
    RuntimePredicate,
    Statement,
    parse_statement,
)
from lockgate.domain.digests import Digest
from lockgate.domain.policy import SigningPolicy
from lockgate.errors import Refused, SigningError


class Signer(ABC):
    """Signs statements about images. Subclasses bring the key; the rules stand here and cannot be overridden.

    Verifiers in the field (cosign, Kyverno) accept any statement by a trusted key, many without a look at what it says. So a
    statement that a candidate failed is never signed: once it exists it can be taken for an approval.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Who signs, for people: a key's fingerprint or an identity."""

    @property
    @abstractmethod
    def own_policy(self) -> SigningPolicy:
        """The policy that this signer's signatures satisfy."""

    @final
    def sign_statement(self, statement: bytes) -> bytes:
        """A Sigstore bundle over an in-toto statement about one image.

        Raises `Refused` for a gate predicate that did not pass or contradicts itself, `SigningError` otherwise.
        """
        try:
            parsed = parse_statement(statement)
        except ValueError as error:
            raise SigningError(f"only in-toto statements are signed: {error}") from error
        if len(parsed.subjects) != 1:
            raise SigningError(f"a statement about {len(parsed.subjects)} images is not signed")
        if parsed.predicate_type == GATE_TYPE:
            try:
                gate = GatePredicate.model_validate(parsed.predicate)
            except ValueError as error:
                raise Refused(
                    f"a gate predicate that is not sound is never signed: {error}"
                ) from error
            if gate.result != PASSED:
                raise Refused(
                    "a gate report that did not pass is never signed: "
                    + "; ".join(gate.report.refusals)
                )
            if gate.model.digest != parsed.subjects[0]:
                raise Refused(f"the gate predicate is about {gate.model}, not {parsed.subjects[0]}")
        if parsed.predicate_type == RUNTIME_TYPE:
            _check_runtime(parsed)
        return self._sign_statement(statement)

    @final
    def sign_image_digest(self, payload: bytes, digest: Digest) -> dict[str, str] | None:
        """Annotations of a legacy cosign signature over a payload that names `digest`; None where this signer has none."""
        if digest.hex.encode() not in payload:
            raise SigningError(f"the payload does not name {digest}")
        return self._sign_payload(payload)

    @abstractmethod
    def _sign_statement(self, statement: bytes) -> bytes: ...

    @abstractmethod
    def _sign_payload(self, payload: bytes) -> dict[str, str] | None: ...


def _check_runtime(parsed: Statement) -> None:
    try:
        runtime = RuntimePredicate.model_validate(parsed.predicate)
    except ValueError as error:
        raise Refused(f"a runtime predicate that is not sound is never signed: {error}") from error
    if runtime.image.digest != parsed.subjects[0]:
        raise Refused(f"the runtime predicate is about {runtime.image}, not {parsed.subjects[0]}")
