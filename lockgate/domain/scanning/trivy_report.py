"""trivy's JSON report (schema version 2), as findings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lockgate.domain.digests import read_json
from lockgate.domain.evidence import Finding, Severity
from lockgate.domain.scanning.problems import quoted

SCANNER = "trivy"
MAX_FINDINGS = 20_000

_SEVERITIES = {
    "LOW": Severity.LOW,
    # A vulnerability that nobody has rated yet is not a harmless one.
    "UNKNOWN": Severity.MEDIUM,
    "MEDIUM": Severity.MEDIUM,
    "HIGH": Severity.HIGH,
    "CRITICAL": Severity.CRITICAL,
}


@dataclass(frozen=True)
class TrivyReport:
    """What a report holds. `targets` are the files and packages' databases that trivy recognised, by type."""

    findings: tuple[Finding, ...]
    targets: dict[str, int]


def parse_report(data: bytes) -> TrivyReport:
    """Raises `ValueError` on anything that is not a report of schema version 2, or has a finding of unknown form."""
    try:
        report = read_json(data)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(report, dict) or report.get("SchemaVersion") != 2:
        raise ValueError("not a report of schema version 2")
    findings: list[Finding] = []
    targets: dict[str, int] = {}
    for result in _objects(report, "Results"):
        kind = str(result.get("Type") or result.get("Class") or "")
        targets[kind] = targets.get(kind, 0) + 1
        findings.extend(_result(result))
        if len(findings) > MAX_FINDINGS:
            raise ValueError(f"more than {MAX_FINDINGS} findings")
    return TrivyReport(tuple(findings), targets)


def _result(result: dict[str, Any]) -> list[Finding]:
    target = str(result.get("Target") or "")
    findings = []
    for item in _objects(result, "Vulnerabilities"):
        package = f"{item.get('PkgName', '')} {item.get('InstalledVersion', '')}".strip()
        fixed = f", fixed in {item['FixedVersion']}" if item.get("FixedVersion") else ""
        message = f"{item.get('Title') or 'known vulnerability'}{fixed}"
        findings.append(_finding(item, "VulnerabilityID", package or target, message))
    for item in _objects(result, "Secrets"):
        # `Match` holds the censored line; it stays out of evidence all the same.
        message = f"{item.get('Title') or 'secret'}, line {item.get('StartLine', 0)}"
        findings.append(_finding(item, "RuleID", target, message))
    for item in _objects(result, "Misconfigurations"):
        if item.get("Status") != "FAIL":
            continue
        message = str(item.get("Message") or item.get("Title") or "misconfiguration")
        findings.append(_finding(item, "ID", target, message))
    for item in _objects(result, "Licenses"):
        where = str(item.get("PkgName") or item.get("FilePath") or target)
        findings.append(_finding(item, "Name", where, f"license category {item.get('Category')}"))
    return findings


def _objects(holder: dict[str, Any], key: str) -> list[dict[str, Any]]:
    value = holder.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError(f"{key} is not a list of objects")
    return value


def _finding(item: dict[str, Any], rule: str, path: str, message: str) -> Finding:
    severity = _SEVERITIES.get(str(item.get("Severity", "UNKNOWN")).upper())
    if severity is None:
        raise ValueError(f"unknown severity {quoted(item.get('Severity'))}")
    return Finding(
        scanner=SCANNER,
        rule=str(item.get(rule) or "unnamed"),
        severity=severity,
        path=path[:500],
        message=" ".join(message.split())[:500],
    )
