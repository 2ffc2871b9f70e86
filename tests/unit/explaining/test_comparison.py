"""Two candidates side by side: what is compared, with which interval, and what says why it is not."""

from __future__ import annotations

from typing import Any

import pytest

from lockgate.domain.comparison import CandidateEvidence, LoadRow, ScoreRow, compare, own_interval
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import (
    EvaluationEvidence,
    Finding,
    ItemScore,
    ScanEvidence,
    Severity,
    TaskScore,
)
from lockgate.domain.explanation import after_refusal, refusals_of
from lockgate.domain.gates import Decision, GateReport, GateResult
from lockgate.domain.spec import ServingSpec
from tests.unit.gates.test_benchmark_gate import ELSEWHERE, evidence, profile

SUITE = Digest.of_bytes(b"suite")


def scores(right: int, of: int = 100, *, clusters: int | None = None) -> TaskScore:
    items = tuple(
        ItemScore(
            item=f"{n}",
            score=float(n < right),
            cluster=f"c{n * clusters // of}" if clusters else None,
        )
        for n in range(of)
    )
    return TaskScore(task="t", metric="acc", score=right / of, items=items)


def side(name: str, right: int = 80, **changes: Any) -> CandidateEvidence:
    digest = Digest.of_bytes(name.encode())
    evaluation = EvaluationEvidence(
        subject=digest, suite=SUITE, harness="h", tasks=(scores(right),), seconds=1
    )
    data: dict[str, Any] = {
        "name": name, "candidate": digest, "recipe": "none", "size_bytes": 2_000_000,
        "serving": ServingSpec(served_model_name="m"), "evaluation": evaluation,
        "benchmark": evidence(profile()), "scans": (),
    }  # fmt: skip
    return CandidateEvidence.model_validate({**data, **changes})


def score(a: CandidateEvidence, b: CandidateEvidence) -> ScoreRow:
    (row,) = compare(a, b).scores
    return row


def load(a: CandidateEvidence, b: CandidateEvidence, metric: str) -> LoadRow:
    return next(row for row in compare(a, b).loads if row.metric.startswith(metric))


def test_scores_of_the_same_questions_are_compared_item_by_item() -> None:
    row = score(side("a", 80), side("b", 60))
    assert row.difference == pytest.approx(-0.2)
    assert row.interval is not None and row.interval[0] < -0.2 < row.interval[1] < 0
    assert row.items == 100
    # Wilson's interval of 80 of 100.
    assert row.a_interval == pytest.approx((0.7112, 0.8666), abs=1e-3)


def test_a_difference_changes_its_sign_with_the_order_and_nothing_else() -> None:
    there, back = score(side("a", 80), side("b", 60)), score(side("b", 60), side("a", 80))
    assert there.difference == pytest.approx(-(back.difference or 0))
    assert there.interval is not None and back.interval is not None
    assert there.interval == pytest.approx((-back.interval[1], -back.interval[0]))


def test_items_over_few_documents_have_a_wider_interval_and_too_few_have_none() -> None:
    alone, clustered = own_interval(scores(50)), own_interval(scores(50, clusters=50))
    assert alone is not None and clustered is not None
    assert clustered[1] - clustered[0] > 1.3 * (alone[1] - alone[0])
    assert own_interval(scores(5, of=10)) is None
    assert own_interval(scores(50, clusters=5)) is None


@pytest.mark.parametrize("other", [{"suite": Digest.of_bytes(b"other")}, {"harness": "other"}])
def test_scores_of_other_questions_or_another_harness_are_not_compared(
    other: dict[str, Any],
) -> None:
    b = side("b")
    assert b.evaluation is not None
    row = score(side("a"), side("b", evaluation=b.evaluation.model_copy(update=other)))
    assert row.difference is None and "not comparable" in row.note
    assert row.a == row.b == 0.8


def test_latency_is_a_ratio_above_one_where_b_takes_longer() -> None:
    row = load(side("a"), side("b", benchmark=evidence(profile(slower=1.5, seed=1))), "time to")
    assert row.interval is not None and 1 < row.interval[0] < 1.5 < row.interval[1]


def test_latency_on_other_hardware_is_shown_and_not_compared() -> None:
    far = evidence(profile(), hardware=ELSEWHERE)
    row = load(side("a"), side("b", benchmark=far), "time to")
    assert row.ratio is None and row.a is not None and row.b is not None
    assert "other hardware" in row.note


def test_findings_say_whose_they_are_and_differing_arguments_are_listed() -> None:
    def scan(name: str, *rules: str) -> tuple[ScanEvidence, ...]:
        found = tuple(
            Finding(scanner="s", rule=rule, severity=Severity.HIGH, path="f.py", message="m")
            for rule in rules
        )
        subject = Digest.of_bytes(name.encode())
        return (
            ScanEvidence(
                subject=subject, subject_kind="weights", runs=(), findings=found, seconds=1
            ),
        )

    a = side("a", scans=scan("a", "old", "both"))
    b = side(
        "b", scans=scan("b", "new", "both"), recipe="w8a8-rtn",
        serving=ServingSpec(served_model_name="m", max_num_seqs=3),
    )  # fmt: skip
    found = compare(a, b)
    assert {(row.rule, row.of) for row in found.findings or ()} == {
        ("old", "a"), ("new", "b"), ("both", "both"),
    }  # fmt: skip
    assert {row.what for row in found.sides} >= {"recipe", "model size", "serving.max_num_seqs"}


def test_what_is_not_at_hand_is_named_and_never_taken_for_nothing() -> None:
    found = compare(side("a"), side("b", evaluation=None, scans=None))
    assert found.findings is None
    assert found.notes == ("b: no evaluation, no scans at hand",)


def refused(gate: str, decision: Decision, reason: str, **row: Any) -> GateReport:
    rows = ({**row, "decision": str(decision)},) if row else ()
    result = GateResult(gate=gate, decision=decision, reasons=(reason,), measurements=rows)
    return GateReport(candidate=SUITE, results=(result,), required=(gate,))


@pytest.mark.parametrize(
    ("report", "tried"),
    [
        (
            refused("evaluation", Decision.INSUFFICIENT_DATA, "undecided", items_needed=412),
            "evaluation.limit` of at least 412",
        ),
        (
            refused("benchmark", Decision.INSUFFICIENT_DATA, "undecided", pairs_to_decide=14),
            "benchmark.blocks` of at least 14",
        ),
        (refused("scan", Decision.FAIL, "weights: scanner trivy did not run"), "install"),
        (refused("scan", Decision.FAIL, "high: f.py: eval [s/code-file]"), "waiver"),
    ],
)
def test_what_can_be_tried_follows_from_what_refused(report: GateReport, tried: str) -> None:
    assert any(tried in step for step in after_refusal(refusals_of(report), None, "r"))


def test_a_gate_that_was_never_asked_is_a_refusal_too() -> None:
    report = refused("scan", Decision.FAIL, "x").model_copy(
        update={"required": ("scan", "benchmark")}
    )
    assert [(r.by, r.decision) for r in refusals_of(report)] == [
        ("scan", "fail"), ("benchmark", "no result"),
    ]  # fmt: skip
