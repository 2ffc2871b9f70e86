"""What the figures are made of: increments through restarts, and quantiles of buckets with their intervals."""

from __future__ import annotations

import json

import numpy as np
import pytest
from rich.console import Console

from lockgate.adapters.report import benchmark_rows, evaluation_rows, render_table
from lockgate.adapters.report.counts import proportion_interval
from lockgate.adapters.report.traces import BASELINE, CANARY, Histogram, read_trace
from lockgate.adapters.report.windows import bucket_quantiles, quantile_band, window_edges
from lockgate.adapters.report.wording import effect_bar
from lockgate.domain.gates.base import Decision, GateResult

from .stories import whole_report

TTFT = "vllm:time_to_first_token_seconds"
DONE = "vllm:request_success_total"


def scrape(
    time: float,
    counters: dict[str, float] | None = None,
    cumulative: list[float] | None = None,
    *,
    le: list[float | str] | None = None,
    instance: str = "b-0",
    up: bool = True,
) -> str:
    histograms = {}
    if cumulative is not None:
        histograms = {TTFT: {"le": le or [0.1, 0.5, "+Inf"], "cumulative": cumulative, "sum": 1.0}}
    return json.dumps(
        {
            "time": time, "track": CANARY, "instance": instance, "up": up,
            "counters": counters or {}, "histograms": histograms, "gauges": {},
        }
    )  # fmt: skip


def total(lines: list[str], selector: str) -> float:
    return float(read_trace([], lines).increments(CANARY, selector)[1].sum())


def test_what_an_instance_counted_before_the_trace_is_not_counted() -> None:
    assert total([scrape(0, {DONE: 1000}), scrape(2, {DONE: 1004})], DONE) == 4


def test_a_restart_counts_what_came_after_it_and_never_a_negative_number() -> None:
    lines = [
        scrape(0, {DONE: 10}),
        scrape(2, {DONE: 15}),
        scrape(4, {DONE: 3}),
        scrape(6, {DONE: 4}),
    ]
    assert total(lines, DONE) == 5 + 3 + 1


def test_a_sample_that_appears_later_counts_from_zero() -> None:
    error = f'{DONE}{{finished_reason="error"}}'
    lines = [scrape(0, {}), scrape(2, {error: 2, f'{DONE}{{finished_reason="stop"}}': 7})]
    assert total(lines, error) == 2
    assert total(lines, DONE) == 9


def test_an_instance_that_does_not_answer_is_down_until_it_does() -> None:
    trace = read_trace([], [scrape(0), scrape(2, up=False), scrape(4, up=False), scrape(6)])
    assert [(d.start, d.end) for d in trace.down] == [(2, 6)]


def test_instances_with_different_buckets_meet_on_the_bounds_that_both_have() -> None:
    lines = [
        scrape(0, cumulative=[0, 0, 0]),
        scrape(0, cumulative=[0, 0], le=[0.5, "+Inf"], instance="b-1"),
        scrape(2, cumulative=[4, 6, 7]),
        scrape(2, cumulative=[10, 12], le=[0.5, "+Inf"], instance="b-1"),
    ]
    histogram = read_trace([], lines).histogram(CANARY, TTFT)
    assert histogram is not None
    assert histogram.bounds.tolist() == [0.5, np.inf]
    assert histogram.counts.sum(axis=0).tolist() == [16, 3]


def test_a_track_without_observations_has_no_histogram() -> None:
    trace = read_trace([], [scrape(0, cumulative=[5, 5, 5]), scrape(2, cumulative=[5, 5, 5])])
    assert trace.histogram(CANARY, TTFT) is None
    assert trace.histogram(BASELINE, TTFT) is None


def test_quantiles_are_linear_within_a_bucket_and_stop_at_the_last_finite_bound() -> None:
    bounds = np.array([1.0, 2.0, np.inf])
    counts = np.array([[10.0, 10.0, 0.0], [0.0, 0.0, 5.0]])
    assert bucket_quantiles(counts, bounds, np.array([0.75, 0.5])).tolist() == [1.5, 2.0]


def test_bands_hold_the_true_quantile_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(5)
    bounds = np.append(np.geomspace(0.02, 3, 60), np.inf)
    held = 0
    for _ in range(120):
        rows = [random.lognormal(np.log(0.2), 0.5, 6) for _ in range(15)]
        counts = np.array(
            [np.bincount(np.searchsorted(bounds, row), minlength=len(bounds)) for row in rows]
        )
        histogram = Histogram(bounds, np.arange(15.0), counts.astype(float))
        band = quantile_band(histogram, np.array([-1.0, 15.0]), 0.5)
        held += bool(band.lower[0] <= 0.2 <= band.upper[0])
    assert held / 120 >= 0.92


def test_a_window_with_too_few_observations_shows_no_quantile() -> None:
    histogram = Histogram(np.array([1.0, np.inf]), np.array([1.0]), np.array([[4.0, 0.0]]))
    assert np.isnan(quantile_band(histogram, np.array([0.0, 2.0]), 0.5).value[0])


def test_windows_are_round_and_cover_the_whole_time() -> None:
    edges = window_edges(100, 407)
    assert edges[0] == 100 and edges[-1] >= 407
    assert edges[1] - edges[0] == 15


def test_a_share_of_nothing_is_unknown_and_no_failure_is_not_certainty() -> None:
    assert proportion_interval(0, 0) == (0.0, 1.0)
    low, high = proportion_interval(0, 100)
    assert low == 0 and high == pytest.approx(0.0362, abs=1e-3)


def test_an_effect_without_a_margin_has_no_bar_and_an_open_end_is_marked() -> None:
    assert effect_bar(0.1, None, None) is None
    assert effect_bar(0.1, None, 0.0) is None
    bar = effect_bar(0.1, (None, 0.5), 0.1)
    assert bar is not None
    assert bar.low_open and bar.high_open
    assert bar.point == bar.limit


def test_rows_come_from_what_the_gates_measured() -> None:
    task = {
        "task": "facts", "metric": "exact_match,strip", "candidate": 0.6, "margin": 0.1, "floor": 0.5,
        "items": 120, "stable": 0.7, "difference": -0.1, "lower": -0.2, "upper": 0.01, "decision": "fail",
    }  # fmt: skip
    profile = {
        "profile": "eight", "metric": "end to end, mean", "candidate": 120.0, "stable": 100.0,
        "margin": 0.15, "ratio": 1.2, "lower": 1.1, "upper": 1.3, "decision": "fail",
    }  # fmt: skip
    limit = {
        "profile": "eight",
        "metric": "output tokens per second",
        "candidate": 9.0,
        "limit": 10.0,
        "decision": "fail",
    }
    gate = GateResult(
        gate="any", decision=Decision.FAIL, reasons=("x",), measurements=(task, profile, limit)
    )
    (row,) = evaluation_rows(gate)
    assert (row.interval, row.decision) == ((-0.2, 0.01), Decision.FAIL)
    relative, absolute = benchmark_rows(gate)
    assert relative.change == pytest.approx(0.2) and relative.limit == 0.15
    assert (absolute.absolute_limit, absolute.unit, absolute.change) == (10.0, "tok/s", None)


def test_the_terminal_table_says_the_same_without_colours() -> None:
    console = Console(width=140, record=True, color_system=None, file=None, quiet=False)
    with console.capture() as captured:
        console.print(render_table(whole_report().releases))
    text = captured.get()
    lines = [line for line in text.splitlines() if "Release 3" in line]
    assert "fail" in lines[0] and "rolled back" in lines[0]
    assert "evaluation FAIL" in text
