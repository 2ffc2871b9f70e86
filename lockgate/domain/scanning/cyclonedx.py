"""Scan evidence as CycloneDX 1.6: the model's files with their hashes, and what was found in them.

A finding is a vulnerability whose source is the scanner; one that a waiver accepts carries that analysis. The ML-BOM of a
packaged image is another document (`lockgate.domain.bill_of_materials`).
"""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from lockgate.domain.evidence import Finding, ScanEvidence, ScannerStatus
from lockgate.domain.gates.scan import severity_of, waiver_for
from lockgate.domain.policy import Policy
from lockgate.domain.sources import Snapshot

_NAMESPACE = uuid.UUID("5d9c0a52-8d0a-5f1e-b6a1-0d6d6b0f6e11")


def to_cyclonedx(
    evidence: ScanEvidence, snapshot: Snapshot, policy: Policy, now: datetime
) -> dict[str, Any]:
    """The document. The same evidence under the same policy gives the same serial number."""
    model = str(evidence.subject)
    identity = f"{model} {evidence.content_digest()} {policy.content_digest()}"
    metadata: dict[str, Any] = {
        "tools": {
            "components": [
                {
                    "type": "application",
                    "name": run.name,
                    **({"version": run.version} if run.version else {}),
                    "properties": [{"name": "lockgate:status", "value": run.status.value}],
                }
                for run in evidence.runs
            ]
        },
        "component": {
            "type": "machine-learning-model",
            "bom-ref": model,
            "name": f"snapshot {evidence.subject.short}",
            "hashes": [{"alg": "SHA-256", "content": evidence.subject.hex}],
        },
        "properties": [{"name": "lockgate:complete", "value": str(_complete(evidence)).lower()}],
    }
    if evidence.scanned_at is not None:
        metadata["timestamp"] = evidence.scanned_at.isoformat()
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, identity)}",
        "version": 1,
        "metadata": metadata,
        "components": [
            {
                "type": "file",
                "bom-ref": f"file:{file.path}",
                "name": file.path,
                "hashes": [{"alg": "SHA-256", "content": file.digest.hex}],
                "properties": [{"name": "lockgate:size", "value": str(file.size)}],
            }
            for file in snapshot.files
        ],
        "vulnerabilities": [
            _vulnerability(number, finding, evidence, snapshot, policy, now)
            for number, finding in enumerate(evidence.findings)
        ],
    }


def _complete(evidence: ScanEvidence) -> bool:
    return all(run.status is ScannerStatus.COMPLETED for run in evidence.runs)


def _vulnerability(
    number: int,
    finding: Finding,
    evidence: ScanEvidence,
    snapshot: Snapshot,
    policy: Policy,
    now: datetime,
) -> dict[str, Any]:
    listed = any(file.path == finding.path for file in snapshot.files)
    waiver = waiver_for(finding, evidence.subject, policy, now)
    analysis = (
        {"state": "in_triage"}
        if waiver is None
        else {"state": "exploitable", "response": ["will_not_fix"], "detail": waiver.reason}
    )
    return {
        "bom-ref": f"finding:{number}",
        "id": finding.rule,
        "source": {"name": finding.scanner},
        "ratings": [{"severity": severity_of(finding, policy).value, "method": "other"}],
        "description": f"{finding.path}: {finding.message}" if finding.path else finding.message,
        "affects": [{"ref": f"file:{finding.path}" if listed else str(evidence.subject)}],
        "analysis": analysis,
    }
