"""The judge itself: a pure function of the trace that it was shown.

`Judge.observe` takes records as they come, `Judge.look` says what they show. Evidence is updated a
block at a time, as soon as both tracks were scraped after the block's end, and only ever kept as a
running maximum: the verdict is the same however often, or when, somebody looks, and a restart that
replays the trace comes to the same verdict at the same trace time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator

from lockgate.domain.judge.absences import Absences
from lockgate.domain.judge.blocks import BlockEnds
from lockgate.domain.judge.config import (
    GATEWAY_CLIENT_ERRORS,
    GATEWAY_REQUESTS,
    GATEWAY_SERVER_ERRORS,
    GATEWAY_TTFB,
    Criticality,
    JudgeConfig,
)
from lockgate.domain.judge.health import HealthWatch
from lockgate.domain.judge.increments import IncrementReader, Increments, Moments, select_counters
from lockgate.domain.judge.panel import Panel
from lockgate.domain.judge.report import JudgeReport, Verdict
from lockgate.domain.judge.stretches import Stretches
from lockgate.domain.judge.verdicts import Decision, Standing, decide
from lockgate.domain.trace import (
    TRACKS,
    Histogram,
    RequestRow,
    Scrape,
    TraceError,
    Track,
    parse_line,
)

_LATE_SHARE = 0.05
"""Part of alpha kept for metrics whose samples appear only after the first block."""


class Judge:
    """Everything derived from a trace so far."""

    def __init__(self, config: JudgeConfig) -> None:
        self.config = config
        self._panel = Panel(config)
        self._health = HealthWatch(config)
        self._readers: dict[tuple[Track, str], IncrementReader] = {}
        self._times: dict[tuple[Track, str], float] = {}
        self._stretches = Stretches()
        self._absences = Absences()
        self._moments: deque[float] = deque()
        self._start: float | None = config.step_start
        self._ends = BlockEnds(config.block_s)
        self._closed = 0
        self._now: float | None = None
        self._alpha: dict[str, float] = {}
        self._late = 0
        self._incidents = 0
        self._finished: dict[Track, float] = dict.fromkeys(TRACKS, 0.0)
        self._arrivals: dict[Track, float] = dict.fromkeys(TRACKS, 0.0)
        self._served: dict[Track, float] = dict.fromkeys(TRACKS, 0.0)
        self._decision = Decision()

    @property
    def time(self) -> float | None:
        """The latest time that the trace has shown."""
        return self._now

    def observe(self, record: Scrape | RequestRow) -> None:
        """Take one record. Scrapes of one instance must come in order of time; one that is no newer
        than what the instance has shown already (a duplicated or reordered line) is ignored. Of request rows each counts."""
        key = (record.track, record.instance)
        if isinstance(record, Scrape):
            if record.time <= self._times.get(key, -math.inf):
                return
            self._times[key] = record.time
        if self._start is None:
            self._start = record.time
        if self._now is None or record.time > self._now:
            self._now = record.time
        told = isinstance(record, RequestRow) or record.scraped
        if told and (not self._moments or record.time > self._moments[-1]):
            # What the driver says by its own clock is left out: a store of metrics knows of that time later. No track is late.
            self._moments.append(record.time)
        if isinstance(record, RequestRow):
            self._observe_request(record, self._start)
        else:
            self._observe_scrape(record, self._start)
        self._close_blocks(self._start)
        if len(self._health.incidents) > self._incidents:
            self._incidents = len(self._health.incidents)
            self._decision = decide(self._standing(self._now), self._decision)

    def _observe_scrape(self, scrape: Scrape, start: float) -> None:
        reader = self._readers.setdefault((scrape.track, scrape.instance), IncrementReader())
        increments = reader.read(scrape)
        self._health.notice(scrape, increments)
        self._panel.notice(scrape)
        self._stretches.notice(scrape)
        self._absences.notice(scrape)
        if scrape.time > start + self.config.settle_s:
            self._stretches.add(scrape.track, scrape.instance, increments)

    def _observe_request(self, row: RequestRow, start: float) -> None:
        if row.time <= start + self.config.settle_s:
            return
        increments = Increments({GATEWAY_REQUESTS: 1.0}, since=row.time, until=row.time)
        if row.status >= 500 or row.status == 0:
            increments.counters[GATEWAY_SERVER_ERRORS] = 1.0
        elif row.status >= 400:
            increments.counters[GATEWAY_CLIENT_ERRORS] = 1.0
        elif row.ttfb is not None:
            increments.histograms[GATEWAY_TTFB] = Moments(1.0, row.ttfb, row.ttfb, row.ttfb**2)
        presence = Scrape(
            row.time,
            row.track,
            row.instance,
            True,
            counters={GATEWAY_REQUESTS: 1.0},
            histograms={GATEWAY_TTFB: Histogram((math.inf,), (0.0,), 0.0)},
        )
        self._panel.notice(presence, lasting=True)
        self._stretches.add_row(row.track, increments)

    def _take(self, track: Track, increments: Increments) -> None:
        self._panel.take(track, increments, timed=False)
        self._finished[track] += select_counters(
            ("vllm:request_success_total",), increments.counters
        )
        self._arrivals[track] += select_counters(
            ("envoy_cluster_upstream_rq_total", GATEWAY_REQUESTS), increments.counters
        )
        self._served[track] += increments.served

    def _close_blocks(self, start: float) -> None:
        """Close every block whose end both tracks were scraped past; all at once where they lie in
        one gap of the trace, since nobody knows how its increments fall on them. A block that one
        track does not reach in time is closed without the data that wait for it."""
        begin = start + self.config.settle_s
        while True:
            end = begin + self._ends.end(self._closed + 1)
            if self._now is None or self._now < end:
                return  # neither can a track have been scraped past it, nor has any waited
            covered = self._stretches.covered_until()
            if covered >= end:
                self._closed = max(self._closed + 1, self._ends.ended(covered - begin))
            elif (
                waited := self._waited(end)
            ) >= self.config.block_s and waited >= self._patience():
                # A gap is one block, however long: the next record is the first that any later one could have ended by.
                self._closed = max(self._closed + 1, self._ends.ended(self._moments[0] - begin))
            else:
                return
            self._close(begin + self._ends.end(self._closed))

    def _waited(self, end: float) -> float:
        """Seconds from the first record at or after `end` to the latest. A gap is nobody's delay."""
        while self._moments and self._moments[0] < end:
            self._moments.popleft()
        return self._moments[-1] - self._moments[0] if self._moments else -math.inf

    def _patience(self) -> float:
        """Seconds that a block waits for a track. Instances that are scraped each at a time of its own come round in turn: one
        interval apart, or two where a scrape is known late."""
        twice = min(2.0 * self._stretches.spacing(), self.config.outage_after_s)
        return max(self.config.block_s, twice)

    def _close(self, end: float) -> None:
        # added up first: there are many evaluators, and what is in one block is one to most of them
        sums: dict[Track, list[Increments]] = {t: [Increments()] for t in TRACKS}
        for track, increments in self._stretches.drain(end):
            if self._absences.covers(increments):
                continue
            self._panel.take(track, increments, timed=True)
            if not sums[track][-1].alike(increments):
                sums[track].append(Increments())
            sums[track][-1].add(increments)
        for track, several in sums.items():
            for increments in several:
                self._take(track, increments)
        self._panel.close(end, self._standing(end).load)
        self._share_alpha()
        self._decision = decide(self._standing(end), self._decision)

    def _share_alpha(self) -> None:
        """Give each metric that has data its share of alpha, once and for all.

        What is there at the end of the first block shares nearly all by weight; each metric that
        comes later takes half of what is left of the rest. The shares never add up to more than
        alpha, and what has no data takes none.
        """
        fresh = [
            e
            for name, e in self._panel.evaluators.items()
            if e.present
            and name not in self._alpha
            and e.metric.criticality is not Criticality.ADVISORY
        ]
        if not fresh:
            return
        if not self._alpha:
            total = sum(e.metric.weight for e in fresh)
            share = self.config.alpha * (1.0 - _LATE_SHARE)
            self._alpha = {e.name: share * e.metric.weight / total for e in fresh}
            return
        for evaluator in fresh:
            self._late += 1
            self._alpha[evaluator.name] = self.config.alpha * _LATE_SHARE / 2.0**self._late

    def _standing(self, now: float) -> Standing:
        start = self._start if self._start is not None else now
        return Standing(
            config=self.config,
            now=now,
            start=start,
            blocks=self._closed,
            panel=self._panel,
            alpha=self._alpha,
            health=self._health,
            finished=dict(self._finished),
            arrivals=dict(self._arrivals),
            served=dict(self._served),
        )

    def decided(self) -> JudgeReport | None:
        """The report, once a pass or a fail was reached; None (and cheap) until then."""
        if self._decision.fail_at is None and self._decision.pass_at is None:
            return None
        return self.look()

    def look(self, now: float | None = None, *, quantiles: bool = False) -> JudgeReport:
        """The verdict on what was observed; `now` (trace clock) defaults to the latest record.

        Anytime-valid: it may be asked after every scrape. `now` matters only to outages and the
        time budget. A report that decides has the bands of quantiles; others have them if asked.
        """
        moment = now if now is not None else self._now
        if moment is None:
            return JudgeReport(
                verdict=Verdict.METRICS_OUTAGE, reasons=("the trace holds no scrape at all",)
            )
        # decisions fall at the ends of blocks and at incidents only, whoever looks and when
        latest = moment if self._now is None else max(moment, self._now)
        return self._decision.report(self._standing(latest), quantiles=quantiles)


def read_trace(lines: Iterable[str]) -> Iterator[Scrape | RequestRow]:
    """The records of a trace; blank lines are skipped. A last line that was cut off (the writer was
    killed) is left out; any other malformed line raises TraceError with its number."""
    pending: tuple[int, TraceError] | None = None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if pending is not None:
            raise TraceError(f"line {pending[0]}: {pending[1].message}") from pending[1]
        try:
            record = parse_line(line)
        except TraceError as error:
            pending = (number, error)
            continue
        yield record
    if pending is not None and pending[0] == 1:
        raise TraceError(f"line 1: {pending[1].message}") from pending[1]


def judge_lines(lines: Iterable[str], config: JudgeConfig) -> JudgeReport:
    """The report at the first decisive look (pass or fail), or the last one."""
    judge = Judge(config)
    for record in read_trace(lines):
        judge.observe(record)
        report = judge.decided()
        if report is not None:
            return report
    return judge.look(quantiles=True)


class Follower:
    """A trace judged while it is written: feed it lines, get a report after every pair of scrapes."""

    def __init__(self, config: JudgeConfig) -> None:
        self._judge = Judge(config)
        self._seen: set[Track] = set()
        self._last = -math.inf
        self._number = 0

    def feed(self, line: str) -> JudgeReport | None:
        """Take one line; a report when both tracks were scraped since the last one, or when one
        track was scraped again a block later while the other is silent. Raises TraceError."""
        self._number += 1
        if not line.strip():
            return None
        try:
            record = parse_line(line)
        except TraceError as error:
            raise TraceError(f"line {self._number}: {error.message}") from error
        self._judge.observe(record)
        if not isinstance(record, Scrape):
            return None
        alone = (
            record.track in self._seen and record.time - self._last >= self._judge.config.block_s
        )
        self._seen.add(record.track)
        if not alone and len(self._seen) < len(TRACKS):
            return None
        self._seen.clear()
        self._last = record.time
        return self._judge.look()


def follow(lines: Iterable[str], config: JudgeConfig) -> Iterator[JudgeReport]:
    """The reports of a `Follower` fed with all lines."""
    follower = Follower(config)
    for line in lines:
        report = follower.feed(line)
        if report is not None:
            yield report
