"""Comparing timings: how many times slower is one candidate than the other, and how sure is that?

Measured in turn, block by block (`PairedRatio`): the Hodges-Lehmann estimate of the shift of the paired logarithms, with the
exact signed-rank (Wilcoxon) interval. What both blocks of a pair share, be it for minutes or for the whole run, cancels.
Which side came first was drawn for each pair, so under equality every sign of a difference is as likely as the other by
design, and the test is exact whatever the noise is and however it drags on; a bootstrap of blocks would be approximate,
and with eight of them too narrow.

Measured apart (`Ratio`): the Hodges-Lehmann estimate of the shift between the logarithms, with the exact rank-sum
(Mann-Whitney) interval. Neighbouring requests are alike, so a run is first cut into a few batches in the order sent (the
method of batch means), and each batch gives one value. It knows nothing of the noise between runs.

Both intervals: M. Hollander, D. Wolfe, E. Chicken, "Nonparametric Statistical Methods", 3rd ed. (2013), chapters 3 and 4. No
distribution is assumed and a few outliers do not move them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

BATCHES = 8
"""Values a run is summed up by, where it was measured apart."""

FEWEST_REQUESTS = 64
"""Runs measured apart are not compared with fewer: batches shorter than eight requests are still alike (calibration page)."""


@dataclass(frozen=True)
class Ratio:
    """Candidate over stable, as the sorted ratios of every pair of batches."""

    pairs: NDArray[np.float64]
    batches: tuple[int, int]

    @property
    def estimate(self) -> float:
        return float(np.median(self.pairs))

    def lower(self, alpha: float) -> float:
        """One-sided lower confidence bound at level 1 - alpha; 0 where there are too few values for one."""
        rank = _rank(*self.batches, alpha)
        return float(self.pairs[rank - 1]) if rank else 0.0

    def upper(self, alpha: float) -> float:
        """One-sided upper confidence bound at level 1 - alpha; infinite where there are too few values for one."""
        rank = _rank(*self.batches, alpha)
        return float(self.pairs[-rank]) if rank else math.inf


@dataclass(frozen=True)
class PairedRatio:
    """Candidate over stable, from the logarithms of the ratios of each pair of blocks."""

    logarithms: NDArray[np.float64]

    @property
    def pairs(self) -> int:
        return int(self.logarithms.size)

    @property
    def estimate(self) -> float:
        return math.exp(float(np.median(self._averages)))

    def lower(self, alpha: float) -> float:
        """One-sided lower confidence bound at level 1 - alpha; 0 where there are too few pairs for one."""
        rank = _signed_rank(self.pairs, alpha)
        return math.exp(float(self._averages[rank - 1])) if rank else 0.0

    def upper(self, alpha: float) -> float:
        """One-sided upper confidence bound at level 1 - alpha; infinite where there are too few pairs for one."""
        rank = _signed_rank(self.pairs, alpha)
        return math.exp(float(self._averages[-rank])) if rank else math.inf

    def pairs_to_decide(self, allowed: float, alpha: float, power: float = 0.8) -> int | None:
        """How many pairs would tell the ratio from `allowed` with this power, if estimate and spread stay as measured."""
        distance = abs(math.log(self.estimate / allowed))
        if distance < 1e-9 or self.pairs < 2:
            return None
        spread = float(self.logarithms.std(ddof=1))
        z = float(stats.norm.ppf(1 - alpha) + stats.norm.ppf(power))
        # pi / 3: what ranks cost against means where the noise is normal.
        asymptotic = math.ceil(math.pi / 3 * (z * spread / distance) ** 2)
        return max(asymptotic, math.ceil(-math.log2(alpha)))

    @property
    def _averages(self) -> NDArray[np.float64]:
        """The Walsh averages, in order."""
        first, second = np.triu_indices(self.pairs)
        return np.sort((self.logarithms[first] + self.logarithms[second]) / 2)


def ratio_of(
    candidate: NDArray[np.float64],
    stable: NDArray[np.float64],
    statistic: Literal["p50", "mean"],
) -> Ratio:
    """The ratio of two runs' timings (all positive, in the order sent), each batch summed up by `statistic`."""
    above, below = _batched(candidate, statistic), _batched(stable, statistic)
    return Ratio(np.sort(np.divide.outer(above, below), axis=None), (above.size, below.size))


def _batched(sample: NDArray[np.float64], statistic: str) -> NDArray[np.float64]:
    location = np.median if statistic == "p50" else np.mean
    count = min(sample.size, BATCHES)
    return np.array([location(batch) for batch in np.array_split(sample, count)], dtype=np.float64)


@lru_cache(maxsize=256)
def _rank(candidate: int, stable: int, alpha: float) -> int:
    """The largest k such that the rank-sum statistic is below k with probability at most alpha."""
    return _quantile(_ways(candidate, stable), alpha)


@lru_cache(maxsize=256)
def _signed_rank(pairs: int, alpha: float) -> int:
    """The largest k such that the signed-rank statistic is below k with probability at most alpha."""
    ways = [1]
    for rank in range(1, pairs + 1):
        longer = ways + [0] * rank
        for place, count in enumerate(ways):
            longer[place + rank] += count
        ways = longer
    return _quantile(ways, alpha)


def _quantile(counts: list[int], alpha: float) -> int:
    total = sum(counts)
    below = 0
    for rank, ways in enumerate(counts):
        below += ways
        if below > alpha * total:
            return rank
    return len(counts)


def _ways(first: int, second: int) -> list[int]:
    """In how many orders of two samples the rank-sum statistic is 0, 1, 2, …: the Gaussian binomial coefficients."""
    size = first * second + 1
    ways = [1] + [0] * (size - 1)
    for k in range(1, first + 1):
        step = second + k
        for place in range(size - 1, step - 1, -1):
            ways[place] -= ways[place - step]
        for place in range(k, size):
            ways[place] += ways[place - k]
    return ways
