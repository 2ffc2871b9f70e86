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
from copy import copy
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lockgate.domain.judge.logs import exp, log_sum_exp

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

_AVERAGED_WORSE, _AVERAGED_WITHIN = 0.2, 1.5
"""Nats taken off where drift is possible: the bound holds averaged over the drifts that the null thinks of, and
this much is what it may be missed by at a single one: the declared, and for a pass also one half as large again
over seconds (docs/calibration.md)."""

_NEAR: Array = np.array([0.4, 0.7, 1.0, 1.3, 2.0, 4.0])
_NEAR_WEIGHTS: Array = np.array([0.1, 0.22, 0.4, 0.16, 0.08, 0.04])
"""How far inside the margin a canary is expected that is no worse, in units of the margin."""


@dataclass(frozen=True)
class NuisanceGrid:
    """What a difference may be explained with.

    dispersion: factor on the independent-sampling variance; drift_var: stationary variance of the
    drift of the log ratio (both tracks' together); corr_s: its correlation time in seconds.
    log_alternative, log_null, log_null_beyond: log weights of the mixtures (each sums to one): of the
    alternatives, of "no worse than the margin" and of "beyond the margin".
    Leading axes are those of several grids that were put together.
    """

    dispersion: Array
    drift_var: Array
    corr_s: Array
    log_alternative: Array
    log_null: Array
    log_null_beyond: Array

    @classmethod
    def together(cls, grids: Sequence[NuisanceGrid]) -> NuisanceGrid:
        """Several grids as rows of one: the smaller ones are filled up with explanations of no weight."""
        size = max(grid.dispersion.size for grid in grids)
        filled: dict[str, list[Array]] = {field.name: [] for field in fields(cls)}
        for grid in grids:
            for name, rows in filled.items():
                values: Array = getattr(grid, name)
                rest = -np.inf if name.startswith("log_") else values[-1]
                rows.append(np.concatenate([values, np.full(size - values.size, rest)]))
        return cls(**{name: np.stack(rows) for name, rows in filled.items()})

    @property
    def explanations(self) -> NDArray[np.int64]:
        """How many of them have any weight."""
        number: NDArray[np.int64] = np.isfinite(self.log_null).sum(axis=-1)
        return number


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


def _powers(shifts: Array) -> Array:
    """What base, score and information are multiplied with at each shift (last but one axis)."""
    return np.stack([np.ones_like(shifts), shifts, -0.5 * shifts**2], axis=-1)


_EITHER_POWERS, _EITHER_LOG_WEIGHTS = _powers(_EFFECTS_EITHER), np.log(_EVEN)


@dataclass(frozen=True, eq=False)
class Claim:
    """What evidence is asked for: of shifts that an alternative thinks of, against "the shift lies in [low, high]".

    Leading axes are those of several claims that were put together.
    """

    shifts: Array
    log_weights: Array
    low: Array
    high: Array
    beyond: NDArray[np.bool_]
    """Whether what it speaks against is that the canary is at the margin or beyond."""
    toll: Array
    """Nats taken off where drift is possible."""

    @classmethod
    def together(cls, several: Sequence[Claim]) -> Claim:
        """One each row; those of fewer shifts are filled up with shifts of no weight."""
        size = max(claim.shifts.size for claim in several)
        shifts, log_weights = np.zeros((len(several), size)), np.full((len(several), size), -np.inf)
        for i, claim in enumerate(several):
            shifts[i, : claim.shifts.size] = claim.shifts
            log_weights[i, : claim.shifts.size] = claim.log_weights
        others = (
            np.stack([getattr(claim, name) for claim in several])
            for name in ("low", "high", "beyond", "toll")
        )
        return cls(shifts, log_weights, *others)

    @cached_property
    def powers(self) -> Array:
        return _powers(self.shifts)


def _claim(
    shifts: Array, weights: Array, low: float, high: float, *, beyond: bool, toll: float
) -> Claim:
    ends = np.array(low), np.array(high)
    return Claim(shifts, np.log(weights), *ends, np.array(beyond), np.array(toll))


def worse(bound: float) -> Claim:
    """Against "the shift is at most ``bound``"."""
    shifts = bound + _EFFECTS_WORSE
    return _claim(shifts, _EFFECT_WEIGHTS, -np.inf, bound, beyond=False, toll=_AVERAGED_WORSE)


def better(bound: float) -> Claim:
    """Against "the shift is at least ``bound``" (< 0), for changes of any size."""
    shifts = bound - _EFFECTS_WORSE
    return _claim(shifts, _EFFECT_WEIGHTS, bound, np.inf, beyond=False, toll=0.0)


def not_worse(bound: float) -> Claim:
    """Against "the shift is at least ``bound``" (> 0), strongest for no shift."""
    shifts = bound - bound * _NEAR
    return _claim(shifts, _NEAR_WEIGHTS, bound, np.inf, beyond=True, toll=_AVERAGED_WITHIN)


def not_better(bound: float) -> Claim:
    """Against "the shift is at most ``bound``" (< 0), strongest for no shift."""
    shifts = bound - bound * _NEAR
    return _claim(shifts, _NEAR_WEIGHTS, -np.inf, bound, beyond=True, toll=_AVERAGED_WITHIN)


_FINE = 41
"""Points at which the ends of an interval are looked for."""
_LINE: Array = np.linspace(0.0, 1.0, _FINE)


class ShiftEvidence:
    """Evidence from a growing series of block observations; ``shape`` is that of one observation."""

    def __init__(self, grid: NuisanceGrid, shape: tuple[int, ...] = ()) -> None:
        self.grid = grid
        self._drifts = grid.drift_var.any(axis=-1)
        full = (*shape, grid.dispersion.shape[-1])
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

    def log_e(self, claim: Claim) -> Array:
        """Log e-value of a claim; of claims that were put together, each of its own row of the observations."""
        null = np.where(claim.beyond[..., None], self.grid.log_null_beyond, self.grid.log_null)
        told = self.info > 0
        peak = np.divide(self.score, self.info, out=np.zeros_like(self.info), where=told)
        # the null at its best: at each nuisance the shift in [low, high] that explains most
        at = np.minimum(np.maximum(peak, claim.low[..., None]), claim.high[..., None])
        best = log_sum_exp(self.base + self.score * at - 0.5 * self.info * at**2 + null)
        mixed = self._log_mixture(claim.powers, claim.log_weights)
        out: Array = mixed - best - claim.toll * self._drifts
        return out

    def _log_mixture(self, powers: Array, log_weights: Array) -> Array:
        """Log likelihood of the alternative: over all nuisances, and over shifts with these weights."""
        parts = np.empty((*self.base.shape[:-1], 3, self.base.shape[-1]))
        np.add(self.base, self.grid.log_alternative, out=parts[..., 0, :])
        parts[..., 1, :], parts[..., 2, :] = self.score, self.info
        per: Array = powers @ parts
        per += log_weights[..., None]
        return log_sum_exp(per.reshape(*per.shape[:-2], -1))

    def part(self, rows: NDArray[np.int64], grid: NuisanceGrid) -> ShiftEvidence:
        """Some rows of the evidence from observations with a grid each: to be described, not to be updated."""
        out = copy(self)
        out.grid = grid
        out.base, out.score, out.info = (x[rows] for x in (self.base, self.score, self.info))
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
        floor = self._log_mixture(_EITHER_POWERS, _EITHER_LOG_WEIGHTS) - log_threshold
        peak, height = self._peaks()
        # outside of every nuisance's own range, with room for all of them adding up, nothing is in
        with np.errstate(invalid="ignore", divide="ignore"):
            room = height - floor[..., None] + np.log(self.grid.explanations)[..., None]
            half = np.sqrt(2.0 * room / self.info)
        blank = ~(self.info > 0).any(axis=-1)
        low = np.where(room > 0, peak - half, np.inf).min(axis=-1)
        high = np.where(room > 0, peak + half, -np.inf).max(axis=-1)
        low, high = np.where(blank, -1.0, low), np.where(blank, 1.0, high)
        at = low[..., None] + (high - low)[..., None] * _LINE
        parts = np.stack(
            [self.base + self.grid.log_null - floor[..., None], self.score, self.info], axis=-2
        )
        value = _powers(at) @ parts
        with np.errstate(over="ignore"):  # it may be as far above the threshold as it likes
            inside = exp(value).sum(axis=-1) > 1.0
        first = np.maximum(inside.argmax(axis=-1) - 1, 0)
        last = np.minimum(_FINE - inside[..., ::-1].argmax(axis=-1), _FINE - 1)
        lo, hi = (low + (high - low) * _LINE[end] for end in (first, last))
        return np.where(blank, -np.inf, lo), np.where(blank, np.inf, hi)
