"""Time-uniform bands of quantiles of a latency, for people to look at. Nothing is decided by them.

A confidence sequence of the share of requests that took no longer than a bucket's bound, at every bound: where that
share is surely below p the quantile lies above the bound, where it is surely larger the quantile lies below it. Since
the shares at all bounds rise together no union over the bounds is to be paid for (Howard & Ramdas 2022, theorem 1).
A quantile is known to the resolution of the buckets.

Requests depend on each other: counts are divided by the over-dispersion measured between runs of blocks, as those of
shares are, and before it is seen by the one that the metric declares. And a replica has good and bad minutes of its
own: a band of what it served so far is widened by what the declared drift may have done to it meanwhile, so that it is
one of the long run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from lockgate.domain.judge.config import JudgeConfig, MetricConfig
from lockgate.domain.judge.increments import Buckets
from lockgate.domain.judge.proportion import log_likelihood, log_mixture
from lockgate.domain.judge.report import Interval, QuantileBand
from lockgate.domain.trace import TRACKS, Track

Array = NDArray[np.float64]

QUANTILES = (0.5, 0.95)

_RUNS = (1, 2, 4, 8)
_EVEN = 6.0
"""How many runs of blocks the belief in the declared dispersion is worth."""
_LEAST = 5.0
"""Requests on either side of a bound without which it tells nothing of over-dispersion."""


class CdfSequence:
    """One track's requests at or below each bound, block by block. ``shape`` is that of one block's count."""

    def __init__(self, bounds: int, shape: tuple[int, ...] = ()) -> None:
        # requests at or below each bound, and (last) all of them
        self._all = np.zeros((*shape, bounds + 1))
        self._run = np.zeros((len(_RUNS), *shape, bounds + 1))
        self._blocks = 0
        self._squares = np.zeros((len(_RUNS), *shape, bounds))
        """Sums over closed runs of requests below squared over requests: all of Pearson's statistic that needs a sum."""
        self._runs = np.zeros((len(_RUNS), *shape))

    @property
    def below(self) -> Array:
        """Requests at or below each bound."""
        return self._all[..., :-1]

    @property
    def count(self) -> Array:
        """All requests."""
        return self._all[..., -1]

    def add(self, cumulative: Array) -> None:
        """Take one block: requests at or below each bound, and (last) all of them."""
        self._all += cumulative
        self._run += cumulative
        self._blocks += 1
        # the runs that end here are the shortest ones
        ended = sum(self._blocks % length == 0 for length in _RUNS)
        run = self._run[:ended]
        self._squares[:ended] += _squared(run)
        self._runs[:ended] += run[..., -1] > 0
        run[...] = 0.0

    def dispersion(self, declared: float) -> Array:
        """How much more the shares below the bounds vary between runs of blocks than those of independent requests: the
        largest over the bounds and lengths of runs, drawn to what is declared as far as it is not known."""
        n = np.maximum(self.count, 1.0)[..., None]
        share = self.below / n
        told = np.minimum(self.below, n - self.below) >= _LEAST
        spread = np.where(told, share * (1.0 - share), 1.0)
        squares = self._squares + _squared(self._run)
        off = np.where(told, (squares - self.below * share) / spread, 0.0).max(axis=-1)
        freedom = np.maximum(self._runs + (self._run[..., -1] > 0) - 1.0, 0.0)
        value: Array = ((_EVEN * declared + off) / (_EVEN + freedom)).max(axis=0)
        return np.maximum(value, 1.0)

    def around(
        self, quantiles: Array, dispersion: Array, log_threshold: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each quantile (first axis): how many bounds surely lie below it, and the number of the first that surely
        lies above it (the number of bounds where none does)."""
        below, count = self.below / dispersion[..., None], (self.count / dispersion)[..., None]
        p = quantiles.reshape(-1, *[1] * below.ndim)
        sure = log_mixture(below, count) - log_likelihood(below, count, p) >= log_threshold
        less = below < p * count
        under: NDArray[np.int64] = (sure & less).sum(axis=-1)
        over: NDArray[np.int64] = below.shape[-1] - (sure & ~less).sum(axis=-1)
        return under, over


def _squared(cumulative: Array) -> Array:
    out: Array = cumulative[..., :-1] ** 2
    out /= np.maximum(cumulative[..., -1:], 1.0)
    return out


@dataclass(frozen=True)
class Drift:
    """A replica's own good and bad minutes, as declared: standard deviation of the log, and correlation time."""

    sd: float
    seconds: float

    @property
    def apart(self) -> Drift:
        """Of two replicas' difference."""
        return Drift(self.sd * math.sqrt(2.0), self.seconds)

    def reach(self, elapsed: float, alpha: float) -> float:
        """How far (log) the mean of a drift over the time so far may be from nought: a bound for all times together, but for
        ``alpha``. Times that are near in ratio tell the same, so the bound grows with the doublings of time."""
        if self.sd <= 0:
            return 0.0
        part = self.seconds / max(elapsed, 1e-9)
        held = part * (1.0 - part * -math.expm1(-1.0 / part)) if part < 1e6 else 0.5
        doublings = math.log2(1.0 + 1.0 / part)
        spent = alpha / (4.0 * (1.0 + doublings) * (2.0 + doublings))
        return self.sd * math.sqrt(2.0 * held) * float(-ndtri(spent))


_DRIFTS = 3
"""The baseline's, the canary's and their difference are each held to be within reach."""


def intervals(
    seen: CdfSequence, bounds: Array, declared: float, drift: Drift, elapsed: float, level: float
) -> Array:
    """Of both tracks (first axis of ``seen``) and of the canary's quantiles over the baseline's, lower and upper end:
    (quantiles, 3, 2, ...). Right together, at all times, with probability ``level``. ``bounds``: the finite ones that were
    counted at; ``elapsed``: seconds that all this is about."""
    alpha = 1.0 - level
    of_counts = alpha / 2 if drift.sd > 0 else alpha
    log_threshold = -math.log(of_counts / (len(QUANTILES) * len(TRACKS)))
    under, over = seen.around(np.array(QUANTILES), seen.dispersion(declared), log_threshold)
    edges = np.array([0.0, *bounds, math.inf])
    low, high = edges[under], edges[over + 1]
    wide = math.exp(drift.reach(elapsed, alpha / 2 / _DRIFTS))
    # both wander, each for itself
    apart = math.exp(drift.apart.reach(elapsed, alpha / 2 / _DRIFTS))
    with np.errstate(divide="ignore"):
        ratio = low[:, 1] / high[:, 0] / apart, high[:, 1] / low[:, 0] * apart
    ends = [np.stack([low[:, t] / wide, high[:, t] * wide], axis=1) for t in range(len(TRACKS))]
    return np.stack([*ends, np.stack(ratio, axis=1)], axis=1)


class QuantileBands:
    """The bands of one latency, block by block."""

    def __init__(self, metric: MetricConfig, config: JudgeConfig) -> None:
        self._declared, self._level = metric.dispersion, config.interval_level
        self._drift = Drift(config.drift_sd, config.drift_s)
        self._bounds: tuple[float, ...] = ()
        self._open: dict[Track, Array] = {}
        self._counts: Array = np.zeros((0, 0))
        """The open block's requests in each bucket: both tracks, of which `_open` has the rows."""
        self._seen = CdfSequence(0)
        self._first: float | None = None
        self._last = 0.0
        self._found: tuple[QuantileBand, ...] | None = ()

    def take(self, track: Track, buckets: Buckets) -> None:
        """Add one instance's counts to the open block. Other bounds than the first tell of other shares: left out, and so is a
        histogram of one bucket, which tells of none."""
        if len(buckets.le) < 2:
            return
        if not self._bounds:
            self._bounds = buckets.le
            self._seen = CdfSequence(len(buckets.le) - 1, (len(TRACKS),))
            self.discard()
        if buckets.le == self._bounds:
            self._open[track] += buckets.counts

    def close(self, end: float) -> None:
        """The open block has ended."""
        if not self._bounds:
            return
        self._seen.add(self._counts.cumsum(axis=-1))
        self._first = end if self._first is None else self._first
        self._last, self._found = end, None
        self.discard()

    def discard(self) -> None:
        """The open block is compared with nothing."""
        self._counts = np.zeros((len(TRACKS), len(self._bounds)))
        self._open = dict(zip(TRACKS, self._counts, strict=True))

    def bands(self) -> tuple[QuantileBand, ...]:
        """As they are after the last block; none before the first."""
        if self._found is None:
            self._found = self._make()
        return self._found

    def _make(self) -> tuple[QuantileBand, ...]:
        bounds = np.array(self._bounds[:-1])
        elapsed = self._last - (self._last if self._first is None else self._first)
        found = intervals(self._seen, bounds, self._declared, self._drift, elapsed, self._level)
        return tuple(
            QuantileBand(
                quantile=quantile,
                baseline=_interval(*ends[0]),
                canary=_interval(*ends[1]),
                ratio=_interval(*ends[2]),
            )
            for quantile, ends in zip(QUANTILES, found.tolist(), strict=True)
        )


def _interval(low: float, high: float) -> Interval:
    return (
        low if low > 0 and math.isfinite(low) else None,
        high if math.isfinite(high) else None,
    )
