"""Comparing two models on the same items: intervals for the mean difference of paired scores.

Right-or-wrong scores: the score interval for paired proportions of T. Tango, "Equivalence test and confidence interval for
the difference in proportions for the paired-sample design", Statistics in Medicine 17 (1998), which keeps its level where
few items differ, or none. Graded scores: Student's interval over the differences, with one pseudo-item for and one against
in the spirit of A. Agresti and Y. Min, "Simple improved confidence intervals for comparing matched proportions", Statistics
in Medicine 24 (2005), so that scores which happen to agree everywhere do not give an interval of no width.

Items over one document are no independent questions. Where they are clustered, the variance is that of the clusters' sums
(cluster-robust, ratio estimator), and right-or-wrong scores keep Tango's interval over the items that these are worth: counts
divided by the design effect, after J. N. K. Rao and A. J. Scott, "A simple method for the analysis of clustered binary data",
Biometrics 48 (1992), with Student's quantile for the number of clusters. Two pseudo-clusters, one for and one against, keep the
design effect at the clusters' size until there are differences enough to say that it is smaller.
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
    clusters: NDArray[np.intp] | None = None
    """Number of the document that each item is about, from 0; None where every item stands alone."""

    @classmethod
    def of(
        cls,
        candidate: Mapping[str, float],
        stable: Mapping[str, float],
        clusters: Mapping[str, str] | None = None,
    ) -> Pairs:
        """The items that both have. `clusters` names the document of an item; an item that it lacks stands alone."""
        shared = sorted(candidate.keys() & stable.keys())
        numbers = None
        if clusters:
            labels = [("document", clusters[i]) if i in clusters else ("item", i) for i in shared]
            number = {label: k for k, label in enumerate(sorted(set(labels)))}
            numbers = np.array([number[label] for label in labels], dtype=np.intp)
        return cls(
            candidate=np.array([candidate[item] for item in shared], dtype=np.float64),
            stable=np.array([stable[item] for item in shared], dtype=np.float64),
            clusters=numbers,
        )

    @property
    def items(self) -> int:
        return int(self.candidate.size)

    @property
    def units(self) -> int:
        """How many documents the items are about: as many as items where each stands alone."""
        return int(self._sizes.size)

    @property
    def clustered(self) -> bool:
        """Whether any two items are about one document."""
        return self.units < self.items

    @property
    def design_effect(self) -> float:
        """By how much the clustering inflates the variance of the mean difference; at least 1."""
        if not self.clustered:
            return 1.0
        clustered, independent = self._squares()
        return max(1.0, clustered / independent)

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
        """Two-sided exact p-value that better and worse are equally likely (McNemar's exact test; over documents where the
        items are clustered)."""
        sums = self._sums(self.differences)
        better, worse = int((sums > 0).sum()), int((sums < 0).sum())
        if better + worse == 0:
            return 1.0
        return float(stats.binomtest(better, better + worse, 0.5).pvalue)

    def items_to_decide(self, margin: float, alpha: float, power: float = 0.8) -> int | None:
        """How many items would tell `difference` from `-margin` with this power, if both stay as measured (and so many of
        them a document as now)."""
        distance = abs(self.difference + margin)
        if distance < _EDGE:
            return None
        spread = float(self._padded().std(ddof=1))
        z = float(stats.norm.ppf(1 - alpha) + stats.norm.ppf(power))
        return math.ceil((z * spread / distance) ** 2 * self.design_effect)

    def _bound(self, alpha: float, side: float) -> float:
        if self.items == 0:
            return math.copysign(math.inf, side)
        return self._tango(alpha, side) if self.binary else self._student(alpha, side)

    @property
    def _sizes(self) -> NDArray[np.float64]:
        return self._sums(np.ones(self.items))

    def _sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum of `values` in each document."""
        if self.clusters is None:
            return values
        return np.bincount(self.clusters, weights=values).astype(np.float64)

    @property
    def _pseudo_size(self) -> float:
        """Size of the cluster that an item is in, on average over the items."""
        sizes = self._sizes
        return float((sizes**2).sum() / sizes.sum())

    @property
    def _reach(self) -> float:
        """As large as the largest difference, or as one could be where all are zero."""
        reach = 1.0 if self.binary else float(np.abs(self.differences).max())
        if reach == 0:
            both = np.concatenate([self.candidate, self.stable])
            reach = max(float(both.max() - both.min()), _EDGE)
        return reach

    def _squares(self) -> tuple[float, float]:
        """Sums of squares of the clusters' and of the items' residuals, each with one pseudo-cluster more each way."""
        residuals = self.differences - self.difference
        size, reach, units = self._pseudo_size, self._reach, self.units + 2
        clustered = float((self._sums(residuals) ** 2).sum()) + 2 * (size * reach) ** 2
        independent = float((residuals**2).sum()) + 2 * size * reach**2
        return clustered * units / (units - 1), independent

    def _padded(self) -> NDArray[np.float64]:
        """The differences with one more each way."""
        return np.concatenate([self.differences, [self._reach, -self._reach]])

    def _student(self, alpha: float, side: float) -> float:
        if self.clustered:
            error = math.sqrt(self._squares()[0]) / (self.items + 2 * self._pseudo_size)
            return self.difference + side * float(stats.t.ppf(1 - alpha, self.units + 1)) * error
        padded = self._padded()
        error = float(padded.std(ddof=1)) / math.sqrt(padded.size)
        return self.difference + side * float(stats.t.ppf(1 - alpha, padded.size - 1)) * error

    def _tango(self, alpha: float, side: float) -> float:
        z, effect = float(stats.norm.ppf(1 - alpha)), 1.0
        if self.clustered:
            z, effect = float(stats.t.ppf(1 - alpha, self.units - 1)), self.design_effect
        counts = (self.better / effect, self.worse / effect, self.items / effect)

        def distance(delta: float) -> float:
            return _score_statistic(*counts, delta) + side * z

        ends = (-1 + _EDGE, 1 - _EDGE)
        if distance(ends[0]) <= 0:
            return -1.0
        if distance(ends[1]) >= 0:
            return 1.0
        return float(optimize.brentq(distance, *ends))


def _score_statistic(better: float, worse: float, items: float, delta: float) -> float:
    """Tango's statistic for the hypothesis that the difference is `delta`; standard normal under it, falling in `delta`."""
    a = 2.0 * items
    b = -better - worse + (2.0 * items - better + worse) * delta
    c = -worse * delta * (1 - delta)
    worse_share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
    variance = items * (2 * worse_share + delta * (1 - delta))
    return float((better - worse - items * delta) / math.sqrt(max(variance, _EDGE**2)))
