"""The eyes of a driver: slots, smoke generation, signatures and metrics of one step, put together as looks."""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

from lockgate.adapters.oci.pulling import missing_blobs
from lockgate.domain.candidates import Candidate
from lockgate.domain.cluster import PodStatus
from lockgate.domain.digests import Digest
from lockgate.domain.policy import Policy
from lockgate.domain.release_state import Occupant, Phase, ReleaseState, Slot
from lockgate.domain.rollout import (
    Approval,
    Look,
    Rejection,
    SlotReadiness,
    SmokeResult,
    Successor,
    Verification,
)
from lockgate.errors import LockgateError, ServingError
from serving.local.status import ClusterStatus, ModelStatus, SlotStatus
from serving.smoke import DegenerateAnswer, smoke_generation
from tasks.approving import decision_on
from tasks.judging import baking
from tasks.step_metrics import StepMetrics
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

    def __init__(
        self,
        workspace: Workspace,
        state: ReleaseState,
        *,
        proving: bool = False,
        judging: bool = True,
    ) -> None:
        """`proving`: look for what a raise has to prove although nobody but a person would raise. Without `judging` no metrics
        are looked at, and nothing of the workspace is read or written."""
        self.workspace = workspace
        self._proving = proving
        self.state = state
        self.cluster = workspace.cluster(state.environment)
        self._canary = state.step is not None
        self._metrics = StepMetrics(workspace, self.cluster, state, judging=judging)
        self._policy: Policy | None = None
        self._smoke: SmokeResult | None = None
        self._verified: dict[Digest, tuple[float, Verification]] = {}
        self._unready: dict[Slot, float] = {}
        self._asked_remote = time.monotonic()

    def look(self) -> Look:
        """Everything that can be seen now. What cannot be seen is None; nothing here raises for what is merely away."""
        # Taken before this look: a gap that has just ended, e.g. while no driver lived, was a gap all the same.
        blind = self._metrics.unseen_seconds()
        status = self._status()
        slots = self._slots(status)
        unseen = self._metrics.look(status)
        if unseen is not None:
            # But not where somebody else has stored what this driver was not there to see.
            blind = unseen
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
            verdict=self._metrics.verdict,
            decision=decision,
            blind_seconds=blind,
            live_generation=slots.live_generation,
            shares=slots.shares,
        )

    def rest(self) -> None:
        """Until the next look."""
        spec = self.state.canary
        time.sleep(
            spec.scrape_seconds if self._metrics.judged and spec is not None else REST_SECONDS
        )

    def keep_report(self) -> None:
        """Store the report that the present verdict names: a transition is about to rest on it."""
        self._metrics.keep_report()

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
            status = self.cluster.status()
        except LockgateError as error:
            logger.warning("the cluster cannot be observed: %s", error.message)
            return None
        why = status.unreadable.get(self.state.model)
        if why is not None:
            logger.warning("the cluster cannot be observed: %s", why)
        return status if why is None else None

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
            restarts=max((pod.restarts for pod in _own(seen)), default=seen.restarts),
            unready_seconds=_unready_seconds(seen, since) if since is not None else 0.0,
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
        # A predecessor may still be on its way out of the slot: its answers are its own.
        there = slot is not None and slot.candidate == str(digest)
        urls = (
            [p.url for p in _own(slot) if p.url is not None] if slot is not None and there else []
        )
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

    def _by_header_only(self) -> bool:
        """A step that waits for no verdict."""
        spec, step = self.state.canary, self.state.step
        return spec is not None and step is not None and spec.steps[step].traffic == "header"

    def _verdict_is(self, name: str) -> bool:
        verdict = self._metrics.verdict
        return verdict is not None and verdict.verdict == name


def _own(seen: SlotStatus) -> list[PodStatus]:
    """The replicas that run what the slot is to run."""
    return [p for p in seen.pods if p.candidate == seen.candidate and p.state != "terminating"]


def _unready_seconds(seen: SlotStatus, since: float) -> float:
    """How long a slot has had no ready replica: since this watcher has seen it so (`since`, monotonic clock), or for longer where
    its replicas say so. A watcher may last for less time than a slot is given."""
    watched = time.monotonic() - since
    own = _own(seen)
    if not own or any(pod.ready for pod in own):
        return watched
    return max(watched, time.time() - max(pod.since for pod in own))
