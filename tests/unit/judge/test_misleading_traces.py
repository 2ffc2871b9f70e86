"""Traces that could mislead: old evidence, the order of lines, sources that come late, and settings that would judge nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from lockgate.domain.judge import JudgeConfig, JudgeReport, Verdict, judge_lines
from lockgate.domain.trace import TRACKS
from tests.unit.judge.test_verdicts_on_traces import config, metric
from tests.unit.judge.traces import Server, trace

EQUAL = JudgeConfig(step_start=0.0, canary_weight=0.5)


def down(row: dict[str, Any]) -> dict[str, Any]:
    return {"time": row["time"], "track": row["track"], "instance": row["instance"], "up": False}


def dead(row: dict[str, Any], track: str, since: float, until: float = 1e9) -> dict[str, Any]:
    """The row; that its engine was down where it is of this track and time."""
    return down(row) if row["instance"] == f"{track}-0" and since <= row["time"] <= until else row


def in_order(rows: Iterable[str], first: str) -> Iterator[str]:
    parsed = [json.loads(row) for row in rows]
    return map(json.dumps, sorted(parsed, key=lambda row: (row["time"], row["track"] != first)))


def test_a_canary_that_was_good_for_long_and_no_longer_is_does_not_pass_on_what_it_was() -> None:
    good, slow = (
        [json.loads(row) for row in trace(Server(rate=3), Server(rate=3, itl=itl), seconds, 1)]
        for itl, seconds in ((0.045, 300), (0.09, 100))
    )
    at_last = {(row["track"], row["instance"]): row for row in good}
    lines = [json.dumps(row) for row in good]
    for row in slow[4:]:
        before = at_last[row["track"], row["instance"]]
        counters = {k: v + before["counters"].get(k, 0.0) for k, v in row["counters"].items()}
        histograms = {
            name: {
                "le": h["le"],
                "cumulative": [
                    a + b for a, b in zip(h["cumulative"], before["histograms"][name]["cumulative"], strict=True)
                ],
                "sum": h["sum"] + before["histograms"][name]["sum"],
            }
            for name, h in row["histograms"].items()
        }  # fmt: skip
        lines.append(
            json.dumps({**row, "time": row["time"] + 300, "counters": counters, "histograms": histograms})
        )  # fmt: skip
    steady = EQUAL.model_copy(update={"drift_sd": 0.0, "hold_s": 300.0})
    before_it = judge_lines(lines[: len(good)], steady)
    assert metric(before_it, "itl").verdict is Verdict.PASS
    report = judge_lines(lines, steady.model_copy(update={"hold_s": 390.0}))
    assert metric(report, "itl").verdict is not Verdict.PASS
    assert report.verdict is not Verdict.PASS


@pytest.mark.parametrize("what", ["gateway", "engines"])
def test_what_takes_both_tracks_blames_nobody_whichever_is_told_first(what: str) -> None:
    def outage(row: dict[str, Any]) -> dict[str, Any]:
        hit = (row["instance"] == "gateway") is (what == "gateway") and 30 <= row["time"] <= 36
        return down(row) if hit else row

    rows = list(trace(Server(), Server(), 60, 1, edit=outage))
    verdicts = {judge_lines(in_order(rows, first), EQUAL).verdict for first in TRACKS}
    assert verdicts == {Verdict.INSUFFICIENT_DATA}


def test_a_dead_canary_fails_though_the_baseline_was_down_before() -> None:
    def edit(row: dict[str, Any]) -> dict[str, Any]:
        return dead(dead(row, "baseline", 10, 14), "canary", 40)

    report = judge_lines(trace(Server(), Server(), 120, 1, edit=edit), EQUAL)
    assert report.verdict is Verdict.FAIL
    assert "canary-0 was down" in report.reasons[0]


def test_an_engine_whose_first_numbers_are_unreadable_is_an_engine_all_the_same() -> None:
    def edit(row: dict[str, Any]) -> dict[str, Any]:
        if row["instance"] == "canary-0" and row["time"] == 0:
            process = {"process_start_time_seconds": 100.0}
            return {**row, "counters": {}, "histograms": {}, "gauges": process}
        return row

    slow = Server(ttft=1.5, itl=0.45)
    report = judge_lines(trace(Server(), slow, 60, 1, edit=edit), EQUAL)
    assert report.verdict is Verdict.FAIL


def test_a_gap_of_months_while_one_track_is_silent_comes_to_an_end() -> None:
    def lines() -> Iterator[str]:
        for time in (0.0, *(1e7 + second for second in range(8))):
            counters = {'vllm:request_success_total{finished_reason="stop"}': time}
            row = {"time": time, "track": "baseline", "instance": "b", "up": True}
            yield json.dumps({**row, "counters": counters})

    assert judge_lines(lines(), JudgeConfig()).verdict is Verdict.METRICS_OUTAGE


def rows_and_scrapes(rows_first: bool) -> Iterator[str]:
    """Engines that are alike, and a gateway's log in which the canary's first bytes are three times as late."""
    lines = [json.loads(row) for row in trace(Server(rate=3), Server(rate=3), 120, 1)]
    for second in range(360):
        for track, ttfb in (("baseline", 0.1), ("canary", 0.3)):
            request = {"status": 200, "ttfb": ttfb, "duration": 1.0}
            time = second / 3 + (0.1 if rows_first else 1.6)
            lines.append({"time": time, "track": track, "instance": "log", "request": request})
    late = 1.5 if rows_first else 0.0
    for row in lines:
        row["time"] += late if "request" not in row else 0.0
    return map(json.dumps, sorted(lines, key=lambda row: row["time"]))


@pytest.mark.parametrize("rows_first", [True, False])
def test_the_preferred_source_of_a_metric_counts_whichever_comes_first(rows_first: bool) -> None:
    report = judge_lines(rows_and_scrapes(rows_first), EQUAL)
    assert report.verdict is not Verdict.FAIL
    assert abs(metric(report, "ttft").estimate) < 0.5


def test_a_metric_that_one_track_lacks_is_named_with_the_track_that_has_it() -> None:
    def edit(row: dict[str, Any]) -> dict[str, Any]:
        if row["track"] == "canary":
            row["histograms"].pop("vllm:inter_token_latency_seconds", None)
        return row

    report: JudgeReport = judge_lines(trace(Server(), Server(), 60, 1, edit=edit), EQUAL)
    assert metric(report, "itl").reason == "only the baseline has such samples"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": {"finish_reasons": {"margin": 0.98}}}, "make it advisory"),
        ({"metrics": {"gateway_errors": {"margin": 0.999}}}, "make it advisory"),
        ({"judge_latency": False}, "ttft is required and would not be judged"),
    ],
)
def test_settings_that_would_judge_nothing_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**changes)
