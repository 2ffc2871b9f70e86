"""modelaudit as Lockgate runs it: what it says is believed only when its status and its report agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lockgate.adapters.scanners import ENGINES, modelaudit
from lockgate.adapters.scanners.engine import Look, ScanJob
from lockgate.adapters.sources import read_snapshot
from lockgate.domain.evidence import Severity
from lockgate.domain.policy import WeightScanPolicy
from lockgate.domain.scanning.modelaudit_report import COVERED, parse_report
from lockgate.errors import ScannerError
from tests.unit.scanners.corpus import ESCAPE, pickled
from tests.unit.scanners.models import benign, write

ISSUE = {
    "message": "Found REDUCE opcode invoking dangerous global: posix.system",
    "severity": "critical",
    "location": "/m/a/x.pkl (pos 58)",
    "rule_code": "S201",
    "type": "pickle_check",
}


def _report(*issues: dict[str, Any], metadata: Any = None, **more: Any) -> dict[str, Any]:
    return {
        "issues": list(issues), "file_metadata": metadata or {}, "files_scanned": 3,
        "has_errors": False, **more,
    }  # fmt: skip


def _parse(report: Any) -> Any:
    return parse_report(json.dumps(report).encode(), "/m")


def test_an_issue_becomes_a_finding_without_paths_of_this_machine() -> None:
    (finding,) = _parse(_report(ISSUE)).findings
    assert finding.path == "a/x.pkl"
    assert finding.rule == "modelaudit.S201"
    assert finding.severity is Severity.CRITICAL
    assert "position 58" in finding.message
    (inside,) = _parse(_report({**ISSUE, "location": "/m/m.zip:data.pkl"})).findings
    assert (inside.path, inside.message[:8]) == ("m.zip", "data.pkl")
    (nowhere,) = _parse(_report({**ISSUE, "location": ""})).findings
    assert nowhere.path == ""


@pytest.mark.parametrize(
    ("reasons", "severity"),
    [
        (["zip_analysis_incomplete", "gguf_parse_incomplete"], Severity.MEDIUM),
        (["jinja2_sandbox_render_budget_exceeded"], Severity.LOW),
        ([], Severity.MEDIUM),
    ],
)
def test_a_file_that_could_not_be_analysed_is_a_finding(
    reasons: list[str], severity: Severity
) -> None:
    facts = {"scan_outcome": "inconclusive", "scan_outcome_reasons": reasons}
    report = json.dumps(_report(metadata={"/m/x.gguf": facts})).encode()
    (finding,) = parse_report(report, "/m", COVERED).findings
    assert (finding.path, finding.severity) == ("x.gguf", severity)
    (strict,) = parse_report(report, "/m").findings
    assert strict.severity is Severity.MEDIUM


def test_a_report_with_errors_or_without_files_is_a_failure() -> None:
    assert _parse(_report(has_errors=True)).failed
    assert _parse(_report(files_scanned=0)).failed
    unread = {"operational_error": True, "operational_error_reason": "onnx_dependency_unavailable"}
    report = _parse(_report(metadata={"/m/a.onnx": unread}))
    assert report.failed
    assert "a.onnx" in report.errors[0]


@pytest.mark.parametrize(
    "report",
    [
        [],
        {},
        _report({**ISSUE, "severity": "catastrophic"}),
        {**_report(), "issues": None},
        {**_report(), "has_errors": None},
        {**_report(), "files_scanned": "three"},
        {**_report(), "issues": ["text"]},
    ],
)
def test_what_is_no_report_is_refused(report: Any) -> None:
    with pytest.raises(ValueError):
        _parse(report)


def _scan(directory: Path, place: Path) -> Look:
    job = ScanJob(directory, read_snapshot(directory), WeightScanPolicy(), place / "logs")
    return ENGINES["modelaudit"].scan(job)


def test_large_tables_of_text_are_left_to_the_own_checks_and_only_where_these_are_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = benign(tmp_path / "model", template="")
    write(directory, "tokenizer.json", {"model": {"vocab": {str(n): n for n in range(30_000)}}})
    write(directory, "vocab.json", pickled(tmp_path / "canary") + bytes(300_000))
    given: list[str] = []

    def note(module: str, job: dict[str, Any], **options: Any) -> None:
        given.extend(Path(path).name for path in job["paths"])
        raise ScannerError("enough")

    monkeypatch.setattr(modelaudit, "call_worker", note)
    for scanners in (("structure", "modelaudit"), ("modelaudit",)):
        given.clear()
        policy = WeightScanPolicy(scanners=scanners)
        with pytest.raises(ScannerError, match="enough"):
            modelaudit.scan(ScanJob(directory, read_snapshot(directory), policy, tmp_path))
        assert "vocab.json" in given
        assert ("tokenizer.json" in given) == (scanners == ("modelaudit",))


@pytest.mark.slow
def test_the_real_one_finds_a_pickle_and_an_escape_and_runs_neither(tmp_path: Path) -> None:
    directory = benign(tmp_path / "model", template="")
    canary = tmp_path / "canary"
    write(directory, "vocab.txt", pickled(canary, 0))
    write(directory, "tokenizer_config.json", {"chat_template": "{{ " + ESCAPE + " }}"})
    look = _scan(directory, tmp_path)
    assert look.failure == ""
    serious = {f.path for f in look.findings if f.severity is not Severity.LOW}
    assert serious == {"vocab.txt", "tokenizer_config.json"}
    assert not canary.exists()
    assert str(tmp_path) not in " ".join(f.message + f.path for f in look.findings)


@pytest.mark.parametrize(
    ("status", "report"),
    [
        (0, _report(ISSUE)),
        (1, _report()),
        (2, _report()),
        (3, _report()),
        (0, None),
        (0, "nonsense"),
    ],
    ids=[
        "0 with findings",
        "1 without",
        "2 without a reason",
        "unknown status",
        "none",
        "nonsense",
    ],
)
def test_a_status_that_the_report_does_not_bear_out_is_a_failure(
    status: int, report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = benign(tmp_path / "model", template="")

    class Ended:
        code, timed_out = status, False

    class Answer:
        ended, ready = Ended, True

    def answer(module: str, job: dict[str, Any], **options: Any) -> type[Answer]:
        if report is not None:
            Path(job["report"]).write_text(json.dumps(report).replace("/m/", f"{directory}/"))
        return Answer

    monkeypatch.setattr(modelaudit, "call_worker", answer)
    with pytest.raises(ScannerError):
        _scan(directory, tmp_path)
