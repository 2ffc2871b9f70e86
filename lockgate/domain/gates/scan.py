"""The scan gate: were all files looked at, by every scanner that must, and was nothing found."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from lockgate.domain.digests import Digest
from lockgate.domain.evidence import Finding, ScanEvidence, ScannerRun, ScannerStatus, Severity
from lockgate.domain.gates.base import Decision, GateResult
from lockgate.domain.policy import Policy

GATE = "scan"
KINDS = ("weights", "image", "manifests")
_RANK = {severity: rank for rank, severity in enumerate(Severity)}
_SHOWN = 5


def scan_gate(
    evidences: Sequence[ScanEvidence],
    policy: Policy,
    *,
    subjects: Collection[Digest] = (),
    required_kinds: Sequence[str] = ("weights", "image"),
) -> GateResult:
    """Judge the scans of one candidate.

    `subjects` are digests that must each have evidence (the source's snapshot, the quantized one, the image).
    `required_kinds` must each have evidence too. Fails closed: no evidence, no run, a required scanner that is missing from
    the runs, was not there or crashed, and findings of the policy's severity or above all fail. Where the policy makes trivy
    optional and it was not installed, the reasons say NOT SCANNED and the gate goes by the rest.
    """
    refusals: list[str] = []
    notes: list[str] = []
    if not evidences:
        refusals.append("there is no scan evidence")
    for kind in required_kinds:
        if evidences and not any(e.subject_kind == kind for e in evidences):
            refusals.append(f"{kind}: there is no scan evidence")
    for subject in sorted(set(subjects) - {e.subject for e in evidences}):
        refusals.append(f"{subject[:19]}: there is no scan evidence of this subject")
    for evidence in evidences:
        label = f"{evidence.subject_kind} {evidence.subject.short}"
        if evidence.subject_kind == "weights":
            reasons = _weights(evidence, policy)
            block_at = policy.weights.block_at
        elif evidence.subject_kind in KINDS:
            reasons, unscanned = _images(evidence, policy)
            notes.extend(f"{label}: {note}" for note in unscanned)
            block_at = policy.images.block_at
        else:
            reasons, block_at = ["an unknown kind of evidence"], Severity.LOW
        refusals.extend(f"{label}: {reason}" for reason in reasons)
        refusals.extend(f"{label}: {text}" for text in _blocking(evidence.findings, block_at))
        notes.append(f"{label}: {_summary(evidence)}")
    return GateResult(
        gate=GATE,
        decision=Decision.FAIL if refusals else Decision.PASS,
        reasons=tuple(refusals) if refusals else tuple(notes),
        measurements=tuple(_rows(evidences)),
    )


def _weights(evidence: ScanEvidence, policy: Policy) -> list[str]:
    required = policy.weights.scanners
    if not required:
        return ["the policy names no scanner: an empty policy passes nothing"]
    by_name = {run.name: run for run in evidence.runs}
    reasons = [f"scanner {name} did not run" for name in required if name not in by_name]
    for run in evidence.runs:
        if run.status is ScannerStatus.FAILED:
            reasons.append(f"scanner {run.name} failed{_why(run)}")
        elif run.status is not ScannerStatus.COMPLETED and run.name in required:
            reasons.append(f"scanner {run.name} is not installed{_why(run)}")
    return reasons


def _images(evidence: ScanEvidence, policy: Policy) -> tuple[list[str], list[str]]:
    reasons: list[str] = []
    unscanned: list[str] = []
    if not any(run.name == "trivy" for run in evidence.runs):
        reasons.append("scanner trivy did not run")
    for run in evidence.runs:
        if run.status is ScannerStatus.FAILED:
            reasons.append(f"scanner {run.name} failed{_why(run)}")
        elif run.status is ScannerStatus.NOT_INSTALLED:
            if policy.images.trivy == "optional":
                unscanned.append(f"NOT SCANNED by {run.name}, which the policy allows{_why(run)}")
            else:
                reasons.append(f"NOT SCANNED: {run.name} is required and not there{_why(run)}")
    return reasons, unscanned


def _why(run: ScannerRun) -> str:
    return f" ({run.detail})" if run.detail else ""


def _blocking(findings: Sequence[Finding], block_at: Severity) -> Iterator[str]:
    blocking = [f for f in findings if _RANK[f.severity] >= _RANK[block_at]]
    blocking.sort(key=lambda f: -_RANK[f.severity])
    for finding in blocking[:_SHOWN]:
        where = finding.path or "the whole model"
        yield f"{finding.severity}: {where}: {finding.message} [{finding.scanner}/{finding.rule}]"
    if len(blocking) > _SHOWN:
        yield f"{len(blocking) - _SHOWN} further findings at {block_at} or above"


def _summary(evidence: ScanEvidence) -> str:
    completed = [
        f"{run.name} {run.version or ''}".strip()
        for run in evidence.runs
        if run.status is ScannerStatus.COMPLETED
    ]
    scanned = f"scanned by {', '.join(completed)}" if completed else "NOT SCANNED"
    return f"{scanned}; {len(evidence.findings)} findings, none that blocks"


def _rows(evidences: Sequence[ScanEvidence]) -> Iterator[dict[str, Any]]:
    for evidence in evidences:
        for run in evidence.runs:
            counts = {
                severity.value: sum(
                    1 for f in evidence.findings if f.scanner == run.name and f.severity is severity
                )
                for severity in Severity
            }
            yield {
                "kind": evidence.subject_kind,
                "subject": str(evidence.subject),
                "scanner": run.name,
                "version": run.version,
                "status": run.status.value,
                **counts,
            }
