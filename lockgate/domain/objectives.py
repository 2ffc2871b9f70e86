"""Absolute service levels over a trace: is a share of the requests beyond its limit larger than the objective allows?

A bet on each block's share (Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting", 2024): under
the objective the stakes are a supermartingale whatever the requests within one block have to do with each other, so the
chance of ever calling a kept objective broken is at most `alpha` over all objectives, however often somebody looks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from lockgate.domain.judge import JudgeReport, Verdict
from lockgate.domain.judge.report import MetricVerdict
from lockgate.domain.spec import LatencyObjective, ServiceLevels
from lockgate.domain.trace import TRACKS, RequestRow, Scrape, Track

MINIMUM_REQUESTS = 20
_STAKES = (0.1, 0.25, 0.5, 0.9)
"""Parts of the largest bet that cannot lose more than all; their mixture needs no guess at how bad it is."""
_RICHEST = 1e300
"""More is not needed, and would leave the range of floats."""
_REQUESTS = "envoy_cluster_upstream_rq_total"
_ERRORS = 'envoy_cluster_upstream_rq_xx{envoy_response_code_class="5"}'
_HISTOGRAMS = {
    "ttft": "vllm:time_to_first_token_seconds",
    "e2e": "vllm:e2e_request_latency_seconds",
}


@dataclass
class _Bet:
    allowed: float
    """The share of the requests that may be beyond the limit."""
    wealth: list[float] = field(default_factory=lambda: [1.0] * len(_STAKES))
    largest: float = 1.0
    beyond: float = 0.0
    total: float = 0.0
    pending: tuple[float, float] = (0.0, 0.0)

    def forget(self) -> None:
        """Evidence so far counts no more. To lose money is always allowed, so that alpha holds all the same."""
        self.wealth = [min(wealth, 1.0) for wealth in self.wealth]
        self.largest, self.beyond, self.total = 1.0, 0.0, 0.0

    def close(self) -> None:
        """Bet on the block that has just ended."""
        beyond, total = self.pending
        self.pending = (0.0, 0.0)
        # a gateway that finds no upstream counts the 503 but no upstream request: it is a request too
        total = max(total, beyond)
        if not total:
            return
        self.beyond += beyond
        self.total += total
        share = min(1.0, beyond / total)
        for index, stake in enumerate(_STAKES):
            won = 1.0 + stake / self.allowed * (share - self.allowed)
            self.wealth[index] = min(self.wealth[index] * won, _RICHEST)
        self.largest = max(self.largest, sum(self.wealth) / len(self.wealth))


class Objectives:
    """Everything derived from a trace so far. Pure: the same records give the same report."""

    def __init__(
        self,
        levels: ServiceLevels,
        *,
        alpha: float,
        start: float,
        block_seconds: float,
        compared_until: float = math.inf,
    ) -> None:
        self.levels = levels
        self._alpha = alpha
        self._start = start
        self._block = block_seconds
        self._compared_until = compared_until
        self._alone = False
        """Whether there is no control any more."""
        self._closed = 0
        self._now: float | None = None
        self._latencies: dict[str, LatencyObjective] = {
            name: level
            for name, level in (("ttft", levels.ttft), ("e2e", levels.e2e))
            if level is not None
        }
        allowed = {name: 1.0 - level.quantile for name, level in self._latencies.items()}
        if levels.error_ratio is not None:
            allowed["errors"] = levels.error_ratio
        self._bets: dict[tuple[Track, str], _Bet] = {
            (track, name): _Bet(share) for track in TRACKS for name, share in allowed.items()
        }
        self._names = tuple(allowed)
        self._before: dict[tuple[Track, str], dict[str, tuple[float, float]]] = {}
        self._times: dict[tuple[Track, str], float] = {}
        self._failed: tuple[float, str] | None = None

    def observe(self, record: Scrape | RequestRow) -> None:
        """Take one record; a line that comes twice or late is ignored."""
        key = (record.track, record.instance)
        if isinstance(record, RequestRow) or record.time <= self._times.get(key, -math.inf):
            return
        self._times[key] = record.time
        while record.time >= self._start + (self._closed + 1) * self._block:
            self._close()
        self._now = record.time if self._now is None else max(self._now, record.time)
        before = self._before.setdefault(key, {})
        for name, (beyond, total) in self._counts(record).items():
            was = before.get(name)
            before[name] = (beyond, total)
            if was is None or record.time <= self._start:
                continue
            if total < was[1] or beyond < was[0]:
                was = (0.0, 0.0)  # the instance began anew
            bet = self._bets[record.track, name]
            bet.pending = (bet.pending[0] + beyond - was[0], bet.pending[1] + total - was[1])

    def _counts(self, scrape: Scrape) -> dict[str, tuple[float, float]]:
        """Cumulative (beyond the limit, all) of each objective that this instance tells something about."""
        counts: dict[str, tuple[float, float]] = {}
        for name, level in self._latencies.items():
            histogram = scrape.histograms.get(_HISTOGRAMS[name])
            if histogram is not None:
                # The next bound above: a request between the two is nobody's fault.
                within = next(
                    c
                    for b, c in zip(histogram.le, histogram.cumulative, strict=True)
                    if b >= level.seconds
                )
                total = histogram.cumulative[-1]
                counts[name] = (total - within, total)
        if "errors" in self._names and _REQUESTS in scrape.counters:
            counts["errors"] = (scrape.counters.get(_ERRORS, 0.0), scrape.counters[_REQUESTS])
        return counts

    def _close(self) -> None:
        self._closed += 1
        for bet in self._bets.values():
            bet.close()
        if self._failed is not None:
            return
        if not self._alone and self._start + self._closed * self._block > self._compared_until:
            for name in self._names:
                if self._breaks(self._bets["baseline", name]):
                    # What both shared is no word on the new version; what it does from now on is its own.
                    self._bets["canary", name].forget()
            self._alone = True
        for name in self._names:
            bet, control = self._bets["canary", name], self._bets["baseline", name]
            enough = bet.total >= MINIMUM_REQUESTS
            if (
                enough
                and bet.largest >= self._threshold
                and (self._alone or not self._breaks(control))
            ):
                self._failed = (self._start + self._closed * self._block, name)

    @property
    def _threshold(self) -> float:
        return max(1, len(self._names)) / self._alpha

    @staticmethod
    def _breaks(bet: _Bet) -> bool:
        """Whether the control is beyond the limit too, as far as can be seen: then the version is not to blame."""
        return bet.total >= MINIMUM_REQUESTS and bet.beyond > bet.allowed * bet.total

    def report(self) -> JudgeReport:
        """`fail` once an objective was shown to be broken by the new version and not by the control; else
        `insufficient_data`: that nothing was shown to be broken proves no objective."""
        metrics = tuple(self._metric(name) for name in self._names)
        failed = self._failed
        verdict = Verdict.FAIL if failed is not None else Verdict.INSUFFICIENT_DATA
        reasons = [m.reason for m in metrics]
        if failed is not None:
            reasons.sort(key=lambda reason: not reason.startswith(f"SLO {failed[1]}:"))
        return JudgeReport(
            verdict=verdict,
            decided_at=failed[0] if failed is not None else None,
            time=self._now,
            looks=self._closed,
            reasons=tuple(reasons),
            metrics=metrics,
        )

    def _metric(self, name: str) -> MetricVerdict:
        bet, control = self._bets["canary", name], self._bets["baseline", name]
        level = self._latencies.get(name)
        limit = (
            f"{level.quantile:.0%} within {level.seconds:g} s"
            if level is not None
            else f"at most {bet.allowed:.2%} server errors"
        )
        said = f"{bet.beyond:.0f} of {bet.total:.0f} requests beyond"
        broken = bet.total >= MINIMUM_REQUESTS and bet.largest >= self._threshold
        if bet.total < MINIMUM_REQUESTS:
            said = f"only {bet.total:.0f} requests"
        elif broken:
            said += ", broken"
            if self._failed is None:
                said += " by the control too"
        return MetricVerdict(
            name=f"slo_{name}",
            verdict=Verdict.FAIL if broken and self._failed else Verdict.INSUFFICIENT_DATA,
            estimate=bet.beyond / bet.total if bet.total else None,
            evidence=bet.largest,
            threshold=self._threshold,
            n_baseline=control.total,
            n_canary=bet.total,
            margin=bet.allowed,
            reason=f"SLO {name}: {limit}: {said}",
        )


def combined(control: JudgeReport | None, levels: JudgeReport | None) -> JudgeReport | None:
    """One report of a bake: a failure of either is one, and each says which of the two it is."""
    if control is None or levels is None:
        return control or levels
    first, second = (levels, control) if levels.verdict is Verdict.FAIL else (control, levels)
    return first.model_copy(
        update={
            "reasons": (*first.reasons, *second.reasons),
            "metrics": (*first.metrics, *second.metrics),
        }
    )


def without_control(levels: JudgeReport) -> JudgeReport:
    """`levels`, saying that nothing was compared."""
    said = "no control: absolute SLOs are judged, nothing is compared"
    return levels.model_copy(update={"reasons": (*levels.reasons[:2], said, *levels.reasons[2:])})
