"""A candidate as the supply chain leaves it in a store, without the minutes of measuring it: packaged, signed, attested."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lockgate import environments
from lockgate.adapters import sources
from lockgate.adapters.oci import ImageStore
from lockgate.adapters.oci.package import push_model
from lockgate.adapters.oci.runtime import push_runtime
from lockgate.adapters.signing import KeySigner, attest, sign_image
from lockgate.domain.attestation import (
    GATE_TYPE,
    PROVENANCE_TYPE,
    Materials,
    gate_predicate,
    provenance,
)
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.gates.base import REQUIRED_GATES, Decision, GateReport, GateResult
from lockgate.domain.policy import BUILDER
from lockgate.domain.sources import ModelRevision, SourceKind
from lockgate.domain.spec import Recipe, ServingSpec


def publish(
    store: ImageStore,
    signer: KeySigner,
    model: Path,
    serving: ServingSpec,
    *,
    decided_at: str,
    described: Callable[[Candidate], Candidate] = lambda candidate: candidate,
) -> tuple[Candidate, Digest]:
    """The candidate and its evidence. Every gate says pass, for no better reason than that. `described` completes the candidate
    before it is attested."""
    snapshot = sources.read_snapshot(model)
    image = push_model(store, "lockgate.local/models/smol", model, snapshot, labels={})
    runtime = push_runtime(
        store,
        "lockgate.local/runtimes/vllm",
        environment_digest=Digest(environments.environment_digest("serving")),
        lock_file=environments.lock_file("serving"),
        engine="vllm",
    )
    candidate = described(Candidate(model=image, runtime=runtime, serving=serving))
    results = tuple(
        GateResult(gate=gate, decision=Decision.PASS, reasons=("measured",))
        for gate in REQUIRED_GATES
    )
    predicate = gate_predicate(
        candidate,
        policy=Digest.of_bytes(b"policy"),
        evidence={"evaluation": Digest.of_bytes(b"scores")},
        report=GateReport(candidate=candidate.digest, results=results),
        decided_at=decided_at,
    )
    sign_image(store, runtime, signer)
    sign_image(store, image, signer)
    attest(
        store,
        image,
        signer,
        PROVENANCE_TYPE,
        provenance(
            materials=Materials(
                revision=ModelRevision(repo="org/smol", commit="0" * 40),
                kind=SourceKind.HUB,
                source=snapshot,
            ),
            snapshot=snapshot.digest,
            recipe=Recipe.NONE,
            builder=BUILDER,
            versions={"lockgate": "0"},
            invocation="test",
        ),
    )
    attest(store, image, signer, GATE_TYPE, predicate)
    return candidate, predicate.content_digest()
