"""The evaluator of the split: how many of the requests went to the canary."""

from __future__ import annotations

import math

from lockgate.domain.judge.config import JudgeConfig, MetricConfig
from lockgate.domain.judge.increments import Increments, select_counters
from lockgate.domain.judge.proportion import log_e_split
from lockgate.domain.judge.shares import ShareDifference
from lockgate.domain.judge.spread import Spread
from lockgate.domain.trace import TRACKS, Track


class SplitShare(ShareDifference):
    """SPLIT: the canary's share of requests against the committed weight, less the probes.

    The two tracks are not scraped at the same moment, and one may be silent for a while: counts are
    compared only up to a time that both have been scraped at, with increments that reach beyond it
    split in proportion.
    """

    needs_times = True

    def __init__(self, name: str, metric: MetricConfig, config: JudgeConfig) -> None:
        super().__init__(name, metric, config)
        self.bets = ()  # one share against a known one: no two tracks to compare
        self._pending: dict[Track, list[tuple[float, float, float]]] = {t: [] for t in TRACKS}
        self._until = -math.inf
        self._sent = Spread()
        """Requests to the canary among all."""

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
        baseline, canary = (max(self._drain(t, until), 0.0) for t in TRACKS)
        if baseline + canary <= 0 or self.config.canary_weight is None:
            return
        self._sent.add(canary, baseline + canary)
        self._blocks += 1
        sent, total, spread = self._sent.events, self._sent.trials, self._sent.dispersion
        self.evidence.n_canary, self.evidence.n_baseline = sent, total - sent
        worse = log_e_split(
            sent / spread, total / spread, self.config.canary_weight, self.metric.margin
        )
        self._raise_to(float(worse), 0.0)

    def wanted_interval(self) -> None:
        return None

    def tell(self, interval: tuple[float, float] | None) -> None:
        weight, total = self.config.canary_weight, self._sent.trials
        if total > 0 and weight is not None:
            self.evidence.estimate = self._sent.events / total - weight
            self.evidence.detail = (
                f"{self._sent.events:.0f} of {total:.0f} requests went to the canary, {weight:.1%} was "
                "committed"
            )
        self._described_at = self._blocks
