"""Whether the bands of quantiles hold the truth at all looks, on the families of the calibration."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.judge_families import BOUNDS, Change, Setting, TrackBlocks, simulate
from benchmarks.judge_vectorised import Blocks
from lockgate.domain.judge import DEFAULT_METRICS, JudgeConfig
from lockgate.domain.judge.bands import QUANTILES, CdfSequence, Drift, intervals

Array = NDArray[np.float64]


def _quantiles(tracks: list[TrackBlocks]) -> Array:
    """Those of the long run, from all traces together, between two bounds as if it were log-uniform."""
    count = sum(float(t.ttft.count.sum()) for t in tracks)
    below = count - sum(t.slow.sum(axis=(0, 1)) for t in tracks)
    logs = np.log(np.concatenate([[BOUNDS[0] / 4], BOUNDS]))
    out: Array = np.exp(np.interp(QUANTILES, np.concatenate([[0.0], below / count]), logs))
    return out


def missed(
    family: str, setting: Setting, traces: int, config: JudgeConfig, rng: np.random.Generator
) -> dict[str, float]:
    """In how many traces a band of the time to first token, at any look, misses a track's own quantile, and in how many
    the ratio of two tracks that are alike; and how far (a factor) the ratio's bands reach at the end, in the middle of the
    traces."""
    blocks = Blocks.of(setting, config)
    tracks = blocks.of_tracks(*simulate(family, setting, traces, Change(), rng))
    truth = _quantiles(tracks)[:, None, None]
    seen = CdfSequence(BOUNDS.size, (2, traces))
    drift = Drift(config.drift_sd, config.drift_s)
    declared = DEFAULT_METRICS["ttft"].dispersion
    own, apart = np.zeros((2, traces), dtype=bool)
    for i, end in enumerate(blocks.ends):
        counts = np.stack([t.ttft.count[:, i] for t in tracks])
        slow = np.stack([t.slow[:, i] for t in tracks])
        seen.add(np.concatenate([counts[..., None] - slow, counts[..., None]], axis=-1))
        elapsed = float(end - blocks.ends[0])
        found = intervals(seen, BOUNDS, declared, drift, elapsed, config.interval_level)
        each, ratio = found[:, :2], found[:, 2]
        own |= ((each[:, :, 0] > truth) | (each[:, :, 1] < truth)).any(axis=(0, 1))
        apart |= ((ratio[:, 0] > 1.0) | (ratio[:, 1] < 1.0)).any(axis=0)
    out = {"traces": traces, "own": int(own.sum()), "ratio": int(apart.sum())}
    reach = {f"p{100 * q:g}": np.median(ends[1]) for q, ends in zip(QUANTILES, ratio, strict=True)}
    return out | {name: float(value) for name, value in reach.items() if np.isfinite(value)}
