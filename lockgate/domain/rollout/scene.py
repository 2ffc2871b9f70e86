"""Who is who in a state: the candidate under test, where the traffic would fall back to, and how long it has taken."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from lockgate.domain.release_state import Occupant, Phase, ReleaseState, Slot, VerdictRef
from lockgate.domain.rollout.observations import JudgeVerdict, SlotReadiness
from lockgate.domain.rollout.transitions import parse_time, rfc3339
from lockgate.domain.spec import CanarySpec, Strategy


@dataclass(frozen=True)
class Scene:
    """A state with a release under way, what is seen of its slots, and the time.

    Before promotion the subject stands in the free slot and the fallback is stable; during the bake the subject is stable
    itself and the fallback is the old version in the other slot.
    """

    state: ReleaseState
    now: datetime
    a: SlotReadiness | None
    b: SlotReadiness | None
    blind_seconds: float = 0

    @property
    def baking(self) -> bool:
        return Phase.BAKING in (self.state.phase, self.state.held_from)

    @property
    def subject_slot(self) -> Slot:
        stable = self.state.stable
        return stable if self.baking and stable is not None else self.state.free_slot

    @property
    def subject(self) -> Occupant:
        occupant = self.state.occupant(self.subject_slot)
        if occupant is None:
            raise ValueError(f"phase {self.state.phase} with an empty slot {self.subject_slot}")
        return occupant

    @property
    def fallback_slot(self) -> Slot | None:
        """None before the first release takes traffic, or once the old version is gone."""
        slot = self.subject_slot.other
        return slot if self.state.occupant(slot) is not None else None

    @property
    def capacity(self) -> int | None:
        """Replicas that stable has when nothing is under way; None before the first release takes traffic."""
        stable = self.state.occupant(self.state.stable) if self.state.stable is not None else None
        return stable.candidate.serving.replicas if stable is not None else None

    @property
    def displaced(self) -> bool:
        """Whether the old version was stopped to make room for the candidate: falling back deploys it anew."""
        return self.spec.strategy is Strategy.RECREATE and (
            self.state.lent > 0 or (self.baking and self.fallback_slot is not None)
        )

    @property
    def had_traffic(self) -> bool:
        """Whether requests may be in the candidate's slot. One without a step never had any."""
        return self.baking or self.state.step is not None

    @property
    def moves_traffic(self) -> bool:
        """Whether ending this release sends users elsewhere than before: not where the candidate got copies, or was asked for
        by header only."""
        return self.baking or self.state.weight > 0

    @property
    def spec(self) -> CanarySpec:
        if self.state.canary is None:
            raise ValueError(f"phase {self.state.phase} without a canary spec")
        return self.state.canary

    @property
    def subject_readiness(self) -> SlotReadiness | None:
        """None too where another candidate is seen there than Git names: the commit is not applied yet."""
        seen = self._seen(self.subject_slot)
        return (
            seen if seen is not None and seen.candidate == self.subject.candidate.digest else None
        )

    def _seen(self, slot: Slot) -> SlotReadiness | None:
        return self.a if slot is Slot.A else self.b

    def fallback_fit(self, *, for_raise: bool = False) -> bool | None:
        """Whether the fallback can take all traffic; None where it cannot be seen. Without one: there is nothing to fall
        back to, False.

        `for_raise`: whether it is in the full size that an autoscaler may want of it, too. A rollback does not wait for
        that: the candidate would keep its traffic for as long as the load is high.
        """
        slot = self.fallback_slot
        occupant = self.state.occupant(slot) if slot is not None else None
        if slot is None or occupant is None:
            return False
        seen, digest = self._seen(slot), occupant.candidate.digest
        if seen is None:
            return None
        return seen.fit(digest) if for_raise else seen.carries(digest)

    def fallback_gone(self) -> bool:
        """Whether the fallback is seen to answer nobody: not merely with a replica less than it should have."""
        slot = self.fallback_slot
        occupant = self.state.occupant(slot) if slot is not None else None
        seen = self._seen(slot) if slot is not None else None
        if occupant is None:
            return True
        return seen is not None and not seen.serves(occupant.candidate.digest)

    def elapsed(self) -> float:
        """Seconds since the step began. A clock that ran backwards counts as no time at all."""
        return self._since(self.state.since)

    def idle_for(self) -> float:
        """Seconds since the slot without traffic lost the last of it."""
        return self._since(self.state.control_ended or self.state.since)

    def idle_at(self, seconds: float) -> str:
        """The moment at which `idle_for` reaches `seconds`."""
        begin = self.state.control_ended or self.state.since
        return rfc3339((parse_time(begin) if begin else self.now) + timedelta(seconds=seconds))

    def budget_used(self) -> float:
        """Seconds of the step's time budget that are spent: a lifted hold gives it anew."""
        return min(self.elapsed(), self._since(self.state.resumed or self.state.since))

    def _since(self, moment: str | None) -> float:
        if moment is None:
            return 0.0
        return max(0.0, (self.now - parse_time(moment)).total_seconds())

    def at(self, seconds: float, *, budget: bool = True) -> str:
        """The moment at which `budget_used` (or `elapsed`) reaches `seconds`."""
        begin = self.state.resumed if budget else None
        begin = begin or self.state.since
        return rfc3339((parse_time(begin) if begin else self.now) + timedelta(seconds=seconds))

    def verdict_ref(self, verdict: JudgeVerdict) -> VerdictRef:
        """The reference that Git keeps of a verdict on the present step (on the bake: one past the last step)."""
        step, weight = self.state.step, self.state.weight
        if self.baking or step is None:
            step, weight = len(self.spec.steps), 100
        return VerdictRef(
            step=step,
            weight=weight,
            verdict=verdict.verdict,
            report=verdict.report,
            at=verdict.at,
            summary=verdict.summary,
        )
