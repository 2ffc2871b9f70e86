"""Numbers as people read them, and effects as positions in a small bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from lockgate.adapters.report.model import Interval
from lockgate.domain.judge import DEFAULT_METRICS, MetricKind, MetricVerdict, QuantileBand

MISSING = "–"
_RELATIVE = (MetricKind.LATENCY, MetricKind.SIZE)
_TWO_SIDED = (MetricKind.SIZE, MetricKind.MIX, MetricKind.SPLIT)


def duration(seconds: float | None) -> str:
    """`41 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds is None:
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def day_and_time(value: datetime) -> str:
    return value.astimezone(UTC).strftime("%-d %b %Y, %H:%M:%S UTC")


def time_of_day(value: datetime) -> str:
    return value.astimezone(UTC).strftime("%H:%M:%S")


def number(value: float | None) -> str:
    """Three significant digits, thousands grouped."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def signed_percent(value: float | None, digits: int = 1) -> str:
    return MISSING if value is None else f"{100 * value:+.{digits}f}%"


def signed_points(value: float | None, digits: int = 1) -> str:
    return MISSING if value is None else f"{100 * value:+.{digits}f} pt"


def interval_words(interval: Interval | None, form: Callable[[float], str]) -> str:
    """`+1.0% to +3.0%`; an open end is infinite."""
    if interval is None:
        return ""
    low, high = interval
    return f"{'−∞' if low is None else form(low)} to {'∞' if high is None else form(high)}"


@dataclass(frozen=True)
class MetricWords:
    """A metric's numbers in its own unit."""

    effect: str
    interval: str
    margin: str
    bar: EffectBar | None
    quantiles: tuple[str, ...] = ()
    """Of latencies: where median and 95th percentile lie, in seconds."""


def quantile_words(band: QuantileBand) -> str:
    """`p95: stable 0.2 to 0.5 s, canary 0.5 to 2.5 s, 1 to 12.5 times as long`; an open end is infinite."""
    stable, canary, ratio = (
        f"{number(low or 0.0)} to {'∞' if high is None else number(high)}"
        for low, high in (band.baseline, band.canary, band.ratio)
    )
    name = f"p{100 * band.quantile:g}"
    return f"{name}: stable {stable} s, canary {canary} s, {ratio} times as long"


def metric_words(metric: MetricVerdict) -> MetricWords:
    """Latencies and lengths are relative changes, crashes a count, the others points of share."""
    known = DEFAULT_METRICS.get(metric.name)
    kind = known.kind if known is not None else None
    if kind is MetricKind.CRASH:
        return MetricWords(number(metric.estimate), "", MISSING, None)
    form = number if kind is None else signed_percent if kind in _RELATIVE else signed_points
    return MetricWords(
        effect=form(metric.estimate),
        interval=interval_words(metric.interval, form),
        margin=form(metric.margin).lstrip("+") if metric.margin else MISSING,
        bar=effect_bar(
            metric.estimate, metric.interval, metric.margin, two_sided=kind in _TWO_SIDED
        ),
        quantiles=tuple(quantile_words(band) for band in metric.quantiles),
    )


def evidence(value: float | None) -> str:
    if value is None:
        return MISSING
    if value >= 10_000:
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"{mantissa}·10^{int(exponent)}"
    return "< 0.001" if value < 0.001 else number(value)


@dataclass(frozen=True)
class EffectBar:
    """An effect in multiples of its margin; positions are percent of the bar's width, worse is to the right.

    Where both directions are harm there are two limits.
    """

    point: float
    low: float
    high: float
    low_open: bool
    high_open: bool
    beyond: int
    """-1 or 1 where the point itself lies outside the bar, at that end; else 0."""
    zero: float
    limit: float
    lower_limit: float | None


_FROM, _TO = -2.0, 3.0


def effect_bar(
    estimate: float | None,
    interval: Interval | None,
    margin: float | None,
    *,
    two_sided: bool = False,
) -> EffectBar | None:
    """`estimate` and `interval` as excess over stable, positive is worse. None where there is no margin to measure by."""
    if estimate is None or not margin or margin < 0:
        return None
    low, high = interval if interval is not None else (estimate, estimate)
    return EffectBar(
        point=_place(estimate / margin),
        low=_place(_FROM if low is None else low / margin),
        high=_place(_TO if high is None else high / margin),
        low_open=low is None or low / margin < _FROM,
        high_open=high is None or high / margin > _TO,
        beyond=1 if estimate / margin > _TO else -1 if estimate / margin < _FROM else 0,
        zero=_place(0.0),
        limit=_place(1.0),
        lower_limit=_place(-1.0) if two_sided else None,
    )


def _place(multiple: float) -> float:
    return round(100 * (min(max(multiple, _FROM), _TO) - _FROM) / (_TO - _FROM), 2)
