"""Renders chat templates in a limited process and says what their rendering shows."""

from __future__ import annotations

from pathlib import Path

from lockgate.adapters.scanners.worker import call_worker
from lockgate.domain.scanning.problems import Problem, critical, high, medium, quoted
from lockgate.errors import ScannerError

TIMEOUT = 30.0
"""Wall-clock seconds for one template, beside those of CPU time; rendering on a busy machine waits for others."""


def render_template(source: str, log: Path, cpu_seconds: int) -> list[Problem]:
    """Problems that rendering shows. Raises `ScannerError` when the process could not do its work."""
    answer = call_worker(
        "lockgate.adapters.scanners.template_worker",
        {"template": source, "cpu_seconds": cpu_seconds},
        log=log,
        timeout=TIMEOUT + 10 * cpu_seconds,
    )
    if not answer.ready:
        raise ScannerError("the template renderer did not start", log=log)
    if not answer.finished:
        how = "did not end" if answer.ended.timed_out else f"ended with status {answer.ended.code}"
        return [high("template-hangs", f"rendering {how}: endless, or it takes all memory")]
    outcomes = [(e["outcome"], str(e["detail"])) for e in answer.events if e["event"] == "sample"]
    problems = []
    for outcome, detail in outcomes:
        if outcome == "security":
            problems.append(
                critical("template-escapes", f"the sandbox stopped it: {quoted(detail)}")
            )
        elif outcome == "too-large":
            problems.append(high("template-bomb", f"rendering was stopped: {detail}"))
        elif outcome == "uncompilable":
            problems.append(high("template-syntax", f"does not compile: {quoted(detail)}"))
    if not problems and not any(outcome == "rendered" for outcome, _ in outcomes):
        detail = outcomes[0][1] if outcomes else "no sample was tried"
        problems.append(
            medium("template-unusable", f"renders no sample conversation: {quoted(detail)}")
        )
    return list(dict.fromkeys(problems))
