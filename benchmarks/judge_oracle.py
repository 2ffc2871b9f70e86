"""What is reachable at all: the time an SPRT needs that knows what no judge can know.

It is told the size of the regression and the family's own noise and drift (the point of a fine grid
under which traces without a difference are most likely), and tests against the same margin. Where a
share of counts is concerned, the time follows from the Kullback-Leibler divergence to the nearest pair
of shares within the margin (Wald's approximation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from benchmarks.judge_families import Change, Setting, Sums, TrackBlocks, simulate
from lockgate.domain.judge.shift import NuisanceGrid, ShiftEvidence, log_mean

Array = NDArray[np.float64]


def _fine_grid() -> NuisanceGrid:
    rows = [
        (phi, sd * sd, corr)
        for phi in np.geomspace(0.5, 32.0, 13)
        for sd in (0.0, *np.geomspace(0.05, 3.0, 13))
        for corr in ((1.0,) if sd == 0 else (1.5, 3.0, 6.0, 12.0, 25.0, 45.0, 90.0))
    ]
    table = np.array(rows)
    even = np.full(len(rows), -math.log(len(rows)))
    return NuisanceGrid(table[:, 0], table[:, 1], table[:, 2], even, even)


def _evidence(
    pair: tuple[TrackBlocks, TrackBlocks], metric: str, grid: NuisanceGrid, setting: Setting
) -> list[tuple[Array, Array, Array]]:
    """Base, score and information of each trace after each cell. Cells with fewer than two samples
    on a track are joined with the next."""
    tracks: list[Sums] = [getattr(track, metric) for track in pair]
    traces = tracks[0].count.shape[0]
    evidence, since, out = ShiftEvidence(grid, (traces,)), np.zeros(traces), []
    whole = [[x.sum(axis=1) for x in (t.count, t.total, t.square)] for t in tracks]
    scatter = [np.maximum(n * square / total**2 - 1.0, 0.0) for n, total, square in whole]
    open_ = np.zeros((2, 2, traces))
    for i in range(setting.blocks):
        since += setting.block
        for t, sums in enumerate(tracks):
            open_[t] += sums.count[:, i], sums.total[:, i]
        ready = open_[:, 0].min(axis=0) >= 2
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.nan_to_num(open_[:, 1] / open_[:, 0])
        logs = [log_mean(open_[t, 0], mean[t], scatter[t], whole[t][0]) for t in range(2)]
        evidence.update(logs[1][0] - logs[0][0], logs[0][1] + logs[1][1], since, ready)
        since[ready], open_[:, :, ready] = 0.0, 0.0
        out.append((evidence.base.copy(), evidence.score.copy(), evidence.info.copy()))
    return out


@lru_cache(maxsize=64)
def _likeliest(family: str, metric: str, setting: Setting, seed: int) -> NuisanceGrid:
    """The noise and drift under which the family's traces without a difference are most likely."""
    null = simulate(family, setting, 60, Change(), np.random.default_rng([seed, 1]))
    fine = _fine_grid()
    # at no difference the log likelihood of shift 0 is the base alone
    best = int(np.argmax(_evidence(null, metric, fine, setting)[-1][0].sum(axis=0)))
    return NuisanceGrid(
        fine.dispersion[[best]], fine.drift_var[[best]], fine.corr_s[[best]],
        np.zeros(1), np.zeros(1),
    )  # fmt: skip


def latency(
    family: str,
    metric: str,
    shift: float,
    margin: float,
    alphas: Sequence[float],
    setting: Setting,
    traces: int,
    seed: int,
) -> list[Array]:
    """For each alpha: seconds to the decision of each trace, inf where the trace is too short."""  # fmt: skip
    point = _likeliest(family, metric, setting, seed)
    shifted = simulate(
        family, setting, traces, Change(latency=shift), np.random.default_rng([seed, 2])
    )
    high, low = math.log(shift), math.log1p(margin)
    ratio = np.stack(
        [
            (score * (high - low) - 0.5 * info * (high**2 - low**2))[:, 0]
            for _, score, info in _evidence(shifted, metric, point, setting)
        ],
        axis=1,
    )
    hits = [ratio >= -math.log(alpha) for alpha in alphas]
    return [
        np.where(hit.any(axis=1), (hit.argmax(axis=1) + 1) * setting.block, np.inf) for hit in hits
    ]


def independent_seconds(
    scatter: float, shift: float, margin: float, alpha: float, rate: float
) -> float:
    """Mean seconds of Wald's test on independent log-normal samples of known `scatter`, `rate` samples
    a second on each track, for a latency `shift` times as long."""
    effect = math.log(shift) - math.log1p(margin)
    return -math.log(alpha) * 4.0 * scatter**2 / (effect**2 * rate)


def share_seconds(
    baseline: float, canary: float, margin: float, alpha: float, rate: float
) -> float:
    """Mean seconds of an SPRT for a difference of shares, `rate` trials a second on each track."""

    def divergence(share: float) -> float:
        return _bernoulli(baseline, share) + _bernoulli(canary, share + margin)

    nearest = minimize_scalar(divergence, bounds=(1e-6, 1 - margin - 1e-6), method="bounded")
    return -math.log(alpha) / (float(nearest.fun) * rate)


def _bernoulli(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
