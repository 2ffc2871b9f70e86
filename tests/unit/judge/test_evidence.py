"""The statistics under the verdicts: on many traces at once, through the vectorised calibration."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.judge_calibration import NULLS
from benchmarks.judge_families import FAMILIES, Change, Setting, simulate
from benchmarks.judge_peers import kayenta
from benchmarks.judge_vectorised import Blocks, judge_all, means, outcome
from lockgate.domain.judge import Judge, JudgeConfig
from lockgate.domain.judge.proportion import Counts, difference_interval, log_e_above, log_e_below
from lockgate.domain.judge.shift import ShiftEvidence, nuisance_grid
from lockgate.domain.trace import Histogram, Scrape

SHORT = Setting(rate=2.0, seconds=120.0, block=1.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_canaries_at_the_margin_are_neither_rolled_back_nor_passed(family: str) -> None:
    b, c = simulate(family, SHORT, 50, NULLS["at the margin"], np.random.default_rng(11))
    found = outcome(judge_all(b, c, SHORT, JudgeConfig()), SHORT, JudgeConfig())
    assert np.isfinite(found.failed).sum() <= 3  # at a rate of 1% more have a chance of 0.2%
    for name, passed in found.within.items():
        assert np.isfinite(passed).sum() <= 7, name  # the same at 5%


def test_steady_replicas_let_a_doubled_latency_be_found_within_a_minute() -> None:
    config = JudgeConfig(drift_sd=0.0)
    b, c = simulate("iid", SHORT, 60, Change(latency=2.0), np.random.default_rng(3))
    found = outcome(judge_all(b, c, SHORT, config), SHORT, config, only="ttft")
    assert np.median(found.failed) <= 60


def test_the_judge_and_the_vectorised_calibration_hold_the_same_evidence() -> None:
    config = JudgeConfig(step_start=0.0, alpha=0.5)
    b, c = simulate("ar1", SHORT, 4, Change(latency=3.0), np.random.default_rng(5))
    blocks = Blocks.of(SHORT, config)
    grouped = (x.ttft.grouped(blocks.starts) for x in (b, c))
    course = means(*grouped, "ttft", config, blocks)
    took = blocks.first(course.worse >= -np.log(0.95 * 0.5))
    assert np.isfinite(took).sum() >= 3
    for trace in range(4):
        judge = Judge(config)
        cumulative = {"baseline": np.zeros(_EDGES.size + 1), "canary": np.zeros(_EDGES.size + 1)}
        totals = {"baseline": 0.0, "canary": 0.0}
        for i in range(SHORT.blocks + 1):
            for track, sums in (("baseline", b.ttft), ("canary", c.ttft)):
                if i:
                    block = [float(x[trace, i - 1]) for x in (sums.count, sums.total, sums.square)]
                    cumulative[track] += _two_buckets(*block)
                    totals[track] += block[1]
                fine = Histogram((*_EDGES, np.inf), tuple(cumulative[track]), totals[track])
                name = "vllm:time_to_first_token_seconds"
                judge.observe(Scrape(i * SHORT.block, track, track, True, histograms={name: fine}))  # type: ignore[arg-type]
        report = judge.look()
        ours = np.inf if report.decided_at is None else report.decided_at
        assert ours == pytest.approx(took[trace], abs=1.0)  # a block ends between two scrapes


_EDGES = np.geomspace(0.002, 60.0, 400)


def _two_buckets(count: float, total: float, square: float) -> np.ndarray:
    """Cumulative counts with (nearly) this mean and scatter, half on each side of the mean."""
    out = np.zeros(_EDGES.size + 1)
    if count:
        mean = total / count
        spread = np.sqrt(max(square / count - mean**2, 0.0))
        for at in (max(mean - spread, 0.003), mean + spread):
            out[int(np.searchsorted(_EDGES, at)) :] += count / 2
    return out


def test_a_shift_within_the_declared_drift_convicts_only_replicas_declared_steady() -> None:
    drifting, steady = (ShiftEvidence(nuisance_grid(sd, 60.0)) for sd in (0.2, 0.0))
    for _ in range(6):
        for evidence in (drifting, steady):
            evidence.update(0.45, 0.02, 5.0)
    assert float(steady.log_e_above(np.log(1.1))) > 5
    assert float(drifting.log_e_above(np.log(1.1))) < 2.5


def test_the_interval_holds_the_truth_and_closes_in_on_it() -> None:
    rng = np.random.default_rng(2)
    evidence = ShiftEvidence(nuisance_grid(0.0, 60.0), (200,))
    missed, widths = np.zeros(200, dtype=bool), []
    for _ in range(60):
        evidence.update(0.3 + rng.normal(0, 0.2, 200), np.full(200, 0.04), np.full(200, 5.0))
        low, high = evidence.interval(np.log(20))
        missed |= (low > 0.3) | (high < 0.3)
        widths.append(float(np.mean(high - low)))
    assert missed.mean() <= 0.05
    assert widths[-1] < widths[2] / 2 and widths[-1] < 0.3


def test_shares_at_the_margin_are_neither_failed_nor_passed_beyond_their_rates() -> None:
    rng = np.random.default_rng(4)
    trials = np.cumsum(rng.poisson(20, (1000, 60)), axis=1)
    steps = np.diff(trials, axis=1, prepend=0)
    baseline, canary = (np.cumsum(rng.binomial(steps, p), axis=1) for p in (0.10, 0.15))
    counts = (baseline, trials, canary, trials)
    assert (log_e_above(*counts, 0.05) >= np.log(100)).any(axis=1).mean() <= 0.01
    assert (log_e_below(*counts, 0.05) >= np.log(20)).any(axis=1).mean() <= 0.05


def test_the_interval_of_a_difference_holds_it_and_is_never_empty() -> None:
    for counts in (Counts(0, 10, 10, 10), Counts(3, 150, 4, 140), Counts(0, 0, 1, 5)):
        low, high = difference_interval(counts, np.log(20))
        assert low < high
        if counts.baseline_trials:
            assert low <= counts.difference <= high


def test_kayenta_as_re_implemented_passes_the_data_of_spinnaker_6278() -> None:
    control = np.ones((1, 10))
    canary = np.array([[100, 1, 100, 100, 1, 100, 100, 1, 100, 100]], dtype=float)
    assert kayenta(control, canary, 1.0)[0] == -1
