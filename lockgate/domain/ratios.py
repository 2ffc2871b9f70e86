"""Comparing the timings of two runs: how many times slower is one than the other, and how sure is that?

The Hodges-Lehmann estimate of the shift between the logarithms, with the exact rank-sum (Mann-Whitney) interval: no
distribution is assumed, a few outliers do not move it, and it keeps its level with eight values a side. Neighbouring
requests are alike, so a run is first cut into a few batches in the order sent (the method of batch means), and each batch
gives one value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

BATCHES = 8
"""At least so many values a run; also the fewest requests that can be compared."""


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
    counts = _ways(candidate, stable)
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
