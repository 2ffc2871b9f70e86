"""What a step's metrics say: scraped, or read from where they are stored, kept in the step's trace, and judged.

Blind is not dead. A trace that cannot be read, or written, is no reason to let go of a canary: it is then not judged, a person
is paged, and the time that it goes unobserved counts as for any other want of metrics.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from lockgate.adapters import metrics
from lockgate.domain.digests import Digest
from lockgate.domain.judge import JudgeReport, Verdict
from lockgate.domain.release_state import Phase, ReleaseState, Slot
from lockgate.domain.rollout import JudgeVerdict
from lockgate.domain.rollout.transitions import parse_time, rfc3339
from lockgate.domain.trace import Scrape, Track
from lockgate.errors import LockgateError, MetricsError
from serving.cluster import Cluster
from serving.local.status import ClusterStatus
from tasks.judging import StepJudge, baking
from tasks.probing import Prober
from tasks.step_trace import StepTrace, newest_entry
from tasks.stored_metrics import OLDEST_SECONDS, stored_scrapes
from tasks.workspace import Workspace

logger = logging.getLogger("lockgate.release")

REOPEN_SECONDS = 20.0
"""How often a trace is tried again that could not be read or written: a person may have made room, or moved it away."""


class StepMetrics:
    """The metrics of one state's step or bake, and the judge's verdict on them."""

    def __init__(
        self, workspace: Workspace, cluster: Cluster, state: ReleaseState, *, judging: bool
    ) -> None:
        self._workspace = workspace
        self._cluster = cluster
        self._state = state
        self._canary = state.step is not None
        self._judge: StepJudge | None = None
        self._prober: Prober | None = None
        self._report: JudgeReport | None = None
        self.verdict: JudgeVerdict | None = None
        self._heard: dict[Track, float] = {}
        """Time of the newest scrape of each track."""
        self._ahead, self._latest = 0.0, -math.inf
        self._seen = self._now()
        self._paged: str | None = None
        self._looked = False
        # While replicas change hands nothing is decided from metrics: a server that loads is not one that crashed.
        wanted = judging and (self._canary or baking(state)) and not state.handing_over
        self.judged = wanted and StepJudge(state).active
        """Whether there is anything to judge, be it readable or not."""
        if self.judged:
            self._began = parse_time(state.since or rfc3339(datetime.now(UTC))).timestamp()
            self._seen = -math.inf
            self._saw(self._began)
            self._open()
        stands = state.phase is Phase.HELD and state.leaving is None
        self._left_standing = stands and state.handing_over
        """Replicas stopped changing hands half-way, and stay so: nobody judges that."""
        stopped = state.resumed or state.since
        if self._left_standing and stopped is not None:
            self._seen = min(parse_time(stopped).timestamp(), self._now())

    def unseen_seconds(self) -> float:
        """How long nothing has been observed."""
        now = self._now()
        # Nothing is seen in the future: that it once seemed so is no reason to wait for it.
        self._seen = min(self._seen, now)
        return now - self._seen

    def look(self, status: ClusterStatus | None) -> float | None:
        """Hear what there is to hear; afterwards `verdict` is the newest. Where metrics are stored elsewhere: the longest time
        that was not observed since the last entry of the trace, as it is known now; None where nobody else would know."""
        if not self.judged:
            if status is not None and not self._left_standing:
                self._seen = self._now()
            return None
        if self._judge is None and time.monotonic() - self._opened > REOPEN_SECONDS:
            self._open()
        if self._judge is None:
            return None
        return self._scrape(self._judge, status)

    def keep_report(self) -> None:
        """Store the report that the present verdict names: a transition is about to rest on it.

        On this machine first: a rollback waits for no store, and for no disk either.
        """
        if self._report is None:
            return
        document = self._report.to_data()
        path = self._workspace.layout.kept_report(Digest.of_json(document).hex)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(document))
        except OSError as error:
            logger.warning("the report is not kept on this machine: %s", error)
        try:
            self._workspace.records.put_document(document)
        except (LockgateError, OSError) as error:
            logger.warning("the report is not in the store: %s", error)

    def _open(self) -> None:
        """Open the step's trace and replay it. What is seen is seen up to its newest entry, or to the step's beginning."""
        self._opened = time.monotonic()
        state, layout = self._state, self._workspace.layout
        of_step = (state.model, state.environment, state.began)
        path = layout.trace(*of_step)
        judge = StepJudge(state)
        try:
            self._trace = StepTrace(path, layout.looks(*of_step))
            self._trace.judged_by(judge.config, layout.judge_config(*of_step))
            newest = self._trace.replay(judge)
            decided = judge.decided()
        except (OSError, MetricsError) as error:
            self._saw(newest_entry(path))
            self._blinded(path, error)
            return
        if self._paged is not None:
            logger.info("the step is judged again: %s", path)
        self._judge, self._paged = judge, None
        self._saw(newest)
        self._conclude(decided)

    def _saw(self, newest: float | None) -> None:
        if newest is not None:
            if self._workspace.settings.prometheus_url is None:
                self._latest = max(self._latest, newest)
            self._seen = max(self._seen, min(newest, self._now()))

    def _now(self) -> float:
        """This machine's time. It does not fall behind what it told, nor behind the trace: an hour that somebody sets it back
        would be an hour in which the judge hears of nothing new. What is stored elsewhere has a clock of its own."""
        wall = time.time()
        if self._workspace.settings.prometheus_url is not None:
            return wall
        if wall >= self._latest:
            self._ahead = 0.0
        elif wall + self._ahead < self._latest:
            self._ahead = self._latest - wall
            if self._ahead >= 1:
                logger.warning("this machine's clock is %.0f s behind the trace's", self._ahead)
        self._latest = wall + self._ahead
        return self._latest

    def _blinded(self, path: Path, error: Exception) -> None:
        """No judge any more, and nothing is seen. A fail stands; what was passed before may have ceased to be well."""
        self._judge = None
        if self.verdict is not None and self.verdict.verdict != Verdict.FAIL.value:
            self._report = self.verdict = None
        said = _chain(error)
        if said == self._paged:
            return
        self._paged = said
        hint = error.hint if isinstance(error, MetricsError) else None
        budget = self._state.canary.outage_budget_seconds if self._state.canary is not None else 0.0
        logger.error(
            "PAGE: %s/%s is not judged, and unobserved for longer than %.0f s its traffic goes back: "
            "the trace %s cannot be kept: %s; next: %s",
            self._state.model, self._state.environment, budget, path, said,
            hint or f"make {path.parent} readable and writable, with room on its disk",
        )  # fmt: skip

    def _scrape(self, judge: StepJudge, status: ClusterStatus | None) -> float | None:
        stable = self._state.stable
        if status is None or stable is None:
            return None
        # After promotion the new version is stable, and what is compared with it is the old one.
        new = stable if baking(self._state) else stable.other
        compared = new.other
        if self._canary and self._state.fresh_baseline:
            compared = Slot.BASELINE
        tracks: dict[str, Track] = {compared.value: "baseline", new.value: "canary"}
        try:
            targets = self._cluster.scrape_targets(self._state.model)
        except LockgateError as error:
            logger.warning("no metrics: %s", error.message)
            return None
        now = self._now()
        settings = self._workspace.settings
        stored = settings.prometheus_url is not None
        if not stored:
            records = metrics.scrape(targets, tracks, time=now)
            self._heard = {}
        else:
            records = stored_scrapes(
                settings, self._state, targets, tracks, status,
                newest=self._trace.newest, since=self._began, now=now,
            )  # fmt: skip
        if not self._looked and stored and any(record.up for record in records):
            # What is older is not asked for: an outage back then is over, or would have ended the release.
            self._saw(now - OLDEST_SECONDS)
        self._looked = True
        records = [*records, *self._probed(tracks, now)]
        try:
            self._trace.append(records)
        except OSError as error:
            self._blinded(self._trace.path, error)
            return None
        try:
            unseen, report = self._hear(judge, records, in_turn=stored)
            decided = judge.decided()
        except MetricsError as error:
            self._blinded(self._trace.path, error)
            return None
        self._trace.keep(judge)
        if report is not None:
            self._say(report)
        self._conclude(decided or report)
        return unseen if stored else None

    def _hear(
        self, judge: StepJudge, records: Sequence[Scrape], *, in_turn: bool
    ) -> tuple[float, JudgeReport | None]:
        """Tell the judge; the longest time that nothing was seen, and the judge's newest word.

        `in_turn`: as a driver would have heard them that had looked all the while, so that one which comes late counts the
        holes in what is stored, and not its own absence.
        """
        unseen, now = 0.0, self._now()
        waiting: Sequence[Scrape] = records
        if in_turn:
            waiting = sorted(records, key=lambda record: record.time)
            for end in self._moments(now):
                count = sum(record.time <= end for record in waiting)
                if count:
                    unseen = max(unseen, self._until_heard(waiting[:count]))
                    self._observe(judge, waiting[:count], end)
                    waiting = waiting[count:]
                unseen = max(unseen, end - self._seen)
        unseen = max(unseen, self._until_heard(waiting))
        report = self._observe(judge, waiting, now)
        return max(unseen, now - self._seen), report

    def _until_heard(self, records: Sequence[Scrape]) -> float:
        """How long it was until the first that these tell of each track."""
        first: dict[Track, float] = {}
        for record in records:
            first.setdefault(record.track, record.time)
        return max(first.values(), default=self._seen) - self._seen

    def _moments(self, now: float) -> Iterator[float]:
        """Some moments between the last that was seen and now."""
        spec = self._state.canary
        length = max(1.0, spec.outage_budget_seconds / 4) if spec is not None else 30.0
        end = self._seen + length
        while end < now:
            yield end
            end += length

    def _observe(
        self, judge: StepJudge, records: Sequence[Scrape], at: float
    ) -> JudgeReport | None:
        """The judge's word after these records; what is seen moves on if they tell of all that is needed."""
        for record in records:
            judge.observe(record)
        report = judge.look(at)
        needed: set[Track] = {"canary"} if baking(self._state) else {"baseline", "canary"}
        for record in records:
            if record.up:
                self._heard[record.track] = record.time
        told = needed <= self._heard.keys()
        dead = any(not record.up for record in records)
        # What the gateway says of a server whose own metrics are away is not enough; that a server is dead is no want of metrics.
        if told and (dead or report is None or report.verdict is not Verdict.METRICS_OUTAGE):
            self._seen = max(self._seen, min(self._heard[track] for track in needed))
        return report

    def _say(self, report: JudgeReport) -> None:
        try:
            self._trace.said(report)
        except OSError as error:
            # Nothing is decided from it.
            logger.warning("what the judge said is not kept: %s", error)

    def _probed(self, tracks: Mapping[str, Track], now: float) -> list[Scrape]:
        """What the quality probe has come to, where the spec asks for one. A driver that takes one look only asks nothing."""
        spec = self._state.canary
        if spec is None or spec.probes is None or self._state.phase is not Phase.CANARY:
            return []
        if self._prober is None:
            names = {
                slot: occupant.candidate.serving.served_model_name
                for slot in tracks
                if (occupant := self._state.occupant(Slot(slot))) is not None
            }
            try:
                url = self._cluster.gateway_url(self._state.model)
            except LockgateError as error:
                logger.warning("nothing is probed: %s", error.message)
                return []
            self._prober = Prober(spec.probes, url, names, tracks)
        return self._prober.records(now)

    def _conclude(self, report: JudgeReport | None) -> None:
        """Turn a report that says anything into the verdict of the look."""
        if report is None or report is self._report:
            return
        at = report.decided_at or report.time or time.time()
        self._report = report
        self.verdict = JudgeVerdict(
            verdict=report.verdict.value,
            report=Digest.of_json(report.to_data()),
            summary="; ".join(report.reasons[:3]) or report.verdict.value,
            at=rfc3339(datetime.fromtimestamp(at, UTC)),
        )


def _chain(error: BaseException) -> str:
    """An error and what caused it, in one line."""
    said = []
    cause: BaseException | None = error
    while cause is not None:
        text = cause.message if isinstance(cause, LockgateError) else str(cause)
        said.append(f"{type(cause).__name__}: {text}")
        cause = cause.__cause__
    return "; caused by ".join(said)
