"""The statistics under the verdicts: on many traces at once, through the vectorised calibration."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.judge_calibration import NULLS
from benchmarks.judge_families import BOUNDS, FAMILIES, Change, Setting, simulate
from benchmarks.judge_oracle import share_seconds
from benchmarks.judge_peers import kayenta
from benchmarks.judge_vectorised import Blocks, dispersion, judge_all, means, outcome, tail
from lockgate.domain.judge import Judge, JudgeConfig, shift
from lockgate.domain.judge.bets import BetsTogether, ShareEvidence, bets_within, bets_worse
from lockgate.domain.judge.proportion import Counts, difference_interval
from lockgate.domain.judge.shift import Claim, NuisanceGrid, ShiftEvidence, nuisance_grid
from lockgate.domain.judge.spread import Spread
from lockgate.domain.trace import TRACKS, Histogram, Scrape

SHORT = Setting(rate=2.0, seconds=120.0, block=1.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_canaries_at_the_margin_are_neither_rolled_back_nor_passed(family: str) -> None:
    b, c = simulate(family, SHORT, 50, NULLS["at the margin"], np.random.default_rng(11))
    found = outcome(judge_all(b, c, SHORT, JudgeConfig()), SHORT, JudgeConfig())
    assert np.isfinite(found.failed).sum() <= 3  # at a rate of 1% more have a chance of 0.2%
    for name, passed in found.within.items():
        assert np.isfinite(passed).sum() <= 7, name  # the same at 5%


def test_a_tail_that_the_mean_hides_is_found_among_independent_requests_and_not_blamed_on_a_queue() -> (
    None
):
    blocks, busy = Blocks.of(_BUSY, JudgeConfig()), np.random.default_rng(12)
    for family, change, least, most in (
        ("iid", Change(tail=0.05), 18, 20),
        ("iid", Change(latency=1.1), 0, 0),
        ("mmpp", Change(latency=1.1), 0, 1),
    ):
        pair = simulate(family, _BUSY, 20, change, busy)
        course = tail(*blocks.of_tracks(*pair), "ttft_tail", within=False)
        found = int((course.worse.max(axis=1) >= np.log(1000)).sum())
        assert least <= found <= most, (family, change)


_BUSY = Setting(rate=6.0, seconds=180.0, block=1.0)


def test_steady_replicas_let_a_doubled_latency_be_found_within_a_minute() -> None:
    config = JudgeConfig(drift_sd=0.0)
    b, c = simulate("iid", SHORT, 60, Change(latency=2.0), np.random.default_rng(3))
    found = outcome(judge_all(b, c, SHORT, config), SHORT, config, only="ttft")
    assert np.median(found.failed) <= 60


def test_the_judge_and_the_vectorised_calibration_hold_the_same_evidence() -> None:
    alone = {"ttft_tail": {"criticality": "advisory"}}
    config = JudgeConfig.model_validate({"step_start": 0.0, "alpha": 0.5, "metrics": alone})
    b, c = simulate("ar1", SHORT, 4, Change(latency=3.0), np.random.default_rng(5))
    blocks = Blocks.of(SHORT, config)
    grouped = (x.ttft for x in blocks.of_tracks(b, c))
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


def test_the_judge_and_the_vectorised_calibration_see_the_same_tail() -> None:
    config = JudgeConfig(step_start=0.0)
    pair = simulate("iid", SHORT, 2, Change(tail=0.15), np.random.default_rng(8))
    blocks = Blocks.of(SHORT, config)
    course = tail(*blocks.of_tracks(*pair), "ttft_tail")
    for trace in range(2):
        judge = Judge(config)
        for i in range(SHORT.blocks + 1):
            for name, track in zip(TRACKS, pair, strict=True):
                slow = track.slow[trace, :i].sum(axis=0)
                count, seconds = (x[trace, :i].sum() for x in (track.ttft.count, track.ttft.total))
                cumulative = (*(count - slow).tolist(), float(count))
                fine = Histogram((*BOUNDS.tolist(), np.inf), cumulative, float(seconds))
                histograms = {"vllm:time_to_first_token_seconds": fine}
                judge.observe(Scrape(i * SHORT.block, name, name, True, histograms=histograms))
        found = next(m for m in judge.look().metrics if m.name == "ttft_tail")
        assert np.log(found.evidence) == pytest.approx(course.worse[trace].max(), abs=0.05)
        assert course.worse[trace].max() > 1


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
    assert float(steady.log_e(shift.worse(np.log(1.1)))) > 5
    assert float(drifting.log_e(shift.worse(np.log(1.1)))) < 2.5


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


def test_what_is_known_of_several_latencies_together_is_what_is_known_of_each_alone() -> None:
    grids = nuisance_grid(0.2, 60.0), nuisance_grid(0.0, 60.0), nuisance_grid(0.1, 30.0, fine=True)
    claims = shift.worse(0.1), shift.not_better(-0.14), shift.not_worse(0.1)
    alone = [ShiftEvidence(grid) for grid in grids]
    together, rng = ShiftEvidence(NuisanceGrid.together(grids), (3,)), np.random.default_rng(7)
    for _ in range(12):
        observed = rng.normal(0.1, 0.2, 3)
        together.update(observed, np.full(3, 0.02), np.full(3, 5.0))
        for evidence, value in zip(alone, observed, strict=True):
            evidence.update(value, 0.02, 5.0)
    each = [float(e.log_e(claim)) for e, claim in zip(alone, claims, strict=True)]
    assert together.log_e(Claim.together(claims)) == pytest.approx(each)
    ends = [tuple(map(float, evidence.interval(np.log(20)))) for evidence in alone]
    assert np.stack(together.interval(np.log(20)), axis=1) == pytest.approx(np.array(ends))


def test_bets_on_several_shares_together_win_what_each_wins_alone() -> None:
    kinds = bets_worse(0.005, True), bets_within(0.05, False), bets_within(0.005, True)
    alone = [ShareEvidence(kind) for kind in kinds]
    together, rng = ShareEvidence(BetsTogether(kinds), (3,)), np.random.default_rng(9)
    for _ in range(12):
        nb, nc = rng.poisson(6, (2, 3))  # now and then a track has none
        kb, kc = rng.binomial(nb, 0.1), rng.binomial(nc, 0.2)
        together.update(kb, nb, kc, nc)
        for evidence, block in zip(alone, zip(kb, nb, kc, nc, strict=True), strict=True):
            evidence.update(*block)
    paid = np.array([1.0, 1.7, 2.5])
    each = [float(e.log_e(one)) for e, one in zip(alone, paid, strict=True)]
    assert together.log_e(paid) == pytest.approx(each)


def test_the_dispersion_kept_up_block_by_block_is_that_of_all_blocks() -> None:
    rng = np.random.default_rng(10)
    trials = rng.poisson(3, 80)
    events = rng.binomial(trials, np.where(np.arange(80) % 20 < 10, 0.1, 0.6))
    spread = Spread()
    for i, block in enumerate(zip(events.tolist(), trials.tolist(), strict=True), start=1):
        spread.add(*block)
        assert spread.dispersion == pytest.approx(float(dispersion(events[:i], trials[:i])))
    assert spread.dispersion > 1.3


def test_shares_at_the_margin_are_neither_failed_nor_passed_beyond_their_rates_although_they_vary() -> (
    None
):
    rng = np.random.default_rng(4)
    worse, within = (ShareEvidence(bets(0.05, True), (1000,)) for bets in (bets_worse, bets_within))
    failed, passed = np.zeros((2, 1000), dtype=bool)
    for block in range(60):
        trials = rng.poisson(20, (2, 1000)) + 1
        share = 0.02 if block % 10 < 5 else 0.25  # both tracks have bad minutes together
        baseline, canary = rng.binomial(trials[0], share), rng.binomial(trials[1], share + 0.05)
        for evidence in (worse, within):
            evidence.update(baseline, trials[0], canary, trials[1])
        failed |= worse.log_e() >= np.log(100)
        passed |= within.log_e() >= np.log(20)
    assert failed.mean() <= 0.01 and passed.mean() <= 0.05


def test_evidence_about_errors_costs_little_more_than_a_test_that_knows_both_shares() -> None:
    rng, rate, seconds = np.random.default_rng(6), 2.0, 1800.0
    evidence = ShareEvidence(bets_worse(0.005, True), (200,))
    for _ in range(round(seconds / 5)):
        trials = np.maximum(rng.poisson(5 * rate, (2, 200)), 1)
        evidence.update(
            rng.binomial(trials[0], 0.01), trials[0], rng.binomial(trials[1], 0.03), trials[1]
        )
    # nats a second, from the seconds for one nat
    known = seconds / share_seconds(0.01, 0.03, 0.005, np.exp(-1.0), rate)
    assert evidence.log_e().mean() >= known - 3.0


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
