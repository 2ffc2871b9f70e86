"""Evaluators of metrics that are shares of counts: error ratios and mixes."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lockgate.domain.judge.bets import Bets, BetsTogether, ShareEvidence, bets_within, bets_worse
from lockgate.domain.judge.config import JudgeConfig, MetricConfig
from lockgate.domain.judge.evaluators import Evaluator, Pool, finite, log_mean_exp, rows_of
from lockgate.domain.judge.increments import Increments, matches, select_counters
from lockgate.domain.judge.proportion import Counts, difference_intervals
from lockgate.domain.judge.spread import ShareHistory
from lockgate.domain.trace import TRACKS, Scrape, Track


class Stake(NamedTuple):
    """What a block brings to one kind of bets."""

    baseline_events: float
    baseline_trials: float
    canary_events: float
    canary_trials: float
    spread: float
    """The dispersion that is paid for."""


_NOTHING = Stake(0.0, 0.0, 0.0, 0.0, 1.0)


class Share(Evaluator):
    """What is bet on: a share on each track, or several."""

    bets: tuple[Bets, ...] = ()
    """Each kind of bets on it."""
    stakes: Sequence[Stake] = ()
    """What the block that was just closed brings to each of them, until it is weighed."""
    _described_at = 0

    @abstractmethod
    def conclude(self, log_es: Sequence[float]) -> None:
        """Note the evidence of each kind of bets after the block that was just closed."""

    @property
    def undescribed(self) -> bool:
        """Whether estimate and interval are not those of the last block."""
        return self._described_at != self._blocks

    @abstractmethod
    def wanted_interval(self) -> tuple[Counts, float] | None:
        """The counts and the log threshold that the interval is to be made of, if there is to be one."""

    @abstractmethod
    def tell(self, interval: tuple[float, float] | None) -> None:
        """Note the interval, with the estimate and what there is to say."""


class ShareDifference(Share):
    """RATIO: the difference of the two tracks' shares of events among trials."""

    _described_at = -1  # it has something to say before the first block

    def __init__(self, name: str, metric: MetricConfig, config: JudgeConfig) -> None:
        super().__init__(name, metric, config)
        self.bets = (bets_worse(metric.margin, True), bets_within(metric.margin, True))
        self._source: int | None = None
        self._open: dict[Track, list[float]] = {t: [0.0, 0.0] for t in TRACKS}
        self._history = ShareHistory()

    def _has_source(self, scrape: Scrape) -> bool:
        for index, selectors in enumerate(self.metric.trials):
            known = self._source
            # A better source takes the place of one that was found before it, until the first block.
            if known not in (None, index) and (self._blocks or index > known):
                continue
            if any(matches(s, name) for s in selectors for name in scrape.counters):
                if known not in (None, index):
                    self.last_seen.clear()
                    self._reopen()
                self._source = index
                return True
        return False

    def take(self, track: Track, increments: Increments) -> None:
        if self._source is None or not increments.counters:
            return
        block = self._open[track]
        block[0] += select_counters(self.metric.events[self._source], increments.counters)
        block[1] += select_counters(self.metric.trials[self._source], increments.counters)

    def close(self, end: float) -> None:
        (kb, nb), (kc, nc) = self._open["baseline"], self._open["canary"]
        # a gateway that finds no upstream counts the 503 but no upstream request: it is a trial too
        nb, nc = max(nb, kb), max(nc, kc)
        if min(nb, nc) <= 0:
            self._history.skip()
            return
        self._reopen()
        self._blocks += 1
        self._history.add(Counts(kb, nb, kc, nc))
        counts = self._history.counts()
        self.evidence.n_baseline = counts.baseline_trials
        self.evidence.n_canary = counts.canary_trials
        spread = self._history.dispersion()
        worse = Stake(kb, nb, self._counted(kc, nc), nc, spread)
        self.stakes = (worse, Stake(kb, nb, kc, nc, spread))

    def _reopen(self) -> None:
        self._open = {t: [0.0, 0.0] for t in TRACKS}

    def conclude(self, log_es: Sequence[float]) -> None:
        self.stakes = ()
        worse, within = log_es
        self._raise_to(worse, within)

    def discard(self) -> None:
        self._reopen()

    def _counted(self, events: float, trials: float) -> float:
        """How many of the canary's events in a block count against it."""
        return events

    def wanted_interval(self) -> tuple[Counts, float] | None:
        counts = self._history.counts()
        if min(counts.baseline_trials, counts.canary_trials) <= 0:
            return None
        level = 1.0 - self.config.interval_level
        return counts.scaled(self._history.dispersion()), -math.log(level)

    def tell(self, interval: tuple[float, float] | None) -> None:
        counts = self._history.counts()
        self.evidence.estimate = finite(counts.difference)
        if interval is not None:
            self.evidence.interval = interval
        self.evidence.detail = (
            f"{counts.canary_events:.0f} of {counts.canary_trials:.0f}{self._what()} on the "
            f"canary, {counts.baseline_events:.0f} of {counts.baseline_trials:.0f} on the baseline"
        )
        self._described_at = self._blocks

    def _what(self) -> str:
        """What an event is, where the metric's name does not say."""
        return ""


class CategoryMix(Share):
    """MIX: each category's share against all others, up and down."""

    def __init__(self, name: str, metric: MetricConfig, config: JudgeConfig) -> None:
        super().__init__(name, metric, config)
        kinds = (bets_worse(metric.margin, False), bets_within(metric.margin, False))
        self.bets = tuple(kind for kind in kinds for _ in range(2 * len(metric.categories)))
        self._reopen()
        self._history: Mapping[str, ShareHistory] = {c: ShareHistory() for c in metric.categories}

    def _reopen(self) -> None:
        self._open: dict[Track, dict[str, float]] = {
            t: dict.fromkeys(self.metric.categories, 0.0) for t in TRACKS
        }

    def _has_source(self, scrape: Scrape) -> bool:
        return any(
            matches(s, name) for s in self.metric.categories.values() for name in scrape.counters
        )

    def take(self, track: Track, increments: Increments) -> None:
        for category, selector in self.metric.categories.items():
            self._open[track][category] += select_counters((selector,), increments.counters)

    def close(self, end: float) -> None:
        baseline, canary = self._open["baseline"], self._open["canary"]
        nb, nc = sum(baseline.values()), sum(canary.values())
        if min(nb, nc) <= 0:
            return
        self._reopen()
        self._blocks += 1
        stakes: list[Stake] = []
        for category, history in self._history.items():
            kb, kc = baseline[category], canary[category]
            history.add(Counts(kb, nb, kc, nc))
            spread = history.dispersion()
            # a smaller share of a category is a larger share of all others
            stakes += Stake(kb, nb, kc, nc, spread), Stake(nb - kb, nb, nc - kc, nc, spread)
        self.stakes = stakes + stakes
        counts = history.counts()
        self.evidence.n_baseline = counts.baseline_trials
        self.evidence.n_canary = counts.canary_trials

    def conclude(self, log_es: Sequence[float]) -> None:
        self.stakes = ()
        half = len(log_es) // 2
        self._raise_to(log_mean_exp(log_es[:half]), min(log_es[half:]))

    def discard(self) -> None:
        self._reopen()

    def _largest(self) -> str:
        """The category whose share differs the most."""

        def change(category: str) -> float:
            difference = self._history[category].counts().difference
            return 0.0 if math.isnan(difference) else abs(difference)

        return max(self._history, key=change)

    def wanted_interval(self) -> tuple[Counts, float] | None:
        history = self._history[self._largest()]
        level = (1.0 - self.config.interval_level) / len(self._history)
        return history.counts().scaled(history.dispersion()), -math.log(level)

    def tell(self, interval: tuple[float, float] | None) -> None:
        largest = self._largest()
        counts = self._history[largest].counts()
        self.evidence.estimate, self.evidence.interval = finite(counts.difference), interval
        self.evidence.detail = (
            f"largest change: `{largest}`, {counts.canary_events:.0f} of "
            f"{counts.canary_trials:.0f} on the canary, {counts.baseline_events:.0f} of "
            f"{counts.baseline_trials:.0f} on the baseline"
        )
        self._described_at = self._blocks


class Shares(Pool):
    """All shares of a step: a row of evidence for each kind of bets on each of them."""

    def __init__(self, members: Sequence[Share]) -> None:
        self._members = members
        self._rows = rows_of(len(member.bets) for member in members)
        bets = BetsTogether([kind for member in members for kind in member.bets])
        self._evidence = ShareEvidence(bets, (len(bets.rows),))

    def weigh(self) -> None:
        if not any(member.stakes for member in self._members):
            return
        stakes = [
            stake
            for member in self._members
            for stake in member.stakes or [_NOTHING] * len(member.bets)
        ]
        kb, nb, kc, nc, spread = np.array(stakes).T
        self._evidence.update(kb, nb, kc, nc)
        log_es = self._evidence.log_e(spread).tolist()
        for member, (begin, end) in zip(self._members, self._rows, strict=True):
            if member.stakes:
                member.conclude(log_es[begin:end])

    def describe(self) -> None:
        told = [member for member in self._members if member.undescribed]
        wanted = [member.wanted_interval() for member in told]
        found = iter(difference_intervals([asked for asked in wanted if asked is not None]))
        for member, asked in zip(told, wanted, strict=True):
            member.tell(None if asked is None else next(found))
