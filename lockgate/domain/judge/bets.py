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
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lockgate.domain.judge.proportion import Counts, nearest_share

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
"""Blocks' sizes for which the odds are kept: they recur."""


@dataclass(frozen=True, eq=False)
class Bets:
    """Pairs of shares to bet on against "canary's share - baseline's <= bound" (or ">=", where the pairs
    lie on the other side), with their log weights."""

    baseline: Array
    canary: Array
    log_weight: Array
    bound: float
    _known: dict[tuple[float, float], Array] = field(default_factory=dict)

    def odds(self, trials: Sequence[Sequence[float]]) -> Array:
        """What each pair of shares wins (log) by an event and a non-event on the baseline, and on the canary,
        in blocks with these trials (baseline's and canary's, one a block): (blocks, 4, pairs)."""
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        keys = [(nb, nc) for nb, nc in trials]
        new = [key for key in keys if key not in self._known]
        if new:
            nb, nc = np.array(new).T[..., None]
            null_b = nearest_share(nb * self.baseline, nb, nc * self.canary, nc, self.bound)
            null_c = null_b + self.bound
            logs = np.empty((len(new), 4, self.baseline.size))
            np.log(self.baseline / null_b, out=logs[:, 0])
            np.log((1 - self.baseline) / (1 - null_b), out=logs[:, 1])
            np.log(self.canary / null_c, out=logs[:, 2])
            np.log((1 - self.canary) / (1 - null_c), out=logs[:, 3])
            self._known.update(zip(new, logs, strict=True))
        if len(keys) == 1:
            return self._known[keys[0]][None]
        return np.stack([self._known[key] for key in keys])


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


@lru_cache(maxsize=64)
def _bets_both(margin: float, rare: bool) -> Bets:
    """Those of `bets_worse`, then those of `bets_within`."""
    worse, within = bets_worse(margin, rare), bets_within(margin, rare)
    return Bets(
        np.concatenate([worse.baseline, within.baseline]),
        np.concatenate([worse.canary, within.canary]),
        np.concatenate([worse.log_weight, within.log_weight]),
        margin,
    )


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

    def __init__(self, bets: Bets, shape: tuple[int, ...] = ()) -> None:
        self.bets = bets
        self.won = np.zeros((*shape, bets.baseline.size))
        """Log of what each pair of shares has won."""

    def update(self, kb: ArrayLike, nb: ArrayLike, kc: ArrayLike, nc: ArrayLike) -> None:
        """Take one block: events and trials of baseline and canary. Where a track has no trials nothing is
        compared (the caller joins such a block with the next)."""
        kb_, nb_, kc_, nc_ = (np.asarray(x, dtype=float) for x in (kb, nb, kc, nc))
        both = (nb_ > 0) & (nc_ > 0)
        sizes = np.stack([np.where(both, n, 1.0).ravel() for n in (nb_, nc_)], axis=1)
        if (sizes == sizes[0]).all():
            odds = self.bets.odds(sizes[:1].tolist())[0]
        else:
            pairs, where = np.unique(sizes, axis=0, return_inverse=True)
            odds = self.bets.odds(pairs.tolist())[where.reshape(both.shape)]
        won = (
            kb_[..., None] * odds[..., 0, :]
            + (nb_ - kb_)[..., None] * odds[..., 1, :]
            + kc_[..., None] * odds[..., 2, :]
            + (nc_ - kc_)[..., None] * odds[..., 3, :]
        )
        self.won += won if both.all() else np.where(both[..., None], won, 0.0)

    def log_e(self, dispersion: ArrayLike = 1.0) -> Array:
        """Log e-value. What was won counts 1 / dispersion: a power below one of a bet is a smaller bet."""
        paid = self.won / np.asarray(dispersion, dtype=float)[..., None]
        value = paid + self.bets.log_weight
        top = value.max(axis=-1)
        out: Array = top + np.log(np.exp(value - top[..., None]).sum(axis=-1))
        return out


class BothEvidence:
    """Evidence of being worse than a margin and of being within it, from the same blocks: hardly dearer than one of them."""

    def __init__(self, margin: float, rare: bool, shape: tuple[int, ...] = ()) -> None:
        self._both = ShareEvidence(_bets_both(margin, rare), shape)
        self.worse = ShareEvidence(bets_worse(margin, rare), shape)
        self.within = ShareEvidence(bets_within(margin, rare), shape)
        first = self.worse.bets.baseline.size
        self.worse.won, self.within.won = self._both.won[..., :first], self._both.won[..., first:]

    def update(self, kb: ArrayLike, nb: ArrayLike, kc: ArrayLike, nc: ArrayLike) -> None:
        """As `ShareEvidence.update` does."""
        self._both.update(kb, nb, kc, nc)

    def update_one(self, block: Counts, counted: float) -> None:
        """The same of one block's counts, of whose events on the canary so many count against it."""
        kb, nb, kc, nc = block.four
        if min(nb, nc) <= 0:
            return
        if counted != kc:
            self.worse.update(kb, nb, counted, nc)
            self.within.update(kb, nb, kc, nc)
            return
        event_b, other_b, event_c, other_c = self._both.bets.odds([(nb, nc)])[0]
        self._both.won += kb * event_b + (nb - kb) * other_b + kc * event_c + (nc - kc) * other_c
