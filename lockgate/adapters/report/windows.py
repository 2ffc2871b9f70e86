"""Windows of time, and what a histogram's increments say in each: quantiles with intervals.

The interval of a window's quantile is the wider of two: one from the number of observations (order statistics, binomial),
one from the variation from scrape to scrape within the window (bootstrap of whole scrapes), since tokens of one batch and
requests of one burst hang together. Both are pointwise 95% and for the eye: the judge has its own, valid at all times.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from lockgate.adapters.report.traces import Histogram

Array = NDArray[np.float64]

NICE_SECONDS = (
    2,
    5,
    10,
    15,
    20,
    30,
    60,
    120,
    300,
    600,
    1200,
    1800,
    3600,
    7200,
    14400,
    43200,
    86400,
)
MIN_OBSERVATIONS = 5
"""A window with fewer observations shows no quantile."""
_LEVEL = 0.95
_RESAMPLES = 200


@dataclass(frozen=True)
class QuantileBand:
    """One quantile of one track, window by window; NaN where a window had too few observations."""

    middles: Array
    value: Array
    lower: Array
    upper: Array
    observations: NDArray[np.int64]
    beyond: bool
    """Some quantile lies above the last finite bucket bound and is drawn at that bound."""


def window_edges(start: float, end: float, *, about: int = 24) -> Array:
    """Edges of equal windows of a round length, `about` of them, that cover start to end."""
    span = max(end - start, 1.0)
    width = next((w for w in NICE_SECONDS if span / w <= about), NICE_SECONDS[-1])
    count = max(1, int(np.ceil(span / width)))
    return start + width * np.arange(count + 1, dtype=float)


def window_sums(times: Array, values: Array, edges: Array) -> Array:
    """Sum of `values` in each window; an increment belongs to the window in which its scrape ended."""
    sums = np.zeros(len(edges) - 1)
    if len(times):
        np.add.at(sums, _window_of(times, edges), values)
    return sums


def quantile_band(histogram: Histogram, edges: Array, quantile: float) -> QuantileBand:
    windows = _window_of(histogram.times, edges)
    count = len(edges) - 1
    value, lower, upper = (np.full(count, np.nan) for _ in range(3))
    observations = np.zeros(count, dtype=np.int64)
    beyond = False
    # A fixed seed: the same data gives the same picture.
    random = np.random.default_rng(20240913)
    for window in range(count):
        rows = histogram.counts[windows == window]
        total = rows.sum(axis=0)
        n = int(total.sum())
        observations[window] = n
        if n < MIN_OBSERVATIONS:
            continue
        value[window] = bucket_quantiles(total[None, :], histogram.bounds, np.array([quantile]))[0]
        low = binom.ppf((1 - _LEVEL) / 2, n, quantile) / n
        high = min(1.0, (binom.ppf((1 + _LEVEL) / 2, n, quantile) + 1) / n)
        ends = bucket_quantiles(np.tile(total, (2, 1)), histogram.bounds, np.array([low, high]))
        rows = rows[rows.sum(axis=1) > 0]
        if len(rows) >= 3:
            weights = random.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), _RESAMPLES)
            resampled = bucket_quantiles(
                weights @ rows, histogram.bounds, np.full(_RESAMPLES, quantile)
            )
            spread = np.quantile(resampled, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
            ends = np.array([min(ends[0], spread[0]), max(ends[1], spread[1])])
        lower[window], upper[window] = ends
        beyond = beyond or bool(total[-1] > 0 and ends[1] >= histogram.bounds[-2])
    return QuantileBand(
        middles=(edges[:-1] + edges[1:]) / 2,
        value=value,
        lower=lower,
        upper=upper,
        observations=observations,
        beyond=beyond,
    )


def bucket_quantiles(counts: Array, bounds: Array, quantiles: Array) -> Array:
    """Quantile of each row of bucket counts, linear within a bucket; above the last finite bound it is that bound."""
    cumulative = np.cumsum(counts, axis=1)
    rank = quantiles * cumulative[:, -1]
    bucket = np.minimum((cumulative < rank[:, None] - 1e-9).sum(axis=1), counts.shape[1] - 1)
    rows = np.arange(len(counts))
    lower = np.where(bucket > 0, bounds[np.maximum(bucket - 1, 0)], 0.0)
    upper = bounds[bucket]
    inside = counts[rows, bucket]
    below = cumulative[rows, bucket] - inside
    share = np.divide(rank - below, inside, out=np.zeros_like(rank), where=inside > 0)
    with np.errstate(invalid="ignore"):
        interpolated = lower + np.clip(share, 0, 1) * (upper - lower)
    return np.where(np.isfinite(upper), interpolated, lower)


def _window_of(times: Array, edges: Array) -> NDArray[np.int64]:
    return np.clip(np.searchsorted(edges, times, side="left") - 1, 0, len(edges) - 2)
