"""Two proportions: time-uniform intervals of their difference, the evidence about a split, over-dispersion.

Intervals by universal inference: the likelihood under a fixed mixture of shares over the best likelihood that
a difference has. Closed forms all through: the constrained maximum is the root of a cubic (Miettinen & Nurminen
1985), so a whole grid of differences costs one vectorised call. What decides is in `bets`.

Counts may be divided by a measured over-dispersion before they come here; the likelihoods do not
need integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaln, xlog1py, xlogy

from lockgate.domain.judge.logs import log_sum_exp

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Counts:
    """Events among trials on both tracks."""

    baseline_events: float
    baseline_trials: float
    canary_events: float
    canary_trials: float

    @property
    def four(self) -> tuple[float, float, float, float]:
        """The counts in the order in which the functions below take them."""
        return self.baseline_events, self.baseline_trials, self.canary_events, self.canary_trials

    def scaled(self, dispersion: float) -> Counts:
        """The same shares on 1 / dispersion of the trials."""
        return Counts(*(count / dispersion for count in self.four))

    @property
    def difference(self) -> float:
        """Canary's share minus baseline's; NaN without trials."""
        if self.baseline_trials <= 0 or self.canary_trials <= 0:
            return float("nan")
        return self.canary_events / self.canary_trials - self.baseline_events / self.baseline_trials


def log_likelihood(events: ArrayLike, trials: ArrayLike, share: ArrayLike) -> Array:
    """Binomial log likelihood without the combinatorial constant."""
    events, trials, share = (np.asarray(x, dtype=float) for x in (events, trials, share))
    out: Array = xlogy(events, share) + xlog1py(trials - events, -share)
    return out


def log_mixture(events: ArrayLike, trials: ArrayLike) -> Array:
    """Log marginal likelihood of one share under the Jeffreys prior."""
    return _marginal(np.asarray(events, dtype=float), np.asarray(trials, dtype=float), 0.5)


def _marginal(events: Array, trials: Array, other: float | Array) -> Array:
    """Log marginal likelihood under Beta(1/2, other)."""
    out: Array = betaln(events + 0.5, trials - events + other) - betaln(0.5, other)
    return out


_OTHERS: Array = np.array([0.5, 60.0])
"""Second parameters of the priors for shares that are anywhere, and for those that are rare (mean below one in a hundred)."""

_LOG_PRIORS: Array = np.log(np.array([[0.3, 0.05], [0.2, 0.45]]))
"""How likely each of them is held to be of the baseline (rows) and of the canary."""


def _log_alternatives(counts: Sequence[Counts]) -> Array:
    """Log likelihood of both tracks under the fixed mixture that intervals are made with, each of these counts:
    both shares anywhere, rare on both tracks (errors as they should be), or rare on one and
    anywhere on the other."""
    events, trials = np.array([[c.four[::2], c.four[1::2]] for c in counts]).swapaxes(0, 1)
    baseline, canary = np.moveaxis(_marginal(events[..., None], trials[..., None], _OTHERS), 1, 0)
    parts = baseline[:, :, None] + canary[:, None, :] + _LOG_PRIORS
    return log_sum_exp(parts.reshape(len(counts), -1))


_EDGE = 1e-12
"""How far a share stays from where what happened would be impossible."""


def nearest_share(kb: Array, nb: Array, kc: Array, nc: Array, difference: ArrayLike) -> Array:
    """The baseline's share in the likeliest pair of shares with canary - baseline = difference: the root of
    a cubic. With the events that some other pair of shares would bring on average, it is the pair nearest to
    that one in Kullback-Leibler divergence."""
    d = np.asarray(difference, dtype=float)
    n, k, twice = nb + nc, kb + kc, 2 * (nb + nc)
    c2 = (n + nb) * d - n - k
    c1 = (nb * d - n - 2 * kb) * d + k
    c0 = kb * d * (1 - d)
    # Every operation counts here: products instead of powers, and minima and maxima instead of np.clip, which cost several
    # times as much on small arrays.
    a2 = c2 / (1.5 * twice)
    square = a2 * a2
    q = a2 * square + (c0 - a2 * c1) / twice
    square = np.maximum(square - c1 / (1.5 * twice), 0.0)
    p = np.sqrt(square)
    cube = square * p
    cosine = np.divide(np.abs(q), cube, out=np.zeros_like(cube), where=cube > 0)
    share = 2 * np.copysign(p, q) * np.cos((np.pi + np.arccos(np.minimum(cosine, 1.0))) / 3) - a2
    # strictly within what is possible, so far as there are events and non-events
    low = np.maximum(0.0, -d) + np.minimum(kb, _EDGE)
    high = np.minimum(1.0, 1.0 - d) - np.minimum(nb - kb, _EDGE)
    out: Array = np.minimum(np.maximum(share, low), high)
    return out


def _constrained(kb: Array, nb: Array, kc: Array, nc: Array, difference: ArrayLike) -> Array:
    """Largest log likelihood over all pairs of shares with canary - baseline = difference."""
    share = nearest_share(kb, nb, kc, nc, difference)
    canary = np.minimum(
        np.maximum(share + np.asarray(difference), np.minimum(kc, _EDGE)),
        1.0 - np.minimum(nc - kc, _EDGE),
    )
    return log_likelihood(kb, nb, share) + log_likelihood(kc, nc, canary)


_STEPS: Array = np.concatenate([np.geomspace(5e-4, 1.0, 28)])
_DIFFERENCES: Array = np.concatenate([-_STEPS[::-1], [0.0], _STEPS])


def difference_interval(counts: Counts, log_threshold: float) -> tuple[float, float]:
    """Time-uniform confidence interval of the difference of shares (to the grid's resolution,
    outwards)."""
    return difference_intervals([(counts, log_threshold)])[0]


def difference_intervals(asked: Sequence[tuple[Counts, float]]) -> list[tuple[float, float]]:
    """The same for several pairs of counts, each with its log threshold: hardly dearer than for one."""
    out = [(-1.0, 1.0)] * len(asked)
    told = [i for i, (c, _) in enumerate(asked) if c.baseline_trials > 0 and c.canary_trials > 0]
    if not told:
        return out
    counts, thresholds = zip(*(asked[i] for i in told), strict=True)
    kb, nb, kc, nc = np.array([c.four for c in counts]).T[..., None]
    middle = np.array([[c.difference] for c in counts])
    grid = np.minimum(np.maximum(middle + _DIFFERENCES, -1.0), 1.0)
    mixture = _log_alternatives(counts) - np.array(thresholds)
    inside = mixture[:, None] < _constrained(kb, nb, kc, nc, grid)
    last = _DIFFERENCES.size - 1
    first = np.maximum(inside.argmax(axis=1) - 1, 0)
    beyond = np.minimum(last + 1 - inside[:, ::-1].argmax(axis=1), last)
    ends = np.take_along_axis(grid, np.stack([first, beyond], axis=1), axis=1)
    # where nothing is inside, what was seen is
    ends = np.where(inside.any(axis=1)[:, None], ends, middle)
    for i, (low, high) in zip(told, ends.tolist(), strict=True):
        out[i] = low, high
    return out


def log_e_split(canary: ArrayLike, total: ArrayLike, share: float, margin: float = 0.0) -> Array:
    """Log e-value against "the canary's share of requests is within ``margin`` of ``share``".

    Numerator: Jeffreys mixture (Lindon & Malek's multinomial test for two categories).
    """
    canary, total = np.asarray(canary, dtype=float), np.asarray(total, dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        seen = np.where(total > 0, canary / np.where(total > 0, total, 1.0), share)
    best = np.minimum(np.maximum(seen, max(share - margin, 1e-9)), min(share + margin, 1 - 1e-9))
    out: Array = log_mixture(canary, total) - log_likelihood(canary, total, best)
    return out


_RUNS = (1, 2, 4, 8)
_EVEN = 6.0
"""How many runs of blocks the belief is worth that the longer runs vary no more than chance allows."""


def dispersion_of_spells(events: ArrayLike, trials: ArrayLike) -> Array:
    """Over-dispersion of shares of one track where an event brings others for a while (a queue): the
    largest over runs of 1, 2, 4 and 8 blocks (last axis), each drawn to 1 as far as it is not known."""
    k, n = np.asarray(events, dtype=float), np.asarray(trials, dtype=float)
    total_k, total_n = k.sum(-1), n.sum(-1)
    rare = np.minimum(total_k, total_n - total_k) < 3
    if rare.all():
        return np.ones(total_k.shape)
    # the runs of all lengths one after the other, each length's from the last block backwards
    size = k.shape[-1]
    ends = [np.arange((size - 1) % length + 1, size + 1, length) for length in _RUNS]
    starts = [np.maximum(end - length, 0) for end, length in zip(ends, _RUNS, strict=True)]
    of_length = np.cumsum([0, *(end.size for end in ends[:-1])])
    k_run, n_run = (_sums(x, np.concatenate(starts), np.concatenate(ends)) for x in (k, n))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (total_k / total_n)[..., None]
        used = n_run > 0
        off = np.where(used, (k_run - n_run * share) ** 2 / (n_run * share * (1 - share)), 0.0)
        freedom = np.add.reduceat(used.astype(float), of_length, axis=-1) - 1
        value = (_EVEN + np.add.reduceat(off, of_length, axis=-1)) / (_EVEN + freedom)
    unknown = rare[..., None] | (freedom < 2) | np.isnan(value)
    out: Array = np.maximum(np.where(unknown, 1.0, value).max(axis=-1), 1.0)
    return out


def _sums(x: Array, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> Array:
    """Of the stretches between these places on the last axis."""
    upto = np.zeros((*x.shape[:-1], x.shape[-1] + 1))
    np.cumsum(x, axis=-1, out=upto[..., 1:])
    out: Array = upto[..., ends] - upto[..., starts]
    return out
