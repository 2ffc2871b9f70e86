"""The scan gate: only what was scanned by all that must, and found clean, passes."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

import pytest

from lockgate.domain.digests import Digest
from lockgate.domain.evidence import Finding, ScanEvidence, ScannerRun, ScannerStatus, Severity
from lockgate.domain.gates import Decision, GateResult
from lockgate.domain.gates.scan import scan_gate
from lockgate.domain.policy import ImageScanPolicy, Policy, Waiver, WeightScanPolicy

WEIGHTS = Digest.of_bytes(b"weights")
IMAGE = Digest.of_bytes(b"image")
NOW = datetime(2026, 5, 20, 12, 0, tzinfo=UTC)
SCANNERS = ("structure", "picklescan", "modelaudit")


def _runs(*names: str, status: ScannerStatus = ScannerStatus.COMPLETED) -> tuple[ScannerRun, ...]:
    return tuple(ScannerRun(name=name, version="1", status=status) for name in names)


def _weights(**changes: Any) -> ScanEvidence:
    fields: dict[str, Any] = {
        "subject": WEIGHTS,
        "subject_kind": "weights",
        "runs": _runs(*SCANNERS),
        "findings": (),
        "seconds": 1.0,
        "scanned_at": NOW - timedelta(hours=1),
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
    return scan_gate(evidences, policy or _policy(), **{"now": NOW, **options})


def test_complete_and_clean_evidence_passes_and_says_who_scanned() -> None:
    result = _judge(_weights(), _image(), subjects=[WEIGHTS, IMAGE])
    assert result.decision is Decision.PASS
    assert "picklescan 1" in " ".join(result.reasons)


def test_no_evidence_does_not_pass() -> None:
    assert _judge().decision is Decision.FAIL
    assert _judge(policy=_policy("optional"), required_kinds=()).decision is Decision.FAIL


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
    extra = _runs(*SCANNERS) + _runs("more", status=ScannerStatus.FAILED)
    assert _judge(_weights(runs=extra), _image(), policy=_policy(trivy)).decision is Decision.FAIL


def test_a_failed_run_is_not_hidden_by_a_completed_one_of_the_same_name() -> None:
    runs = _runs("structure", status=ScannerStatus.FAILED) + _runs(*SCANNERS)
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


@pytest.mark.parametrize(
    ("scanned_at", "decision"),
    [
        (NOW - timedelta(days=30), Decision.PASS),
        (NOW - timedelta(days=30, seconds=1), Decision.FAIL),
        (NOW + timedelta(minutes=5), Decision.PASS),
        (NOW + timedelta(days=1), Decision.FAIL),
        (None, Decision.FAIL),
    ],
    ids=["in time", "expired", "clock skew", "future", "unknown"],
)
def test_a_scan_that_is_expired_or_of_unknown_age_does_not_pass(
    scanned_at: datetime | None, decision: Decision
) -> None:
    for evidences in (
        (_weights(scanned_at=scanned_at), _image()),
        (_weights(), _image(scanned_at=scanned_at)),
    ):
        assert _judge(*evidences).decision is decision


@pytest.mark.parametrize(
    ("made", "decision"),
    [
        ("2026-05-14T12:00:00Z", Decision.PASS),
        ("2026-05-14T12:00:00.123456789Z", Decision.PASS),
        ("2026-05-01T12:00:00Z", Decision.FAIL),
        ("2026-05-14T12:00:00", Decision.FAIL),
        ("yesterday", Decision.FAIL),
        (None, Decision.FAIL),
    ],
)
def test_a_vulnerability_database_that_is_too_old_is_none(
    made: str | None, decision: Decision
) -> None:
    database = ScannerRun(name="trivy-database", version=made, status=ScannerStatus.COMPLETED)
    image = _image(runs=(*_runs("trivy"), database))
    assert _judge(_weights(), image).decision is decision
    optional = _judge(_weights(), image, policy=_policy("optional"))
    assert optional.decision is Decision.PASS
    assert (decision is Decision.FAIL) == ("NOT SCANNED" in " ".join(optional.reasons))


CODE = Digest.of_bytes(b"import torch")


def _code(digest: Digest = CODE) -> Finding:
    return Finding(
        scanner="structure", rule="code-file", severity=Severity.CRITICAL, path="m.py",
        message="code", digest=digest,
    )  # fmt: skip


def test_a_waiver_counts_for_its_bytes_and_its_rule_until_its_day() -> None:
    waiver = Waiver(
        rule="code-file", digest=CODE, reason="read line by line, J. Doe", until=date(2026, 5, 20)
    )
    policy = Policy(waivers=(waiver,))
    waived = _judge(_weights(findings=(_code(),)), _image(), policy=policy)
    assert waived.decision is Decision.PASS
    assert any("J. Doe" in reason and "m.py" in reason for reason in waived.reasons)
    other_bytes = _weights(findings=(_code(Digest.of_bytes(b"import os")),))
    assert _judge(other_bytes, _image(), policy=policy).decision is Decision.FAIL
    other_rule = _weights(findings=(_code().model_copy(update={"rule": "remote-code"}),))
    assert _judge(other_rule, _image(), policy=policy).decision is Decision.FAIL
    late = _judge(
        _weights(findings=(_code(),), scanned_at=NOW + timedelta(days=1)), _image(),
        policy=policy, now=NOW + timedelta(days=1),
    )  # fmt: skip
    assert late.decision is Decision.FAIL


def test_an_image_finding_is_waived_by_the_images_digest() -> None:
    finding = Finding(
        scanner="trivy", rule="CVE-1", severity=Severity.HIGH, path="zlib", message=""
    )
    waiver = Waiver(rule="CVE-1", digest=IMAGE, reason="not reachable, J. Doe", until=NOW.date())
    image = _image(findings=(finding,))
    assert _judge(_weights(), image).decision is Decision.FAIL
    assert _judge(_weights(), image, policy=Policy(waivers=(waiver,))).decision is Decision.PASS


def test_the_policy_gives_rules_other_severities() -> None:
    found = _weights(findings=(_code(),))
    for weights in (
        WeightScanPolicy(remote_code="note"),
        WeightScanPolicy(severities={"code-file": Severity.LOW}),
    ):
        assert _judge(found, _image(), policy=Policy(weights=weights)).decision is Decision.PASS
    address = _weights(findings=(_finding(Severity.LOW),))
    raised = Policy(weights=WeightScanPolicy(severities={"r": Severity.CRITICAL}))
    assert _judge(address, _image()).decision is Decision.PASS
    assert _judge(address, _image(), policy=raised).decision is Decision.FAIL


@pytest.mark.parametrize("status", [ScannerStatus.NOT_INSTALLED, ScannerStatus.FAILED])
def test_what_the_hub_does_not_say_refuses_only_where_it_is_required(status: ScannerStatus) -> None:
    source = _weights(subject_kind="source", runs=_runs("hub-security", status=status))
    recorded = _judge(_weights(), _image(), source)
    assert recorded.decision is Decision.PASS
    assert "NOT SCANNED by hub-security" in " ".join(recorded.reasons)
    strict = Policy(weights=WeightScanPolicy(hub_security="required"))
    assert _judge(_weights(), _image(), source, policy=strict).decision is Decision.FAIL


def test_what_the_hub_found_refuses_unless_it_is_ignored() -> None:
    source = _weights(
        subject_kind="source", runs=_runs("hub-security"), findings=(_finding(Severity.HIGH),)
    )
    assert _judge(_weights(), _image(), source).decision is Decision.FAIL
    ignored = Policy(weights=WeightScanPolicy(hub_security="ignored"))
    assert _judge(_weights(), _image(), source, policy=ignored).decision is Decision.PASS


def test_what_a_source_says_of_itself_is_no_scan_of_it() -> None:
    other = Digest.of_bytes(b"other")
    source = _weights(subject=other, subject_kind="source", runs=_runs("hub-security"))
    assert _judge(_weights(), _image(), source, subjects=[other]).decision is Decision.FAIL
