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

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

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

    def odds(self, trials: Array) -> Array:
        """What each pair of shares wins (log) by an event and a non-event on the baseline, and on the canary,
        in blocks with these trials (baseline's and canary's, a row a block): (blocks, 4, pairs)."""
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        keys = [(float(nb), float(nc)) for nb, nc in trials]
        new = [key for key in keys if key not in self._known]
        if new:
            nb, nc = np.array(new).T[..., None]
            null_b = nearest_share(nb * self.baseline, nb, nc * self.canary, nc, self.bound)
            null_c = null_b + self.bound
            logs = (
                np.log(self.baseline / null_b),
                np.log((1 - self.baseline) / (1 - null_b)),
                np.log(self.canary / null_c),
                np.log((1 - self.canary) / (1 - null_c)),
            )
            self._known.update(zip(new, np.stack(logs, axis=1), strict=True))
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
            pairs, where = sizes[:1], np.zeros(sizes.shape[0], dtype=np.int64)
        else:
            pairs, where = np.unique(sizes, axis=0, return_inverse=True)
        odds = self.bets.odds(pairs)[where.reshape(both.shape)]
        event_b, other_b, event_c, other_c = (odds[..., i, :] for i in range(4))
        won = (
            kb_[..., None] * event_b
            + (nb_ - kb_)[..., None] * other_b
            + kc_[..., None] * event_c
            + (nc_ - kc_)[..., None] * other_c
        )
        self.won += np.where(both[..., None], won, 0.0)

    def log_e(self, dispersion: ArrayLike = 1.0) -> Array:
        """Log e-value. What was won counts 1 / dispersion: a power below one of a bet is a smaller bet."""
        paid = self.won / np.asarray(dispersion, dtype=float)[..., None]
        value = paid + self.bets.log_weight
        top = value.max(axis=-1)
        out: Array = top + np.log(np.exp(value - top[..., None]).sum(axis=-1))
        return out
