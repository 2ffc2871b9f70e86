"""Comparing two models on the same items: intervals for the mean difference of paired scores.

Right-or-wrong scores: the score interval for paired proportions of T. Tango, "Equivalence test and confidence interval for
the difference in proportions for the paired-sample design", Statistics in Medicine 17 (1998), which keeps its level where
few items differ, or none. Graded scores: Student's interval over the differences, with one pseudo-item for and one against
in the spirit of A. Agresti and Y. Min, "Simple improved confidence intervals for comparing matched proportions", Statistics
in Medicine 24 (2005), so that scores which happen to agree everywhere do not give an interval of no width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

FEWEST_ITEMS = 20
"""Below this an interval says more about the method than about the model."""

_EDGE = 1e-9


@dataclass(frozen=True)
class Pairs:
    """Scores of two models on the same items, in the same order."""

    candidate: NDArray[np.float64]
    stable: NDArray[np.float64]

    @classmethod
    def of(cls, candidate: Mapping[str, float], stable: Mapping[str, float]) -> Pairs:
        """The items that both have."""
        shared = sorted(candidate.keys() & stable.keys())
        return cls(
            candidate=np.array([candidate[item] for item in shared], dtype=np.float64),
            stable=np.array([stable[item] for item in shared], dtype=np.float64),
        )

    @property
    def items(self) -> int:
        return int(self.candidate.size)

    @property
    def differences(self) -> NDArray[np.float64]:
        return self.candidate - self.stable

    @property
    def difference(self) -> float:
        """Mean of candidate minus stable."""
        return float(self.differences.mean())

    @property
    def better(self) -> int:
        """Items on which the candidate scored higher."""
        return int((self.differences > 0).sum())

    @property
    def worse(self) -> int:
        """Items on which the candidate scored lower."""
        return int((self.differences < 0).sum())

    @property
    def binary(self) -> bool:
        """Whether every score is right (1) or wrong (0)."""
        both = np.concatenate([self.candidate, self.stable])
        return bool(np.isin(both, (0.0, 1.0)).all())

    def lower(self, alpha: float) -> float:
        """One-sided lower confidence bound of the mean difference, at level 1 - alpha."""
        return self._bound(alpha, -1.0)

    def upper(self, alpha: float) -> float:
        """One-sided upper confidence bound of the mean difference, at level 1 - alpha."""
        return self._bound(alpha, 1.0)

    def sign_test(self) -> float:
        """Two-sided exact p-value that better and worse are equally likely (McNemar's exact test)."""
        discordant = self.better + self.worse
        if discordant == 0:
            return 1.0
        return float(stats.binomtest(self.better, discordant, 0.5).pvalue)

    def items_to_decide(self, margin: float, alpha: float, power: float = 0.8) -> int | None:
        """How many items would tell `difference` from `-margin` with this power, if both stay as measured."""
        distance = abs(self.difference + margin)
        if distance < _EDGE:
            return None
        spread = float(self._padded().std(ddof=1))
        z = float(stats.norm.ppf(1 - alpha) + stats.norm.ppf(power))
        return math.ceil((z * spread / distance) ** 2)

    def _bound(self, alpha: float, side: float) -> float:
        if self.items == 0:
            return math.copysign(math.inf, side)
        return self._tango(alpha, side) if self.binary else self._student(alpha, side)

    def _padded(self) -> NDArray[np.float64]:
        """The differences with one more each way: as large as the largest, or as one could be where all are zero."""
        reach = 1.0 if self.binary else float(np.abs(self.differences).max())
        if reach == 0:
            both = np.concatenate([self.candidate, self.stable])
            reach = max(float(both.max() - both.min()), _EDGE)
        return np.concatenate([self.differences, [reach, -reach]])

    def _student(self, alpha: float, side: float) -> float:
        padded = self._padded()
        error = float(padded.std(ddof=1)) / math.sqrt(padded.size)
        return self.difference + side * float(stats.t.ppf(1 - alpha, padded.size - 1)) * error

    def _tango(self, alpha: float, side: float) -> float:
        z = float(stats.norm.ppf(1 - alpha))

        def distance(delta: float) -> float:
            return _score_statistic(self.better, self.worse, self.items, delta) + side * z

        ends = (-1 + _EDGE, 1 - _EDGE)
        if distance(ends[0]) <= 0:
            return -1.0
        if distance(ends[1]) >= 0:
            return 1.0
        return float(optimize.brentq(distance, *ends))


def _score_statistic(better: int, worse: int, items: int, delta: float) -> float:
    """Tango's statistic for the hypothesis that the difference is `delta`; standard normal under it, falling in `delta`."""
    a = 2.0 * items
    b = -better - worse + (2.0 * items - better + worse) * delta
    c = -worse * delta * (1 - delta)
    worse_share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = items * (2 * worse_share + delta * (1 - delta))
    return float((better - worse - items * delta) / math.sqrt(max(variance, _EDGE**2)))
