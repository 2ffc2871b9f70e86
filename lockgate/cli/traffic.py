"""What the traffic driver saw, for the demonstration's closing lines and its report."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from lockgate.adapters.report import ReportInput, TrafficSummary
from lockgate.domain.release_state import Outcome, Slot
from lockgate.domain.rollout.transitions import parse_time
from serving.local.traffic import Row

EXAMPLES = 5


@dataclass(frozen=True)
class Traffic:
    """All rows of one driver's run."""

    rows: tuple[Row, ...]

    @classmethod
    def read(cls, path: Path) -> Traffic:
        """Rows of a file, in order of their start; a missing file is no traffic."""
        if not path.exists():
            return cls(())
        rows = [Row(**json.loads(line)) for line in path.read_text().splitlines() if line]
        return cls(tuple(sorted(rows, key=lambda row: row.start)))

    @property
    def failed(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if not row.ok)

    @property
    def seconds(self) -> float:
        return self.rows[-1].start - self.rows[0].start if len(self.rows) > 1 else 0.0

    def summary(self) -> TrafficSummary | None:
        """For the report; None without any request."""
        if not self.rows:
            return None
        ends = sorted(row.start + row.duration for row in self.rows)
        slots = sorted({row.slot or "unknown" for row in self.rows})
        return TrafficSummary(
            seconds=self.seconds,
            requests=len(self.rows),
            streaming=sum(row.streaming for row in self.rows),
            failed=len(self.failed),
            cut_short=sum(row.ttfb is not None for row in self.failed),
            by_slot=tuple(
                (slot, sum((row.slot or "unknown") == slot for row in self.rows)) for slot in slots
            ),
            longest_gap_seconds=max((b - a for a, b in itertools.pairwise(ends)), default=0.0),
            examples=tuple(
                f"{datetime.fromtimestamp(row.start):%H:%M:%S} {row.reason}"
                for row in self.failed[:EXAMPLES]
            ),
        )

    def lines(self) -> list[str]:
        """For the terminal."""
        summary = self.summary()
        if summary is None:
            return ["traffic: none"]
        rate = summary.requests / self.seconds if self.seconds else 0.0
        return [
            f"traffic: {summary.requests} requests ({rate:.1f}/s, {summary.streaming} streaming, "
            + ", ".join(f"slot {slot}: {count}" for slot, count in summary.by_slot)
            + f"), {summary.failed} failed, {summary.cut_short} of them cut short",
            *(f"  {example}" for example in summary.examples),
        ]

    def faults(self) -> list[str]:
        """What must not be: failed requests."""
        return [f"{len(self.failed)} requests failed"] if self.failed else []

    def seconds_to_zero(self, verdict_at: str, slot: Slot, until: float) -> float | None:
        """From a verdict to the start of the last request that the slot answered before `until`; None if it never did."""
        at = parse_time(verdict_at).timestamp()
        starts = [r.start for r in self.rows if r.slot == slot.value and r.start < until]
        return max(starts) - at if starts else None


def with_seconds_to_zero(report: ReportInput, traffic: Traffic) -> ReportInput:
    """The report with the time from each `fail` to the last request that reached the candidate."""
    releases = []
    for number, story in enumerate(report.releases):
        after = [later.started_at for later in report.releases[number + 1 :] if later.started_at]
        until = after[0].timestamp() if after else float("inf")
        decided = [look for look in story.looks if look.decided_at is not None]
        seconds = None
        if story.outcome is Outcome.ROLLED_BACK and decided and story.canary_slot is not None:
            at = datetime.fromtimestamp(decided[-1].decided_at or 0.0).astimezone()
            seconds = traffic.seconds_to_zero(at.isoformat(), story.canary_slot, until)
        releases.append(story.model_copy(update={"seconds_verdict_to_zero": seconds}))
    return report.model_copy(update={"releases": tuple(releases)})
