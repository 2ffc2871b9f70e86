"""The scan gate: only what was scanned by all that must, and found clean, passes."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from lockgate.domain.digests import Digest
from lockgate.domain.evidence import Finding, ScanEvidence, ScannerRun, ScannerStatus, Severity
from lockgate.domain.gates import Decision, GateResult
from lockgate.domain.gates.scan import scan_gate
from lockgate.domain.policy import ImageScanPolicy, Policy, WeightScanPolicy

WEIGHTS = Digest.of_bytes(b"weights")
IMAGE = Digest.of_bytes(b"image")


def _runs(*names: str, status: ScannerStatus = ScannerStatus.COMPLETED) -> tuple[ScannerRun, ...]:
    return tuple(ScannerRun(name=name, version="1", status=status) for name in names)


def _weights(**changes: Any) -> ScanEvidence:
    fields: dict[str, Any] = {
        "subject": WEIGHTS,
        "subject_kind": "weights",
        "runs": _runs("structure", "picklescan"),
        "findings": (),
        "seconds": 1.0,
    }
    return ScanEvidence(**{**fields, **changes})


def _image(**changes: Any) -> ScanEvidence:
    return _weights(
        **{"subject": IMAGE, "subject_kind": "image", "runs": _runs("trivy"), **changes}
    )


def _finding(severity: Severity) -> Finding:
    return Finding(scanner="structure", rule="r", severity=severity, path="f.json", message="bad")


def _policy(trivy: Literal["required", "optional"] = "required") -> Policy:
    return Policy(images=ImageScanPolicy(trivy=trivy))


def _judge(*evidences: ScanEvidence, policy: Policy | None = None, **options: Any) -> GateResult:
    return scan_gate(evidences, policy or _policy(), **options)


def test_complete_and_clean_evidence_passes_and_says_who_scanned() -> None:
    result = _judge(_weights(), _image(), subjects=[WEIGHTS, IMAGE])
    assert result.decision is Decision.PASS
    assert "picklescan 1" in " ".join(result.reasons)


def test_no_evidence_does_not_pass() -> None:
    assert _judge().decision is Decision.FAIL
    assert scan_gate([], _policy("optional"), required_kinds=()).decision is Decision.FAIL


@pytest.mark.parametrize(
    "evidences",
    [
        (_weights(),),
        (_image(),),
        (_weights(runs=()), _image()),
        (_weights(runs=_runs("structure")), _image()),
        (_weights(), _image(runs=())),
        (_weights(), _image(runs=_runs("something-else"))),
        (_weights(), _image(), _weights(subject_kind="unheard-of")),
    ],
    ids=["no image", "no weights", "no run", "one missing", "no trivy", "not trivy", "odd kind"],
)
@pytest.mark.parametrize("trivy", ["required", "optional"])
def test_a_missing_scan_does_not_pass(
    evidences: tuple[ScanEvidence, ...], trivy: Literal["required", "optional"]
) -> None:
    assert _judge(*evidences, policy=_policy(trivy)).decision is Decision.FAIL


def test_every_subject_needs_evidence_of_its_own() -> None:
    quantized = Digest.of_bytes(b"quantized")
    result = _judge(_weights(), _image(), subjects=[WEIGHTS, quantized, IMAGE])
    assert result.decision is Decision.FAIL
    assert quantized[:19] in result.reasons[0]


def test_a_required_trivy_that_is_absent_refuses() -> None:
    absent = _image(runs=_runs("trivy", status=ScannerStatus.NOT_INSTALLED))
    result = _judge(_weights(), absent)
    assert result.decision is Decision.FAIL
    assert "NOT SCANNED" in " ".join(result.reasons)


def test_an_optional_trivy_that_is_absent_passes_and_says_not_scanned() -> None:
    absent = _image(runs=_runs("trivy", status=ScannerStatus.NOT_INSTALLED))
    result = _judge(_weights(), absent, policy=_policy("optional"))
    assert result.decision is Decision.PASS
    assert "NOT SCANNED" in " ".join(result.reasons)


def test_trivy_without_its_database_counts_as_absent() -> None:
    runs = _runs("trivy") + _runs("trivy-database", status=ScannerStatus.NOT_INSTALLED)
    assert _judge(_weights(), _image(runs=runs)).decision is Decision.FAIL
    assert (
        _judge(_weights(), _image(runs=runs), policy=_policy("optional")).decision is Decision.PASS
    )


@pytest.mark.parametrize("trivy", ["required", "optional"])
def test_a_scan_that_failed_is_never_optional(trivy: Literal["required", "optional"]) -> None:
    failed = _image(runs=_runs("trivy", status=ScannerStatus.FAILED))
    assert _judge(_weights(), failed, policy=_policy(trivy)).decision is Decision.FAIL
    extra = _runs("structure", "picklescan") + _runs("more", status=ScannerStatus.FAILED)
    assert _judge(_weights(runs=extra), _image(), policy=_policy(trivy)).decision is Decision.FAIL


def test_a_failed_run_is_not_hidden_by_a_completed_one_of_the_same_name() -> None:
    runs = _runs("structure", status=ScannerStatus.FAILED) + _runs("structure", "picklescan")
    assert _judge(_weights(runs=runs), _image()).decision is Decision.FAIL


@pytest.mark.parametrize("severity", list(Severity))
def test_findings_refuse_from_the_policys_severity_on(severity: Severity) -> None:
    ranks = list(Severity)
    for block_at in Severity:
        policy = Policy(weights=WeightScanPolicy(block_at=block_at))
        result = _judge(_weights(findings=(_finding(severity),)), _image(), policy=policy)
        blocked = ranks.index(severity) >= ranks.index(block_at)
        assert (result.decision is Decision.FAIL) == blocked


def test_a_policy_that_names_no_scanner_passes_nothing() -> None:
    policy = Policy(weights=WeightScanPolicy(scanners=()))
    assert _judge(_weights(), _image(), policy=policy).decision is Decision.FAIL


def test_manifests_are_judged_where_there_is_evidence_of_them() -> None:
    finding = _finding(Severity.HIGH)
    manifests = _image(subject=Digest.of_bytes(b"m"), subject_kind="manifests", findings=(finding,))
    assert _judge(_weights(), _image(), manifests).decision is Decision.FAIL
