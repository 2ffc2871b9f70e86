"""From cumulative scrapes to increments, through resets, absent samples and instances that come
and go; and from these to a crash count.

The first scrape of an instance is a reference only: what it had counted before (a smoke
generation, earlier traffic) is not this trace's. A sample that is absent from a scrape and there in
the next has counted from zero; of one that was no number at first, the first number is a reference. A sample that fell has been reset: all of its value is new.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lockgate.domain.trace import Histogram, Scrape

_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_GATEWAY_PREFIXES = ("envoy_", "gateway:", "lockgate:")


@lru_cache(maxsize=4096)
def parse_sample(name: str) -> tuple[str, frozenset[tuple[str, str]]]:
    """`metric{a="x"}` as (metric, labels)."""
    base, brace, rest = name.partition("{")
    return base, frozenset(_LABEL.findall(rest)) if brace else frozenset()


@lru_cache(maxsize=16384)
def matches(selector: str, sample: str) -> bool:
    """Whether a sample has the selector's name and at least its labels."""
    wanted, labels = parse_sample(selector)
    base, has = parse_sample(sample)
    return wanted == base and labels <= has


@dataclass
class Moments:
    """Sums over observations of one quantity; `mean_sum` and `square_sum` come from the buckets'
    inner points and serve only to tell how much single observations scatter."""

    count: float = 0.0
    total: float = 0.0
    mean_sum: float = 0.0
    square_sum: float = 0.0

    def add(self, other: Moments) -> None:
        self.count += other.count
        self.total += other.total
        self.mean_sum += other.mean_sum
        self.square_sum += other.square_sum

    @property
    def scatter(self) -> float:
        """Squared coefficient of variation of single observations; NaN without any."""
        if self.count <= 0 or self.mean_sum <= 0:
            return float("nan")
        return max(self.count * self.square_sum / self.mean_sum**2 - 1.0, 0.0)


@lru_cache(maxsize=256)
def _inside(bounds: tuple[float, ...]) -> NDArray[np.float64]:
    """Of values spread evenly over each closed bucket: the mean, the mean square, the least and the most; and the least of
    the open one."""
    high = np.array(bounds)
    low = np.concatenate([[0.0], high[:-1]])
    a, b = low[:-1], high[:-1]
    rows = np.stack([(a + b) / 2, (a**2 + a * b + b**2) / 3, a, b])
    return np.concatenate([rows, [[0.0], [0.0], [low[-1]], [0.0]]], axis=1)


def moments_of(bounds: tuple[float, ...], counts: np.ndarray, total: float) -> Moments:
    """Moments of one histogram increment. The sum is exact; where it contradicts the buckets (a
    scrape taken between two updates, a lying endpoint) it is brought within what they allow."""
    n = float(counts.sum())
    if n <= 0:
        return Moments()
    inside = _inside(bounds)
    low = inside[2]
    inner, square, least, most = (inside @ counts).tolist()
    open_end = float(counts[-1])
    if open_end > 0:
        tail = max((total - inner) / open_end, float(low[-1]))
        inner += open_end * tail
        square += open_end * tail**2
        exact = max(total, least)
    else:
        exact = min(max(total, least), most)
    return Moments(n, exact, inner, square)


@dataclass(frozen=True)
class Buckets:
    """How many observations fell into each bucket."""

    le: tuple[float, ...]
    counts: NDArray[np.float64]


@dataclass
class Increments:
    """What happened at one instance between two scrapes."""

    counters: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, Moments] = field(default_factory=dict)
    buckets: dict[str, Buckets] = field(default_factory=dict)
    since: float = 0.0
    until: float = 0.0
    """The stretch of trace time in which all this happened."""
    restarted: bool = False
    """An engine's own samples fell, or its process start time moved."""
    served: float = 0.0
    """Seconds of it that an engine is known to have been up."""

    def alike(self, other: Increments) -> bool:
        """Whether the two can be added up: no histogram of both has other bounds in one of them."""
        return all(
            name not in self.buckets or self.buckets[name].le == buckets.le
            for name, buckets in other.buckets.items()
        )

    def add(self, other: Increments) -> None:
        """Count what the other counts, too. Of when it happened nothing is kept."""
        for name, value in other.counters.items():
            self.counters[name] = self.counters.get(name, 0.0) + value
        for name, moments in other.histograms.items():
            self.histograms.setdefault(name, Moments()).add(moments)
        for name, buckets in other.buckets.items():
            before = self.buckets.get(name)
            if before is None:
                self.buckets[name] = Buckets(buckets.le, buckets.counts.copy())
            else:
                np.add(before.counts, buckets.counts, out=before.counts)
        self.served += other.served


@dataclass
class _Instance:
    counters: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)
    bounds: dict[str, tuple[float, ...]] = field(default_factory=dict)
    per_bucket: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """The same histograms' counts in each bucket."""
    started: float | None = None
    time: float | None = None
    unread: set[str] = field(default_factory=set)
    """Samples that were no numbers before they ever were: what they had counted by then is not known."""


def _is_engine(sample: str) -> bool:
    return not sample.startswith(_GATEWAY_PREFIXES)


def _per_bucket(histogram: Histogram) -> NDArray[np.float64]:
    counts: NDArray[np.float64] = np.array(histogram.cumulative, dtype=float)
    counts[1:] -= counts[:-1].copy()
    return counts


class IncrementReader:
    """Turns one instance's scrapes, in order of time, into increments."""

    def __init__(self) -> None:
        self._last = _Instance()

    def read(self, scrape: Scrape) -> Increments:
        """The increments since the last scrape; empty for the first and for `up` false."""
        last, first = self._last, self._last.time is None
        out = Increments(since=scrape.time if last.time is None else last.time, until=scrape.time)
        if not scrape.up:
            return out
        started = scrape.gauges.get("process_start_time_seconds")
        if started is not None:
            if last.started is not None and started > last.started + 0.5:
                out.restarted = True
            last.started = started
        if out.restarted:
            last.counters.clear()
            last.histograms.clear()
        for name, value in scrape.counters.items():
            before = last.counters.get(name, 0.0)
            if value < before:
                out.restarted = out.restarted or _is_engine(name)
                before = 0.0
            if not first and value > before and name not in last.unread:
                out.counters[name] = value - before
            last.counters[name] = value
        for name, histogram in scrape.histograms.items():
            previous = last.histograms.get(name)
            whole = counts = _per_bucket(histogram)
            bounds, number, total = histogram.le, histogram.cumulative[-1], histogram.sum
            if previous is not None:
                alike = last.bounds[name] == bounds
                if alike and previous.cumulative[-1] <= number:
                    step = counts - last.per_bucket[name]
                    fell = bool(step.min() < 0) or total < previous.sum * (1 - 1e-9)
                else:
                    step, fell = counts, True
                if alike:
                    # one tuple for all scrapes: it is compared, and looked up, over and over again
                    bounds = last.bounds[name]
                if fell:
                    out.restarted = out.restarted or _is_engine(name)
                else:
                    counts = step
                    number, total = number - previous.cumulative[-1], total - previous.sum
            if not first and number > 0 and name not in last.unread:
                out.histograms[name] = moments_of(bounds, counts, total)
                out.buckets[name] = Buckets(bounds, counts)
            last.histograms[name], last.bounds[name] = histogram, bounds
            last.per_bucket[name] = whole
        known = {*last.counters, *last.histograms}
        last.unread = {*last.unread, *scrape.invalid} - known
        last.time = scrape.time
        return out


def select_counters(selectors: tuple[str, ...], counters: Mapping[str, float]) -> float:
    """Sum of all counters that match any selector."""
    return sum([v for name, v in counters.items() if _selected(selectors, name)])


@lru_cache(maxsize=16384)
def _selected(selectors: tuple[str, ...], sample: str) -> bool:
    return any(matches(selector, sample) for selector in selectors)
