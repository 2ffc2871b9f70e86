"""The judge's own evidence, computed on thousands of traces at once.

The same classes and functions as in `lockgate.domain.judge` (they are vectorised over leading axes);
only the bookkeeping of blocks is repeated here. `tests/unit/judge` checks that both agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.judge_families import BOUNDS, Setting, Sums, TrackBlocks
from lockgate.domain.judge import DEFAULT_METRICS, JudgeConfig, shift
from lockgate.domain.judge.bets import Bets, ShareEvidence, bets_within, bets_worse
from lockgate.domain.judge.blocks import BlockEnds
from lockgate.domain.judge.proportion import dispersion_of_spells, log_e_split
from lockgate.domain.judge.ratios import MIN_BLOCKS, evidence_grid
from lockgate.domain.judge.shift import NuisanceGrid, ShiftEvidence, log_mean
from lockgate.domain.judge.tails import bound_index, counted

Array = NDArray[np.float64]
EARLY = 0.95
"""The part of alpha that metrics share which are there from the first block."""

WITH_DATA = tuple(name for name in DEFAULT_METRICS if name not in ("crashes", "quality_probe"))
"""The metrics that a vLLM behind Envoy has data for; all of them take their shares of alpha."""

SIMULATED = (
    "ttft",
    "itl",
    "e2e_per_token",
    "output_length",
    "gateway_errors",
    "finish_reasons",
    "ttft_tail",
)
"""The metrics with a margin that the families say something about."""

_CHUNK = 50
_NOTHING = -50.0
"""Log evidence of a metric that does not speak yet."""


def alpha_of(metric: str, config: JudgeConfig) -> float:
    """A metric's share of alpha."""
    total = sum(DEFAULT_METRICS[name].weight for name in WITH_DATA)
    return EARLY * config.alpha * DEFAULT_METRICS[metric].weight / total


@dataclass(frozen=True)
class Blocks:
    """Which cells (the stretches between two scrapes) make up the judge's blocks."""

    starts: NDArray[np.int64]
    ends: Array
    """Seconds after the beginning at which each block is closed."""
    cells: int
    """How many cells they cover; what comes later is in no block yet."""

    @staticmethod
    def of(setting: Setting, config: JudgeConfig) -> Blocks:
        """A block closes at the first scrape at or after its end."""
        rule, closed = BlockEnds(config.block_s), list[int]()
        for number in range(1, setting.blocks * 10):
            cell = math.ceil(rule.end(number) / setting.block - 1e-9)
            if cell > setting.blocks:
                break
            if not closed or cell > closed[-1]:
                closed.append(cell)
        starts = np.array([0, *closed[:-1]])
        return Blocks(starts, np.array(closed) * setting.block, closed[-1])

    def of_tracks(self, *tracks: TrackBlocks) -> list[TrackBlocks]:
        """What the tracks added in each block."""
        return [track.grouped(self.starts, self.cells) for track in tracks]

    @property
    def steps(self) -> Array:
        """Seconds from block to block."""
        return np.diff(self.ends, prepend=0.0)

    def first(self, hit: NDArray[np.bool_]) -> Array:
        """Seconds to each trace's first hit; inf if there is none."""
        return np.where(hit.any(axis=1), self.ends[hit.argmax(axis=1)], np.inf)


@dataclass
class Course:
    """Log e-values of one metric after each block: against "within the margin" and against
    "beyond it"."""

    worse: Array
    within: Array


def means(
    baseline: Sums, canary: Sums, name: str, config: JudgeConfig, blocks: Blocks,
    per: tuple[Array, Array] | None = None, within: bool = True,
) -> Course:  # fmt: skip
    """LATENCY and SIZE metrics. `per`: divide by these sums instead of by the counts.
    `within` false leaves out the evidence of being within the margin (cheaper)."""
    metric = DEFAULT_METRICS[name]
    grid = evidence_grid(config, metric)
    bound, sized = math.log1p(metric.margin), metric.kind == "size"
    parts: list[tuple[Array, Array]] = []
    for start in range(0, baseline.count.shape[0], _CHUNK):
        rows = slice(start, start + _CHUNK)
        tracks = [
            (s.count[rows], s.total[rows], s.square[rows], p[rows])
            for s, p in zip(
                (baseline, canary), per or (baseline.count, canary.count), strict=True
            )
        ]  # fmt: skip
        parts.append(_run(tracks, grid, bound, sized, within, blocks))
    return Course(*(np.concatenate(c) for c in zip(*parts, strict=True)))


def _run(
    tracks: list[tuple[Array, Array, Array, Array]],
    grid: NuisanceGrid,
    bound: float,
    sized: bool,
    inside: bool,
    blocks: Blocks,
) -> tuple[Array, Array]:
    traces, number = tracks[0][0].shape
    evidence, proof, other = (ShiftEvidence(grid, (traces,)) for _ in range(3))
    open_, seen = np.zeros((2, 4, traces)), np.zeros((2, 4, traces))
    since, taken = np.zeros(traces), np.zeros(traces)
    worse, within = np.full((2, traces, number), _NOTHING)
    for i, step in enumerate(blocks.steps):
        since += step
        for t, track in enumerate(tracks):
            open_[t] += np.stack([part[:, i] for part in track])
        ready = open_[:, 0].min(axis=0) >= 2
        seen += np.where(ready, open_, 0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            scatter = np.nan_to_num(np.maximum(seen[:, 0] * seen[:, 2] / seen[:, 1] ** 2 - 1, 0.0))
            mean = np.nan_to_num(open_[:, 1] / open_[:, 3])
        pooled = (scatter * seen[:, 0]).sum(axis=0) / np.maximum(seen[:, 0].sum(axis=0), 1.0)
        logs, _ = log_mean(open_[:, 0], mean, pooled, seen[:, 0])
        own, variance = log_mean(open_[:, 0], mean, scatter, seen[:, 0])
        shown = own[1] - own[0]
        alike = logs[1] - logs[0]
        evidence.update(np.minimum(shown, alike), variance.sum(axis=0), since, ready)
        if sized:
            other.update(np.maximum(shown, alike), variance.sum(axis=0), since, ready)
        if inside:
            proof.update(shown, variance.sum(axis=0), since, ready)
        taken += ready
        since[ready] = 0.0
        open_[:, :, ready] = 0.0
        above = evidence.log_e(shift.worse(bound))
        below = proof.log_e(shift.not_worse(bound)) if inside else np.full(traces, _NOTHING)
        if sized:
            above = np.logaddexp(above, other.log_e(shift.better(-bound))) - np.log(2.0)
            if inside:
                below = np.minimum(below, proof.log_e(shift.not_better(-bound)))
        worse[:, i] = np.where(taken >= MIN_BLOCKS, above, _NOTHING)
        within[:, i] = np.where(taken >= MIN_BLOCKS, below, _NOTHING)
    return worse, within


def _joined(parts: list[Array]) -> list[Array]:
    """Events and trials of both tracks, where a block with an empty track counts with the next."""
    kb, nb, kc, nc = (x.copy() for x in parts)
    for i in range(nb.shape[1]):
        empty = (nb[:, i] <= 0) | (nc[:, i] <= 0)
        for array in (kb, nb, kc, nc):
            if i + 1 < array.shape[1]:
                array[:, i + 1] += np.where(empty, array[:, i], 0.0)
            array[empty, i] = 0.0
    return [kb, nb, kc, nc]


_LEAST = 5.0
"""Events and non-events below which there is no over-dispersion to measure."""


def dispersion(events: ArrayLike, trials: ArrayLike) -> Array:
    """What `Spread` of the judge comes to: over-dispersion of shares between blocks of one track: Pearson's statistic a degree of
    freedom, never below 1; 1 where fewer than 5 events or non-events were seen."""
    k, n = np.asarray(events, dtype=float), np.asarray(trials, dtype=float)
    total_k, total_n = k.sum(-1, keepdims=True), n.sum(-1, keepdims=True)
    used = n > 0
    freedom = used.sum(-1) - 1
    rare = np.minimum(total_k, total_n - total_k).squeeze(-1) < _LEAST
    unknown = rare | (freedom < 3)
    if unknown.all():
        return np.ones(unknown.shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = total_k / total_n
        pearson = np.where(used, (k - n * share) ** 2 / (n * share * (1 - share)), 0.0)
        value = pearson.sum(-1) / freedom
    out: Array = np.where(unknown | np.isnan(value), 1.0, np.maximum(value, 1.0))
    return out


def _paid(parts: list[Array], number: int) -> Array:
    """The dispersion measured in the first so many blocks: the larger of both tracks'."""
    kb, nb, kc, nc = (x[:, :number] for x in parts)
    return np.maximum(dispersion(kb, nb), dispersion(kc, nc))


def _course(
    bets: Bets,
    parts: list[Array],
    paid: Array,
    counted: Callable[[Array, Array], Array] | None = None,
) -> Array:
    """The log evidence of bets after each block, given the dispersion to be paid for after each."""
    kb, nb, kc, nc = parts
    evidence, out = ShareEvidence(bets, (nb.shape[0],)), np.empty(nb.shape)
    for i in range(nb.shape[1]):
        canary = kc[:, i] if counted is None else counted(kc[:, i], nc[:, i])
        evidence.update(kb[:, i], nb[:, i], canary, nc[:, i])
        out[:, i] = evidence.log_e(paid[:, i])
    return out


def shares(
    baseline: tuple[Array, Array], canary: tuple[Array, Array], name: str, within: bool = True
) -> Course:
    """RATIO metrics, and MIX for two categories (both of which change alike)."""
    metric = DEFAULT_METRICS[name]
    rare = metric.kind != "mix"
    parts = _joined([*baseline, *canary])
    paid = np.stack([_paid(parts, i + 1) for i in range(parts[0].shape[1])], axis=1)
    kb, nb, kc, nc = parts
    sides = [parts] if rare else [parts, [nb - kb, nb, nc - kc, nc]]
    worse = [_course(bets_worse(metric.margin, rare), side, paid) for side in sides]
    inside = [
        _course(bets_within(metric.margin, rare), side, paid)
        if within
        else np.full_like(nb, _NOTHING)
        for side in sides
    ]
    above = worse[0]
    if not rare:
        # as in the product: the mean over categories and directions; the third category is empty
        above = np.logaddexp(*worse) + np.log(2.0 / 6.0)
    return Course(above, np.minimum.reduce(inside))


def tail(baseline: TrackBlocks, canary: TrackBlocks, name: str, within: bool = True) -> Course:
    """TAIL metrics, of the time to first token."""
    metric, tracks = DEFAULT_METRICS[name], (baseline, canary)
    traces, number = baseline.ttft.count.shape
    counts, totals = np.zeros((2, traces)), np.zeros((2, traces))
    above, parts = (
        np.zeros((2, traces, BOUNDS.size)),
        [np.zeros((traces, number)) for _ in range(4)],
    )
    for i in range(number):
        at = bound_index(BOUNDS, counts, totals, above)
        for t, track in enumerate(tracks):
            slow = np.take_along_axis(track.slow[:, i], np.maximum(at, 0)[:, None], axis=1)[:, 0]
            parts[2 * t][:, i] = np.where(at >= 0, slow, 0.0)
            parts[2 * t + 1][:, i] = np.where(at >= 0, track.ttft.count[:, i], 0.0)
            counts[t] += track.ttft.count[:, i]
            totals[t] += track.ttft.total[:, i]
            above[t] += track.slow[:, i]
    parts = _joined(parts)
    kb, nb, kc, nc = parts
    paid = np.stack(
        [
            np.maximum(*(dispersion_of_spells(k[:, :i], n[:, :i]) for k, n in ((kb, nb), (kc, nc))))
            for i in range(1, number + 1)
        ],
        axis=1,
    )
    worse = _course(bets_worse(metric.margin, rare=True), parts, paid, counted)
    if not within:
        return Course(worse, np.full_like(worse, _NOTHING))
    return Course(worse, _course(bets_within(metric.margin, rare=True), parts, paid))


def split(baseline: Array, canary: Array) -> Course:
    """The split metric at a committed weight of one half."""
    k, n = canary, baseline + canary
    total_k, total_n = np.cumsum(k, axis=1), np.cumsum(n, axis=1)
    for i in range(k.shape[1]):
        spread = dispersion(k[:, : i + 1], n[:, : i + 1])
        total_k[:, i] /= spread
        total_n[:, i] /= spread
    worse = log_e_split(total_k, total_n, 0.5)
    return Course(worse, np.full_like(worse, _NOTHING))


def judge_all(
    baseline: TrackBlocks,
    canary: TrackBlocks,
    setting: Setting,
    config: JudgeConfig,
    *,
    within: Collection[str] = SIMULATED,
) -> dict[str, Course]:
    """The evidence of all simulated metrics over time. `within`: the metrics whose evidence of being
    within the margin is wanted, too (dearer)."""
    blocks = Blocks.of(setting, config)
    b, c = blocks.of_tracks(baseline, canary)
    good = (b.requests - b.errors, c.requests - c.errors)
    per = {"e2e_per_token": (b.tokens.total, c.tokens.total)}
    sums = {
        "ttft": (b.ttft, c.ttft),
        "itl": (b.itl, c.itl),
        "e2e_per_token": (b.e2e, c.e2e),
        "output_length": (b.tokens, c.tokens),
    }
    out = {
        name: means(*pair, name, config, blocks, per.get(name), name in within)
        for name, pair in sums.items()
    }
    errors = ((b.errors, b.requests), (c.errors, c.requests))
    long = ((b.long, good[0]), (c.long, good[1]))
    return out | {
        "gateway_errors": shares(*errors, "gateway_errors", "gateway_errors" in within),
        "finish_reasons": shares(*long, "finish_reasons", "finish_reasons" in within),
        "ttft_tail": tail(b, c, "ttft_tail", "ttft_tail" in within),
        "split": split(b.requests, c.requests),
    }


@dataclass
class Outcome:
    """Of each trace: when it is failed (seconds, inf if never), and when each metric is shown to be
    within its margin."""

    failed: Array
    within: dict[str, Array]
    strongest: Array
    """Largest log of the evidence over all metrics; failed at 0."""


def outcome(
    found: dict[str, Course], setting: Setting, config: JudgeConfig, only: str | None = None
) -> Outcome:
    """What the judge makes of the evidence. `only`: this metric's alone, with its share of alpha."""
    blocks = Blocks.of(setting, config)
    weighted = [
        np.maximum(course.worse, _NOTHING) + math.log(alpha_of(name, config))
        for name, course in found.items()
        if only in (None, name)
    ]
    total = np.logaddexp.reduce(weighted, axis=0)
    within = {
        name: blocks.first(course.within >= -math.log(config.beta))
        for name, course in found.items()
    }
    return Outcome(blocks.first(total >= 0.0), within, total.max(axis=1))
