"""What is said about an image under signature: in-toto statements and their predicates, built from data alone.

Sources: in-toto Statement v1; SLSA provenance v1; CycloneDX 1.6 (machine-learning BOM); cosign v3's signature predicate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import Field, model_validator

from lockgate.domain.base import Frozen
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest, canonical_json
from lockgate.domain.gates.base import GateReport
from lockgate.domain.images import ImageRef
from lockgate.domain.sources import ModelRevision
from lockgate.domain.spec import Recipe

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
SIGNATURE_TYPE = "https://sigstore.dev/cosign/sign/v1"
PROVENANCE_TYPE = "https://slsa.dev/provenance/v1"
SBOM_TYPE = "https://cyclonedx.org/bom"
GATE_TYPE = "https://lockgate.dev/gate/v1"
BUILD_TYPE = "https://lockgate.dev/build/model-image/v1"

PASSED: Literal["PASSED"] = "PASSED"
FAILED: Literal["FAILED"] = "FAILED"


@dataclass(frozen=True)
class Statement:
    """A parsed in-toto statement about images."""

    subjects: tuple[Digest, ...]
    predicate_type: str
    predicate: Mapping[str, Any]


def statement(ref: ImageRef, predicate_type: str, predicate: Mapping[str, Any]) -> bytes:
    """The statement that `predicate` holds of the image: canonical JSON, the bytes that get signed."""
    return canonical_json(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": ref.repository, "digest": {"sha256": ref.digest.hex}}],
            "predicateType": predicate_type,
            "predicate": dict(predicate),
        }
    )


def parse_statement(body: bytes) -> Statement:
    """Raises `ValueError` if it is not an in-toto statement v1 whose subjects all have a sha256."""
    data = json.loads(body)
    try:
        if data["_type"] != STATEMENT_TYPE:
            raise ValueError(f"not an in-toto statement v1: {data['_type']!r}")
        subjects = tuple(Digest.from_hex(s["digest"]["sha256"]) for s in data["subject"])
        predicate_type, predicate = data["predicateType"], data.get("predicate") or {}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an in-toto statement: {error!r}") from error
    if not subjects or not isinstance(predicate_type, str) or not isinstance(predicate, dict):
        raise ValueError("an in-toto statement has subjects, a predicate type and a predicate")
    return Statement(subjects, predicate_type, predicate)


class EvidenceRef(Frozen):
    """A document the gate looked at: what it is about, and its digest in the store."""

    kind: str
    digest: Digest


class GatePredicate(Frozen):
    """`https://lockgate.dev/gate/v1`: what was found out about a candidate, and that it was enough.

    It contradicts itself nowhere, or it cannot be built or read: the result follows from the report, the candidate's digest
    from its parts. `serving` is kept as data, so that the digest stays right when the spec's schema grows.
    """

    result: Literal["PASSED", "FAILED"]
    candidate: Digest
    model: ImageRef
    runtime: ImageRef
    serving: dict[str, Any]
    serving_digest: Digest
    policy: Digest
    evidence: tuple[EvidenceRef, ...] = Field(min_length=1)
    report: GateReport
    decided_at: str
    """RFC 3339."""

    @property
    def decided(self) -> datetime:
        """`decided_at`, aware."""
        return datetime.fromisoformat(self.decided_at)

    @model_validator(mode="after")
    def _consistent(self) -> GatePredicate:
        if self.serving_digest != Digest.of_json(self.serving):
            raise ValueError("the serving digest is not that of the serving spec")
        parts = {
            "model": self.model.digest,
            "runtime": self.runtime.digest,
            "serving": self.serving,
        }
        if self.candidate != Digest.of_json(parts):
            raise ValueError("the candidate is not that of model, runtime and serving spec")
        if self.report.candidate != self.candidate:
            raise ValueError(f"the gate report is about another candidate: {self.report.candidate}")
        if self.decided.tzinfo is None:
            raise ValueError(f"a time without its offset: {self.decided_at!r}")
        if (self.result == PASSED) != self.report.passed:
            raise ValueError(f"the result is {self.result} but the report says otherwise")
        return self


def gate_predicate(
    candidate: Candidate,
    *,
    policy: Digest,
    evidence: Mapping[str, Digest],
    report: GateReport,
    decided_at: str,
) -> GatePredicate:
    """The gate predicate of a candidate; `evidence` maps kinds (`scan-weights`, `evaluation`, …) to document digests."""
    return GatePredicate(
        result=PASSED if report.passed else FAILED,
        candidate=candidate.digest,
        model=candidate.model,
        runtime=candidate.runtime,
        serving=candidate.serving.to_data(),
        serving_digest=candidate.serving.content_digest(),
        policy=policy,
        evidence=tuple(EvidenceRef(kind=k, digest=d) for k, d in sorted(evidence.items())),
        report=report,
        decided_at=decided_at,
    )


def provenance(
    *,
    revision: ModelRevision,
    source_snapshot: Digest,
    snapshot: Digest,
    recipe: Recipe,
    recipe_parameters: Mapping[str, Any] | None = None,
    environments: Mapping[str, Digest],
    calibration: Digest | None = None,
    builder: str,
    builder_version: str,
    invocation: str,
    started_at: str,
    finished_at: str,
    byproducts: Mapping[str, Digest] | None = None,
) -> dict[str, Any]:
    """SLSA provenance v1 of a model image: made from which revision, by which recipe, in which environments.

    `snapshot` is what was packaged, `source_snapshot` what was fetched; times are RFC 3339; `environments` and `byproducts`
    map names to digests (lock files; logs and reports); `calibration` is the data set that a calibrated recipe looked at.
    """
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "source": {"repo": revision.repo, "commit": revision.commit},
                "quantization": recipe.value,
            },
            "internalParameters": {
                "quantization": dict(recipe_parameters or {}),
                "snapshot": str(snapshot),
            },
            "resolvedDependencies": [
                {
                    "name": "source",
                    "uri": f"lockgate:model/{revision}",
                    "digest": {"gitCommit": revision.commit, "sha256": source_snapshot.hex},
                },
                *(
                    {"name": f"environment/{name}", "digest": {"sha256": digest.hex}}
                    for name, digest in sorted(environments.items())
                ),
                *(
                    {"name": "calibration", "digest": {"sha256": digest.hex}}
                    for digest in (calibration,)
                    if digest is not None
                ),
            ],
        },
        "runDetails": {
            "builder": {"id": builder, "version": {"lockgate": builder_version}},
            "metadata": {
                "invocationId": invocation,
                "startedOn": started_at,
                "finishedOn": finished_at,
            },
            "byproducts": [
                {"name": name, "digest": {"sha256": digest.hex}}
                for name, digest in sorted((byproducts or {}).items())
            ],
        },
    }


def check_provenance(predicate: Mapping[str, Any]) -> None:
    """Raises `ValueError` if it lacks what SLSA provenance v1 requires."""
    try:
        definition, run = predicate["buildDefinition"], predicate["runDetails"]
        present = (
            definition["buildType"],
            definition["externalParameters"],
            run["builder"]["id"],
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"SLSA provenance lacks {error}") from error
    if not all(present):
        raise ValueError("SLSA provenance without build type, parameters or builder")
