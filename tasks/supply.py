"""Gate, sign, attest, verify. The signing task is given digests and evidence only; it never opens a model file."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from prefect import task
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
from lockgate.domain.gates import Decision, GateReport
from lockgate.domain.gates.benchmark import benchmark_gate
from lockgate.domain.gates.evaluation import evaluation_gate
from lockgate.domain.gates.scan import scan_gate
from lockgate.domain.policy import Policy
from lockgate.domain.rollout.transitions import rfc3339
from lockgate.domain.spec import Recipe, ReleaseSpec
from lockgate.domain.steps import Measurements, PreparedModel, StepKey
from lockgate.errors import Refused
from tasks.recorded import find_or_make
from tasks.retries import TRANSIENT
from tasks.workspace import Workspace

PREDICATE_VERSION = 1


@task(name="decide-gates", cache_policy=NO_CACHE)
def decide_gates(
    spec: ReleaseSpec,
    policy: Policy,
    candidate: Candidate,
    prepared: PreparedModel,
    measured: Measurements | None = None,
    stable: Measurements | None = None,
) -> GateReport:
    """All offline gates. Evidence that is missing does not pass."""
    subjects = {prepared.source.snapshot, prepared.model.snapshot, candidate.model.digest}
    results = [scan_gate(prepared.scans, policy, subjects=subjects)]
    if measured is not None:
        baseline_scores = stable.evaluation if stable else None
        baseline_load = stable.benchmark if stable else None
        results.append(evaluation_gate(spec.evaluation, measured.evaluation, baseline_scores))
        results.append(benchmark_gate(spec.benchmark, measured.benchmark, baseline_load))
    report = GateReport(
        candidate=candidate.digest, results=tuple(results), required=tuple(policy.gates)
    )
    create_markdown_artifact(_as_markdown(report), key=f"gates-{candidate.digest.short}")
    return report


def may_be_served(screened: GateReport) -> bool:
    """Whether the scans allow opening the weights in a model server at all."""
    return any(r.gate == "scan" and r.decision is Decision.PASS for r in screened.results)


@task(name="sign-candidate", cache_policy=NO_CACHE, **TRANSIENT)
def sign_candidate(
    prepared: PreparedModel,
    candidate: Candidate,
    policy: Policy,
    gates: GateReport,
    measured: Measurements,
) -> Digest:
    """Sign the model and runtime images and attest how they were made and what the gates found.

    Returns the digest of the gate predicate: the evidence that the commit names. A second run finds the signatures there
    and adds none.
    """
    if not gates.passed:
        raise Refused("a candidate that did not pass its gates is not signed")
    workspace = Workspace.current()
    predicate = _gate_predicate(workspace, prepared, candidate, policy, gates, measured)
    evidence = workspace.records.put_document(predicate.to_data())
    model, runtime = verifications(workspace, candidate, policy)
    if model.ok and runtime.ok and model.gate == predicate:
        return evidence
    signer = workspace.signer()
    for image in (candidate.runtime, candidate.model):
        signing.sign_image(workspace.store, image, signer)
    for predicate_type, statement in (
        (attestation.PROVENANCE_TYPE, _provenance(prepared, candidate, predicate.decided_at)),
        (
            attestation.SBOM_TYPE,
            _bill_of_materials(workspace, prepared, measured, predicate.decided_at),
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
    measured: Measurements,
) -> GatePredicate:
    """What is attested. Decided once: the same gates over the same evidence are not attested twice with two times."""
    documents: dict[str, Frozen] = {
        "gates": gates, "evaluation": measured.evaluation, "benchmark": measured.benchmark,
    }  # fmt: skip
    for number, scan in enumerate(prepared.scans):
        documents[f"scan-{number}-{scan.subject_kind}"] = scan
    evidence = {
        kind: workspace.records.put_document(document.to_data())
        for kind, document in documents.items()
    }
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
            decided_at=rfc3339(datetime.now(UTC)),
        ),
    )  # fmt: skip
    return predicate


def _provenance(prepared: PreparedModel, candidate: Candidate, at: str) -> dict[str, Any]:
    made_in = {}
    if prepared.recipe is not Recipe.NONE:
        made_in["quantization"] = Digest(environments.environment_digest("quantization"))
    return attestation.provenance(
        revision=prepared.revision, source_snapshot=prepared.source.snapshot,
        snapshot=prepared.model.snapshot, recipe=prepared.recipe, environments=made_in,
        builder="https://lockgate.dev/builder/release/v1", builder_version=lockgate.__version__,
        invocation=f"candidate:{candidate.digest}", started_at=at, finished_at=at,
    )  # fmt: skip


def _bill_of_materials(
    workspace: Workspace, prepared: PreparedModel, measured: Measurements, at: str
) -> dict[str, Any]:
    return ml_bom(
        image=prepared.model.image, name=prepared.revision.repo, revision=prepared.revision,
        snapshot=snapshot_of(workspace.store, prepared.model.image), recipe=prepared.recipe,
        licenses=prepared.licenses, evaluation=measured.evaluation, timestamp=at,
        version=lockgate.__version__,
    )  # fmt: skip


@task(name="verify-candidate", cache_policy=NO_CACHE, **TRANSIENT)
def verify_candidate(candidate: Candidate, policy: Policy) -> None:
    """Verify as a stranger would, with the policy's keys. Raises `VerificationError` naming the rule that failed."""
    verify(Workspace.current(), candidate, policy)


def verify(workspace: Workspace, candidate: Candidate, policy: Policy) -> None:
    """The same outside of a task."""
    for report in verifications(workspace, candidate, policy):
        report.require()


def verifications(
    workspace: Workspace, candidate: Candidate, policy: Policy
) -> tuple[VerificationReport, VerificationReport]:
    """Of the model image, which carries the gate attestation, and of the runtime image."""
    store, rules = workspace.store, policy.signing
    return (
        signing.verify(
            store, candidate.model, rules, candidate=candidate.digest, require_gates=policy.gates
        ),
        signing.verify(store, candidate.runtime, rules, candidate=None, require_gates=()),
    )


def _as_markdown(report: GateReport) -> str:
    lines = [f"# Gates of `{report.candidate}`", "", "| gate | decision | why |", "|---|---|---|"]
    for result in report.results:
        why = "; ".join(result.reasons).replace("|", "\\|")
        lines.append(f"| {result.gate} | {result.decision} | {why} |")
    return "\n".join(lines)
