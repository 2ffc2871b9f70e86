"""The tail of a latency: the share of requests that took much longer than usual.

A regression of the tail alone hardly moves the mean, and makes it scatter. So slow requests are counted: those
beyond a bucket's bound that lies a few times above what was usual on both tracks up to then, and that few
requests of the better track have exceeded. The bound of a block is chosen before the block, so it can be any.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lockgate.domain.judge.config import JudgeConfig, MetricConfig
from lockgate.domain.judge.increments import Increments, matches
from lockgate.domain.judge.shares import ShareDifference
from lockgate.domain.judge.spread import SpellHistory
from lockgate.domain.trace import TRACKS, Scrape, Track

Array = NDArray[np.float64]

TIMES_THE_MEAN = 4.0
"""A bound is at least so many times the mean of both tracks."""

FEW, LEAST_PAST = 0.03, 8.0
"""At most this share of the better track's requests has been beyond it, of at least so many."""

_COUNTED_SHARE = 0.15
"""Slow requests of one block that count against the canary, as a share of the block's: in a queue all are
slow for a while, and no tail that the mean does not show is as bad."""


def bound_index(bounds: Array, counts: Array, totals: Array, above: Array) -> Array:
    """Which bound divides slow requests from others, after requests (`counts`: both tracks, first axis), their
    seconds together (`totals`) and how many were `above` each bound (last axis); -1 where none does."""
    mean = totals.sum(axis=0) / np.maximum(counts.sum(axis=0), 1.0)
    share = ((above + 0.5) / (counts[..., None] + 1.0)).min(axis=0)
    far = (bounds >= TIMES_THE_MEAN * mean[..., None]) & (share <= FEW)
    known = far.any(axis=-1) & (counts.min(axis=0) >= LEAST_PAST)
    out: Array = np.where(known, far.argmax(axis=-1), -1)
    return out


def counted(events: Array, trials: Array) -> Array:
    """The canary's slow requests of a block that count against it."""
    out: Array = np.minimum(events, np.ceil(_COUNTED_SHARE * trials))
    return out


class TailShare(ShareDifference):
    """TAIL: the difference of the two tracks' shares of slow requests."""

    def __init__(self, name: str, metric: MetricConfig, config: JudgeConfig) -> None:
        super().__init__(name, metric, config)
        self._histogram: str | None = None
        self._bounds: tuple[float, ...] = ()
        self._history = SpellHistory()
        self._seconds = np.zeros(2)
        self._counts = np.zeros((2, 0))
        """The open block's requests in each bucket, and how long they took together: both tracks."""
        self._past = np.zeros(2), np.zeros(2)
        self._above = np.zeros((2, 0))
        self._bound: float | None = None

    def _has_source(self, scrape: Scrape) -> bool:
        if self._blocks == 0 and self._histogram != self.metric.histogram[0]:
            present = {m.partition("{")[0] for m in scrape.histograms}
            names = self.metric.histogram
            better = names if self._histogram is None else names[: names.index(self._histogram)]
            found = next((h for h in better if h in present), None)
            if found is not None:
                self._histogram, self._bounds = found, ()
                self.last_seen.clear()
        if self._histogram is None:
            return False
        shown = [h for name, h in scrape.histograms.items() if matches(self._histogram, name)]
        if shown and not self._bounds:
            self._bounds = shown[0].le
            self._above = np.zeros((2, len(self._bounds)))
            self._empty_block()
        return any(h.le == self._bounds for h in shown)

    def _empty_block(self) -> None:
        self._seconds = np.zeros(2)
        self._counts = np.zeros((2, len(self._bounds)))

    def take(self, track: Track, increments: Increments) -> None:
        if self._histogram is None:
            return
        for name, buckets in increments.buckets.items():
            # other bounds tell of other requests: they cannot be compared
            if matches(self._histogram, name) and buckets.le == self._bounds:
                at = TRACKS.index(track)
                self._seconds[at] += increments.histograms[name].total
                self._counts[at] += buckets.counts

    def close(self, end: float) -> None:
        if not self._bounds:
            return
        counts, totals = self._past
        finite = np.array(self._bounds[:-1])
        at = int(bound_index(finite, counts, totals, self._above[:, :-1])) if finite.size else -1
        below = self._counts.cumsum(axis=-1)
        block, above = below[:, -1], below[:, -1:] - below
        if at >= 0:
            self._bound = self._bounds[at]
            for track, slow, requests in zip(TRACKS, above[:, at], block, strict=True):
                self._open[track][0] += float(slow)
                self._open[track][1] += float(requests)
        counts += block
        totals += self._seconds
        self._above += above
        self._empty_block()
        super().close(end)

    def discard(self) -> None:
        self._empty_block()

    def _counted(self, events: float, trials: float) -> float:
        return float(counted(np.array(events), np.array(trials)))

    def _what(self) -> str:
        if self._bound is None or math.isinf(self._bound):
            return ""
        return f" took long (now: more than {self._bound:g} s)"
