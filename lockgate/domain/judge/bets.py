"""Anytime-valid evidence about two shares of events: bets at the odds of the nearest null.

For one pair of shares that the alternative thinks of, and one block with so many trials on each track, the
bet is the likelihood ratio against that pair of shares within the null which is nearest to it in
Kullback-Leibler divergence. Its expectation is at most one for every pair of shares within the null, since
these are a convex set (Turner, Ly & Grünwald 2021, the e-variable for a convex null), and shares may differ
from block to block: both tracks may have a bad minute together. A mixture of the products of such bets over
many pairs is an e-process. It loses what its weights cost against an SPRT that knows the shares, and nothing
for the shares that the null leaves open.

Everything is vectorised over leading axes, so that the benchmark runs thousands of traces with the code that
judges one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lockgate.domain.judge.logs import log_sum_exp
from lockgate.domain.judge.proportion import nearest_share

Array = NDArray[np.float64]

_RARE = np.geomspace(0.0004, 0.02, 10)
_COMMON = np.array([0.1, 0.18, 0.3, 0.45, 0.6, 0.75, 0.88])
_RARE_WEIGHT = 0.95
"""Baseline's shares where events are rare (errors, slow requests) as they should be, and how likely that is."""

_ANY = np.array([0.02, 0.05, 0.1, 0.17, 0.25, 0.34, 0.43, 0.5, 0.57, 0.66, 0.75, 0.83, 0.9, 0.95])
"""Baseline's shares where they may be anything (finish reasons)."""

_STEPS = np.geomspace(0.01, 0.5, 8)
"""How far beyond the margin the canary's share is thought to be, besides a fifth of the margin, as part of
what is left beyond it."""

_LEAST_RARE = np.array([1e-4])
"""Besides the others, where a canary is to be shown to be within its margin."""

_NEAR = np.array([0.0, 0.3, -0.3, -1.0, -4.0, -15.0])
_NEAR_WEIGHTS = np.array([0.6, 0.13, 0.12, 0.08, 0.04, 0.03])
"""How much larger the canary's share is thought to be there, in margins."""

_REMEMBERED = 2048
"""Ratios of trials for which the odds are kept."""


@dataclass(frozen=True, eq=False)
class Bets:
    """Pairs of shares to bet on against "canary's share - baseline's <= bound" (or ">=", where the pairs
    lie on the other side), with their log weights."""

    baseline: Array
    canary: Array
    log_weight: Array
    bound: float
    _known: dict[float, Array] = field(default_factory=dict)
    """What each pair wins where the canary has so many times the baseline's trials; that recurs."""

    @property
    def pairs(self) -> int:
        """How many there are."""
        return self.baseline.size

    @cached_property
    def shares(self) -> Array:
        """Of events and of non-events, on the baseline and on the canary: (4, pairs)."""
        return np.stack([self.baseline, 1 - self.baseline, self.canary, 1 - self.canary])

    def odds(self, ratio: Array) -> Array:
        """What each pair of shares wins (log) by an event and a non-event on the baseline, and on the canary,
        in blocks in which the canary has so many times the baseline's trials: (..., 4, pairs)."""
        distinct, where = np.unique(ratio.ravel(), return_inverse=True)
        known = np.stack(_odds([(self, one) for one in distinct.tolist()]))
        return known[where.reshape(ratio.shape)]


class BetsTogether:
    """Several kinds of bets, one a row; those of fewer pairs are filled up with pairs of no weight, that win nothing."""

    def __init__(self, rows: Sequence[Bets]) -> None:
        self.rows = rows
        self.pairs = max((bets.pairs for bets in rows), default=0)
        self.log_weight = np.full((len(rows), self.pairs), -np.inf)
        for i, bets in enumerate(rows):
            self.log_weight[i, : bets.pairs] = bets.log_weight

    def odds(self, ratio: Array) -> Array:
        """As `Bets.odds`, of each row's own block."""
        out = np.zeros((len(self.rows), 4, self.pairs))
        odds = _odds(list(zip(self.rows, ratio.tolist(), strict=True)))
        for i, known in enumerate(odds):
            out[i, :, : known.shape[-1]] = known
        return out


def _odds(asked: Sequence[tuple[Bets, float]]) -> list[Array]:
    """What the pairs of shares of each of these bets win at a ratio of trials: one computation for all that is new."""
    for bets, _ in asked:
        if len(bets._known) > _REMEMBERED:
            bets._known.clear()
    new = list(dict.fromkeys(ask for ask in asked if ask[1] not in ask[0]._known))
    if new:
        sizes = [bets.pairs for bets, _ in new]
        shares = np.concatenate([bets.shares for bets, _ in new], axis=1)
        ratio, bound = np.repeat(np.array([(r, bets.bound) for bets, r in new]).T, sizes, axis=1)
        # only the ratio of the trials matters, so that one trial of the baseline will do
        null = nearest_share(shares[0], np.ones_like(ratio), ratio * shares[2], ratio, bound)
        logs = np.log(shares / np.stack([null, 1 - null, null + bound, 1 - (null + bound)]))
        end = 0
        for bets, one in new:
            begin, end = end, end + bets.pairs
            bets._known[one] = logs[:, begin:end].copy()  # a view would keep the others' odds alive
    return [bets._known[one] for bets, one in asked]


def _bets(baseline: Array, canary: Array, weight: Array, bound: float) -> Bets:
    possible = (canary > 1e-5) & (canary < 0.995)
    log_weight = np.log(weight[possible] / weight[possible].sum())
    return Bets(baseline[possible], canary[possible], log_weight, bound)


@lru_cache(maxsize=64)
def bets_worse(margin: float, rare: bool) -> Bets:
    """Against "the canary's share is larger by at most the margin" (< 1). `rare`: events are expected to be."""
    baseline, likely = _baselines(rare, np.array([]))
    steps = (1 - margin) * (_STEPS + margin / 5)
    fading = np.geomspace(1.0, 0.03 if rare else 0.25, _STEPS.size)
    b, step = np.meshgrid(baseline, steps, indexing="ij")
    return _bets(b, b + margin + step, np.outer(likely, fading), margin)


@lru_cache(maxsize=64)
def bets_within(margin: float, rare: bool) -> Bets:
    """Against "the canary's share is larger by the margin (> 0) or more"; strongest for no difference."""
    baseline, likely = _baselines(rare, _LEAST_RARE)
    b, change = np.meshgrid(baseline, _NEAR * margin, indexing="ij")
    return _bets(b, b + change, np.outer(likely, _NEAR_WEIGHTS), margin)


def _baselines(rare: bool, least: Array) -> tuple[Array, Array]:
    if not rare:
        return _ANY, np.full(_ANY.size, 1.0 / _ANY.size)
    low = np.concatenate([least, _RARE])
    share = np.concatenate([low, _COMMON])
    parts = [
        np.full(low.size, _RARE_WEIGHT / low.size),
        np.full(_COMMON.size, (1 - _RARE_WEIGHT) / _COMMON.size),
    ]
    return share, np.concatenate(parts)


class ShareEvidence:
    """Evidence from a growing series of blocks; ``shape`` is that of one block's counts."""

    def __init__(self, bets: Bets | BetsTogether, shape: tuple[int, ...] = ()) -> None:
        self.bets = bets
        self.won = np.zeros((*shape, bets.pairs))
        """Log of what each pair of shares has won."""

    def update(self, kb: ArrayLike, nb: ArrayLike, kc: ArrayLike, nc: ArrayLike) -> None:
        """Take one block: events and trials of baseline and canary. Where a track has no trials nothing is
        compared (the caller joins such a block with the next)."""
        kb_, nb_, kc_, nc_ = (np.asarray(x, dtype=float) for x in (kb, nb, kc, nc))
        both = (nb_ > 0) & (nc_ > 0)
        odds = self.bets.odds(np.divide(nc_, nb_, out=np.ones(both.shape), where=both))
        counts = np.stack([kb_, nb_ - kb_, kc_, nc_ - kc_], axis=-1)
        won = (counts[..., None, :] @ odds)[..., 0, :]
        self.won += won if both.all() else np.where(both[..., None], won, 0.0)

    def log_e(self, dispersion: ArrayLike = 1.0) -> Array:
        """Log e-value. What was won counts 1 / dispersion: a power below one of a bet is a smaller bet."""
        paid = self.won / np.asarray(dispersion, dtype=float)[..., None]
        return log_sum_exp(paid + self.bets.log_weight)
