"""Gate, sign, attest, verify. The signing task is given digests and evidence only; it never opens a model file."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

import lockgate
from lockgate import environments
from lockgate.adapters import signing
from lockgate.adapters.oci.package import snapshot_of
from lockgate.adapters.signing import VerificationReport
from lockgate.domain import attestation
from lockgate.domain.attestation import GatePredicate
from lockgate.domain.base import Frozen
from lockgate.domain.bill_of_materials import ml_bom
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import ScanEvidence
from lockgate.domain.gates import Decision, GateReport
from lockgate.domain.gates.benchmark import benchmark_gate
from lockgate.domain.gates.evaluation import evaluation_gate
from lockgate.domain.gates.scan import scan_gate
from lockgate.domain.policy import Policy
from lockgate.domain.rollout.transitions import rfc3339
from lockgate.domain.sources import Snapshot
from lockgate.domain.spec import Recipe, ReleaseSpec
from lockgate.domain.steps import MeasuredBeside, Measurements, PreparedModel, StepKey
from lockgate.errors import Refused
from tasks.recorded import find_or_make
from tasks.retries import TRANSIENT
from tasks.runtimes import scan_of, verify_runtime
from tasks.steps import step
from tasks.workspace import Workspace

PREDICATE_VERSION = 1


@step(name="decide-gates", cache_policy=NO_CACHE)
def decide_gates(
    spec: ReleaseSpec,
    policy: Policy,
    candidate: Candidate,
    prepared: PreparedModel,
    measured: MeasuredBeside | None = None,
    stable: Measurements | None = None,
) -> GateReport:
    """All offline gates. Evidence that is missing does not pass."""
    subjects = {prepared.source.snapshot, prepared.model.snapshot, candidate.model.digest}
    kinds = ["weights", "image"]
    if policy.weights.hub_security == "required" and spec.source.startswith("hf://"):
        kinds.append("source")
    results = [
        scan_gate(
            prepared.scans, policy, now=datetime.now(UTC), subjects=subjects, required_kinds=kinds
        )
    ]
    if measured is not None:
        baseline_scores = stable.evaluation if stable else None
        baseline_load = stable.benchmark if stable else None
        own, apart = measured.measurements, {"apart": measured.apart} if measured.apart else {}
        results.append(evaluation_gate(spec.evaluation, own.evaluation, baseline_scores))
        results.append(
            benchmark_gate(
                spec.benchmark, own.benchmark, baseline_load, measured.comparison, **apart
            )
        )
    report = GateReport(
        candidate=candidate.digest, results=tuple(results), required=tuple(policy.gates)
    )
    create_markdown_artifact(_as_markdown(report), key=f"gates-{candidate.digest.short}")
    return report


def may_be_served(screened: GateReport) -> bool:
    """Whether the scans allow opening the weights in a model server at all."""
    return any(r.gate == "scan" and r.decision is Decision.PASS for r in screened.results)


@step(name="sign-candidate", cache_policy=NO_CACHE, **TRANSIENT)
def sign_candidate(
    prepared: PreparedModel,
    candidate: Candidate,
    policy: Policy,
    gates: GateReport,
    measured: MeasuredBeside,
) -> Digest:
    """Sign the model image, and the embedded cluster's own runtime, and attest how it was made and what the gates found.

    Returns the digest of the gate predicate: the evidence that the commit names. A second run finds the signatures there
    and adds none.
    """
    if not gates.passed:
        raise Refused("a candidate that did not pass its gates is not signed")
    workspace = Workspace.current()
    signer = None
    if candidate.runtime == workspace.local_runtime(candidate.serving.engine):
        # Ours: a description that was made here. Any other was signed when it was imported, or is refused.
        signer = workspace.signer()
        signing.sign_image(workspace.store, candidate.runtime, signer)
    runtime = verify_runtime(workspace, candidate.runtime, policy)
    runtime.require(hint="import it with `lockgate runtime import`, which scans and signs")
    predicate = _gate_predicate(
        workspace, prepared, candidate, policy, gates, measured, scan_of(runtime)
    )
    evidence = workspace.records.put_document(predicate.to_data())
    model, _ = verifications(workspace, candidate, policy)
    if model.ok and model.gate == predicate:
        return evidence
    signer = signer or workspace.signer()
    signing.sign_image(workspace.store, candidate.model, signer)
    for predicate_type, statement in (
        (
            attestation.PROVENANCE_TYPE,
            provenance_of(
                prepared,
                snapshot_of(workspace.store, prepared.source.image),
                f"candidate:{candidate.digest}",
                workspace.settings.builder,
            ),
        ),
        (
            attestation.SBOM_TYPE,
            _bill_of_materials(workspace, prepared, measured.measurements, predicate.decided_at),
        ),
        (attestation.GATE_TYPE, predicate),
    ):
        signing.attest(workspace.store, candidate.model, signer, predicate_type, statement)
    return evidence


def _gate_predicate(
    workspace: Workspace,
    prepared: PreparedModel,
    candidate: Candidate,
    policy: Policy,
    gates: GateReport,
    measured: MeasuredBeside,
    runtime_scan: Digest | None,
) -> GatePredicate:
    """What is attested. Decided once: the same gates over the same evidence are not attested twice with two times."""
    documents: dict[str, Frozen] = {
        "gates": gates, "evaluation": measured.measurements.evaluation,
        "benchmark": measured.measurements.benchmark,
    }  # fmt: skip
    if measured.comparison is not None:
        documents["benchmark-comparison"] = measured.comparison
    if prepared.quantization is not None:
        documents["quantization"] = prepared.quantization
    for number, scan in enumerate(prepared.scans):
        documents[f"scan-{number}-{scan.subject_kind}"] = scan
    evidence = {
        kind: workspace.records.put_document(document.to_data())
        for kind, document in documents.items()
    }
    if runtime_scan is not None:
        evidence[f"scan-{len(prepared.scans)}-runtime"] = runtime_scan
    key = StepKey(
        step="gate-predicate", version=PREDICATE_VERSION,
        inputs={
            "candidate": candidate.digest, "policy": policy.content_digest(), "evidence": evidence,
        },
    )  # fmt: skip
    predicate, _ = find_or_make(
        workspace.records, key, GatePredicate,
        lambda: attestation.gate_predicate(
            candidate, policy=policy.content_digest(), evidence=evidence, report=gates,
            decided_at=rfc3339(datetime.now(UTC)), scanned_at=_oldest(prepared.scans),
        ),
    )  # fmt: skip
    return predicate


def _oldest(scans: Sequence[ScanEvidence]) -> str | None:
    """When the oldest scan was made; None where that is not known of every one."""
    known = [scan.scanned_at for scan in scans if scan.scanned_at is not None]
    return rfc3339(min(known)) if known and len(known) == len(scans) else None


def provenance_of(
    prepared: PreparedModel, source: Snapshot, invocation: str, builder: str
) -> dict[str, Any]:
    """SLSA provenance of a prepared model: every file of its source, recipe with what decided the bytes, calibration set,
    tools, environments, containers."""
    made_in, report = {}, prepared.quantization
    if prepared.recipe is not Recipe.NONE:
        # Records of older versions do not name it, and were found by this one's digest.
        present = Digest(environments.environment_digest("quantization"))
        made_in["quantization"] = prepared.environment or present
    containers = {"quantize": prepared.container} if prepared.container is not None else {}
    materials = attestation.Materials(
        revision=prepared.revision, kind=prepared.source_kind,
        source=source, image=prepared.source.image,
        calibration=report.calibration.digest if report and report.calibration else None,
        environments=made_in, containers=containers,
    )  # fmt: skip
    return attestation.provenance(
        materials=materials, snapshot=prepared.model.snapshot, recipe=prepared.recipe,
        recipe_parameters=_recipe_parameters(prepared), builder=builder,
        versions={**(report.tools if report else {}), "lockgate": lockgate.__version__},
        invocation=invocation,
        byproducts={
            f"scan-{number}-{scan.subject_kind}": scan.content_digest()
            for number, scan in enumerate(prepared.scans)
        },
    )  # fmt: skip


def _recipe_parameters(prepared: PreparedModel) -> dict[str, Any]:
    """What decided the bytes of the weights, and what was measured of them."""
    parameters: dict[str, Any] = {}
    if prepared.source_format is not None:
        parameters["sourceWeights"] = prepared.source_format.to_data()
    if prepared.quantization is not None:
        parameters["report"] = prepared.quantization.to_data()
    return parameters


def _bill_of_materials(
    workspace: Workspace, prepared: PreparedModel, measured: Measurements, at: str
) -> dict[str, Any]:
    return ml_bom(
        image=prepared.model.image, name=prepared.revision.repo, revision=prepared.revision,
        snapshot=snapshot_of(workspace.store, prepared.model.image), recipe=prepared.recipe,
        licenses=prepared.licenses, architecture=prepared.architecture,
        source_kind=prepared.source_kind, evaluation=measured.evaluation, timestamp=at,
        source_weights=str(prepared.source_format) if prepared.source_format is not None else None,
        version=lockgate.__version__,
    )  # fmt: skip


@step(name="verify-candidate", cache_policy=NO_CACHE, **TRANSIENT)
def verify_candidate(candidate: Candidate, policy: Policy) -> None:
    """Verify as a stranger would, with the policy's keys. Raises `VerificationError` naming the rule that failed."""
    verify(Workspace.current(), candidate, policy)


def verify(workspace: Workspace, candidate: Candidate, policy: Policy) -> None:
    """The same outside of a task."""
    for report in verifications(workspace, candidate, policy):
        report.require()


def verifications(
    workspace: Workspace, candidate: Candidate, policy: Policy, *, serves: bool = False
) -> tuple[VerificationReport, VerificationReport]:
    """Of the model image, which carries the gate attestation, and of the runtime image.

    `serves`: for what takes traffic already, which does not become unusable by growing old.
    """
    store, rules = workspace.store, policy.signing
    fresh: dict[str, Any] = {} if serves else {
        "max_age": timedelta(days=policy.max_evidence_age_days), "now": datetime.now(UTC),
    }  # fmt: skip
    return (
        signing.verify(
            store, candidate.model, rules, candidate=candidate.digest,
            require_gates=policy.gates, **fresh,
        ),
        verify_runtime(workspace, candidate.runtime, policy, serves=serves),
    )  # fmt: skip


def _as_markdown(report: GateReport) -> str:
    lines = [f"# Gates of `{report.candidate}`", "", "| gate | decision | why |", "|---|---|---|"]
    for result in report.results:
        why = "; ".join(result.reasons).replace("|", "\\|")
        lines.append(f"| {result.gate} | {result.decision} | {why} |")
    return "\n".join(lines)
