"""modelaudit's JSON report, as findings (format of version 0.2.54)."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from lockgate.domain.digests import read_json
from lockgate.domain.evidence import Finding, Severity
from lockgate.domain.scanning.problems import quoted

SCANNER = "modelaudit"
MAX_FINDINGS = 2_000

_SEVERITIES = {
    "debug": Severity.LOW,
    "info": Severity.LOW,
    "warning": Severity.MEDIUM,
    "critical": Severity.CRITICAL,
}
COVERED = frozenset(
    {
        # Half a second for rendering is short on a busy machine; Lockgate renders every template with a limit on CPU time.
        "jinja2_sandbox_render_budget_exceeded",
        # It pads where the format does not if general.alignment is given; Lockgate reads GGUF to the last tensor.
        "gguf_parse_incomplete",
        # It takes every .model for XGBoost's; sentencepiece has that ending too.
        "xgboost_binary_structure_unrecognized",
        "xgboost_binary_structure_too_small",
    }
)
"""Reasons for an unfinished look that refuse nothing where Lockgate's own checks look at the same."""
_NOT_IN_A_RULE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class ModelAuditReport:
    """What a report holds. `failed`: modelaudit says itself that it could not do its work."""

    findings: tuple[Finding, ...]
    files: int
    """Files it scanned."""
    failed: bool
    errors: tuple[str, ...] = ()
    """Files it has no means to read, and why."""


def parse_report(data: bytes, root: str, covered: Collection[str] = ()) -> ModelAuditReport:
    """`root` is the directory that was scanned: paths are given relative to it. `covered`: reasons for an unfinished look that
    are no more than a note.

    A file that modelaudit could not look at to its end is a finding of its own (`inconclusive`). Raises `ValueError` on
    anything that is not such a report.
    """
    try:
        report = read_json(data)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(report, dict) or not isinstance(report.get("has_errors"), bool):
        raise ValueError("not a report of modelaudit's")
    files = report.get("files_scanned")
    if not isinstance(files, int) or isinstance(files, bool):
        raise ValueError("it does not say how many files were scanned")
    issues, metadata = report.get("issues"), report.get("file_metadata")
    if not isinstance(issues, list) or not isinstance(metadata, dict):
        raise ValueError("issues or file_metadata are missing")
    found = [_finding(issue, root) for issue in issues]
    for path, facts in metadata.items():
        found.extend(_unfinished(path, facts, root, covered))
    if len(found) > MAX_FINDINGS:
        raise ValueError(f"more than {MAX_FINDINGS} findings")
    failed = report["has_errors"] or files == 0
    errors = [
        f"{quoted(_place(path, root)[0])}: {quoted(facts.get('operational_error_reason'))}"
        for path, facts in metadata.items()
        if isinstance(facts, dict) and facts.get("operational_error")
    ]
    return ModelAuditReport(
        tuple(dict.fromkeys(found)), files, failed or bool(errors), tuple(errors)
    )


def _finding(issue: Any, root: str) -> Finding:
    if not isinstance(issue, dict):
        raise ValueError("an issue is not an object")
    severity = _SEVERITIES.get(str(issue.get("severity")).lower())
    if severity is None:
        raise ValueError(f"unknown severity {quoted(issue.get('severity'))}")
    rule = _NOT_IN_A_RULE.sub("-", str(issue.get("rule_code") or issue.get("type") or "issue"))
    path, inside = _place(str(issue.get("location") or ""), root)
    message = " ".join(str(issue.get("message") or "no message").split()).replace(root, "")
    return Finding(
        scanner=SCANNER,
        rule=f"modelaudit.{rule}"[:100],
        severity=severity,
        path=path,
        message=ascii(f"{inside}: {message}" if inside else message)[1:-1][:500],
    )


def _unfinished(path: str, facts: Any, root: str, covered: Collection[str]) -> list[Finding]:
    outcome = facts.get("scan_outcome") if isinstance(facts, dict) else None
    if outcome in (None, "complete", "completed"):
        return []
    reasons = facts.get("scan_outcome_reasons")
    reasons = [str(r) for r in reasons] if isinstance(reasons, list) else []
    noted = bool(reasons) and set(reasons) <= set(covered)
    return [
        Finding(
            scanner=SCANNER,
            rule="modelaudit.inconclusive",
            severity=Severity.LOW if noted else Severity.MEDIUM,
            path=_place(path, root)[0],
            message=f"could not be analysed to its end: {quoted(', '.join(reasons), 300)}",
        )
    ]


def _place(location: str, root: str) -> tuple[str, str]:
    """The file, and where in it: locations read `FILE`, `FILE (pos 5)`, `FILE:MEMBER`."""
    prefix = root.rstrip("/") + "/"
    if not location.startswith(prefix):
        return "", PurePosixPath(location).name
    relative = location[len(prefix) :]
    match = re.match(r"(.*?)(?: \(pos (\d+)\)|:(?!//)(.*))?$", relative, re.DOTALL)
    if match is None:
        return relative, ""
    return match[1], f"position {match[2]}" if match[2] else (match[3] or "")
