"""Bands of quantiles: that they hold the truth at all looks, close in on it, and reach the report."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lockgate.domain.judge import (
    DEFAULT_METRICS,
    Judge,
    JudgeConfig,
    JudgeReport,
    Verdict,
    judge_lines,
)
from lockgate.domain.judge.bands import QuantileBands
from lockgate.domain.judge.increments import Buckets
from lockgate.domain.trace import TRACKS, Track, parse_line
from tests.unit.judge.test_verdicts_on_traces import metric
from tests.unit.judge.traces import Server, trace

MEDIAN, SCATTER, WANDER, WANDER_S = 0.045, 0.25, 0.2, 45.0
EDGES = np.geomspace(MEDIAN / 3, MEDIAN * 3, 120)
BATCH = 15


def holds(interval: tuple[float | None, float | None], truth: float) -> bool:
    low, high = interval
    return (low or 0.0) <= truth <= (math.inf if high is None else high)


@pytest.mark.parametrize("wandering", [False, True])
def test_the_bands_of_all_looks_together_hold_the_quantiles_of_the_long_run(
    wandering: bool,
) -> None:
    """Tokens in batches, on replicas that are steady or have good and bad minutes."""
    rng, blocks, traces = np.random.default_rng(7), 30, 60
    config = JudgeConfig(drift_sd=WANDER if wandering else 0.0)
    spread = math.hypot(SCATTER, WANDER if wandering else 0.0)
    truth = {0.5: MEDIAN, 0.95: MEDIAN * math.exp(1.6449 * spread)}
    keep = math.exp(-5.0 / WANDER_S)
    missed, widths = 0, []
    for _ in range(traces):
        bands, right = QuantileBands(DEFAULT_METRICS["itl"], config), True
        minute = dict.fromkeys(TRACKS, 0.0) | {t: rng.normal(0, WANDER) for t in TRACKS}
        for block in range(blocks):
            for track in TRACKS:
                new = rng.normal(0, WANDER * math.sqrt(1 - keep**2))
                minute[track] = minute[track] * keep + new
                factor = math.exp(minute[track]) if wandering else 1.0
                took = MEDIAN * factor * rng.lognormal(0, SCATTER, rng.poisson(300 / BATCH))
                at = np.searchsorted(EDGES, took)
                counts = BATCH * np.bincount(at, minlength=EDGES.size + 1)
                bands.take(track, Buckets((*EDGES.tolist(), math.inf), counts))
            bands.close(5.0 * (block + 1))
            found = bands.bands()
            right &= all(
                holds(band.baseline, truth[band.quantile])
                and holds(band.canary, truth[band.quantile])
                and holds(band.ratio, 1.0)
                for band in found
            )
        missed += not right
        widths.append((found[0].ratio[1] or math.inf) / (found[0].ratio[0] or 0.0))
    assert missed <= 6  # at a rate of 5% more have a chance of 3%
    assert np.median(widths) <= (10.0 if wandering else 1.8)


def quantiles_of(canary: Server, name: str) -> dict[float, tuple[float | None, float | None]]:
    judge = Judge(JudgeConfig(step_start=0.0, drift_sd=0.0))
    for line in trace(Server(rate=3.0), canary, 120, 1):
        judge.observe(parse_line(line))
    report = judge.look(quantiles=True)
    assert JudgeReport.model_validate(report.to_data()) == report
    return {band.quantile: band.ratio for band in metric(report, name).quantiles}


def test_a_canary_that_is_slower_at_its_tail_alone_shows_it_in_its_95th_percentile() -> None:
    ratio = quantiles_of(Server(rate=3.0, tail=0.3), "ttft")
    assert (ratio[0.95][0] or 0.0) > 1.0
    assert holds(ratio[0.5], 1.0)
    same = quantiles_of(Server(rate=3.0), "ttft")
    assert holds(same[0.5], 1.0) and holds(same[0.95], 1.0)
    assert quantiles_of(Server(rate=3.0), "e2e_per_token") == {}, "its histogram is not per token"


def test_bands_of_a_canary_with_other_buckets_than_the_baseline_stay_open() -> None:
    bands = QuantileBands(DEFAULT_METRICS["ttft"], JudgeConfig())
    assert bands.bands() == ()
    for block in range(40):
        bands.take("baseline", Buckets((0.1, 0.2, math.inf), np.array([5.0, 90.0, 5.0])))
        bands.take("canary", Buckets((0.1, 0.3, math.inf), np.array([5.0, 90.0, 5.0])))
        bands.close(5.0 * (block + 1))
    median = bands.bands()[0]
    assert median.baseline[0] and median.baseline[1]
    assert median.canary == median.ratio == (None, None)


@pytest.mark.parametrize("of", [TRACKS, ("canary",), ("baseline",)])
def test_a_latency_of_one_bucket_has_no_bands_and_the_canary_is_decided_on_all_the_same(
    of: tuple[Track, ...],
) -> None:
    def one_bucket(row: dict[str, Any]) -> dict[str, Any]:
        if row["track"] in of:
            for histogram in row["histograms"].values():
                histogram["le"] = histogram["le"][-1:]
                histogram["cumulative"] = histogram["cumulative"][-1:]
        return row

    lines = trace(Server(rate=3.0), Server(rate=3.0, errors=0.5), 120, 1, edit=one_bucket)
    report = judge_lines(lines, JudgeConfig(step_start=0.0))
    assert report.verdict is Verdict.FAIL
    bands = metric(report, "ttft").quantiles
    assert all(getattr(b, t) == b.ratio == (None, None) for t in of for b in bands)


def test_bands_that_cannot_be_made_end_no_look(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: QuantileBands) -> None:
        raise ValueError("zero-size array")

    monkeypatch.setattr(QuantileBands, "bands", broken)
    report = judge_lines(trace(Server(), Server(errors=0.5), 120, 1), JudgeConfig(step_start=0.0))
    assert report.verdict is Verdict.FAIL
    assert metric(report, "ttft").quantiles == ()
