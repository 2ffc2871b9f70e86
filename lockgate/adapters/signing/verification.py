"""Whether an image may be used: signed by whom the policy names, and passed through its gates.

Asked before every Git commit, before every raise of weight and before a pod starts, so it reads only what is small. Every
rule that can fail is reported, not only the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from lockgate.adapters.signing import attachments
from lockgate.adapters.signing.dsse import envelope_of, has_certificate, parse_bundle
from lockgate.adapters.signing.keys import PublicKey
from lockgate.adapters.signing.legacy import key_of, legacy_signer
from lockgate.domain.attestation import (
    GATE_TYPE,
    PASSED,
    PROVENANCE_TYPE,
    RUNTIME_TYPE,
    SIGNATURE_TYPE,
    GatePredicate,
    RuntimePredicate,
    Statement,
    origin_of,
    parse_statement,
)
from lockgate.domain.digests import Digest
from lockgate.domain.gates.base import Decision
from lockgate.domain.images import ImageRef
from lockgate.domain.policy import SigningPolicy
from lockgate.domain.stores import Descriptor, ImageStore
from lockgate.errors import IntegrityError, LockgateError, RegistryError, VerificationError

_CLOCK_SKEW = timedelta(minutes=5)
RELEASE_HINT = "release it with `lockgate release`, which signs what passed; never sign by hand"


@dataclass(frozen=True)
class Failure:
    """A rule that does not hold. Rules: `policy`, `image`, `layers`, `signature`, `gate`, `age`, `provenance`, `builder`,
    `source`, `scan` (of a runtime), `store`."""

    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.message}"


@dataclass(frozen=True)
class SignedStatement:
    """A statement about the image that the policy's signer made."""

    statement: Statement
    signer: str
    bundle: Digest
    """Digest of the bundle's manifest, the evidence to refer to."""


@dataclass(frozen=True)
class VerificationReport:
    """What was checked and what did not hold. Nothing is assumed: an image that could not be read is not verified."""

    image: ImageRef
    failures: tuple[Failure, ...]
    signer: str | None = None
    statements: tuple[SignedStatement, ...] = ()
    gate: GatePredicate | None = None
    runtime: RuntimePredicate | None = None
    """Of a runtime image: what its newest import attests."""
    ignored: tuple[str, ...] = ()
    """Attachments that count for nothing: other keys' signatures, malformed ones."""
    outage: LockgateError | None = field(default=None, compare=False)
    """Why the image could not be verified at all, if that was the store's fault."""

    @property
    def ok(self) -> bool:
        return not self.failures

    def require(self, hint: str = RELEASE_HINT) -> None:
        """Raises `VerificationError` with every failed rule; the store's own error where it could not be asked."""
        if self.outage is not None:
            raise self.outage
        if self.failures:
            raise VerificationError(
                f"{self.image} is refused: " + "; ".join(map(str, self.failures)),
                hint=hint,
            )

    def to_data(self) -> dict[str, Any]:
        """For reports and `--json`."""
        return {
            "image": str(self.image),
            "ok": self.ok,
            "failures": [{"rule": f.rule, "message": f.message} for f in self.failures],
            "signer": self.signer,
            "attestations": sorted({s.statement.predicate_type for s in self.statements}),
            "gate": self.gate.to_data() if self.gate else None,
            "runtime": self.runtime.to_data() if self.runtime else None,
            "ignored": list(self.ignored),
        }


def verify(
    store: ImageStore,
    ref: ImageRef,
    policy: SigningPolicy,
    *,
    candidate: Digest | None,
    require_gates: Sequence[str],
    max_age: timedelta | None = None,
    now: datetime | None = None,
) -> VerificationReport:
    """Check an image against a policy. Never raises: an unreachable store is a failed rule (`store`).

    With `candidate` (a model image) there must be a signed gate predicate for exactly that candidate, in which every one of
    `require_gates` passed and none failed, and signed provenance of a builder and a source that the policy lists; `max_age`,
    with `now` (aware), bounds the time since the gate's decision. With required gates but no candidate any candidate of the
    image counts. Without either (a runtime image) only image and signature are looked at. Contents of layers are not hashed
    here: that is done by whoever reads them.
    """
    return _answer(
        ref, lambda: _Check(store, ref, policy).run(candidate, require_gates, max_age, now)
    )


def verify_runtime(
    store: ImageStore,
    ref: ImageRef,
    policy: SigningPolicy,
    *,
    max_age: timedelta | None = None,
    now: datetime | None = None,
) -> VerificationReport:
    """Check a runtime image: whole, and signed by whom the policy names. Never raises.

    Where an import is attested, the newest must be of within `max_age` before `now` (aware). The embedded cluster's
    description of itself has none: there is nothing in it to scan.
    """
    return _answer(ref, lambda: _Check(store, ref, policy).run_runtime(max_age, now))


def _answer(ref: ImageRef, check: Callable[[], VerificationReport]) -> VerificationReport:
    try:
        return check()
    except LockgateError as error:
        outage = error
    except RecursionError:
        # Of an index or a manifest that the store reads for us: whoever may write there can make one.
        outage = RegistryError(f"what is stored beside {ref} nests too deeply to be read")
    return VerificationReport(ref, (Failure("store", outage.message),), outage=outage)


class _Check:
    """One verification under way."""

    def __init__(self, store: ImageStore, ref: ImageRef, policy: SigningPolicy) -> None:
        self._store, self._ref, self._policy = store, ref, policy
        self._failures: list[Failure] = []
        self._ignored: list[str] = []
        self._keys: list[PublicKey] = []

    def run(
        self,
        candidate: Digest | None,
        require_gates: Sequence[str],
        max_age: timedelta | None,
        now: datetime | None,
    ) -> VerificationReport:
        self._read_policy()
        if not self._image_is_whole():
            return VerificationReport(self._ref, tuple(self._failures))
        statements = self._signed_statements()
        signer = self._signature(statements)
        gate = None
        if candidate is not None or require_gates:
            gate = self._gate(statements, candidate, require_gates)
            if gate is not None and max_age is not None:
                self._within("decided by the gates", gate.decided, max_age, now)
                if gate.scanned is not None:
                    self._within("scanned", gate.scanned, max_age, now)
            self._provenance(statements)
        return VerificationReport(
            self._ref,
            tuple(self._failures),
            signer=signer,
            statements=tuple(statements),
            gate=gate,
            ignored=tuple(self._ignored),
        )

    def run_runtime(self, max_age: timedelta | None, now: datetime | None) -> VerificationReport:
        self._read_policy()
        if not self._image_is_whole():
            return VerificationReport(self._ref, tuple(self._failures))
        statements = self._signed_statements()
        signer = self._signature(statements)
        runtime = self._runtime(statements)
        if runtime is not None and max_age is not None:
            self._within("scanned", runtime.scanned, max_age, now)
        return VerificationReport(
            self._ref,
            tuple(self._failures),
            signer=signer,
            statements=tuple(statements),
            runtime=runtime,
            ignored=tuple(self._ignored),
        )

    def _runtime(self, statements: Sequence[SignedStatement]) -> RuntimePredicate | None:
        found = []
        for signed in statements:
            if signed.statement.predicate_type == RUNTIME_TYPE:
                try:
                    found.append(RuntimePredicate.model_validate(signed.statement.predicate))
                except ValueError as error:
                    self._fail("scan", f"{signed.bundle}: runtime predicate: {error}")
        return max(found, key=lambda predicate: predicate.scanned, default=None)

    def _fail(self, rule: str, message: str) -> None:
        self._failures.append(Failure(rule, message))

    def _read_policy(self) -> None:
        for pem in self._policy.public_keys:
            try:
                self._keys.append(PublicKey(pem))
            except ValueError as error:
                self._fail("policy", str(error))
        if (self._policy.identity is None) != (self._policy.issuer is None):
            self._fail("policy", "an identity counts only together with its issuer")
        if not self._keys and self._policy.identity is None:
            self._fail("policy", "the policy names neither a key nor an identity: nobody may sign")

    def _image_is_whole(self) -> bool:
        """Manifest and blobs are there, as large as they should be; the store checks the manifest's digest."""
        try:
            manifest, _ = self._store.get_manifest(self._ref.repository, self._ref.digest)
            blobs = attachments.blobs_of(manifest)
        except IntegrityError as error:
            self._fail("image", error.message)
            return False
        except ValueError as error:
            self._fail("image", f"not an image: {error}")
            return False
        for blob in blobs:
            size = self._store.blob_size(self._ref.repository, blob.digest)
            if size != blob.size:
                found = "is missing" if size is None else f"has {size} bytes, not {blob.size}"
                self._fail("layers", f"{blob.digest} {found}")
        return True

    def _signed_statements(self) -> list[SignedStatement]:
        found = []
        for descriptor in attachments.bundle_descriptors(self._store, self._ref):
            try:
                statement, signer = self._open(descriptor)
            except (IntegrityError, VerificationError) as error:
                self._ignored.append(f"{descriptor.digest}: {error.message}")
            except ValueError as error:
                self._ignored.append(f"{descriptor.digest}: {error}")
            else:
                found.append(SignedStatement(statement, signer, descriptor.digest))
        return found

    def _open(self, descriptor: Descriptor) -> tuple[Statement, str]:
        body = attachments.read_bundle(self._store, self._ref, descriptor)
        bundle = parse_bundle(body)
        if has_certificate(bundle):
            # Imported here: Sigstore's library takes longer to load than everything else takes to run.
            from lockgate.adapters.signing.keyless import verify_keyless

            payload = verify_keyless(body, self._policy)
            signer = f"{self._policy.identity} ({self._policy.issuer})"
        else:
            envelope = envelope_of(bundle)
            key = key_of(self._keys, envelope.signed_bytes, envelope.signature)
            if key is None:
                raise VerificationError("not signed by a key of the policy")
            payload, signer = envelope.payload, key.name
        statement = parse_statement(payload)
        if statement.subjects != (self._ref.digest,):
            raise VerificationError(f"signed for {', '.join(statement.subjects)}")
        return statement, signer

    def _signature(self, statements: Sequence[SignedStatement]) -> str | None:
        for signed in statements:
            if signed.statement.predicate_type == SIGNATURE_TYPE:
                return signed.signer
        for layer in self._legacy():
            try:
                legacy = attachments.read_legacy(self._store, self._ref, layer)
                return legacy_signer(legacy, self._ref.digest, self._policy, self._keys)
            except (IntegrityError, VerificationError) as error:
                self._ignored.append(f"legacy signature: {error.message}")
        reasons = "; ".join(self._ignored[:3])
        self._fail("signature", f"no signature by the policy's signer ({reasons or 'none at all'})")
        return None

    def _legacy(self) -> list[Descriptor]:
        try:
            return attachments.legacy_descriptors(self._store, self._ref)
        except IntegrityError as error:
            self._ignored.append(f"legacy signatures: {error.message}")
            return []

    def _gate(
        self,
        statements: Sequence[SignedStatement],
        candidate: Digest | None,
        require_gates: Sequence[str],
    ) -> GatePredicate | None:
        """The newest signed gate predicate that fits. A sound one that failed refuses, whatever stands beside it."""
        if not require_gates:
            self._fail("gate", "no gate is required: an empty policy passes nothing")
            return None
        fitting: list[GatePredicate] = []
        for signed in statements:
            if signed.statement.predicate_type != GATE_TYPE:
                continue
            said = signed.statement.predicate
            if candidate is not None and said.get("candidate") != candidate:
                continue
            try:
                gate = GatePredicate.model_validate(said)
                if gate.model.digest != self._ref.digest:
                    raise ValueError(f"it is about {gate.model}")
            except ValueError as error:
                # Not sound, so it cannot let anything through; what it says against the candidate still counts.
                self._ignored.append(f"{signed.bundle}: gate predicate: {error}")
                if said.get("result") != PASSED:
                    self._fail("gate", f"{signed.bundle} says {said.get('result')!r}")
                continue
            fitting.append(gate)
        for gate in fitting:
            if gate.result != PASSED:
                reasons = "; ".join(gate.report.refusals)
                self._fail("gate", f"candidate {gate.candidate} did not pass: {reasons}")
        if not fitting:
            what = f"candidate {candidate}" if candidate else "this image"
            self._fail("gate", f"no signed gate predicate for {what}")
            return None
        newest = max(fitting, key=lambda g: g.decided)
        passed = {r.gate for r in newest.report.results if r.decision is Decision.PASS}
        for name in require_gates:
            if name not in passed:
                self._fail("gate", f"required gate {name} has not passed for {newest.candidate}")
        return newest

    def _within(
        self, what: str, moment: datetime, max_age: timedelta, now: datetime | None
    ) -> None:
        if now is None:
            raise ValueError("max_age needs now")
        if not -_CLOCK_SKEW <= now - moment <= max_age:
            said = f"{what} at {moment.isoformat()}"
            self._fail("age", f"{said}, not within {max_age.days} days before {now.isoformat()}")

    def _provenance(self, statements: Sequence[SignedStatement]) -> None:
        """One sound statement that satisfies the policy is enough: the same bytes may have been made twice."""
        allowed = self._policy.provenance
        problems: list[Failure] = []
        for signed in statements:
            if signed.statement.predicate_type != PROVENANCE_TYPE:
                continue
            try:
                origin = origin_of(signed.statement.predicate)
            except ValueError as error:
                problems.append(Failure("provenance", str(error)))
                continue
            wrong = []
            if origin.builder not in allowed.builders:
                wrong.append(
                    Failure("builder", f"{origin.builder!r} is not a builder of the policy")
                )
            if not allowed.takes_source(origin.source):
                wrong.append(Failure("source", f"{origin.source!r} is not a source of the policy"))
            if not wrong:
                return
            problems += wrong
        self._failures += problems or [Failure("provenance", "no signed SLSA provenance")]


__all__ = ["Failure", "SignedStatement", "VerificationReport", "verify", "verify_runtime"]
