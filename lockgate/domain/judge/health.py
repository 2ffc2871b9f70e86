"""Crashes, restarts and stalls of instances, and how fresh each track's metrics are.

A restart is seen in counters that fell or a process start time that moved, a death in `up: false`
for longer than `down_after_s`, a stall in requests running or waiting while no counter of the
instance moves for `stall_after_s`. An instance that simply stops being scraped is none of these:
pods are scaled and metrics get lost; that is an outage when the whole track is silent. One that joins
its track later and was never up is none either: it has yet to start. A track in
which the gateway has seen no live server for `absent_after_s`, while the other one had some, has
crashed as a whole, whatever its instances' own metrics do or do not say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from lockgate.domain.judge.absences import HEALTHY_MEMBERS
from lockgate.domain.judge.config import JudgeConfig
from lockgate.domain.judge.increments import Increments, matches
from lockgate.domain.trace import COUNTED_HERE, TRACKS, Scrape, Track

_BUSY = ("vllm:num_requests_running", "vllm:num_requests_waiting")


@dataclass
class _Life:
    track: Track
    joined: bool
    """Whether its track was there for a block's time before it."""
    down_since: float | None = None
    last_down: float = -math.inf
    counted_down: bool = False
    engine: bool = False
    last_up: float | None = None
    idle_since: float | None = None
    stalled: bool = False


@dataclass(frozen=True)
class Incident:
    """Something that a healthy instance does not do."""

    time: float
    track: Track
    what: str
    since: float = math.nan
    """When it began, as far as was seen."""


@dataclass
class HealthWatch:
    """Follows all instances of both tracks."""

    config: JudgeConfig
    incidents: list[Incident] = field(default_factory=list)
    last_usable: dict[Track, float] = field(default_factory=dict)
    _lives: dict[tuple[Track, str], _Life] = field(default_factory=dict)
    _began: dict[Track, float] = field(default_factory=dict)
    _absent_since: dict[Track, float | None] = field(default_factory=dict)
    """None: the gateway has a live server of the track. Without an entry it never had one in this trace."""
    _counted_absent: set[Track] = field(default_factory=set)

    def notice(self, scrape: Scrape, increments: Increments) -> None:
        """Take one scrape (in order of time an instance) and what it added; says in `increments`
        for how long an engine served."""
        began = self._began.setdefault(scrape.track, scrape.time)
        joined = scrape.time > began + self.config.block_s
        life = self._lives.setdefault((scrape.track, scrape.instance), _Life(scrape.track, joined))
        if not scrape.up:
            if life.last_up is not None or not life.joined:
                self._down(scrape, life)
            return
        if any(not n.startswith(COUNTED_HERE) for n in (*scrape.counters, *scrape.histograms)):
            # Another instance's later scrape may be known already.
            before = self.last_usable.get(scrape.track, scrape.time)
            self.last_usable[scrape.track] = max(before, scrape.time)
        life.engine = life.engine or any(
            name.startswith("vllm:")
            for part in (scrape.counters, scrape.histograms)
            for name in part
        )
        if life.engine and life.last_up is not None and life.down_since is None:
            # counters that went on prove that it lived all the while, however long nobody looked
            lived = scrape.time - life.last_up
            limit = self.config.outage_after_s if increments.restarted else lived
            increments.served = min(lived, limit)
        life.last_up = scrape.time
        if life.down_since is not None and not life.counted_down:
            life.down_since = None
        if increments.restarted:
            if not life.counted_down:
                self._add(scrape, f"instance {scrape.instance} restarted")
            life.counted_down = False
            life.down_since = None
        elif life.counted_down:
            life.counted_down, life.down_since = False, None
        self._stall(scrape, increments, life)
        if HEALTHY_MEMBERS in scrape.gauges:
            self._members(scrape, scrape.gauges[HEALTHY_MEMBERS])

    def _members(self, scrape: Scrape, healthy: float) -> None:
        track = scrape.track
        if healthy > 0:
            self._absent_since[track] = None
            self._counted_absent.discard(track)
            return
        if track not in self._absent_since:
            return
        since = self._absent_since[track]
        if since is None:
            self._absent_since[track] = scrape.time
            return
        gone = scrape.time - since
        if any(self._absent_since.get(t) is not None for t in TRACKS if t != track):
            return  # what takes both has a cause outside of either
        if gone >= self.config.absent_after_s and track not in self._counted_absent:
            self._counted_absent.add(track)
            self._add(scrape, f"the gateway had no live server of the {track} for {gone:.0f} s")

    def _down(self, scrape: Scrape, life: _Life) -> None:
        if life.last_up is not None and not life.engine:
            return  # a gateway that is down is no crash of the version behind it; its silence is an outage
        if life.down_since is None:
            life.down_since = scrape.time
        life.last_down = scrape.time
        gone = scrape.time - life.down_since
        if not life.counted_down and gone >= self.config.down_after_s and gone > 0:
            life.counted_down = True
            what = f"instance {scrape.instance} was down for {gone:.0f} s"
            self._add(scrape, what, life.down_since)

    def _stall(self, scrape: Scrape, increments: Increments, life: _Life) -> None:
        busy = any(
            value > 0 and any(matches(selector, name) for selector in _BUSY)
            for name, value in scrape.gauges.items()
        )
        # what the server counts of its pages (a list of models, a refused request) is no progress of the engine
        moved = any(n.startswith("vllm:") for n in (*increments.counters, *increments.histograms))
        if not busy or moved:
            life.idle_since, life.stalled = None, False
            return
        if life.idle_since is None:
            life.idle_since = scrape.time
        still = scrape.time - life.idle_since
        if still >= self.config.stall_after_s and not life.stalled:
            life.stalled = True
            self._add(
                scrape,
                f"instance {scrape.instance} had requests and made no progress for {still:.0f} s",
            )

    def _add(self, scrape: Scrape, what: str, since: float | None = None) -> None:
        began = scrape.time if since is None else since
        self.incidents.append(Incident(scrape.time, scrape.track, what, began))

    def of(self, track: Track, since: float) -> list[Incident]:
        """Incidents of a track from a time on."""
        return [i for i in self.incidents if i.track == track and i.time >= since]

    def going_down(self, track: Track, at: float) -> int:
        """Instances that were last seen down, not yet for so long that it counts, and not long before `at`."""
        return sum(
            life.track == track
            and life.down_since is not None
            and not life.counted_down
            and at - life.last_down <= self.config.outage_after_s
            for life in self._lives.values()
        )

    def all_down(self, track: Track) -> bool:
        """Whether engines of the track are known, and every one of them was last seen down."""
        lives = [
            life
            for life in self._lives.values()
            if life.track == track and (life.engine or life.down_since is not None)
        ]
        return bool(lives) and all(life.counted_down for life in lives)

    def silent(self, now: float, start: float) -> list[tuple[Track, float]]:
        """Tracks without a usable scrape for `outage_after_s`, and for how long that has been."""
        out: list[tuple[Track, float]] = []
        for track in TRACKS:
            age = now - self.last_usable.get(track, start)
            if age > self.config.outage_after_s or (
                track not in self.last_usable and age >= self.config.outage_after_s
            ):
                out.append((track, age))
        return out
