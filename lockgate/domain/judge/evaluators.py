"""One evaluator a metric: takes blocks, keeps what they show, says what it comes to.

An evaluator sees per block what both tracks added. Where a block is too thin it is joined with the
next. The largest evidence so far counts (Ville's inequality bounds it), so the outcome does not
depend on how often anybody looked.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lockgate.domain.judge.config import JudgeConfig, MetricConfig
from lockgate.domain.judge.increments import Increments
from lockgate.domain.judge.report import QuantileBand
from lockgate.domain.trace import TRACKS, Scrape, Track


@dataclass
class Evidence:
    """What one metric shows at this moment. Logs of e-values, running maxima where nothing else is said."""

    log_worse: float = 0.0
    log_worse_now: float = 0.0
    """Not the maximum but the present value: it is added up over the metrics."""
    log_within: float = 0.0
    log_within_now: float = 0.0
    """Nor this: a canary that was good and no longer is must not pass on what it was."""
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

    def quantiles(self) -> tuple[QuantileBand, ...]:
        """Of a latency: where its quantiles lie."""
        return ()

    def _raise_to(self, worse: float, within: float) -> None:
        self.evidence.log_worse_now = worse
        self.evidence.log_worse = max(self.evidence.log_worse, worse)
        self.evidence.log_within = max(self.evidence.log_within, within)
        self.evidence.log_within_now = within


def log_mean_exp(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values) / len(values))


class Pool(ABC):
    """Evaluators of one kind, whose evidence is in common arrays: what numpy computes costs by the call, and hardly by the
    metric. A look has to be cheap."""

    @abstractmethod
    def weigh(self) -> None:
        """Take what the blocks that its evaluators just closed showed, and tell them their evidence."""

    @abstractmethod
    def describe(self) -> None:
        """Tell its evaluators their estimates and intervals, where blocks were closed since the last time."""


def rows_of(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Where each member's rows begin and end in common arrays, if each has so many."""
    return list(itertools.pairwise(itertools.accumulate(numbers, initial=0)))
