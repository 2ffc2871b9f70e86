"""The eyes of a driver: slots, smoke generation, signatures and metrics of one step, put together as looks."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from lockgate.adapters import metrics
from lockgate.adapters.oci.pulling import missing_blobs
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.judge import JudgeReport, Verdict
from lockgate.domain.policy import Policy
from lockgate.domain.release_state import Occupant, Phase, ReleaseState, Slot
from lockgate.domain.rollout import (
    Approval,
    JudgeVerdict,
    Look,
    Rejection,
    SlotReadiness,
    SmokeResult,
    Successor,
    Verification,
)
from lockgate.domain.rollout.transitions import parse_time, rfc3339
from lockgate.domain.trace import Scrape, Track
from lockgate.errors import LockgateError, ServingError
from serving.local.status import ClusterStatus, ModelStatus, SlotStatus
from serving.smoke import DegenerateAnswer, smoke_generation
from tasks.approving import decision_on
from tasks.judging import StepJudge, baking
from tasks.probing import Prober
from tasks.step_trace import StepTrace
from tasks.stored_metrics import stored_scrapes
from tasks.supply import verifications
from tasks.workspace import Workspace

logger = logging.getLogger("lockgate.release")

REST_SECONDS = 1.0
REMOTE_SECONDS = 20.0
"""How often a driver asks the remote whether somebody else has committed meanwhile."""
VERIFIED_SECONDS = 10.0
"""How long a verification counts as made just now."""


class Slots(NamedTuple):
    """What the cluster says of a model's slots; None where it says nothing."""

    a: SlotReadiness | None
    b: SlotReadiness | None
    baseline: SlotReadiness | None
    live_generation: int | None
    successor: Successor | None = None
    shares: dict[str, int] | None = None


class Watcher:
    """Looks at one state of one release. A new state needs a new watcher."""

    def __init__(self, workspace: Workspace, state: ReleaseState, *, proving: bool = False) -> None:
        """`proving`: look for what a raise has to prove although nobody but a person would raise."""
        self.workspace = workspace
        self._proving = proving
        self.state = state
        self.cluster = workspace.cluster(state.environment)
        self._canary = state.step is not None
        # While replicas change hands nothing is decided from metrics: a server that loads is not one that crashed.
        judged = (self._canary or baking(state)) and not state.handing_over
        self._judge = StepJudge(state) if judged else None
        if self._judge is not None and not self._judge.active:
            self._judge = None
        self._policy: Policy | None = None
        self._smoke: SmokeResult | None = None
        self._verified: dict[Digest, tuple[float, Verification]] = {}
        self._unready: dict[Slot, float] = {}
        self._asked_remote = time.monotonic()
        self._report: JudgeReport | None = None
        self._verdict: JudgeVerdict | None = None
        self._prober: Prober | None = None
        self._heard: dict[Track, float] = {}
        """Time of the newest scrape of each track."""
        self._seen = self._last_entry(self._judge) if self._judge is not None else time.time()

    def look(self) -> Look:
        """Everything that can be seen now. What cannot be seen is None; nothing here raises for what is merely away."""
        # Taken before this look: a gap that has just ended, e.g. while no driver lived, was a gap all the same.
        blind = max(0.0, time.time() - self._seen)
        status = self._status()
        slots = self._slots(status)
        if self._judge is not None:
            self._scrape(self._judge, status)
        elif status is not None:
            self._seen = time.time()
        subject = self._subject()
        # Nothing that people may say changes a fail.
        decision = None if self._verdict_is("fail") else self._decision()
        promising = self._is_promising(subject, slots)
        if promising and self.state.step is None and subject is not None:
            self._smoke_once(subject, status)
        proving = promising and (
            self._proving
            or isinstance(decision, Approval)
            or self.state.step is None
            or self.state.handing_over
            or self._by_header_only()
            or self._verdict_is("pass")
            or not self._canary
        )
        return Look(
            generation=self.state.generation,
            a=slots.a,
            b=slots.b,
            baseline=slots.baseline,
            successor=slots.successor,
            smoke=self._smoke,
            verification=self._verify(subject) if proving else None,
            fallback_verification=self._verify(self._stable()) if proving else None,
            verdict=self._verdict,
            decision=decision,
            blind_seconds=blind,
            live_generation=slots.live_generation,
            shares=slots.shares,
        )

    def rest(self) -> None:
        """Until the next look."""
        spec = self.state.canary
        time.sleep(
            spec.scrape_seconds if self._judge is not None and spec is not None else REST_SECONDS
        )

    def keep_report(self) -> None:
        """Store the report that the present verdict names: a transition is about to rest on it.

        On this machine first: a rollback waits for no store.
        """
        if self._report is None:
            return
        document = self._report.to_data()
        path = self.workspace.layout.kept_report(Digest.of_json(document).hex)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document))
        try:
            self.workspace.records.put_document(document)
        except (LockgateError, OSError) as error:
            logger.warning("the report is kept on this machine only: %s", error)

    def moved_on(self) -> bool:
        """Whether the remote has a newer state than the one that is looked at. Asked now and then."""
        if time.monotonic() - self._asked_remote < REMOTE_SECONDS:
            return False
        self._asked_remote = time.monotonic()
        try:
            repository = self.workspace.gitops
            repository.sync()
            newest = repository.read_state(self.state.model, self.state.environment)
        except LockgateError as error:
            logger.warning("the remote cannot be read: %s", error.message)
            return False
        return newest.generation != self.state.generation

    def _decision(self) -> Approval | Rejection | None:
        """What people have signed of the raise that waits; nothing where it cannot be read."""
        if self.state.phase is not Phase.AWAITING_APPROVAL:
            return None
        try:
            self.workspace.gitops.sync()
            return decision_on(self.workspace, self.state)
        except LockgateError as error:
            logger.warning("approvals cannot be read: %s", error.message)
            return None

    def slots(self) -> Slots:
        """The slots alone."""
        return self._slots(self._status())

    def _status(self) -> ClusterStatus | None:
        try:
            return self.cluster.status()
        except LockgateError as error:
            logger.warning("the cluster cannot be observed: %s", error.message)
            return None

    def _slots(self, status: ClusterStatus | None) -> Slots:
        model = status.models.get(self.state.model) if status is not None else None
        if model is None:
            return Slots(None, None, None, None)
        a, b, baseline = (self._readiness(slot, model) for slot in Slot)
        shares = model.route.effective if model.route is not None else None
        return Slots(a, b, baseline, model.generation, self._successor(model), shares)

    def _successor(self, model: ModelStatus) -> Successor | None:
        seen = model.successor
        if seen is None or seen.slot.candidate is None:
            return None
        wanted = max(self.state.replicas(Slot(seen.slot.slot)), seen.slot.desired)
        return Successor(
            candidate=Digest(seen.slot.candidate),
            ready=seen.slot.updated > 0,
            sized=0 < wanted <= seen.slot.updated,
            refusal="; ".join(seen.slot.refusals) or None,
            generation=seen.generation,
        )

    def _readiness(self, slot: Slot, model: ModelStatus) -> SlotReadiness | None:
        seen: SlotStatus | None = model.slots.get(slot.value)
        if seen is None or seen.candidate is None:
            return None
        ready = seen.updated > 0
        if ready:
            self._unready.pop(slot, None)
        since = self._unready.setdefault(slot, time.monotonic()) if not ready else None
        # The manifests of this very state may not be applied yet, and an autoscaler may want more than they say.
        wanted = max(self.state.replicas(slot), seen.desired)
        return SlotReadiness(
            candidate=Digest(seen.candidate),
            ready=ready,
            sized=0 < wanted <= seen.updated,
            enough=0 < self.state.replicas(slot) <= seen.updated,
            restarts=seen.restarts,
            unready_seconds=time.monotonic() - since if since is not None else 0.0,
            refusal="; ".join(seen.refusals) or None,
        )

    def _subject(self) -> Occupant | None:
        if baking(self.state):
            return self._stable()
        return self.state.occupant(self.state.free_slot)

    def _stable(self) -> Occupant | None:
        return self.state.occupant(self.state.stable) if self.state.stable is not None else None

    def _is_promising(self, subject: Occupant | None, slots: Slots) -> bool:
        quiet = self.state.phase in (Phase.BAKING, Phase.DRAINING, Phase.HELD)
        if subject is None or (quiet and not self._proving):
            return False
        if not self.state.replicas(self.state.free_slot):
            return True  # strategy `recreate`: it starts only once it and stable are verified
        seen = slots.a if self.state.free_slot is Slot.A else slots.b
        return seen is not None and seen.fit(subject.candidate.digest)

    def _smoke_once(self, subject: Occupant, status: ClusterStatus | None) -> None:
        """One generation from every pod of the slot; a server that does not answer is asked again at the next look."""
        if self._smoke is not None or status is None:
            return
        slot = status.slot(self.state.model, self.state.free_slot.value)
        digest = subject.candidate.digest
        name = subject.candidate.serving.served_model_name
        urls = [pod.url for pod in slot.pods if pod.url is not None] if slot is not None else []
        try:
            for url in urls:
                smoke_generation(url, name)
        except DegenerateAnswer as error:
            self._smoke = SmokeResult(candidate=digest, ok=False, detail=error.message)
        except ServingError as error:
            logger.warning("no smoke generation yet: %s", error.message)
        else:
            if urls:
                self._smoke = SmokeResult(candidate=digest, ok=True, detail=f"{len(urls)} pods")

    def _verify(self, occupant: Occupant | None) -> Verification | None:
        if occupant is None:
            return None
        candidate = occupant.candidate
        serves = occupant is self._stable()
        known = self._verified.get(candidate.digest)
        if known is not None and time.monotonic() - known[0] < VERIFIED_SECONDS:
            return known[1]
        try:
            result = self._verify_now(candidate, serves)
        except LockgateError as error:
            logger.warning("not verified yet: %s", error.message)
            return None
        if result is not None:
            self._verified[candidate.digest] = (time.monotonic(), result)
        return result

    def _verify_now(self, candidate: Candidate, serves: bool) -> Verification | None:
        if self._policy is None:
            self._policy = self.workspace.gitops.read_policy()
        reports = verifications(self.workspace, candidate, self._policy, serves=serves)
        if any(report.outage for report in reports):
            return None
        failures = tuple(f"{f.rule}: {f.message}" for r in reports for f in r.failures)
        if not failures:
            # Signed is not there: a garbage collector may have taken a layer.
            images = (candidate.model, candidate.runtime)
            lacking = [
                blob for image in images for blob in missing_blobs(self.workspace.store, image)
            ]
            failures = tuple(f"image: {blob} is not in the store" for blob in lacking)
        return Verification(candidate=candidate.digest, ok=not failures, failures=failures)

    def _last_entry(self, judge: StepJudge) -> float:
        """Opens the step's trace and replays it; the time of its newest entry, or of the step's beginning."""
        state = self.state
        layout, of_step = self.workspace.layout, (state.model, state.environment, state.began)
        self._trace = StepTrace(layout.trace(*of_step), layout.looks(*of_step))
        self._trace.judged_by(judge.config, layout.judge_config(*of_step))
        newest = self._trace.replay(judge)
        self._conclude(judge.decided())
        self._began = parse_time(state.since or rfc3339(datetime.now(UTC))).timestamp()
        return newest if newest is not None else self._began

    def _scrape(self, judge: StepJudge, status: ClusterStatus | None) -> None:
        stable = self.state.stable
        if status is None or stable is None:
            return
        # After promotion the new version is stable, and what is compared with it is the old one.
        new = stable if baking(self.state) else stable.other
        compared = new.other
        if self._canary and self.state.fresh_baseline:
            compared = Slot.BASELINE
        tracks: dict[str, Track] = {compared.value: "baseline", new.value: "canary"}
        try:
            targets = self.cluster.scrape_targets(self.state.model)
        except LockgateError as error:
            logger.warning("no metrics: %s", error.message)
            return
        now = time.time()
        if self.workspace.settings.prometheus_url is None:
            records = metrics.scrape(targets, tracks, time=now)
            self._heard = {}
        else:
            records = stored_scrapes(
                self.workspace.settings, self.state, targets, tracks, status,
                newest=self._trace.newest, since=self._began, now=now,
            )  # fmt: skip
        probes = self._probed(tracks, now)
        self._trace.append([*records, *probes])
        for record in (*records, *probes):
            judge.observe(record)
        self._trace.keep(judge)
        report = judge.look(time.time())
        needed: set[Track] = {"canary"} if baking(self.state) else {"baseline", "canary"}
        self._heard |= {record.track: record.time for record in records if record.up}
        told = needed <= self._heard.keys()
        dead = any(not record.up for record in records)
        # What the gateway says of a server whose own metrics are away is not enough; that a server is dead is no want of metrics.
        if told and (dead or report is None or report.verdict is not Verdict.METRICS_OUTAGE):
            self._seen = max(self._seen, min(self._heard[track] for track in needed))
        if report is not None:
            self._trace.said(report)
        self._conclude(judge.decided() or report)

    def _probed(self, tracks: Mapping[str, Track], now: float) -> list[Scrape]:
        """What the quality probe has come to, where the spec asks for one. A driver that takes one look only asks nothing."""
        spec = self.state.canary
        if spec is None or spec.probes is None or self.state.phase is not Phase.CANARY:
            return []
        if self._prober is None:
            names = {
                slot: occupant.candidate.serving.served_model_name
                for slot in tracks
                if (occupant := self.state.occupant(Slot(slot))) is not None
            }
            try:
                url = self.cluster.gateway_url(self.state.model)
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
        self._verdict = JudgeVerdict(
            verdict=report.verdict.value,
            report=Digest.of_json(report.to_data()),
            summary="; ".join(report.reasons[:3]) or report.verdict.value,
            at=rfc3339(datetime.fromtimestamp(at, UTC)),
        )

    def _by_header_only(self) -> bool:
        """A step that waits for no verdict."""
        spec, step = self.state.canary, self.state.step
        return spec is not None and step is not None and spec.steps[step].traffic == "header"

    def _verdict_is(self, name: str) -> bool:
        return self._verdict is not None and self._verdict.verdict == name
