"""One evaluator a metric: takes closed blocks, keeps the evidence, says what it shows.

An evaluator sees per block what both tracks added. Where a block is too thin it is joined with the
next. The largest evidence so far counts (Ville's inequality bounds it), so the outcome does not
depend on how often anybody looked.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lockgate.domain.judge.bands import QuantileBands
from lockgate.domain.judge.config import JudgeConfig, MetricConfig, MetricKind
from lockgate.domain.judge.increments import Increments, Moments, matches
from lockgate.domain.judge.proportion import Counts
from lockgate.domain.judge.report import QuantileBand
from lockgate.domain.judge.shift import NuisanceGrid, ShiftEvidence, log_mean, nuisance_grid
from lockgate.domain.trace import TRACKS, Scrape, Track

_MIN_PER_BLOCK = 2
"""Observations a track needs in a block of a histogram metric; else it is joined with the next."""


MIN_BLOCKS = 3
"""Blocks before which a histogram metric says nothing."""


@dataclass
class Evidence:
    """What one metric shows at this moment. Logs of e-values, running maxima but for one."""

    log_worse: float = 0.0
    log_worse_now: float = 0.0
    """Not the maximum but the present value: it is added up over the metrics."""
    log_within: float = 0.0
    estimate: float | None = None
    interval: tuple[float | None, float | None] | None = None
    n_baseline: float = 0.0
    n_canary: float = 0.0
    detail: str = ""


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Evaluator(ABC):
    """Base: which samples it needs, what to take from increments, how to close a block."""

    needs_times = False
    """Whether it must be told of each increment by itself, with its stretch of time; else of their sum over a block."""

    def __init__(self, name: str, metric: MetricConfig, config: JudgeConfig) -> None:
        self.name = name
        self.metric = metric
        self.config = config
        self.evidence = Evidence()
        self.last_seen: dict[Track, float] = {}
        self._blocks = 0
        self.at_ease = False
        """Whether the canary surely carries less than the baseline as blocks are closed: what it shows then is no proof."""

    @property
    def present(self) -> bool:
        """Whether the trace has this metric's samples on any track."""
        return bool(self.last_seen)

    def notice(self, scrape: Scrape, *, lasting: bool = False) -> None:
        """Note that this metric's samples are there (they may still be zero). `lasting`: their
        later absence means nothing (request rows: no requests, no rows)."""
        if scrape.up and self._has_source(scrape):
            if lasting:
                self.last_seen = dict.fromkeys(TRACKS, math.inf)
            else:
                # Another instance's later scrape may be known already.
                before = self.last_seen.get(scrape.track, scrape.time)
                self.last_seen[scrape.track] = max(before, scrape.time)

    @abstractmethod
    def _has_source(self, scrape: Scrape) -> bool: ...

    @abstractmethod
    def take(self, track: Track, increments: Increments) -> None:
        """Add increments of a track to the open block."""

    @abstractmethod
    def close(self, end: float) -> None:
        """The open block has ended at time `end` (seconds, trace clock)."""

    @abstractmethod
    def discard(self) -> None:
        """The open block has ended and is compared with nothing."""

    def describe(self) -> Evidence:
        """The evidence, with estimate and interval filled in."""
        return self.evidence

    def wanted_interval(self) -> tuple[Counts, float] | None:
        """Of a difference of shares: the counts and the log threshold that its interval is to be made of."""
        return None

    def quantiles(self) -> tuple[QuantileBand, ...]:
        """Of a latency: where its quantiles lie."""
        return ()

    def _raise_to(self, worse: float, within: float) -> None:
        self.evidence.log_worse_now = worse
        self.evidence.log_worse = max(self.evidence.log_worse, worse)
        self.evidence.log_within = max(self.evidence.log_within, within)


def _since(before: float | None, end: float) -> float:
    return 0.0 if before is None else end - before


def scatter_of(seen: Moments) -> float:
    return 0.0 if math.isnan(seen.scatter) else seen.scatter


def log_mean_exp(values: list[float]) -> float:
    return float(np.logaddexp.reduce(values) - math.log(len(values)))


class RatioOfMeans(Evaluator):
    """LATENCY and SIZE: the log ratio of the two tracks' means, block by block."""

    def __init__(self, name: str, metric: MetricConfig, config: JudgeConfig) -> None:
        super().__init__(name, metric, config)
        self.histogram: str | None = None
        self._both = ShiftEvidence(evidence_grid(config, metric), (2,))
        """Of being worse, and of being within the margin: that of the blocks at no less load than the baseline's alone."""
        self._proof_end: float | None = None
        self._open: dict[Track, Moments] = {t: Moments() for t in TRACKS}
        self._open_per: dict[Track, float] = dict.fromkeys(TRACKS, 0.0)
        self._scatter: dict[Track, Moments] = {t: Moments() for t in TRACKS}
        self._last_end: float | None = None
        self._bound = math.log1p(metric.margin)
        timed = metric.kind is MetricKind.LATENCY and metric.per_histogram is None
        self._bands = QuantileBands(metric, config) if timed else None
        self._described_at = -1

    def _has_source(self, scrape: Scrape) -> bool:
        if self.histogram is None:
            present = {m.partition("{")[0] for m in scrape.histograms}
            self.histogram = next((h for h in self.metric.histogram if h in present), None)
        return self.histogram is not None and any(
            matches(self.histogram, name) for name in scrape.histograms
        )

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
        baseline, canary = self._open["baseline"], self._open["canary"]
        per = self.metric.per_histogram is not None
        thin = min(baseline.count, canary.count) < _MIN_PER_BLOCK
        if thin or (per and min(self._open_per.values()) <= 0):
            return
        for track in TRACKS:
            self._scatter[track].add(self._open[track])
        counts = [self._open[t].count for t in TRACKS]
        seen = [self._scatter[t].count for t in TRACKS]
        totals = [self._open[t].total for t in TRACKS]
        divided = [self._open_per[t] for t in TRACKS] if per else counts
        means = [max(s / n, self.metric.floor) for s, n in zip(totals, divided, strict=True)]
        own = [scatter_of(self._scatter[t]) for t in TRACKS]
        pooled = sum([s * n for s, n in zip(own, seen, strict=True)]) / max(sum(seen), 1.0)
        # rows: each track by its own scatter, and both by that of all
        logs, variances = log_mean(counts, means, [own, [pooled, pooled]], seen)
        (baseline_own, canary_own), (baseline_log, canary_log) = logs.tolist()
        shown, alike = canary_own - baseline_own, canary_log - baseline_log
        # A few very slow requests make a track scatter, and the log of its mean is put right by more than it lies low: what
        # only that makes of a difference is not held against the canary.
        observed = min(shown, alike) if self.metric.kind is MetricKind.LATENCY else shown
        since = [_since(self._last_end, end), _since(self._proof_end, end)]
        variance = float(variances[0].sum())
        self._both.update([observed, shown], variance, since, [True, not self.at_ease])
        self._last_end = end
        if not self.at_ease:
            self._proof_end = end
        if self._bands is not None:
            self._bands.close(end)
        self.evidence.n_baseline += baseline.count
        self.evidence.n_canary += canary.count
        self._open = {t: Moments() for t in TRACKS}
        self._open_per = dict.fromkeys(TRACKS, 0.0)
        self._blocks += 1
        worse, close = self._both.log_e_either(self._bound)
        above, within = float(worse[0]), float(close[1])
        if self.metric.kind is MetricKind.SIZE:
            above = log_mean_exp([above, float(self._both.log_e_below_wide(-self._bound)[0])])
            within = min(within, float(self._both.log_e_above_near(-self._bound)[1]))
        if self._blocks >= MIN_BLOCKS:
            self._raise_to(above, within)

    def discard(self) -> None:
        self._open = {t: Moments() for t in TRACKS}
        self._open_per = dict.fromkeys(TRACKS, 0.0)
        if self._bands is not None:
            self._bands.discard()

    def describe(self) -> Evidence:
        describe_ratios([self])
        return self.evidence

    def wanted_shift(self) -> ShiftEvidence | None:
        """What estimate and interval are to be made of, where they are not those of the last block."""
        fresh = self._blocks and self._described_at != self._blocks
        return self._both.part(0) if fresh else None

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


def describe_ratios(evaluators: Iterable[RatioOfMeans]) -> None:
    """Estimates and intervals of all of these. Together they cost little more than one."""
    alike: dict[tuple[float, int], list[tuple[RatioOfMeans, ShiftEvidence]]] = {}
    for evaluator in evaluators:
        shift = evaluator.wanted_shift()
        if shift is not None:
            key = evaluator.config.interval_level, shift.base.size
            alike.setdefault(key, []).append((evaluator, shift))
    for (level, _), several in alike.items():
        shifts = ShiftEvidence.together([shift for _, shift in several])
        told = shifts.estimate(), *shifts.interval(-math.log(1.0 - level))
        for (evaluator, _), row in zip(several, np.stack(told, axis=1).tolist(), strict=True):
            evaluator.tell(*row)


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
