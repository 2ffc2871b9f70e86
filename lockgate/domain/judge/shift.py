"""Anytime-valid evidence about a shift in log latency between two tracks, under drift.

One observation a block: ``y``, the log of the ratio of the two tracks' means, and ``v``, the
variance that ``y`` would have if all samples were independent. The model is

    y_t = shift + drift_t + noise_t,   noise_t ~ N(0, phi * v_t),
    drift_t an Ornstein-Uhlenbeck process with stationary variance D^2 and correlation time c.

``phi`` pays for samples of one block that hang together (tokens of one batch, bursts); the drift
pays for a replica's good and bad minutes. Both are nuisances, over a grid. For every grid point the
likelihood is an exact quadratic in ``shift`` (a Kalman filter run on ``y`` and on the constant 1),
so three numbers a grid point hold all the evidence:

    log L(shift) = base + score * shift - info * shift^2 / 2.

The e-process against the null "shift <= bound" is a Bayes factor over the nuisances, with the null
at its best shift: a mixture over larger shifts and nuisances, divided by a mixture over nuisances
at the shift within the null that explains the data best (universal inference in the shift:
Wasserman, Ramdas, Balakrishnan 2020). It is at most a likelihood ratio with a fixed numerator, so
averaged over the null's nuisances its chance of ever exceeding 1 / alpha is at most alpha (Ville),
at every look; at a single nuisance at most alpha over that nuisance's weight, which is why the null's
weights lean to the declared drift. "Within the margin" is the same with the sides changed. docs/calibration.md has what simulation says about the rest. As
data show that there is no drift, the null loses that excuse, and the test sharpens by itself.

Everything is vectorised over leading axes, so that the benchmark runs thousands of traces with the
code that judges one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_EFFECTS_WORSE: Array = np.array([0.08, 0.18, 0.35, 0.6, 1.0, 1.7, 3.2])
"""Shifts beyond the margin that the alternative mixes over (log scale: 8% to 25-fold)."""

_EFFECT_WEIGHTS: Array = np.array([0.1, 0.14, 0.2, 0.24, 0.16, 0.1, 0.06])

_EFFECTS_WIDE: Array = np.array([0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2])
_EFFECTS_EITHER: Array = np.concatenate([-_EFFECTS_WIDE[::-1], [0.0], _EFFECTS_WIDE])
_EVEN: Array = np.full(_EFFECTS_EITHER.size, 1.0 / _EFFECTS_EITHER.size)
"""Shifts to either side of no difference that the interval's mixture is made of, and their weights."""

_DISPERSIONS = (0.7, 1.4, 3.0, 6.5, 14.0, 30.0)
_DISPERSION_SURPRISE = 1.0
"""Nats that each doubling of the dispersion beyond the declared one costs."""

_FINE_DISPERSIONS = (0.02, 0.1, 0.5, 2.0, 8.0, 30.0)
"""For a ratio of two sums that move together (end-to-end seconds a token): its noise is much less
than that of the seconds."""

_STEADY, _QUARTER = (0.25, 0.1, 0.03), (0.0, 0.0, 0.2)
_HALF, _DECLARED = (0.25, 0.15, 0.4), (0.5, 0.75, 0.75)
"""How likely no drift, a quarter, half and all of the declared drift are held to be: by the alternative, by the null "no
worse than the margin" and by the null "beyond the margin". The nulls lean to what was declared: that is where their
guarantees have to hold. The one of a pass holds for calmer replicas, too: they let a canary pass the soonest."""

_SPELLS = ((1 / 12, 0.25, 0.3), (1 / 4, 0.25, 0.3), (3 / 4, 0.5, 0.4))
"""Correlation times as parts of the declared one, with weights: of the alternative and the null "no worse", and
of the null "beyond". A wander that lasts seconds (a server that slows down with its load) averages out soonest,
and lets a canary pass the soonest."""

_LARGEST_DRIFT = 3.0
"""Standard deviation of the log ratio up to which drift is thought of at all (20-fold)."""

_AVERAGED_WORSE, _AVERAGED_WITHIN = 0.2, 1.0
"""Nats taken off where drift is possible: the bound holds averaged over the drifts that the null thinks of, and
this much is what it may be missed by at a single one: the declared, and for a pass also one half as large again
over seconds (docs/calibration.md)."""

_NEAR: Array = np.array([0.4, 0.7, 1.0, 1.3, 2.0, 4.0])
_NEAR_WEIGHTS: Array = np.array([0.1, 0.22, 0.4, 0.16, 0.08, 0.04])
"""How far inside the margin a canary is expected that is no worse, in units of the margin."""

_LOG_WEIGHTS: Array = np.log(np.concatenate([_EFFECT_WEIGHTS, _NEAR_WEIGHTS]))


@dataclass(frozen=True)
class NuisanceGrid:
    """What a difference may be explained with.

    dispersion: factor on the independent-sampling variance; drift_var: stationary variance of the
    drift of the log ratio (both tracks' together); corr_s: its correlation time in seconds.
    log_alternative, log_null, log_null_beyond: log weights of the mixtures (each sums to one): of the
    alternatives, of "no worse than the margin" and of "beyond the margin".
    """

    dispersion: Array
    drift_var: Array
    corr_s: Array
    log_alternative: Array
    log_null: Array
    log_null_beyond: Array


def nuisance_grid(
    drift_sd: float,
    drift_s: float,
    surprise: float = 1.0,
    dispersion: float = 2.0,
    *,
    fine: bool = False,
) -> NuisanceGrid:
    """The grid for replicas whose own log latency wanders by ``drift_sd`` over ``drift_s`` seconds,
    and whose blocks vary ``dispersion`` times as much as independent samples would (``fine``: it may
    be very much less).

    Larger drift (a queue near saturation) is thought of too, less by ``surprise`` nats for each
    doubling, and has to be seen in the block-to-block variation.
    """
    declared = math.sqrt(2.0) * drift_sd
    drifts: list[tuple[float, tuple[float, float, float]]] = [(0.0, _STEADY)]
    if drift_sd > 0:
        drifts += [
            (declared * 0.25, _QUARTER), (declared * 0.5, _HALF), (declared, _DECLARED)
        ]  # fmt: skip
        doublings = math.ceil(math.log2(max(_LARGEST_DRIFT / declared, 1.0)))
        for i in range(1, doublings + 1):
            rare = math.exp(-surprise * i)
            likely, feared, lulled = _DECLARED
            drifts.append((declared * 2.0**i, (likely * rare, feared * rare, lulled * rare)))
    rows: list[tuple[float, ...]] = []
    for phi in _FINE_DISPERSIONS if fine else _DISPERSIONS:
        weight = math.exp(-_DISPERSION_SURPRISE * max(math.log2(phi / dispersion), 0.0))
        for d, (likely, feared, lulled) in drifts:
            for part, w, w_beyond in _SPELLS if d > 0 else ((1.0, 1.0, 1.0),):
                weights = weight * likely * w, weight * feared * w, weight * lulled * w_beyond
                rows.append((phi, d * d, drift_s * part, *weights))
    table = np.array([row for row in rows if max(row[3:]) > _NEGLIGIBLE])
    with np.errstate(divide="ignore"):  # the log of no weight is minus infinity
        logs = [np.log(w / w.sum()) for w in (table[:, 3], table[:, 4], table[:, 5])]
    return NuisanceGrid(table[:, 0], table[:, 1], table[:, 2], *logs)


_NEGLIGIBLE = 1e-8
"""Weight of an explanation below which it is not worth its computation."""

_PRIOR_SCATTER, _PRIOR_COUNT = 0.5, 8.0
"""Squared coefficient of variation assumed for single samples, and how many it is worth."""


def log_mean(
    count: ArrayLike, mean: ArrayLike, scatter: ArrayLike, seen: ArrayLike
) -> tuple[Array, Array]:
    """One track's share of a block's observation: the log of its mean, and that log's variance if
    the block's samples are independent.

    count, mean: of the block; scatter: squared coefficient of variation of single samples, as
    measured on the `seen` samples of this track so far. The log of a mean of few samples lies low
    by half its variance; that is put right here (exactly so for one log-normal sample).
    """
    count_, scatter_, seen_ = (np.asarray(x, dtype=float) for x in (count, scatter, seen))
    single = (scatter_ * seen_ + _PRIOR_SCATTER * _PRIOR_COUNT) / (seen_ + _PRIOR_COUNT)
    variance: Array = np.log1p(single / np.maximum(count_, 1.0))
    value: Array = np.log(np.maximum(np.asarray(mean, dtype=float), 1e-9)) + variance / 2
    return value, variance


def _logsumexp(x: Array) -> Array:
    """Over the last axis."""
    top = x.max(axis=-1)
    out: Array = top + np.log(np.exp(x - top[..., None]).sum(axis=-1))
    return out


def _powers(shifts: Array) -> Array:
    """What base, score and information are multiplied with at each shift."""
    return np.stack([np.ones_like(shifts), shifts, -0.5 * shifts**2])


@lru_cache(maxsize=64)
def _either_side(bound: float) -> Array:
    """Of the shifts that are worse than a bound, and of those that are within it."""
    return _powers(np.concatenate([bound + _EFFECTS_WORSE, bound - bound * _NEAR]))


_FINE = 41
"""Points at which the ends of an interval are looked for."""
_LINE: Array = np.linspace(0.0, 1.0, _FINE)


class ShiftEvidence:
    """Evidence from a growing series of block observations; ``shape`` is that of one observation."""

    def __init__(self, grid: NuisanceGrid, shape: tuple[int, ...] = ()) -> None:
        self.grid = grid
        self._drifts = bool(grid.drift_var.any())
        full = (*shape, grid.dispersion.size)
        self._drift_y = np.zeros(full)
        self._drift_one = np.zeros(full)
        self._drift_var: Array = np.broadcast_to(grid.drift_var, full).copy()
        self.base = np.zeros(full)
        self.score = np.zeros(full)
        self.info = np.zeros(full)

    def update(self, y: ArrayLike, v: ArrayLike, dt: ArrayLike, seen: ArrayLike = True) -> None:
        """Take one block: log ratio ``y`` with sampling variance ``v``, ``dt`` s after the last.

        Where ``seen`` is false the entry is left as it is (``dt`` must then be carried on by the
        caller).
        """
        grid = self.grid
        y_, v_, dt_ = (np.asarray(a, dtype=float)[..., None] for a in (y, v, dt))
        use = np.asarray(seen, dtype=bool)[..., None]
        decay = np.exp(-dt_ / grid.corr_s)
        mean_y, mean_one = self._drift_y * decay, self._drift_one * decay
        var = self._drift_var * decay**2 + grid.drift_var * (1.0 - decay**2)
        total = var + grid.dispersion * v_
        err_y, err_one = y_ - mean_y, 1.0 - mean_one
        gain = var / total
        everywhere = bool(use.all())
        weighted = err_one / total
        for into, more in (
            (self.base, -0.5 * (np.log(total) + err_y**2 / total)),
            (self.score, err_y * weighted),
            (self.info, err_one * weighted),
        ):
            into += more if everywhere else np.where(use, more, 0.0)
        drifts: tuple[Array, ...] = (
            mean_y + gain * err_y,
            mean_one + gain * err_one,
            var * (1.0 - gain),
        )
        if not everywhere:
            before = self._drift_y, self._drift_one, self._drift_var
            drifts = tuple(np.where(use, new, old) for new, old in zip(drifts, before, strict=True))
        self._drift_y, self._drift_one, self._drift_var = drifts

    def _log_mixture(self, shifts: Array, weights: Array) -> Array:
        parts = np.empty((*self.base.shape, 3))
        np.add(self.base, self.grid.log_alternative, out=parts[..., 0])
        parts[..., 1], parts[..., 2] = self.score, self.info
        per = parts @ _powers(shifts)
        per += np.log(weights)
        top = per.max(axis=(-2, -1), keepdims=True)
        per -= top
        out: Array = np.log(np.exp(per, out=per).sum(axis=(-2, -1))) + top[..., 0, 0]
        return out

    def _log_null(self, low: float, high: float, weights: Array) -> Array:
        """Log likelihood of the null with these weights: at each nuisance the best shift in [low, high]."""
        with np.errstate(invalid="ignore", divide="ignore"):
            peak = np.where(self.info > 0, self.score / self.info, 0.0)
        at = np.minimum(np.maximum(peak, low), high)
        return _logsumexp(self.base + self.score * at - 0.5 * self.info * at**2 + weights)

    def log_e_above(self, bound: float) -> Array:
        """Log e-value against "the shift is at most ``bound``"."""
        value = self._log_mixture(bound + _EFFECTS_WORSE, _EFFECT_WEIGHTS) - self._log_null(
            -np.inf, bound, self.grid.log_null
        )
        return value - _AVERAGED_WORSE * self._drifts

    def log_e_either(self, bound: float) -> tuple[Array, Array]:
        """`log_e_above` and `log_e_below`, hardly dearer than one of them."""
        parts = np.empty((*self.base.shape, 3))
        np.add(self.base, self.grid.log_alternative, out=parts[..., 0])
        parts[..., 1], parts[..., 2] = self.score, self.info
        per = parts @ _either_side(bound)
        per += _LOG_WEIGHTS
        mixed = []
        for some in (per[..., : _EFFECTS_WORSE.size], per[..., _EFFECTS_WORSE.size :]):
            top = some.max(axis=(-2, -1), keepdims=True)
            mixed.append(np.log(np.exp(some - top).sum(axis=(-2, -1))) + top[..., 0, 0])
        with np.errstate(invalid="ignore", divide="ignore"):
            peak = np.where(self.info > 0, self.score / self.info, 0.0)
        at = np.stack([np.minimum(peak, bound), np.maximum(peak, bound)])
        value = self.base + self.score * at - 0.5 * self.info * at**2
        value[0] += self.grid.log_null
        value[1] += self.grid.log_null_beyond
        low, high = _logsumexp(value)
        return (
            mixed[0] - low - _AVERAGED_WORSE * self._drifts,
            mixed[1] - high - _AVERAGED_WITHIN * self._drifts,
        )

    def log_e_below_wide(self, bound: float) -> Array:
        """Log e-value against "the shift is at least ``bound``" (< 0), for changes of any size."""
        return self._log_mixture(bound - _EFFECTS_WORSE, _EFFECT_WEIGHTS) - self._log_null(
            bound, np.inf, self.grid.log_null
        )

    def log_e_below(self, bound: float) -> Array:
        """Log e-value against "the shift is at least ``bound``" (> 0), strongest for no shift."""
        value = self._log_mixture(bound - bound * _NEAR, _NEAR_WEIGHTS) - self._log_null(
            bound, np.inf, self.grid.log_null_beyond
        )
        return value - _AVERAGED_WITHIN * self._drifts

    def log_e_above_near(self, bound: float) -> Array:
        """Log e-value against "the shift is at most ``bound``" (< 0), strongest for no shift."""
        value = self._log_mixture(bound - bound * _NEAR, _NEAR_WEIGHTS) - self._log_null(
            -np.inf, bound, self.grid.log_null_beyond
        )
        return value - _AVERAGED_WITHIN * self._drifts

    def part(self, index: int) -> ShiftEvidence:
        """One of several observations' evidence, that goes on with theirs: to be read, not to be updated."""
        out = ShiftEvidence.__new__(ShiftEvidence)
        out.grid, out._drifts = self.grid, self._drifts
        out.base, out.score, out.info = (x[index] for x in (self.base, self.score, self.info))
        return out

    @classmethod
    def together(cls, several: Sequence[ShiftEvidence]) -> ShiftEvidence:
        """Those of one observation each, with grids of one size, as one: to be described, not to be updated."""
        grids = [one.grid for one in several]
        grid = NuisanceGrid(
            *(np.stack([getattr(g, field.name) for g in grids]) for field in fields(NuisanceGrid))
        )
        out = cls.__new__(cls)
        out.grid, out._drifts = grid, bool(grid.drift_var.any())
        out.base, out.score, out.info = (
            np.stack([getattr(one, name) for one in several]) for name in ("base", "score", "info")
        )
        return out

    def estimate(self) -> Array:
        """The most likely shift under the most likely nuisance (NaN before any block)."""
        peak, height = self._peaks()
        best = np.argmax(np.where(np.isfinite(height), height, -np.inf), axis=-1)
        out: Array = np.take_along_axis(peak, best[..., None], axis=-1)[..., 0]
        return out

    def _peaks(self) -> tuple[Array, Array]:
        """Each nuisance's best shift, and its log likelihood there, weighted."""
        with np.errstate(invalid="ignore", divide="ignore"):
            peak = self.score / self.info
            return peak, self.base + 0.5 * self.score * peak + self.grid.log_null

    def interval(self, log_threshold: float) -> tuple[Array, Array]:
        """Time-uniform confidence interval: the shifts whose log e-value is below the threshold
        (found on a grid, outwards)."""
        floor = self._log_mixture(_EFFECTS_EITHER, _EVEN) - log_threshold
        peak, height = self._peaks()
        # outside of every nuisance's own range, with room for all of them adding up, nothing is in
        with np.errstate(invalid="ignore", divide="ignore"):
            room = height - floor[..., None] + math.log(self.base.shape[-1])
            half = np.sqrt(np.where(room > 0, 2.0 * room / self.info, np.nan))
        blank = ~(self.info > 0).any(axis=-1)
        low = np.where(np.isnan(half), np.inf, peak - half).min(axis=-1)
        high = np.where(np.isnan(half), -np.inf, peak + half).max(axis=-1)
        low, high = np.where(blank, -1.0, low), np.where(blank, 1.0, high)
        at = low[..., None] + (high - low)[..., None] * _LINE
        lines = np.stack([np.ones_like(at), at, -0.5 * at**2], axis=-1)
        parts = np.stack([self.base + self.grid.log_null, self.score, self.info], axis=-2)
        inside = _logsumexp(lines @ parts) > floor[..., None]
        first = np.maximum(inside.argmax(axis=-1) - 1, 0)
        last = np.minimum(_FINE - inside[..., ::-1].argmax(axis=-1), _FINE - 1)
        lo = np.take_along_axis(at, first[..., None], axis=-1)[..., 0]
        hi = np.take_along_axis(at, last[..., None], axis=-1)[..., 0]
        return np.where(blank, -np.inf, lo), np.where(blank, np.inf, hi)
