"""What the judge says: one verdict for the whole and one a metric, with reasons."""

from __future__ import annotations

from enum import StrEnum

from lockgate.domain.base import Frozen


class Verdict(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    INSUFFICIENT_DATA = "insufficient_data"
    """Neither shown to be good nor to be bad. Never a pass, and never blamed on the model."""
    METRICS_OUTAGE = "metrics_outage"
    """The metrics themselves are missing: hold the weight."""

    @property
    def decisive(self) -> bool:
        """Whether more scrapes of this step are pointless."""
        return self in (Verdict.PASS, Verdict.FAIL)


Interval = tuple[float | None, float | None]
"""None at an end that is not bounded."""


class QuantileBand(Frozen):
    """Where a quantile of a latency lies on both tracks: time-uniform, to the resolution of the histogram's buckets."""

    quantile: float
    baseline: Interval
    """Seconds."""
    canary: Interval
    ratio: Interval
    """The canary's quantile over the baseline's."""


class MetricVerdict(Frozen):
    """One metric's share in the verdict."""

    name: str
    verdict: Verdict
    estimate: float | None = None
    """Relative change (latency, size: 0.25 = 25% more) or difference of shares (0.01 = one point).
    For `mix` the largest change of a category; for crashes their number; None without data."""
    interval: Interval | None = None
    """Time-uniform confidence interval of the estimate; None at an end that is not bounded."""
    quantiles: tuple[QuantileBand, ...] = ()
    """Of a latency: median and 95th percentile. For people to look at; nothing is decided by them."""
    evidence: float = 1.0
    """e-value against "no worse than the margin", the largest so far: fails at `threshold`."""
    threshold: float | None = None
    """What the evidence has to reach: one over this metric's share of alpha."""
    evidence_within: float = 1.0
    """e-value against "at the margin or beyond", the largest so far: within margin at 1 / beta."""
    n_baseline: float = 0
    n_canary: float = 0
    margin: float = 0
    criticality: str = "guard"
    reason: str = ""


class JudgeReport(Frozen):
    """The judge's answer at one moment."""

    verdict: Verdict
    decided_at: float | None = None
    """Time (trace clock) at which the verdict was reached; None while there is none."""
    time: float | None = None
    """The moment that this report is about."""
    looks: int = 0
    """How many blocks had been evaluated."""
    reasons: tuple[str, ...] = ()
    """In plain words, most important first."""
    futile: bool = False
    """The time budget is used up."""
    metrics: tuple[MetricVerdict, ...] = ()
