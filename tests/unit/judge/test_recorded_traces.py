"""Verdicts on scrapes of real servers: two vLLM (SmolLM2-135M on CPU cores that they share with others)
behind Envoy, half of the requests each. Recorded while a canary ran, or by `benchmarks/record_traces.py`; cut
down to the samples that the judge looks at.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from lockgate.domain.judge import JudgeConfig, JudgeReport, Verdict, follow, judge_lines
from tests.unit.judge.test_verdicts_on_traces import config, metric

DATA = Path(__file__).parent / "data"


def recorded(name: str) -> list[str]:
    return gzip.decompress((DATA / f"{name}.jsonl.gz").read_bytes()).decode().splitlines()


def judged(lines: list[str]) -> JudgeReport:
    return judge_lines(lines, config(settle_s=4.0, hold_s=45.0))


def test_a_real_canary_that_is_the_same_is_not_failed_and_its_answers_are_shown_to_be_so() -> None:
    report = judged(recorded("same"))
    assert report.verdict is not Verdict.FAIL
    assert metric(report, "output_length").verdict is Verdict.PASS
    for name in ("itl", "e2e_per_token"):
        assert metric(report, name).evidence_within > 3, name


def test_a_real_canary_that_queues_its_requests_fails_within_a_quarter_of_a_minute() -> None:
    report = judged(recorded("slower"))
    assert report.verdict is Verdict.FAIL
    assert report.decided_at is not None and report.decided_at <= 15
    assert metric(report, "ttft").verdict is Verdict.FAIL


def test_a_real_canary_whose_chat_template_is_broken_fails_by_the_ends_of_its_answers_alone() -> (
    None
):
    """Its template lost the end of a turn: no answer ends by itself any more, and every one is given as fast as before."""
    lines = recorded("broken-template")
    report = judge_lines(lines, JudgeConfig(step_start=0.0, canary_weight=0.5))
    assert report.verdict is Verdict.FAIL
    assert report.decided_at is not None and report.decided_at <= 90
    assert "`stop`, 0 of " in report.reasons[0]
    assert [m.name for m in report.metrics if m.verdict is Verdict.FAIL] == ["finish_reasons"]
    *_, to_the_end = follow(lines, JudgeConfig(step_start=0.0, canary_weight=0.5))
    for name in ("ttft", "itl", "e2e_per_token"):
        found = metric(to_the_end, name)
        assert found.verdict is not Verdict.FAIL and abs(found.estimate) < 0.1, name


@pytest.mark.parametrize("gap", [(10.0, 30.0), (5.0, 40.0)])
def test_a_hole_in_a_real_trace_blames_nobody(gap: tuple[float, float]) -> None:
    lines = [x for x in recorded("same") if not gap[0] < json.loads(x)["time"] < gap[1]]
    report = judged(lines)
    assert report.verdict in (Verdict.PASS, Verdict.INSUFFICIENT_DATA)
    errors = metric(report, "gateway_errors")
    assert abs(errors.n_baseline - errors.n_canary) <= 15


def test_a_real_canary_that_dies_fails_by_name_however_its_metrics_end() -> None:
    """Killed after 9 s: its own metrics are absent from then on, and the gateway has no server of it."""
    report = judged(recorded("canary-killed"))
    assert report.verdict is Verdict.FAIL
    assert "no live server of the canary" in metric(report, "crashes").reason
    assert report.decided_at is not None and report.decided_at <= 25


def test_a_real_canary_that_is_reported_down_fails() -> None:
    lines = []
    for line in recorded("same"):
        row = json.loads(line)
        if row["instance"] == "canary-engine" and row["time"] > 20:
            row |= {"up": False, "counters": {}, "histograms": {}, "gauges": {}}
        lines.append(json.dumps(row))
    report = judged(lines)
    assert report.verdict is Verdict.FAIL
    assert metric(report, "crashes").verdict is Verdict.FAIL


def test_servers_of_both_tracks_gone_together_blame_neither() -> None:
    lines = []
    for line in recorded("canary-killed"):
        row = json.loads(line)
        if row["instance"] == "baseline-gateway" and row["time"] > 9:
            row["gauges"]["envoy_cluster_membership_healthy"] = 0
        lines.append(json.dumps(row))
    assert metric(judged(lines), "crashes").verdict is not Verdict.FAIL


def test_a_real_baseline_that_dies_is_no_word_on_the_canary_that_answers_for_it() -> None:
    """Killed after 10 s, back after 71 s. Until then the gateway sent all requests to the canary."""
    report = judged(recorded("stable-killed"))
    assert report.verdict is Verdict.INSUFFICIENT_DATA
    assert metric(report, "split").verdict is not Verdict.FAIL
    assert metric(report, "gateway_errors").n_canary < 20, "of the hundred that it answered"
