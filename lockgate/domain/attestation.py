"""What is said about an image under signature: in-toto statements and their predicates, built from data alone.

Sources: in-toto Statement v1; SLSA provenance v1; CycloneDX 1.6 (machine-learning BOM); cosign v3's signature predicate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from pydantic import Field, model_validator

from lockgate.domain.base import Frozen
from lockgate.domain.candidates import Candidate, digest_of_parts
from lockgate.domain.digests import Digest, canonical_json, read_json, shown
from lockgate.domain.gates.base import GateReport
from lockgate.domain.images import ImageRef
from lockgate.domain.sources import ModelRevision, Snapshot, SourceKind
from lockgate.domain.spec import Recipe

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
SIGNATURE_TYPE = "https://sigstore.dev/cosign/sign/v1"
PROVENANCE_TYPE = "https://slsa.dev/provenance/v1"
SBOM_TYPE = "https://cyclonedx.org/bom"
GATE_TYPE = "https://lockgate.dev/gate/v1"
RUNTIME_TYPE = "https://lockgate.dev/runtime/v1"
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
    data = read_json(body)
    try:
        if data["_type"] != STATEMENT_TYPE:
            raise ValueError(f"not an in-toto statement v1: {shown(data['_type'])}")
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
    manifests: Digest | None = None
    """The candidate's own; None where bases did not count."""
    policy: Digest
    evidence: tuple[EvidenceRef, ...] = Field(min_length=1)
    report: GateReport
    decided_at: str
    """RFC 3339."""
    scanned_at: str | None = None
    """RFC 3339: when the oldest of its scans was made, which may have been found from an earlier release."""

    @property
    def decided(self) -> datetime:
        """`decided_at`, aware."""
        return datetime.fromisoformat(self.decided_at)

    @property
    def scanned(self) -> datetime | None:
        """`scanned_at`, aware."""
        return None if self.scanned_at is None else datetime.fromisoformat(self.scanned_at)

    @model_validator(mode="after")
    def _consistent(self) -> GatePredicate:
        if self.serving_digest != Digest.of_json(self.serving):
            raise ValueError("the serving digest is not that of the serving spec")
        parts = (self.model.digest, self.runtime.digest, self.serving, self.manifests)
        if self.candidate != digest_of_parts(*parts):
            raise ValueError("the candidate is not that of model, runtime, serving and manifests")
        if self.report.candidate != self.candidate:
            raise ValueError(f"the gate report is about another candidate: {self.report.candidate}")
        for moment in (self.decided, self.scanned):
            if moment is not None and moment.tzinfo is None:
                raise ValueError(f"a time without its offset: {moment}")
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
    scanned_at: str | None = None,
) -> GatePredicate:
    """The gate predicate of a candidate; `evidence` maps kinds (`scan-weights`, `evaluation`, …) to document digests."""
    return GatePredicate(
        result=PASSED if report.passed else FAILED,
        candidate=candidate.digest,
        model=candidate.model,
        runtime=candidate.runtime,
        serving=candidate.serving.to_data(),
        serving_digest=candidate.serving.content_digest(),
        manifests=candidate.manifests,
        policy=policy,
        evidence=tuple(EvidenceRef(kind=k, digest=d) for k, d in sorted(evidence.items())),
        report=report,
        decided_at=decided_at,
        scanned_at=scanned_at,
    )


class RuntimePredicate(Frozen):
    """`https://lockgate.dev/runtime/v1`: where a runtime image came from, and that its scan passed. One that failed cannot be
    said."""

    result: Literal["PASSED"]
    source: ImageRef
    image: ImageRef
    policy: Digest
    scan: Digest
    """Document of the scan in the store."""
    reasons: tuple[str, ...]
    """What the scan gate said."""
    scanned_at: str
    """RFC 3339."""

    @property
    def scanned(self) -> datetime:
        """`scanned_at`, aware."""
        return datetime.fromisoformat(self.scanned_at)

    @model_validator(mode="after")
    def _consistent(self) -> RuntimePredicate:
        if self.source.digest != self.image.digest:
            raise ValueError("the mirror is not the image that was imported")
        if self.scanned.tzinfo is None:
            raise ValueError(f"a time without its offset: {self.scanned_at!r}")
        return self


@dataclass(frozen=True)
class Materials:
    """What a model image was made from."""

    revision: ModelRevision
    kind: SourceKind | None
    """None where a source of unknown kind was recorded by an older version."""
    source: Snapshot
    """As fetched: every file by its digest."""
    image: ImageRef | None = None
    """The image that carries the source between steps."""
    calibration: Digest | None = None
    """The data set that a calibrated recipe looked at."""
    environments: Mapping[str, Digest] = field(default_factory=dict)
    """Lock files of the Python environments that the bytes were made in."""
    containers: Mapping[str, ImageRef] = field(default_factory=dict)
    """Container images that the steps ran in, where they did."""

    def descriptors(self) -> list[dict[str, Any]]:
        """SLSA's `resolvedDependencies`. `gitCommit` stands only where there is one: a directory has none."""
        revision, snapshot = self.revision, self.source
        digest = {"sha256": snapshot.digest.hex}
        if self.kind is SourceKind.HUB:
            uri = f"pkg:huggingface/{revision.repo}@{revision.commit}"
            digest["gitCommit"] = revision.commit
        else:
            uri = f"{self.kind.value if self.kind else 'model'}:{revision.repo}"
        found: list[dict[str, Any]] = [{"name": "source", "uri": uri, "digest": digest}]
        found += [
            {"name": f"source/{f.path}", "digest": {"sha256": f.digest.hex}} for f in snapshot.files
        ]
        images = {"source-image": self.image} if self.image is not None else {}
        images |= {f"container/{name}": ref for name, ref in sorted(self.containers.items())}
        found += [
            {"name": name, "uri": f"oci://{ref}", "digest": {"sha256": ref.digest.hex}}
            for name, ref in images.items()
        ]
        documents = {f"environment/{n}": d for n, d in sorted(self.environments.items())}
        if self.calibration is not None:
            documents["calibration"] = self.calibration
        found += [{"name": n, "digest": {"sha256": d.hex}} for n, d in documents.items()]
        return found


def provenance(
    *,
    materials: Materials,
    snapshot: Digest,
    recipe: Recipe,
    recipe_parameters: Mapping[str, Any] | None = None,
    builder: str,
    versions: Mapping[str, str],
    invocation: str,
    byproducts: Mapping[str, Digest] | None = None,
) -> dict[str, Any]:
    """SLSA provenance v1 of a model image: made from which inputs, by which recipe, with which tools.

    `snapshot` is what was packaged; `versions` are those of Lockgate and of the tools that made its bytes; `byproducts` map
    names of documents to their digests. It has no times: the parts of an image are made at different ones, some of them long
    before the release that uses them, and the same image has the same provenance.
    """
    revision = materials.revision
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
            "resolvedDependencies": materials.descriptors(),
        },
        "runDetails": {
            "builder": {"id": builder, "version": dict(versions)},
            "metadata": {"invocationId": invocation},
            "byproducts": [
                {"name": name, "digest": {"sha256": digest.hex}}
                for name, digest in sorted((byproducts or {}).items())
            ],
        },
    }


@dataclass(frozen=True)
class Origin:
    """What a policy asks of provenance."""

    builder: str
    source: str
    """Repository that the model was taken from."""


def origin_of(predicate: Mapping[str, Any]) -> Origin:
    """Raises `ValueError` if it lacks what SLSA provenance v1 requires, or is not of a model image of Lockgate's making."""
    try:
        definition, run = predicate["buildDefinition"], predicate["runDetails"]
        build_type, builder = definition["buildType"], run["builder"]["id"]
        if build_type != BUILD_TYPE:
            raise ValueError(f"SLSA provenance of another build type: {shown(build_type)}")
        repository = definition["externalParameters"]["source"]["repo"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"SLSA provenance lacks {error}") from error
    if not (isinstance(builder, str) and builder and isinstance(repository, str) and repository):
        raise ValueError("SLSA provenance without builder or source")
    return Origin(builder, repository)
