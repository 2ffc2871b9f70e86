"""trivy as Lockgate calls it: what it says is believed only when its status, its report and its version agree."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lockgate.adapters.scanners.trivy import scan_image_layout, scan_manifests
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import ScanEvidence, ScannerStatus, Severity
from lockgate.domain.policy import ImageScanPolicy
from lockgate.domain.scanning.trivy_report import parse_report

POLICY = ImageScanPolicy()
SECRET = {
    "RuleID": "aws",
    "Severity": "CRITICAL",
    "Title": "AWS key",
    "StartLine": 3,
    "Match": "AKIA",
}
CVE = {
    "VulnerabilityID": "CVE-1",
    "PkgName": "openssl",
    "InstalledVersion": "1",
    "Severity": "UNKNOWN",
}

# A program that answers like trivy: `version`, and a report with a status, both from a file beside it.
STAND_IN = """#!{python}
import json, os, pathlib, sys, time
says = json.loads(pathlib.Path(__file__).with_suffix(".json").read_text())
if sys.argv[1] == "version":
    print(json.dumps(says["version"]))
    raise SystemExit(0)
pathlib.Path(__file__).with_suffix(".seen").write_text(json.dumps([sys.argv, dict(os.environ)]))
time.sleep(says.get("sleep", 0))
if says["report"] is not None:
    pathlib.Path(sys.argv[sys.argv.index("--output") + 1]).write_text(json.dumps(says["report"]))
raise SystemExit(says["status"])
"""


def _report(**result: Any) -> dict[str, Any]:
    return {"SchemaVersion": 2, "Results": [{"Target": "t", "Type": "kubernetes", **result}]}


@pytest.fixture
def layout(tmp_path: Path) -> tuple[Path, Digest]:
    body = json.dumps({"schemaVersion": 2, "layers": []}).encode()
    digest = Digest.of_bytes(body)
    (tmp_path / "store" / "blobs" / "sha256").mkdir(parents=True)
    (tmp_path / "store" / "blobs" / "sha256" / digest.hex).write_bytes(body)
    return tmp_path / "store", digest


@pytest.fixture
def scan(tmp_path: Path, layout: tuple[Path, Digest], monkeypatch: pytest.MonkeyPatch) -> Any:
    program = tmp_path / "trivy-stand-in"
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("LOCKGATE_TRIVY", str(program))

    def run(status: int, report: Any, *, database: bool = True, **more: Any) -> ScanEvidence:
        version: dict[str, Any] = {"Version": "9.9"}
        if database:
            version["VulnerabilityDB"] = {"UpdatedAt": "2026-01-01T00:00:00Z"}
        says = {"status": status, "report": report, "version": version, **more}
        program.with_suffix(".json").write_text(json.dumps(says))
        return scan_image_layout(
            layout[0], layout[1], POLICY, log=tmp_path / "log", timeout=2 if more else 60
        )

    return run


def test_findings_come_with_status_ten_and_their_severities(scan: Any) -> None:
    evidence = scan(10, _report(Secrets=[SECRET], Vulnerabilities=[CVE]))
    assert {run.status for run in evidence.runs} == {ScannerStatus.COMPLETED}
    assert evidence.runs[0].version == "9.9"
    assert [f.severity for f in evidence.findings] == [Severity.MEDIUM, Severity.CRITICAL]
    assert "AKIA" not in evidence.model_dump_json()


def test_a_clean_report_is_completed_without_findings(scan: Any) -> None:
    evidence = scan(0, {"SchemaVersion": 2})
    assert {run.status for run in evidence.runs} == {ScannerStatus.COMPLETED}
    assert evidence.findings == ()


@pytest.mark.parametrize(
    ("status", "report"),
    [
        (1, {"SchemaVersion": 2}),
        (0, None),
        (0, {"SchemaVersion": 1}),
        (0, []),
        (0, _report(Secrets=[SECRET])),
        (10, {"SchemaVersion": 2}),
        (10, _report(Secrets=[{**SECRET, "Severity": "BAD"}])),
        (10, _report(Secrets="many")),
    ],
)
def test_an_answer_that_does_not_add_up_is_a_failed_scan(
    scan: Any, status: int, report: Any
) -> None:
    evidence = scan(status, report)
    assert evidence.runs[0].status is ScannerStatus.FAILED
    assert evidence.findings == ()


@pytest.mark.slow
def test_a_trivy_that_hangs_is_a_failed_scan(scan: Any) -> None:
    evidence = scan(0, {"SchemaVersion": 2}, sleep=60)
    assert evidence.runs[0].status is ScannerStatus.FAILED
    assert "stopped" in evidence.runs[0].detail


def test_without_a_database_the_vulnerabilities_are_said_to_be_not_scanned(scan: Any) -> None:
    evidence = scan(0, {"SchemaVersion": 2}, database=False)
    by_name = {run.name: run for run in evidence.runs}
    assert by_name["trivy"].status is ScannerStatus.COMPLETED
    assert by_name["trivy-database"].status is ScannerStatus.NOT_INSTALLED


def test_trivy_is_asked_offline_and_sees_no_variable_that_could_quiet_it(
    scan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIVY_SKIP_FILES", "**")
    monkeypatch.setenv("HF_TOKEN", "secret")
    scan(0, {"SchemaVersion": 2})
    arguments, environment = json.loads((tmp_path / "trivy-stand-in.seen").read_text())
    assert {"--skip-db-update", "--offline-scan", "--skip-check-update"} <= set(arguments)
    assert not {"TRIVY_SKIP_FILES", "HF_TOKEN"} & set(environment)


def test_an_absent_trivy_is_not_installed(
    layout: tuple[Path, Digest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCKGATE_TRIVY", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    evidence = scan_image_layout(*layout, POLICY, log=tmp_path / "log")
    assert [run.status for run in evidence.runs] == [ScannerStatus.NOT_INSTALLED]


def test_a_named_trivy_that_is_not_there_is_a_failure_and_not_an_absence(
    layout: tuple[Path, Digest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCKGATE_TRIVY", str(tmp_path / "nowhere"))
    evidence = scan_image_layout(*layout, POLICY, log=tmp_path / "log")
    assert [run.status for run in evidence.runs] == [ScannerStatus.FAILED]
    assert str(tmp_path) not in evidence.model_dump_json()


def test_an_image_that_the_layout_lacks_or_holds_damaged_is_a_failed_scan(
    scan: Any, layout: tuple[Path, Digest]
) -> None:
    (layout[0] / "blobs" / "sha256" / layout[1].hex).write_bytes(b"{}")
    assert scan(0, {"SchemaVersion": 2}).runs[0].status is ScannerStatus.FAILED


@pytest.mark.parametrize("body", [b"[" * 100_000, b"[]", b"not JSON"])
def test_an_image_whose_manifest_is_none_is_a_failed_scan(
    scan: Any, layout: tuple[Path, Digest], body: bytes, tmp_path: Path
) -> None:
    scan(0, {"SchemaVersion": 2})  # sets the stand-in up to answer so
    digest = Digest.of_bytes(body)
    (layout[0] / "blobs" / "sha256" / digest.hex).write_bytes(body)
    evidence = scan_image_layout(layout[0], digest, POLICY, log=tmp_path / "log")
    assert [run.status for run in evidence.runs] == [ScannerStatus.FAILED]
    assert "is not a manifest" in evidence.runs[0].detail


def test_manifests_that_trivy_does_not_recognise_are_a_failed_scan(
    scan: Any, tmp_path: Path
) -> None:
    scan(0, {"SchemaVersion": 2})  # sets the stand-in up to answer so
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "a.yaml").write_text("a: b\n")
    evidence = scan_manifests(tmp_path / "manifests", POLICY, log=tmp_path / "log")
    assert [run.status for run in evidence.runs] == [ScannerStatus.FAILED]


def test_misconfigurations_that_passed_are_no_findings() -> None:
    checks = [
        {"ID": "KSV1", "Severity": "HIGH", "Status": "PASS", "Message": "m"},
        {"ID": "KSV2", "Severity": "HIGH", "Status": "FAIL", "Message": "m"},
    ]
    report = parse_report(json.dumps(_report(Misconfigurations=checks)).encode())
    assert [finding.rule for finding in report.findings] == ["KSV2"]
    assert report.targets == {"kubernetes": 1}
