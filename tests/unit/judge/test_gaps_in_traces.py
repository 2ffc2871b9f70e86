"""What was not seen for a while: the writer of the trace was killed, or an endpoint hung."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from lockgate.domain.judge import Judge, Verdict, judge_lines
from lockgate.domain.trace import parse_line
from tests.unit.judge.test_verdicts_on_traces import config, metric
from tests.unit.judge.traces import Server, trace

COUNTED = ("ttft", "gateway_errors", "finish_reasons", "output_length")


def without(*gaps: tuple[float, float], only: str = "") -> Any:
    """Drops what lies inside a gap; `only`: of that track and instance."""

    def edit(row: dict[str, Any]) -> dict[str, Any] | None:
        inside = any(start < row["time"] < end for start, end in gaps)
        mine = not only or f"{row['track']} {row['instance']}" == only
        return None if inside and mine else row

    return edit


@pytest.mark.parametrize("canary_first", [False, True])
def test_after_a_gap_both_tracks_are_counted_over_the_same_stretch(canary_first: bool) -> None:
    lines = list(trace(Server(), Server(), 140, 1, edit=without((10, 100))))
    if canary_first:
        lines.sort(key=lambda x: (json.loads(x)["time"], json.loads(x)["track"] == "baseline"))
    judge = Judge(config())
    for line in lines:
        judge.observe(parse_line(line))
        if json.loads(line)["time"] < 100:
            continue
        report = judge.look()
        for name in COUNTED:
            found = metric(report, name)
            assert abs(found.n_baseline - found.n_canary) <= 45, (judge.time, name)
    assert metric(report, "gateway_errors").n_canary > 180


@pytest.mark.parametrize("late", ["baseline gateway", "canary gateway", "canary canary-0"])
def test_an_endpoint_that_stays_silent_after_a_gap_is_waited_for(late: str) -> None:
    alone = without((10, 115), only=late)
    gap = without((10, 100))
    lines = trace(Server(), Server(), 140, 2, edit=lambda row: gap(row) and alone(row))
    judge = Judge(config())
    for line in lines:
        judge.observe(parse_line(line))
        if json.loads(line)["time"] < 100:
            continue
        report = judge.look()
        assert report.verdict is not Verdict.FAIL
        for name in COUNTED:
            found = metric(report, name)
            assert abs(found.n_baseline - found.n_canary) <= 45, (judge.time, name)
    assert metric(report, "gateway_errors").n_canary > 180


def test_an_endpoint_that_comes_late_is_not_compared_with_what_was_before_it() -> None:
    late = without((-1, 60), only="baseline gateway")
    report = judge_lines(trace(Server(), Server(), 90, 3, edit=late), config())
    assert metric(report, "split").verdict is not Verdict.FAIL
    found = metric(report, "gateway_errors")
    assert abs(found.n_baseline - found.n_canary) <= 30


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("canary", "expected"),
    [
        (Server(rate=3.0), Verdict.PASS),
        (Server(rate=3.0, errors=0.5), Verdict.FAIL),
        (Server(rate=3.0, ttft=1.5, itl=0.2), Verdict.FAIL),
    ],
)
def test_ten_kills_of_the_driver_change_no_verdict(
    canary: Server, expected: Verdict, seed: int
) -> None:
    whole = list(trace(Server(rate=3.0), canary, 200, seed))
    rng = random.Random(seed)
    starts = sorted(rng.uniform(0, 190) for _ in range(10))
    gaps = [(start, start + rng.choice([2, 5, 12])) for start in starts]
    lines = [x for x in whole if not any(a < json.loads(x)["time"] < b for a, b in gaps)]
    assert judge_lines(whole, config()).verdict is expected
    # each driver has its own judge, which is told all that was written so far
    reports = []
    for _, killed in [*gaps[3::3], (0.0, 200.0)]:
        judge = Judge(config())
        for line in lines:
            if json.loads(line)["time"] <= killed:
                judge.observe(parse_line(line))
        decided = judge.decided()
        if decided is not None:
            reports.append((decided.verdict, decided.decided_at))
    assert {verdict for verdict, _ in reports} == {expected}
    assert len(set(reports)) == 1


def test_pods_that_were_replaced_time_and_again_are_not_waited_for() -> None:
    def replaced(row: dict[str, Any]) -> dict[str, Any]:
        if row["instance"] == "canary-0":
            return {**row, "instance": f"canary-{int(row['time'] // 12)}"}
        return row

    judge = Judge(config())
    for line in trace(Server(), Server(), 120, 4, edit=replaced):
        judge.observe(parse_line(line))
    report = judge.look()
    assert report.verdict is not Verdict.FAIL
    # each new pod's first scrape is its reference: a second of twelve is not counted
    assert metric(report, "ttft").n_canary > 0.75 * metric(report, "gateway_errors").n_canary
    assert report.looks >= 30
