"""Evaluators of metrics that are shares of counts: error ratios, mixes, the split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lockgate.domain.judge import proportion
from lockgate.domain.judge.bets import BothEvidence
from lockgate.domain.judge.config import JudgeConfig, MetricConfig
from lockgate.domain.judge.evaluators import Evaluator, Evidence, finite, log_mean_exp
from lockgate.domain.judge.increments import Increments, matches, select_counters
from lockgate.domain.trace import TRACKS, Scrape, Track

Array = NDArray[np.float64]


class _ShareHistory:
    """Events and trials of one pair of tracks, block by block, for the over-dispersion."""

    def __init__(self) -> None:
        self.blocks = 0
        self._table = np.zeros((2, len(TRACKS), 64))
        """Events and trials of both tracks; room for more blocks than there are."""
        self.sums: dict[Track, tuple[float, float]] = dict.fromkeys(TRACKS, (0.0, 0.0))
        """Events and trials of all blocks. Kept up, since a step may have very many."""
        self._measured = -1, 1.0

    @property
    def events(self) -> Array:
        """(tracks, blocks)."""
        return self._table[0, :, : self.blocks]

    @property
    def trials(self) -> Array:
        """(tracks, blocks)."""
        return self._table[1, :, : self.blocks]

    def add(self, events: Mapping[Track, float], trials: Mapping[Track, float]) -> None:
        """A block."""
        if self.blocks == self._table.shape[-1]:
            self._table = np.concatenate([self._table, np.zeros_like(self._table)], axis=-1)
        for i, track in enumerate(TRACKS):
            k = events[track]
            # a gateway that finds no upstream counts the 503 but no upstream request: it is a trial too
            n = max(trials[track], k)
            self._table[:, i, self.blocks] = k, n
            before = self.sums[track]
            self.sums[track] = before[0] + k, before[1] + n
        self.blocks += 1

    def skip(self) -> None:
        """A block in which a track had no trials; its counts go to the next."""
        self.add(_NOTHING, _NOTHING)

    def latest(self) -> proportion.Counts:
        """The last block."""
        (kb, kc), (nb, nc) = self._table[:, :, self.blocks - 1].tolist()
        return proportion.Counts(kb, nb, kc, nc)

    def counts(self) -> proportion.Counts:
        (kb, nb), (kc, nc) = (self.sums[t] for t in TRACKS)
        return proportion.Counts(kb, nb, kc, nc)

    def measured(self, dispersion: float) -> None:
        """Note what the dispersion is, after the last block."""
        self._measured = self.blocks, dispersion

    def dispersion(self) -> float:
        """The larger of both tracks'."""
        if self._measured[0] != self.blocks:
            told = [i for i, t in enumerate(TRACKS) if not proportion.too_rare(*self.sums[t])]
            value = 1.0
            if told:
                events, trials = self.events[told], self.trials[told]
                value = float(proportion.dispersion(events, trials).max())
            self._measured = self.blocks, value
        return self._measured[1]


def _dispersions(histories: Sequence[_ShareHistory]) -> Array:
    """Of each category's share of the same trials; as `_ShareHistory.dispersion` has it."""
    events = np.stack([h.events for h in histories])
    spread: Array = proportion.dispersion(events, histories[0].trials[None]).max(axis=-1)
    for history, value in zip(histories, spread.tolist(), strict=True):
        history.measured(value)
    return spread


_NOTHING: Mapping[Track, float] = dict.fromkeys(TRACKS, 0.0)


class ShareDifference(Evaluator):
    """RATIO: the difference of the two tracks' shares of events among trials."""

    def __init__(self, name: str, metric: MetricConfig, config: JudgeConfig) -> None:
        super().__init__(name, metric, config)
        self._source: int | None = None
        self._open: dict[Track, list[float]] = {t: [0.0, 0.0] for t in TRACKS}
        self._history = _ShareHistory()
        self._both = BothEvidence(metric.margin, rare=True)
        self._described_at = -1

    def _has_source(self, scrape: Scrape) -> bool:
        for index, selectors in enumerate(self.metric.trials):
            if self._source not in (None, index):
                continue
            if any(matches(s, name) for s in selectors for name in scrape.counters):
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
        if any(max(block) <= 0 for block in self._open.values()):
            self._history.skip()
            return
        events, trials = ({t: self._open[t][i] for t in TRACKS} for i in range(2))
        self._history.add(events, trials)
        self._open = {t: [0.0, 0.0] for t in TRACKS}
        self._blocks += 1
        counts = self._history.counts()
        self.evidence.n_baseline, self.evidence.n_canary = (
            counts.baseline_trials,
            counts.canary_trials,
        )
        block = self._history.latest()
        self._both.update_one(block, self._counted(block))
        spread = self._spread()
        worse, within = (float(e.log_e(spread)) for e in (self._both.worse, self._both.within))
        self._raise_to(worse, within)

    def discard(self) -> None:
        self._open = {t: [0.0, 0.0] for t in TRACKS}

    def _counted(self, block: proportion.Counts) -> float:
        """How many of the canary's events in a block count against it."""
        return block.canary_events

    def _spread(self) -> float:
        """The dispersion that is paid for."""
        return self._history.dispersion()

    def wanted_interval(self) -> tuple[proportion.Counts, float] | None:
        counts = self._history.counts()
        if (
            self._described_at == self._blocks
            or min(counts.baseline_trials, counts.canary_trials) <= 0
        ):
            return None
        return counts.scaled(self._spread()), -math.log(1.0 - self.config.interval_level)

    def describe(self) -> Evidence:
        if self._described_at != self._blocks:
            counts, wanted = self._history.counts(), self.wanted_interval()
            self.evidence.estimate = finite(counts.difference)
            if wanted is not None:
                self.evidence.interval = proportion.difference_interval(*wanted)
            self.evidence.detail = (
                f"{counts.canary_events:.0f} of {counts.canary_trials:.0f}{self._what()} on the "
                f"canary, {counts.baseline_events:.0f} of {counts.baseline_trials:.0f} on the baseline"
            )
            self._described_at = self._blocks
        return self.evidence

    def _what(self) -> str:
        """What an event is, where the metric's name does not say."""
        return ""


class CategoryMix(Evaluator):
    """MIX: each category's share against all others, up and down."""

    def __init__(self, name: str, metric: MetricConfig, config: JudgeConfig) -> None:
        super().__init__(name, metric, config)
        self._open: dict[Track, dict[str, float]] = {
            t: dict.fromkeys(metric.categories, 0.0) for t in TRACKS
        }
        self._history: Mapping[str, _ShareHistory] = {c: _ShareHistory() for c in metric.categories}
        shape = (2, len(metric.categories))
        self._both = BothEvidence(metric.margin, False, shape)
        self._described_at = -1

    def _has_source(self, scrape: Scrape) -> bool:
        return any(
            matches(s, name) for s in self.metric.categories.values() for name in scrape.counters
        )

    def take(self, track: Track, increments: Increments) -> None:
        for category, selector in self.metric.categories.items():
            self._open[track][category] += select_counters((selector,), increments.counters)

    def close(self, end: float) -> None:
        if any(sum(block.values()) <= 0 for block in self._open.values()):
            for history in self._history.values():
                history.skip()
            return
        trials = {t: sum(self._open[t].values()) for t in TRACKS}
        for category, history in self._history.items():
            history.add({t: self._open[t][category] for t in TRACKS}, trials)
        self._open = {t: dict.fromkeys(self.metric.categories, 0.0) for t in TRACKS}
        self._blocks += 1
        kb, nb, kc, nc = np.array([h.latest().four for h in self._history.values()]).T
        # a smaller share of a category is a larger share of all others
        up_and_down = (
            np.stack([kb, nb - kb]),
            np.stack([nb, nb]),
            np.stack([kc, nc - kc]),
            np.stack([nc, nc]),
        )
        spread = _dispersions(list(self._history.values()))
        self._both.update(*up_and_down)
        worse = self._both.worse.log_e(spread).ravel().tolist()
        within = float(self._both.within.log_e(spread).min())
        counts = next(iter(self._history.values())).counts()
        self.evidence.n_baseline, self.evidence.n_canary = (
            counts.baseline_trials,
            counts.canary_trials,
        )
        self._raise_to(log_mean_exp(worse), within)

    def discard(self) -> None:
        self._open = {t: dict.fromkeys(self.metric.categories, 0.0) for t in TRACKS}

    def _largest(self) -> str:
        def change(category: str) -> float:
            difference = self._history[category].counts().difference
            return 0.0 if math.isnan(difference) else abs(difference)

        return max(self._history, key=change)

    def wanted_interval(self) -> tuple[proportion.Counts, float] | None:
        if self._described_at == self._blocks or not self._blocks:
            return None
        history = self._history[self._largest()]
        counts = history.counts()
        if min(counts.baseline_trials, counts.canary_trials) <= 0:
            return None
        level = (1.0 - self.config.interval_level) / len(self._history)
        return counts.scaled(history.dispersion()), -math.log(level)

    def describe(self) -> Evidence:
        if self._described_at != self._blocks and self._blocks:
            largest, wanted = self._largest(), self.wanted_interval()
            counts = self._history[largest].counts()
            self.evidence.estimate = finite(counts.difference)
            if wanted is not None:
                self.evidence.interval = proportion.difference_interval(*wanted)
            self.evidence.detail = (
                f"largest change: `{largest}`, {counts.canary_events:.0f} of "
                f"{counts.canary_trials:.0f} on the canary, {counts.baseline_events:.0f} of "
                f"{counts.baseline_trials:.0f} on the baseline"
            )
            self._described_at = self._blocks
        return self.evidence


_CANARY = TRACKS.index("canary")


class SplitShare(ShareDifference):
    """SPLIT: the canary's share of requests against the committed weight, less the probes.

    The two tracks are not scraped at the same moment, and one may be silent for a while: counts are
    compared only up to a time that both have been scraped at, with increments that reach beyond it
    split in proportion.
    """

    needs_times = True

    def __init__(self, name: str, metric: MetricConfig, config: JudgeConfig) -> None:
        super().__init__(name, metric, config)
        self._pending: dict[Track, list[tuple[float, float, float]]] = {t: [] for t in TRACKS}
        self._until = -math.inf

    def take(self, track: Track, increments: Increments) -> None:
        if self._source is None or not increments.counters:
            return
        sent = select_counters(self.metric.trials[self._source], increments.counters)
        probes = select_counters(("lockgate:probe_total",), increments.counters)
        self._pending[track].append((increments.since, increments.until, sent - probes))

    def _drain(self, track: Track, until: float) -> float:
        """Requests of a track up to a time; what lies beyond stays pending."""
        total, rest = 0.0, []
        for since, to, count in self._pending[track]:
            part = 1.0 if to <= until else 0.0
            if since < until < to:
                part = (until - since) / (to - since)
            total += part * count
            if part < 1.0:
                rest.append((max(since, until), to, count * (1.0 - part)))
        self._pending[track] = rest
        return total

    def close(self, end: float) -> None:
        seen = min(self.last_seen.get(t, -math.inf) for t in TRACKS)
        until = seen if math.isfinite(seen) else min(seen, end)
        if until <= self._until:
            return
        self._until = until
        trials = {t: max(self._drain(t, until), 0.0) for t in TRACKS}
        if sum(trials.values()) <= 0 or self.config.canary_weight is None:
            return
        both = sum(trials.values())
        self._history.add(
            {"baseline": 0.0, "canary": trials["canary"]}, {"baseline": 0.0, "canary": both}
        )
        self._blocks += 1
        canary, total = self._totals()
        spread = float(
            proportion.dispersion(self._history.events[_CANARY], self._history.trials[_CANARY])
        )
        self.evidence.n_canary, self.evidence.n_baseline = canary, total - canary
        worse = proportion.log_e_split(
            canary / spread, total / spread, self.config.canary_weight, self.metric.margin
        )
        self._raise_to(float(worse), 0.0)

    def _totals(self) -> tuple[float, float]:
        return self._history.sums["canary"]

    def wanted_interval(self) -> None:
        return None

    def describe(self) -> Evidence:
        canary, total = self._totals()
        weight = self.config.canary_weight
        if total > 0 and weight is not None:
            self.evidence.estimate = canary / total - weight
            self.evidence.detail = (
                f"{canary:.0f} of {total:.0f} requests went to the canary, {weight:.1%} was "
                "committed"
            )
        return self.evidence
