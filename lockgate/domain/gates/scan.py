"""The scan gate: were all files looked at, by every scanner that must, and was nothing found."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from lockgate.domain.digests import Digest
from lockgate.domain.evidence import Finding, ScanEvidence, ScannerRun, ScannerStatus, Severity
from lockgate.domain.gates.base import Decision, GateResult
from lockgate.domain.policy import Policy, Waiver

GATE = "scan"
KINDS = ("weights", "image", "manifests", "source")
REMOTE_CODE_RULES = frozenset({"code-file", "remote-code"})
SECRET_RULES = frozenset({"secret"})
CLOCK_SKEW = timedelta(minutes=10)
"""How far in the future evidence may have been made: clocks differ."""
DATABASE = "trivy-database"
_RANK = {severity: rank for rank, severity in enumerate(Severity)}
_SHOWN = 5


def scan_gate(
    evidences: Sequence[ScanEvidence],
    policy: Policy,
    *,
    now: datetime,
    subjects: Collection[Digest] = (),
    required_kinds: Sequence[str] = ("weights", "image"),
) -> GateResult:
    """Judge the scans of one candidate at `now` (aware).

    `subjects` are digests that must each have evidence (the source's snapshot, the quantized one, the image).
    `required_kinds` must each have evidence too. Fails closed: no evidence, no run, evidence that is too old or of unknown
    age, a required scanner that is missing from the runs, was not there or crashed, a vulnerability database that was too
    old, and findings of the policy's severity or above that no waiver accepts all fail. Where the policy makes a scanner
    optional and it was not installed, the reasons say NOT SCANNED and the gate goes by the rest.
    """
    refusals: list[str] = []
    notes: list[str] = []
    if not evidences:
        refusals.append("there is no scan evidence")
    for kind in required_kinds:
        if evidences and not any(e.subject_kind == kind for e in evidences):
            refusals.append(f"{kind}: there is no scan evidence")
    # What a source says of its own files is no scan of them.
    scanned = {evidence.subject for evidence in evidences if evidence.subject_kind != "source"}
    for subject in sorted(set(subjects) - scanned):
        refusals.append(f"{subject[:19]}: there is no scan evidence of this subject")
    for evidence in evidences:
        label = f"{evidence.subject_kind} {evidence.subject.short}"
        reasons, noted = _runs(evidence, policy)
        reasons += too_old(evidence, policy, now)
        blocking, waived = _judged(evidence, policy, now)
        refusals.extend(f"{label}: {reason}" for reason in [*reasons, *_shown(blocking)])
        notes.extend(f"{label}: {note}" for note in [*noted, *waived])
        notes.append(f"{label}: {_summary(evidence)}")
    return GateResult(
        gate=GATE,
        decision=Decision.FAIL if refusals else Decision.PASS,
        reasons=tuple(refusals) if refusals else tuple(notes),
        measurements=tuple(_rows(evidences)),
    )


def blocking_findings(evidence: ScanEvidence, policy: Policy, now: datetime) -> tuple[Finding, ...]:
    """The findings that the policy refuses at `now` (aware), worst first; those that a waiver accepts are not among them."""
    return tuple(finding for _, finding in _judged(evidence, policy, now)[0])


def too_old(evidence: ScanEvidence, policy: Policy, now: datetime) -> list[str]:
    """Why the evidence's age does not allow it to be used any more; empty if it does."""
    if evidence.scanned_at is None:
        return ["it is not known when this was scanned"]
    age = now - evidence.scanned_at
    if age > timedelta(days=policy.max_evidence_age_days):
        return [f"scanned {age.days} days ago, the policy allows {policy.max_evidence_age_days}"]
    if age < -CLOCK_SKEW:
        return [f"scanned in the future, at {evidence.scanned_at.isoformat()}"]
    return []


def _runs(evidence: ScanEvidence, policy: Policy) -> tuple[list[str], list[str]]:
    """Why the runs do not do, and what has to be said where they do."""
    match evidence.subject_kind:
        case "weights":
            return _weights(evidence, policy)
        case "image" | "manifests":
            return _images(evidence, policy)
        case "source":
            return _source(evidence, policy)
        case _:
            return ["an unknown kind of evidence"], []


def _weights(evidence: ScanEvidence, policy: Policy) -> tuple[list[str], list[str]]:
    required = policy.weights.scanners
    if not required:
        return ["the policy names no scanner: an empty policy passes nothing"], []
    present = {run.name for run in evidence.runs}
    reasons = [f"scanner {name} did not run" for name in required if name not in present]
    notes: list[str] = []
    for run in evidence.runs:
        if run.status is ScannerStatus.FAILED:
            reasons.append(f"scanner {run.name} failed{_why(run)}")
        elif run.status is not ScannerStatus.COMPLETED and run.name in required:
            reasons.append(f"scanner {run.name} is not installed{_why(run)}")
        elif run.status is not ScannerStatus.COMPLETED:
            notes.append(f"NOT SCANNED by {run.name}, which the policy allows{_why(run)}")
    return reasons, notes


def _images(evidence: ScanEvidence, policy: Policy) -> tuple[list[str], list[str]]:
    reasons: list[str] = []
    unscanned: list[str] = []
    if not any(run.name == "trivy" for run in evidence.runs):
        reasons.append("scanner trivy did not run")
    for run in evidence.runs:
        absent = run.status is ScannerStatus.NOT_INSTALLED
        why = _why(run)
        if run.name == DATABASE and run.status is ScannerStatus.COMPLETED:
            stale = _stale(evidence, run, policy)
            absent, why = bool(stale), f" ({stale})"
        if run.status is ScannerStatus.FAILED:
            reasons.append(f"scanner {run.name} failed{why}")
        elif absent and policy.images.trivy == "optional":
            unscanned.append(f"NOT SCANNED by {run.name}, which the policy allows{why}")
        elif absent:
            reasons.append(f"NOT SCANNED: {run.name} is required and not there{why}")
    return reasons, unscanned


def _stale(evidence: ScanEvidence, run: ScannerRun, policy: Policy) -> str:
    """Why the vulnerability database was too old when it was used, or nothing."""
    try:
        made = datetime.fromisoformat(run.version or "")
        if made.tzinfo is None or evidence.scanned_at is None:
            return "the vulnerability database is of unknown age"
    except ValueError:
        return "the vulnerability database is of unknown age"
    limit = timedelta(days=policy.images.max_database_age_days)
    if evidence.scanned_at - made > limit:
        return f"the vulnerability database of {made.date()} is older than {limit.days} days"
    return ""


def _source(evidence: ScanEvidence, policy: Policy) -> tuple[list[str], list[str]]:
    wanted = policy.weights.hub_security
    if not evidence.runs:
        return ["the source was not asked"], []
    reasons: list[str] = []
    notes: list[str] = []
    for run in evidence.runs:
        if run.status is ScannerStatus.COMPLETED:
            continue
        if wanted == "required":
            reasons.append(f"NOT SCANNED by {run.name}, which the policy requires{_why(run)}")
        else:
            notes.append(f"NOT SCANNED by {run.name}{_why(run)}")
    return reasons, notes


def _judged(
    evidence: ScanEvidence, policy: Policy, now: datetime
) -> tuple[list[tuple[Severity, Finding]], list[str]]:
    """The findings that block, worst first, with the severity that the policy gives them; and what waivers let pass."""
    images = evidence.subject_kind in ("image", "manifests")
    block_at = policy.images.block_at if images else policy.weights.block_at
    blocking: list[tuple[Severity, Finding]] = []
    notes: dict[str, None] = {}
    if evidence.subject_kind == "source" and policy.weights.hub_security == "ignored":
        return [], []
    for finding in evidence.findings:
        severity = severity_of(finding, policy, images=images)
        if _RANK[severity] < _RANK[block_at]:
            continue
        waiver = waiver_for(finding, evidence.subject, policy, now)
        if waiver is not None:
            notes[_waived(finding, waiver)] = None
        else:
            blocking.append((severity, finding))
    blocking.sort(key=lambda item: -_RANK[item[0]])
    return blocking, list(notes)


def severity_of(finding: Finding, policy: Policy, *, images: bool = False) -> Severity:
    """A finding's severity under the policy."""
    rules: Mapping[str, Severity] = (
        policy.images.severities if images else policy.weights.severities
    )
    if finding.rule in rules:
        return rules[finding.rule]
    if images:
        return finding.severity
    if finding.rule in REMOTE_CODE_RULES and policy.weights.remote_code == "note":
        return Severity.LOW
    if finding.rule in SECRET_RULES and policy.weights.secrets == "note":
        return Severity.LOW
    return finding.severity


def waiver_for(finding: Finding, subject: Digest, policy: Policy, now: datetime) -> Waiver | None:
    """The waiver that accepts a finding about `subject` (or a file of it) at `now` (aware), or None."""
    about = finding.digest or subject
    today = now.astimezone(UTC).date()
    for waiver in policy.waivers:
        if waiver.rule == finding.rule and waiver.digest == about and today <= waiver.until:
            return waiver
    return None


def _waived(finding: Finding, waiver: Waiver) -> str:
    where = finding.path or "the whole model"
    return f"waived until {waiver.until}: {where}: {finding.rule} ({waiver.reason})"


def _shown(blocking: Sequence[tuple[Severity, Finding]]) -> Iterator[str]:
    for severity, finding in blocking[:_SHOWN]:
        where = finding.path or "the whole model"
        yield f"{severity}: {where}: {finding.message} [{finding.scanner}/{finding.rule}]"
    if len(blocking) > _SHOWN:
        yield f"{len(blocking) - _SHOWN} further findings that block"


def _why(run: ScannerRun) -> str:
    return f" ({run.detail})" if run.detail else ""


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
