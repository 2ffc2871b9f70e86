"""The interval for the ratio of two runs' timings."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lockgate.domain.ratios import PairedRatio, ratio_of


def test_the_bounds_are_where_the_exact_rank_sum_test_changes_its_mind() -> None:
    random = np.random.default_rng(4)
    mine, theirs = random.lognormal(0.2, 0.3, 8), random.lognormal(0.0, 0.3, 8)
    alpha = 0.05
    upper = ratio_of(mine, theirs, "p50").upper(alpha)

    def p_value(ratio: float) -> float:
        shifted = theirs * ratio
        return float(stats.mannwhitneyu(mine, shifted, alternative="less", method="exact").pvalue)

    assert p_value(upper * 1.0001) <= alpha < p_value(upper * 0.9999)


def test_one_request_that_took_a_hundred_times_longer_does_not_move_the_estimate() -> None:
    steady = np.linspace(95, 105, 8)
    hiccup = steady.copy()
    hiccup[3] *= 100
    ratio = ratio_of(hiccup, steady, "p50")
    assert ratio.estimate == pytest.approx(1.0, abs=0.05)
    assert ratio.upper(0.05) < 1.2


def test_too_few_values_give_no_bound_rather_than_a_narrow_one() -> None:
    ratio = ratio_of(np.array([100.0, 101.0]), np.array([100.0, 101.0]), "p50")
    assert ratio.upper(0.05) == math.inf
    assert ratio.lower(0.05) == 0.0


def test_the_paired_bounds_are_where_the_exact_signed_rank_test_changes_its_mind() -> None:
    logarithms = np.random.default_rng(5).normal(0.1, 0.2, 9)
    alpha = 0.05
    ratio = PairedRatio(logarithms)

    def p_value(bound: float, alternative: str) -> float:
        tested = stats.wilcoxon(
            logarithms - math.log(bound), alternative=alternative, method="exact"
        )
        return float(tested.pvalue)

    upper, lower = ratio.upper(alpha), ratio.lower(alpha)
    assert p_value(upper * 1.0001, "less") <= alpha < p_value(upper * 0.9999, "less")
    assert p_value(lower * 0.9999, "greater") <= alpha < p_value(lower * 1.0001, "greater")


def test_too_few_pairs_give_no_bound_at_a_strict_level() -> None:
    five = PairedRatio(np.linspace(-0.01, 0.01, 5))
    assert five.upper(0.05) < 1.02
    assert five.lower(0.01) == 0.0
