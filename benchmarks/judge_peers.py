"""Decision rules of other canary controllers, re-implemented for comparison only.

Kayenta (`MannWhitneyClassifier` with the mean-ratio effect size, growing window), Flagger (a count of
failed checks that never decays) and Argo Rollouts (failures over a limit). They are fed what their
users feed them: one number a block and track, say the block's mean TTFT or its share of errors.
Each has a knob that sets its false-rollback rate; `tuned` picks it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from benchmarks.judge_families import BOUNDS, Setting, TrackBlocks

Array = NDArray[np.float64]
Rule = Callable[[Array, Array, float], NDArray[np.int64]]
"""(baseline, canary, knob) -> index of the first failing block of each trace, -1 if none."""


def _first(hit: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.where(hit.any(axis=1), hit.argmax(axis=1), -1)


def kayenta(baseline: Array, canary: Array, knob: float) -> NDArray[np.int64]:
    """High iff the rank-sum interval at 0.98 of the shift lies above 0.25 |estimate| and the mean
    ratio is at least `knob` (`allowedIncrease`; 1.0 by default). Judged on the growing window at
    every tenth of the trace's blocks, from the 5th block on, no correction for the looks.

    The interval is the normal approximation of Hodges and Lehmann's, from the order statistics of
    all pairwise differences.
    """
    traces, blocks = baseline.shape
    hit = np.zeros((traces, blocks), dtype=bool)
    z = norm.ppf(0.99)
    for n in range(5, blocks + 1, max(1, blocks // 10)):
        b, c = baseline[:, :n], canary[:, :n]
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.nanmean(c, axis=1) / np.nanmean(b, axis=1)
        rows = np.flatnonzero(ratio >= knob)
        if not rows.size:
            continue
        pairs = np.sort((c[rows, :, None] - b[rows, None, :]).reshape(rows.size, -1), axis=1)
        estimate = np.median(pairs, axis=1)
        rank = int(np.floor(n * n / 2 - 0.5 - z * np.sqrt(n * n * (2 * n + 1) / 12)))
        low = pairs[:, max(rank, 0)]
        hit[rows, n - 1] = low > 0.25 * np.abs(estimate)
    return _first(hit)


def _counting(threshold: int) -> Rule:
    """Fails at the `threshold`-th block whose canary value is above `knob` times the baseline's of
    the same block (a query for the ratio; an absolute limit would have to know today's traffic)."""

    def rule(baseline: Array, canary: Array, knob: float) -> NDArray[np.int64]:
        with np.errstate(invalid="ignore"):
            bad = canary > knob * baseline
        return _first(np.cumsum(bad, axis=1) >= threshold)

    return rule


flagger_1, flagger_5, flagger_10, flagger_20 = (_counting(n) for n in (1, 5, 10, 20))
"""Flagger with `threshold` 1 (its default), 5, 10 and 20."""

argo_3 = _counting(4)
"""Argo Rollouts with `failureLimit` 3: fails when failures exceed the limit. (With its default of 0
it is Flagger's threshold 1.)"""

PEERS: dict[str, Rule] = {
    "Kayenta": kayenta,
    "Flagger, threshold 1 / Argo Rollouts, failureLimit 0": flagger_1,
    "Flagger, threshold 5": flagger_5,
    "Flagger, threshold 10": flagger_10,
    "Flagger, threshold 20": flagger_20,
    "Argo Rollouts, failureLimit 3": argo_3,
}

Signal = Callable[[TrackBlocks], Array]
"""A track's number at each of a peer's looks; NaN without samples."""


def _share(events: Array, trials: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        out: Array = events / trials
    return out


def _p95(track: TrackBlocks) -> Array:
    """As Prometheus' `histogram_quantile(0.95, ...)`: linear within the bucket."""
    count = track.ttft.count[..., None]
    below = np.concatenate([np.zeros_like(count), count - track.slow, count], axis=-1)
    at = np.minimum((below < 0.95 * count).sum(axis=-1), BOUNDS.size)[..., None]
    edges = np.concatenate([[0.0, 0.0], BOUNDS])
    low, high = (np.take_along_axis(below, at + shift, axis=-1) for shift in (-1, 0))
    left, right = edges[at], edges[at + 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        value = left + (right - left) * np.clip((0.95 * count - low) / (high - low), 0.0, 1.0)
    out: Array = np.where(count > 0, value, np.nan)[..., 0]
    return out


_FULL = 400.0
"""What a share of one is taken as, so that the knobs' range covers all shares from a quarter of a percent."""

SIGNALS: Mapping[str, Signal] = {
    "TTFT": lambda t: _share(t.ttft.total, t.ttft.count),
    "ITL": lambda t: _share(t.itl.total, t.itl.count),
    "TTFT p95": _p95,
    "errors": lambda t: _FULL * _share(t.errors, t.requests),
    "length": lambda t: _share(t.tokens.count, t.tokens.total),
    "reasons": lambda t: _FULL * _share(t.long, t.requests - t.errors),
}
"""Length as tokens' inverse: shorter is worse."""

LIMITS = ("errors", "reasons")
"""Signals for which the counting rules know a limit on the canary's share rather than a ratio to a baseline
that is mostly zero."""


def watched(
    pair: tuple[TrackBlocks, TrackBlocks], setting: Setting
) -> dict[str, tuple[Array, Array]]:
    """What a peer sees of a trace at its looks."""
    starts = np.arange(0, setting.blocks, round(TICK))
    b, c = (track.grouped(starts) for track in pair)
    return {name: (signal(b), signal(c)) for name, signal in SIGNALS.items()}


def seen_by(peer: str, signal: str, pair: tuple[Array, Array]) -> tuple[Array, Array]:
    """Both tracks' numbers as this peer compares them."""
    limit = signal in LIMITS and peer != "Kayenta"
    return (np.ones_like(pair[1]), pair[1]) if limit else pair


TICK = 5.0
"""Seconds between two looks of a peer. Their users' intervals are longer; shorter ones would make them
count the same bad spell more often."""

KNOBS: Array = np.geomspace(1.0, 400.0, 400)


def tuned(rule: Rule, nulls: list[tuple[Array, Array]], rate: float) -> float:
    """The least knob whose false-rollback rate is at most `rate` on every one of the nulls; inf
    where there is none."""
    low, high = 0, KNOBS.size
    while low < high:  # the rate falls with the knob
        middle = (low + high) // 2
        knob = float(KNOBS[middle])
        if all((rule(*pair, knob) >= 0).mean() <= rate for pair in nulls):
            high = middle
        else:
            low = middle + 1
    return float(KNOBS[low]) if low < KNOBS.size else float("inf")


def delays(rule: Rule, knob: float, baseline: Array, canary: Array, block: float) -> Array:
    """Seconds until each trace is failed; inf if never."""
    if not np.isfinite(knob):
        return np.full(baseline.shape[0], np.inf)
    at = rule(baseline, canary, knob)
    return np.where(at >= 0, (at + 1) * block, np.inf)
