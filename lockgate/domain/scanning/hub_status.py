"""What the Hugging Face Hub's own scanners say of a model: `securityRepoStatus` of its API, as findings."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from lockgate.domain.evidence import Finding, Severity
from lockgate.domain.scanning.problems import quoted

SCANNER = "hub-security"
MAX_FILES = 10_000

_SEVERITIES = {
    "unsafe": Severity.CRITICAL,
    "suspicious": Severity.HIGH,
    "caution": Severity.MEDIUM,
}
_NO_FINDING = ("safe", "unscanned", "queued")


@dataclass(frozen=True)
class HubStatus:
    """`finished`: whether the Hub says that it has scanned every file of this revision."""

    finished: bool
    findings: tuple[Finding, ...]


def parse_status(status: Any, fetched: Collection[str]) -> HubStatus:
    """The Hub's answer; a file that is not among those that were `fetched` gives a low finding. Raises `ValueError` on
    anything that is not such an answer. A level that is not known counts as suspicious."""
    if not isinstance(status, dict) or not isinstance(status.get("scansDone"), bool):
        raise ValueError("it does not say whether scans are done")
    listed = status.get("filesWithIssues") or []
    if not isinstance(listed, list) or len(listed) > MAX_FILES:
        raise ValueError("filesWithIssues is not a list of files")
    findings = []
    for entry in listed:
        path, level = (entry.get("path"), entry.get("level")) if isinstance(entry, dict) else (0, 0)
        if not isinstance(path, str) or not isinstance(level, str):
            raise ValueError("an entry of filesWithIssues has no path or level")
        if level in _NO_FINDING:
            continue
        here = path in fetched
        findings.append(
            Finding(
                scanner=SCANNER,
                rule=f"hub-{level}" if level in _SEVERITIES else "hub-unknown-level",
                severity=_SEVERITIES.get(level, Severity.HIGH) if here else Severity.LOW,
                path=path if path.isprintable() else quoted(path),
                message=f"the Hub calls this file {quoted(level)}"
                + ("" if here else "; it was not downloaded"),
            )
        )
    return HubStatus(status["scansDone"], tuple(findings))
