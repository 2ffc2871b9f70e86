"""Evaluators of metrics that are ratios of means: latencies and lengths of answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lockgate.domain.judge import shift
from lockgate.domain.judge.bands import QuantileBands
from lockgate.domain.judge.config import JudgeConfig, MetricConfig, MetricKind
from lockgate.domain.judge.evaluators import Evaluator, Pool, finite, log_mean_exp, rows_of
from lockgate.domain.judge.increments import Increments, Moments, matches
from lockgate.domain.judge.report import QuantileBand
from lockgate.domain.judge.shift import Claim, NuisanceGrid, ShiftEvidence, log_mean, nuisance_grid
from lockgate.domain.trace import TRACKS, Scrape, Track

_MIN_PER_BLOCK = 2
"""Observations a track needs in a block of a histogram metric; else it is joined with the next."""

MIN_BLOCKS = 3
"""Blocks before which a histogram metric says nothing."""


class Block(NamedTuple):
    """What a block shows of one metric: pairs are of the baseline and of the canary."""

    counts: tuple[float, float]
    means: tuple[float, float]
    scatter: tuple[float, float]
    """Squared coefficient of variation of single observations, of all blocks so far."""
    pooled: tuple[float, float]
    """The same of both tracks together, twice."""
    seen: tuple[float, float]
    """Observations of all blocks so far."""
    since: tuple[float, float]
    """Seconds since the last block, and since the last that may be a proof of being within the margin."""
    fresh: tuple[bool, bool]
    """Whether there is a block at all, and whether it may be such a proof."""


_NO_BLOCK = Block((1, 1), (1, 1), (0, 0), (0, 0), (0, 0), (0, 0), (False, False))


def _since(before: float | None, end: float) -> float:
    return 0.0 if before is None else end - before


def _scatter_of(seen: Moments) -> float:
    return 0.0 if math.isnan(seen.scatter) else seen.scatter


class RatioOfMeans(Evaluator):
    """LATENCY and SIZE: the log ratio of the two tracks' means, block by block."""

    def __init__(self, name: str, metric: MetricConfig, config: JudgeConfig) -> None:
        super().__init__(name, metric, config)
        self.histogram: str | None = None
        self.block: Block | None = None
        """The block that was just closed, until it is weighed."""
        self.grid = evidence_grid(config, metric)
        bound = math.log1p(metric.margin)
        self.claims: tuple[Claim, ...] = (shift.worse(bound), shift.not_worse(bound))
        if metric.kind is MetricKind.SIZE:
            self.claims += (shift.better(-bound), shift.not_better(-bound))
        self._proof_end: float | None = None
        self._open: dict[Track, Moments] = {t: Moments() for t in TRACKS}
        self._open_per: dict[Track, float] = dict.fromkeys(TRACKS, 0.0)
        self._scatter: dict[Track, Moments] = {t: Moments() for t in TRACKS}
        self._last_end: float | None = None
        timed = metric.kind is MetricKind.LATENCY and metric.per_histogram is None
        self._bands = QuantileBands(metric, config) if timed else None
        self._described_at = 0

    def _has_source(self, scrape: Scrape) -> bool:
        if self._blocks == 0 and self.histogram != self.metric.histogram[0]:
            present = {m.partition("{")[0] for m in scrape.histograms}
            found = next((h for h in self._preferred() if h in present), None)
            if found is not None:
                self.histogram = found
                self._begin_anew()
        return self.histogram is not None and any(
            matches(self.histogram, name) for name in scrape.histograms
        )

    def _preferred(self) -> tuple[str, ...]:
        """Histograms that may still take the place of what was found: the better ones, where they come before the first block."""
        names = self.metric.histogram
        return names if self.histogram is None else names[: names.index(self.histogram)]

    def _begin_anew(self) -> None:
        self.last_seen.clear()
        self.discard()

    def take(self, track: Track, increments: Increments) -> None:
        if self.histogram is None:
            return
        for name, moments in increments.histograms.items():
            if matches(self.histogram, name):
                self._open[track].add(moments)
                if self._bands is not None and name in increments.buckets:
                    self._bands.take(track, increments.buckets[name])
            if self.metric.per_histogram and matches(self.metric.per_histogram, name):
                self._open_per[track] += moments.total

    def close(self, end: float) -> None:
        baseline, canary = (self._open[t] for t in TRACKS)
        counts = baseline.count, canary.count
        per = self.metric.per_histogram is not None
        divided = (self._open_per["baseline"], self._open_per["canary"]) if per else counts
        if min(counts) < _MIN_PER_BLOCK or (per and min(divided) <= 0):
            return
        for track in TRACKS:
            self._scatter[track].add(self._open[track])
        own = [_scatter_of(self._scatter[t]) for t in TRACKS]
        seen = [self._scatter[t].count for t in TRACKS]
        pooled = (own[0] * seen[0] + own[1] * seen[1]) / max(seen[0] + seen[1], 1.0)
        self.block = Block(
            counts,
            (
                max(baseline.total / divided[0], self.metric.floor),
                max(canary.total / divided[1], self.metric.floor),
            ),
            (own[0], own[1]),
            (pooled, pooled),
            (seen[0], seen[1]),
            (_since(self._last_end, end), _since(self._proof_end, end)),
            (True, not self.at_ease),
        )
        self._last_end = end
        if not self.at_ease:
            self._proof_end = end
        if self._bands is not None:
            self._bands.close(end)
        self.evidence.n_baseline += baseline.count
        self.evidence.n_canary += canary.count
        self._reopen()
        self._blocks += 1

    def conclude(self, log_es: Sequence[float]) -> None:
        """Note the evidence for each of `claims` after the block that was just closed."""
        self.block = None
        above, within = log_es[:2]
        if self.metric.kind is MetricKind.SIZE:
            above, within = log_mean_exp([above, log_es[2]]), min(within, log_es[3])
        if self._blocks >= MIN_BLOCKS:
            self._raise_to(above, within)

    def discard(self) -> None:
        self._reopen()
        if self._bands is not None:
            self._bands.discard()

    def _reopen(self) -> None:
        self._open = {t: Moments() for t in TRACKS}
        self._open_per = dict.fromkeys(TRACKS, 0.0)

    @property
    def undescribed(self) -> bool:
        """Whether estimate and interval are not those of the last block."""
        return self._described_at != self._blocks

    def tell(self, estimate: float, low: float, high: float) -> None:
        """Note estimate and interval, as logs."""
        self.evidence.estimate = finite(math.expm1(estimate))
        self.evidence.interval = (
            finite(math.expm1(low)) if math.isfinite(low) else None,
            finite(math.expm1(min(high, 30.0))) if math.isfinite(high) else None,
        )
        self._described_at = self._blocks

    def quantiles(self) -> tuple[QuantileBand, ...]:
        return self._bands.bands() if self._bands is not None else ()


class Ratios(Pool):
    """All ratios of means of a step: a row of evidence for each claim about each of them."""

    def __init__(self, members: Sequence[RatioOfMeans]) -> None:
        self._members = members
        claims = [len(member.claims) for member in members]
        self._member = np.repeat(np.arange(len(members)), claims)
        """Which member each row is of."""
        self._rows = rows_of(claims)
        self._claims = Claim.together([claim for member in members for claim in member.claims])
        grid = NuisanceGrid.together([members[i].grid for i in self._member.tolist()])
        self._shifts = ShiftEvidence(grid, (self._member.size,))
        sized = [member.metric.kind is MetricKind.SIZE for member in members]
        self._described = np.array([b + s for (b, _), s in zip(self._rows, sized, strict=True)])
        """The rows that estimates and intervals are made of: of the blocks at any load."""
        self._described_grid = NuisanceGrid.together([member.grid for member in members])

    def weigh(self) -> None:
        blocks = [member.block or _NO_BLOCK for member in self._members]
        if not any(block.fresh[0] for block in blocks):
            return
        counts, means, own, pooled, seen, since, fresh = np.array(blocks, dtype=float).swapaxes(
            0, 1
        )
        # each track by its own scatter, and both by that of all
        logs, variances = log_mean(counts, means, np.stack([own, pooled]), seen)
        shown, alike = logs[..., 1] - logs[..., 0]
        # A few very slow requests make a track scatter, and the log of its mean is put right by more than it lies low: what
        # only that makes of a difference is not held against the canary.
        less, more = np.minimum(shown, alike), np.maximum(shown, alike)
        # Evidence of being within the margin is that of the blocks at no less load than the baseline's alone.
        proof = self._claims.beyond.astype(int)
        # 0 and 1: "worse" and its proof; 2: "better" (a length may be wrong to either side)
        side = np.where(self._claims.beyond, 1, np.where(np.isinf(self._claims.high), 2, 0))
        self._shifts.update(
            np.stack([less, shown, more])[side, self._member],
            variances[0].sum(axis=-1)[self._member],
            since[self._member, proof],
            fresh[self._member, proof],
        )
        log_es = self._shifts.log_e(self._claims).tolist()
        for member, (begin, end) in zip(self._members, self._rows, strict=True):
            if member.block is not None:
                member.conclude(log_es[begin:end])

    def describe(self) -> None:
        if not any(member.undescribed for member in self._members):
            return
        level = self._members[0].config.interval_level
        shifts = self._shifts.part(self._described, self._described_grid)
        found = np.stack([shifts.estimate(), *shifts.interval(-math.log(1.0 - level))], axis=1)
        for member, row in zip(self._members, found.tolist(), strict=True):
            if member.undescribed:
                member.tell(*row)


def evidence_grid(config: JudgeConfig, metric: MetricConfig) -> NuisanceGrid:
    """What differences of a LATENCY or SIZE metric may be explained with."""
    drifts = metric.kind is MetricKind.LATENCY
    return nuisance_grid(
        config.drift_sd if drifts else 0.0,
        config.drift_s,
        max(config.drift_surprise, metric.surprise),
        metric.dispersion,
        fine=metric.per_histogram is not None,
    )
