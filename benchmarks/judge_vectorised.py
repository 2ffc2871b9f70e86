"""The judge's own evidence, computed on thousands of traces at once.

The same classes and functions as in `lockgate.domain.judge` (they are vectorised over leading axes);
only the bookkeeping of blocks is repeated here. `tests/unit/judge` checks that both agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.judge_families import Setting, Sums, TrackBlocks
from lockgate.domain.judge import DEFAULT_METRICS, JudgeConfig
from lockgate.domain.judge.proportion import dispersion, log_e_both, log_e_split
from lockgate.domain.judge.shift import ShiftEvidence, log_mean, nuisance_grid

Array = NDArray[np.float64]
LATE = 0.9
"""The part of alpha that metrics share which are there from the first block."""

SHARES = 14.0
"""Sum of the weights of the eleven metrics that a vLLM behind Envoy has data for."""

_CHUNK = 50


def alpha_of(metric: str, config: JudgeConfig, total: float = SHARES) -> float:
    """A metric's share of alpha."""
    return LATE * config.alpha * DEFAULT_METRICS[metric].weight / total


@dataclass
class Crossing:
    """When each trace's evidence first reached its threshold (seconds, inf if never)."""

    worse: Array
    within: Array


def _first(hit: NDArray[np.bool_], block: float) -> Array:
    return np.where(hit.any(axis=1), (hit.argmax(axis=1) + 1) * block, np.inf)


def means(
    baseline: Sums, canary: Sums, name: str, config: JudgeConfig, alpha: float, setting: Setting
) -> Crossing:
    """LATENCY and SIZE metrics."""
    metric = DEFAULT_METRICS[name]
    sized = metric.kind == "size"
    grid = nuisance_grid(
        0.0 if sized else config.drift_sd, config.drift_s, config.drift_surprise, metric.dispersion
    )
    bound = float(np.log1p(metric.margin))
    n = baseline.count.shape[0]
    parts: list[tuple[Array, Array]] = []
    for start in range(0, n, _CHUNK):
        rows = slice(start, min(start + _CHUNK, n))
        parts.append(_run(baseline, canary, rows, grid, bound, sized, config, alpha, setting))
    return Crossing(*(np.concatenate(c) for c in zip(*parts, strict=True)))


def _run(
    baseline: Sums,
    canary: Sums,
    rows: slice,
    grid: object,
    bound: float,
    sized: bool,
    config: JudgeConfig,
    alpha: float,
    setting: Setting,
) -> tuple[Array, Array]:
    tracks = [(s.count[rows], s.total[rows], s.square[rows]) for s in (baseline, canary)]
    traces, blocks = tracks[0][0].shape
    evidence = ShiftEvidence(grid, (traces,))  # type: ignore[arg-type]
    open_ = np.zeros((2, 3, traces))
    seen = np.zeros((2, 3, traces))
    since = np.zeros(traces)
    taken = np.zeros(traces)
    worse = np.zeros((traces, blocks), dtype=bool)
    within = np.zeros((traces, blocks), dtype=bool)
    for i in range(blocks):
        since += setting.block
        for t, track in enumerate(tracks):
            open_[t] += np.stack([part[:, i] for part in track])
        ready = open_[:, 0].min(axis=0) >= 2
        value, variance = np.zeros((2, traces)), np.zeros((2, traces))
        for t in range(2):
            seen[t] += np.where(ready, open_[t], 0.0)
            count, total, square = seen[t]
            with np.errstate(invalid="ignore", divide="ignore"):
                scatter = np.nan_to_num(np.maximum(count * square / total**2 - 1.0, 0.0))
                mean = open_[t][1] / open_[t][0]
            value[t], variance[t] = log_mean(open_[t][0], np.nan_to_num(mean), scatter, count)
        evidence.update(value[1] - value[0], variance.sum(axis=0), since, ready)
        taken += ready
        since[ready] = 0.0
        open_[:, :, ready] = 0.0
        above, below = evidence.log_e_above(bound), evidence.log_e_below(bound)
        if sized:
            above = np.logaddexp(above, evidence.log_e_below_wide(-bound)) - np.log(2.0)
            below = np.minimum(below, evidence.log_e_above_near(-bound))
        worse[:, i] = (above >= -np.log(alpha)) & (taken >= 3)
        within[:, i] = (below >= -np.log(config.beta)) & (taken >= 3)
    return _first(worse, setting.block), _first(within, setting.block)


def _paid(kb: Array, nb: Array, kc: Array, nc: Array) -> tuple[Array, ...]:
    """Cumulative counts at every block, divided by the dispersion measured so far."""
    out = [np.cumsum(x, axis=1) for x in (kb, nb, kc, nc)]
    for i in range(kb.shape[1]):
        spread = np.maximum(
            dispersion(kb[:, : i + 1], nb[:, : i + 1]), dispersion(kc[:, : i + 1], nc[:, : i + 1])
        )
        for array in out:
            array[:, i] /= spread
    return tuple(out)


def shares(
    baseline: tuple[Array, Array],
    canary: tuple[Array, Array],
    name: str,
    config: JudgeConfig,
    alpha: float,
    setting: Setting,
) -> Crossing:
    """RATIO metrics, and MIX for two categories (both of which change alike)."""
    metric = DEFAULT_METRICS[name]
    counts = _paid(*baseline, *canary)
    above, below = log_e_both(*counts, metric.margin)
    if metric.kind == "mix":
        up, down = log_e_both(*counts, -metric.margin)
        # as in the product: the mean over categories and directions; the third category is empty
        above = np.logaddexp(above, down) + np.log(2.0 / 6.0)
        below = np.minimum(below, up)
    hit = (above >= -np.log(alpha), below >= -np.log(config.beta))
    return Crossing(_first(hit[0], setting.block), _first(hit[1], setting.block))


def split(baseline: Array, canary: Array, alpha: float, setting: Setting) -> Crossing:
    """The split metric at a committed weight of one half."""
    k, n = canary, baseline + canary
    total_k, total_n = np.cumsum(k, axis=1), np.cumsum(n, axis=1)
    for i in range(k.shape[1]):
        spread = dispersion(k[:, : i + 1], n[:, : i + 1])
        total_k[:, i] /= spread
        total_n[:, i] /= spread
    hit = log_e_split(total_k, total_n, 0.5) >= -np.log(alpha)
    first = _first(hit, setting.block)
    return Crossing(first, np.full_like(first, np.inf))


def judge_all(
    baseline: TrackBlocks,
    canary: TrackBlocks,
    setting: Setting,
    config: JudgeConfig,
    shares_of_alpha: float = SHARES,
) -> dict[str, Crossing]:
    """All simulated metrics, each with its share of alpha among eleven with data."""
    alpha = {n: alpha_of(n, config, shares_of_alpha) for n in DEFAULT_METRICS}
    b, c = baseline, canary
    good = (b.requests - b.errors, c.requests - c.errors)
    return {
        "ttft": means(b.ttft, c.ttft, "ttft", config, alpha["ttft"], setting),
        "itl": means(b.itl, c.itl, "itl", config, alpha["itl"], setting),
        "output_length": means(
            b.tokens, c.tokens, "output_length", config, alpha["output_length"], setting
        ),
        "gateway_errors": shares(
            (b.errors, b.requests),
            (c.errors, c.requests),
            "gateway_errors",
            config,
            alpha["gateway_errors"],
            setting,
        ),
        "finish_reasons": shares(
            (b.long, good[0]),
            (c.long, good[1]),
            "finish_reasons",
            config,
            alpha["finish_reasons"],
            setting,
        ),
        "split": split(b.requests, c.requests, alpha["split"], setting),
    }
