"""Scan evidence as SARIF 2.1.0, for code hosts and dashboards that read it.

Source: OASIS, Static Analysis Results Interchange Format 2.1.0; `security-severity` as GitHub's code scanning reads it. Every
scanner is a run of its own, with its version; a scanner that did not complete its work is a run that says so.
"""

from __future__ import annotations

import string
from datetime import datetime
from typing import Any

from lockgate.domain.digests import Digest
from lockgate.domain.evidence import Finding, ScanEvidence, ScannerRun, ScannerStatus, Severity
from lockgate.domain.gates.scan import severity_of, waiver_for
from lockgate.domain.policy import Policy
from lockgate.domain.sources import Snapshot

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_UNRESERVED = frozenset(f"{string.ascii_letters}{string.digits}-._~/".encode())
_LEVELS = {
    Severity.LOW: "note",
    Severity.MEDIUM: "warning",
    Severity.HIGH: "error",
    Severity.CRITICAL: "error",
}
_SCORES = {
    Severity.LOW: "3.0",
    Severity.MEDIUM: "5.0",
    Severity.HIGH: "8.0",
    Severity.CRITICAL: "9.5",
}


def to_sarif(
    evidence: ScanEvidence, snapshot: Snapshot, policy: Policy, now: datetime
) -> dict[str, Any]:
    """The log. Severities are those that `policy` gives the rules; findings that a waiver accepts at `now` are suppressed."""
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [_run(run, evidence, snapshot, policy, now) for run in evidence.runs],
    }


def _run(
    run: ScannerRun, evidence: ScanEvidence, snapshot: Snapshot, policy: Policy, now: datetime
) -> dict[str, Any]:
    findings = [finding for finding in evidence.findings if finding.scanner == run.name]
    rules = sorted({finding.rule for finding in findings})
    driver: dict[str, Any] = {"name": run.name, "rules": [{"id": rule} for rule in rules]}
    if run.version:
        driver["version"] = run.version
    completed = run.status is ScannerStatus.COMPLETED
    invocation: dict[str, Any] = {"executionSuccessful": completed}
    if evidence.scanned_at is not None:
        invocation["endTimeUtc"] = evidence.scanned_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    if not completed:
        text = f"NOT SCANNED ({run.status}): {run.detail}"
        invocation["toolExecutionNotifications"] = [{"level": "error", "message": {"text": text}}]
    artifacts = [
        {
            "location": {"uri": _uri(file.path)},
            "length": file.size,
            "hashes": {"sha-256": file.digest.hex},
        }
        for file in snapshot.files
    ]
    return {
        "tool": {"driver": driver},
        "invocations": [invocation],
        "artifacts": artifacts,
        "results": [_result(f, rules, evidence.subject, policy, now) for f in findings],
        "properties": {"subject": str(evidence.subject), "subjectKind": evidence.subject_kind},
    }


def _result(
    finding: Finding, rules: list[str], subject: Digest, policy: Policy, now: datetime
) -> dict[str, Any]:
    severity = severity_of(finding, policy)
    result: dict[str, Any] = {
        "ruleId": finding.rule,
        "ruleIndex": rules.index(finding.rule),
        "level": _LEVELS[severity],
        "message": {"text": finding.message or finding.rule},
        "partialFingerprints": {
            "lockgate/v1": Digest.of_json(
                [finding.scanner, finding.rule, finding.path, finding.digest, finding.message]
            ).hex
        },
        "properties": {"security-severity": _SCORES[severity]},
    }
    if finding.path:
        location = {"artifactLocation": {"uri": _uri(finding.path)}}
        result["locations"] = [{"physicalLocation": location}]
    waiver = waiver_for(finding, subject, policy, now)
    if waiver is not None:
        why = f"{waiver.reason} (until {waiver.until})"
        result["suppressions"] = [{"kind": "external", "status": "accepted", "justification": why}]
    return result


def _uri(path: str) -> str:
    """A relative reference (RFC 3986): everything but unreserved characters and the slash as percent and hex."""
    return "".join(
        chr(byte) if byte in _UNRESERVED else f"%{byte:02X}"
        for byte in path.encode("utf-8", "backslashreplace")
    )
