"""Which increments may be compared: those of both tracks over the same stretch of time.

The instances of a track are scraped one after another, one may hang for a while, and the whole trace
may have a hole (its writer was killed). An increment belongs to all of the time since its instance's
last scrape. So nothing is handed on before both tracks were scraped past the same moment; what one
track has shown meanwhile waits, and is then handed on together with the other's.

Engines, gateways and the driver's own probes wait for their like only: an engine that hangs does not keep
the gateway's errors from being seen, and a probe, counted at each look, does not make a gateway that is
scraped less often count as gone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from lockgate.domain.judge.increments import Increments
from lockgate.domain.trace import TRACKS, Scrape, Track

Lane = Literal["engine", "gateway", "probe"]

_MISSED_LOOKS = 4
"""An instance is not waited for once each of its siblings was scraped this often without it: a pod
that was replaced is never scraped again."""


_ANY_PROCESS = ("process_", "python_", "http_")
"""Samples that tell of no kind: an engine whose own are no numbers for once still has them."""


@dataclass
class _Source:
    lane: Lane
    track: Track
    latest: float
    missed: int = 0
    gap: float = 0.0
    """Between its last two scrapes."""


@dataclass
class _Queue:
    """One lane's increments that wait, and when each track's first scrape was."""

    first: dict[Track, float] = field(default_factory=dict)
    waiting: list[tuple[Track, Increments]] = field(default_factory=list)


def lane_of(scrape: Scrape) -> Lane | None:
    """What kind of instance this is; None where no sample tells."""
    samples = [
        name
        for name in (*scrape.counters, *scrape.histograms, *scrape.gauges)
        if not name.startswith(_ANY_PROCESS)
    ]
    if any(name.startswith("vllm:") for name in samples):
        return "engine"
    if samples and not scrape.scraped:
        return "probe"
    return "gateway" if samples else None


class Stretches:
    """Increments on their way from the scrapes to the evaluators."""

    def __init__(self) -> None:
        self._sources: dict[tuple[Track, str], _Source] = {}
        self._queues: dict[Lane, _Queue] = {}
        self._rows: list[tuple[Track, Increments]] = []

    def notice(self, scrape: Scrape) -> None:
        """Note how far this instance has been scraped (a dead one counts: nothing more will come)."""
        key = (scrape.track, scrape.instance)
        source = self._sources.get(key)
        if source is None:
            lane = lane_of(scrape)
            if lane is None:
                return
            source = self._sources[key] = _Source(lane, scrape.track, scrape.time)
            queue = self._queues.setdefault(lane, _Queue())
            queue.first.setdefault(scrape.track, scrape.time)
        source.gap, source.latest, source.missed = scrape.time - source.latest, scrape.time, 0
        for other in self._siblings(source.lane, source.track):
            if other.latest < scrape.time:
                other.missed += 1

    def add(self, track: Track, instance: str, increments: Increments) -> None:
        """Let one scrape's increments wait for the other track's."""
        source = self._sources.get((track, instance))
        if source is not None:
            self._queues[source.lane].waiting.append((track, increments))

    def add_row(self, track: Track, increments: Increments) -> None:
        """A request row: one log tells of both tracks, so it waits for nobody."""
        self._rows.append((track, increments))

    def _siblings(self, lane: Lane, track: Track) -> list[_Source]:
        return [s for s in self._sources.values() if s.lane == lane and s.track == track]

    def _here(self, lane: Lane, track: Track) -> list[_Source]:
        """Those of the track that are waited for."""
        siblings = self._siblings(lane, track)
        alive = sum(s.missed <= len(siblings) for s in siblings)
        limit = _MISSED_LOOKS * max(alive, 1)
        return [s for s in siblings if s.missed < limit]

    def _scraped_until(self, lane: Lane) -> float:
        """The moment past which every instance of the lane was scraped, on both tracks."""
        return min(
            min((s.latest for s in self._here(lane, track)), default=-math.inf) for track in TRACKS
        )

    def spacing(self) -> float:
        """The longest that an instance which is waited for was away between its last two scrapes."""
        return max(
            (s.gap for lane in self._queues for t in TRACKS for s in self._here(lane, t)),
            default=0.0,
        )

    def _shared(self) -> list[Lane]:
        """Lanes that both tracks have."""
        return [lane for lane, queue in self._queues.items() if len(queue.first) == len(TRACKS)]

    def covered_until(self) -> float:
        """The moment up to which all can be compared; -inf while the tracks have nothing alike."""
        return min((self._scraped_until(lane) for lane in self._shared()), default=-math.inf)

    def drain(self, end: float) -> list[tuple[Track, Increments]]:
        """What may be counted at the end of a block: all of each lane that was scraped past it."""
        out, self._rows = self._rows, []
        for lane in self._shared():
            if self._scraped_until(lane) < end:
                continue
            queue = self._queues[lane]
            begin = max(queue.first.values())
            # what one track did before the other was looked at has nothing to be compared with
            out += [(t, i) for t, i in queue.waiting if (i.since + i.until) / 2 >= begin]
            queue.waiting = []
        return out
