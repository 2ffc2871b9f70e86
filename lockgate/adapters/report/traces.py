"""Trace lines to increments: what each track's instances did between two scrapes.

Counters and histograms in a trace are cumulative since their instance started. The first scrape of an instance is its
reference; a value that falls means that the instance started anew, and then the new value is the increment.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lockgate.domain.judge.config import GATEWAY_REQUESTS, GATEWAY_SERVER_ERRORS
from lockgate.domain.judge.increments import matches
from lockgate.domain.trace import Scrape, TraceError, parse_line

Array = NDArray[np.float64]

BASELINE = "baseline"
CANARY = "canary"
TRACKS = (BASELINE, CANARY)


@dataclass(frozen=True)
class Down:
    """A time during which an instance did not answer its scrapes."""

    track: str
    instance: str
    start: float
    end: float


@dataclass(frozen=True)
class Histogram:
    """Increments of one histogram of one track: `counts[i, j]` observations in bucket `j` seen at `times[i]`.

    Bucket `j` reaches up to `bounds[j]`; the last bound is infinite.
    """

    bounds: Array
    times: Array
    counts: Array

    @property
    def total(self) -> int:
        return int(self.counts.sum())


@dataclass(frozen=True)
class Trace:
    """All that the report draws from a trace."""

    start: float | None = None
    end: float | None = None
    lines: int = 0
    unreadable: int = 0
    missing_files: tuple[str, ...] = ()
    down: tuple[Down, ...] = ()
    _counters: dict[tuple[str, str], tuple[Array, Array]] = field(default_factory=dict)
    _histograms: dict[tuple[str, str], Histogram] = field(default_factory=dict)

    def increments(self, track: str, selector: str) -> tuple[Array, Array]:
        """Times and increments of all samples that the selector (`name` or `name{label="value"}`) matches."""
        found = [
            c
            for (t, sample), c in self._counters.items()
            if t == track and matches(selector, sample)
        ]
        if not found:
            return np.empty(0), np.empty(0)
        times, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.argsort(times, kind="stable")
        return times[order], values[order]

    def has(self, track: str, selector: str) -> bool:
        return any(t == track and matches(selector, sample) for t, sample in self._counters)

    def histogram(self, track: str, name: str) -> Histogram | None:
        """None where the track never showed the histogram or nothing was observed."""
        found = self._histograms.get((track, name))
        return found if found is not None and found.total else None


def read_trace(paths: Iterable[Path], lines: Iterable[str] = ()) -> Trace:
    """Read trace files, then `lines`. A line that cannot be read is counted and left out; a missing file is named."""
    missing: list[str] = []
    reader = _Reader()
    for path in paths:
        try:
            with path.open(encoding="utf-8", errors="replace") as stream:
                for line in stream:
                    reader.add(line)
        except FileNotFoundError:
            missing.append(path.name)
    for line in lines:
        reader.add(line)
    return reader.trace(tuple(missing))


class _Instance:
    """The last values of one instance, and what it added since the one before."""

    def __init__(self) -> None:
        self.known = False
        self.started: float | None = None
        self.counters: dict[str, float] = {}
        self.histograms: dict[str, tuple[tuple[float, ...], Array]] = {}

    def forget_if_restarted(self, scrape: Scrape) -> None:
        started = scrape.gauges.get("process_start_time_seconds")
        if started is not None and self.started is not None and started > self.started + 0.5:
            self.counters.clear()
            self.histograms.clear()
        self.started = started if started is not None else self.started

    def count(self, sample: str, value: float) -> float:
        before = self.counters.get(sample, 0.0)
        self.counters[sample] = value
        return value - before if value >= before else value

    def observe(self, name: str, bounds: tuple[float, ...], cumulative: Array) -> Array:
        known = self.histograms.get(name)
        self.histograms[name] = (bounds, cumulative)
        if known is None or known[0] != bounds or (cumulative < known[1]).any():
            return cumulative
        return cumulative - known[1]


class _Reader:
    """Follows every instance from scrape to scrape."""

    def __init__(self) -> None:
        self._lines = 0
        self._unreadable = 0
        self._times: list[float] = []
        self._instances: dict[tuple[str, str], _Instance] = {}
        self._counters: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
        self._rows: dict[tuple[str, str], list[tuple[float, tuple[float, ...], Array]]] = {}
        self._down_since: dict[tuple[str, str], float] = {}
        self._down: list[Down] = []

    def add(self, line: str) -> None:
        if not line.strip():
            return
        self._lines += 1
        try:
            record = parse_line(line)
        except TraceError:
            self._unreadable += 1
            return
        self._times.append(record.time)
        if isinstance(record, Scrape):
            self._scrape(record)
            return
        self._add(record.time, record.track, GATEWAY_REQUESTS, 1.0)
        failed = record.status >= 500 or record.status == 0
        self._add(record.time, record.track, GATEWAY_SERVER_ERRORS, float(failed))

    def _add(self, time: float, track: str, sample: str, by: float) -> None:
        times, values = self._counters.setdefault((track, sample), ([], []))
        times.append(time)
        values.append(by)

    def _scrape(self, scrape: Scrape) -> None:
        key = (scrape.track, scrape.instance)
        if not scrape.up:
            self._down_since.setdefault(key, scrape.time)
            return
        if key in self._down_since:
            self._down.append(Down(*key, self._down_since.pop(key), scrape.time))
        instance = self._instances.setdefault(key, _Instance())
        instance.forget_if_restarted(scrape)
        for sample, value in scrape.counters.items():
            added = instance.count(sample, value)
            if instance.known:
                self._add(scrape.time, scrape.track, sample, added)
        for name, histogram in scrape.histograms.items():
            step = instance.observe(name, histogram.le, np.array(histogram.cumulative))
            if instance.known:
                rows = self._rows.setdefault((scrape.track, name), [])
                rows.append((scrape.time, histogram.le, step))
        instance.known = True

    def trace(self, missing: tuple[str, ...]) -> Trace:
        end = max(self._times, default=0.0)
        down = [*self._down, *(Down(*key, since, end) for key, since in self._down_since.items())]
        return Trace(
            start=min(self._times, default=None),
            end=max(self._times, default=None),
            lines=self._lines,
            unreadable=self._unreadable,
            missing_files=missing,
            down=tuple(sorted(down, key=lambda d: d.start)),
            _counters={k: (np.array(t), np.array(v)) for k, (t, v) in self._counters.items()},
            _histograms={k: _on_common_bounds(rows) for k, rows in self._rows.items()},
        )


def _on_common_bounds(rows: list[tuple[float, tuple[float, ...], Array]]) -> Histogram:
    """Instances with different buckets meet on the bounds that all have: there the cumulative counts are exact."""
    common = sorted(set.intersection(*(set(bounds) for _, bounds, _ in rows)))
    columns = {b: [b.index(c) for c in common] for b in {bounds for _, bounds, _ in rows}}
    rows = sorted(rows, key=lambda r: r[0])
    cumulative = np.array([step[columns[bounds]] for _, bounds, step in rows])
    return Histogram(
        bounds=np.array(common),
        times=np.array([t for t, _, _ in rows]),
        counts=np.maximum(np.diff(cumulative, axis=1, prepend=0.0), 0.0),
    )
