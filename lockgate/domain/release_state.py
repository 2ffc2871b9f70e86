"""The state of one model in one environment, as `models/<model>/<env>/release.yaml` in the GitOps repo holds it.

Slots are places (`a`, `b`); stable and canary are roles, and live only here and in the route's weights. So promotion and
rollback move traffic and restart nothing.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lockgate.domain.base import Frozen
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.spec import CanarySpec, Strategy


class Slot(StrEnum):
    A = "a"
    B = "b"
    BASELINE = "baseline"
    """Not a place for releases: a second, fresh copy of the stable candidate, there for a canary that asks for it."""

    @property
    def other(self) -> Slot:
        """The other one of `a` and `b`."""
        if self is Slot.BASELINE:
            raise ValueError("the fresh baseline has no counterpart")
        return Slot.B if self is Slot.A else Slot.A


class Phase(StrEnum):
    EMPTY = "empty"
    """Nothing was ever released."""
    DEPLOYING = "deploying"
    """A candidate stands in the free slot at weight 0 (a first release: likewise) and is not yet proved ready."""
    CANARY = "canary"
    """The candidate takes `weight` percent and is judged."""
    AWAITING_APPROVAL = "awaiting_approval"
    """The next raise needs a release manager; the weight stays."""
    HELD = "held"
    """A person or a doubt stopped the release; the weight stays until somebody lifts or aborts it."""
    BAKING = "baking"
    """Promoted and still judged; the old version stays warm in the other slot, with a few percent as control or none."""
    DRAINING = "draining"
    """Rolled back or aborted: the candidate has weight 0 and stays in its slot until no request is left in it."""
    STABLE = "stable"
    """One version, nothing under way."""


TERMINAL_PHASES = frozenset({Phase.EMPTY, Phase.STABLE})


class Restoring(StrEnum):
    """How far stable's version is put back into the one object that an engine has for both."""

    DUE = "due"
    """The object asks for the candidate: should that one leave, stable's version has to be put back first."""
    UNDER_WAY = "under_way"
    """The object asks for stable's version again, which is waited for; the candidate's servers are not gone yet."""


class Occupant(Frozen):
    """What stands in a slot."""

    candidate: Candidate
    release: str
    """Release id, e.g. `smollm2-20261123-1f2e3d4c`; the same for every transition of one release."""
    evidence: Digest
    """Digest of the signed gate attestation's predicate."""
    requested_by: str | None = None
    """Who started the release: never one of those who approve it."""


class Denied(Frozen):
    candidate: Digest
    release: str
    reason: str
    verdict: Digest | None = None
    at: str
    """RFC 3339 time of the transition."""


class VerdictRef(Frozen):
    """A verdict that led to a transition. The whole report lies beside the state, by digest."""

    step: int
    weight: int
    verdict: Literal["pass", "fail", "insufficient_data", "metrics_outage"]
    report: Digest
    at: str
    summary: str


class Outcome(StrEnum):
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    ABORTED = "aborted"
    """Ended without blame: an outage, insufficient data, or a person's word. Not denylisted."""


class LastRelease(Frozen):
    release: str
    candidate: Digest
    outcome: Outcome
    reason: str
    at: str


class Leaving(Frozen):
    """Why a candidate leaves that holds more replicas than stable can do without: it gives them back one by one, and the
    release ends, with these words, when it has one left."""

    reason: str
    deny: bool = False
    verdict: VerdictRef | None = None
    requested_by: str | None = None


class ReleaseState(Frozen):
    """Everything a flow needs to go on from Git alone."""

    apiVersion: Literal["lockgate.dev/v1"] = "lockgate.dev/v1"
    kind: Literal["ReleaseState"] = "ReleaseState"
    model: str
    environment: str
    generation: int = Field(default=0, ge=0)
    """Grows by one with every transition; a commit that does not follow its predecessor is refused."""
    phase: Phase = Phase.EMPTY
    a: Occupant | None = None
    b: Occupant | None = None
    stable: Slot | None = None
    canary: CanarySpec | None = None
    """How the release under way (or the last one) is raised and judged; frozen when it started."""
    step: int | None = None
    """Index into `canary.steps` while in canary, awaiting approval or held."""
    weight: int = Field(default=0, ge=0, le=100)
    """Percent of the traffic on the slot that is not stable."""
    since: str | None = None
    """RFC 3339 time at which this phase and step began: the judge's trace begins here. Waiting for an approval, a hold and
    its lifting belong to the step they happen in and leave it unchanged."""
    began: int = Field(default=0, ge=0)
    """The generation of that transition: names the judge's trace of the step, also after a hold."""
    resumed: str | None = None
    """RFC 3339 time at which a hold of this step was lifted: its time budget starts anew, its trace does not."""
    asked_at: str | None = None
    """RFC 3339 time at which the next raise began to wait for an approval; None where nothing waits."""
    held_reason: str | None = None
    held_from: Phase | None = None
    """The phase a held release goes back to when the hold is lifted."""
    control_ended: str | None = None
    """RFC 3339 time at which the control's last traffic was taken away, during the bake; None while it has any, or never had."""
    lent: int = Field(default=0, ge=0)
    """Strategy `borrow`: how many of stable's replicas the other slot has. `recreate`: 1 while the other slot has the place
    that stable had, else 0."""
    fresh_baseline: bool = False
    """Whether slot `baseline` stands: from the candidate's deployment until its last requests after the canary are out."""
    restoring: Annotated[Restoring | None, Field(exclude_if=lambda value: value is None)] = None
    """None where each version has an object of its own, which just goes with it, and where nothing is under way."""
    leaving: Leaving | None = None
    """Strategy `borrow`: set while a candidate gives its replicas back."""
    denylist: tuple[Denied, ...] = ()
    verdicts: tuple[VerdictRef, ...] = ()
    """Of the release under way, or of the last one."""
    last: LastRelease | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ReleaseState:
        if self.stable is not None and self.occupant(self.stable) is None:
            raise ValueError("the stable slot is empty")
        if self.weight and (self.stable is None or self.occupant(self.stable.other) is None):
            raise ValueError("weight on an empty slot")
        held = self.phase is Phase.HELD
        if held != (self.held_reason is not None) or held != (self.held_from is not None):
            raise ValueError(
                "a hold needs its reason and the phase it interrupts, nothing else does"
            )
        self._check_phase(self.held_from or self.phase)
        self._check_lent()
        if self.fresh_baseline and (self.stable is None or self.phase in TERMINAL_PHASES):
            raise ValueError("a fresh baseline without a release under way")
        if self.restoring is not None and (self.stable is None or self.phase in TERMINAL_PHASES):
            raise ValueError("nothing is there to be restored")
        if self.restoring is Restoring.UNDER_WAY and self.phase is not Phase.DRAINING:
            raise ValueError(f"stable's version is restored in phase {self.phase}")
        for slot, weight in self.weights().items():
            occupant = self.occupant(slot)
            if weight and occupant is not None and self.is_denied(occupant.candidate.digest):
                raise ValueError(f"weight {weight} on a denylisted candidate in slot {slot}")
        return self

    def _check_phase(self, phase: Phase) -> None:
        """Which slots are occupied, and which weight they may have, follows from the phase."""
        free = self.occupant(self.free_slot)
        if phase is Phase.HELD:
            raise ValueError("a hold cannot interrupt a hold")
        if phase in TERMINAL_PHASES:
            if free is not None or (self.stable is None) != (phase is Phase.EMPTY):
                raise ValueError(f"the slots do not fit phase {phase}")
        elif self.canary is None or (free is None and phase is not Phase.BAKING):
            raise ValueError(
                f"phase {phase} needs a candidate in slot {self.free_slot} and a canary spec"
            )
        if phase in (Phase.CANARY, Phase.BAKING, Phase.DRAINING) and self.stable is None:
            raise ValueError(f"phase {phase} without a stable slot")
        if phase is Phase.CANARY and self.step is None:
            raise ValueError("a canary without a step")
        if self.step is None:
            # The bake's control; a state from before there were controls has weight 0.
            control = self.canary.control if self.canary is not None else 0
            fits = self.weight == control or self.leaving is not None
            if self.weight and (phase is not Phase.BAKING or not fits):
                raise ValueError(f"weight {self.weight} in phase {phase} without a step")
            return
        if phase not in (Phase.CANARY, Phase.AWAITING_APPROVAL) or self.canary is None:
            raise ValueError(f"a step in phase {phase}")
        if self.step >= len(self.canary.steps):
            raise ValueError(f"there is no step {self.step}")
        if self.weight != self.canary.steps[self.step].weight and not self.handing_over:
            raise ValueError(f"weight {self.weight} is not that of step {self.step}")

    def _check_lent(self) -> None:
        """How many replicas may stand in the slot that is not stable."""
        stable = self.occupant(self.stable) if self.stable is not None else None
        other = self.occupant(self.free_slot) if stable is not None else None
        low, high = 0, 0
        if stable is not None and other is not None and self.canary is not None:
            if self.canary.strategy is Strategy.RECREATE:
                high = 1
            elif self.canary.strategy is Strategy.BORROW:
                low, high = 1, stable.candidate.serving.replicas - 1
        if not low <= self.lent <= high:
            raise ValueError(f"{self.lent} replicas lent, not {low} to {high}")
        if self.leaving is not None and not high > 1:
            raise ValueError("nothing is to be given back")

    def occupant(self, slot: Slot) -> Occupant | None:
        """What stands there. In `baseline` it is never a release of its own, but what is (or before promotion was) stable."""
        if slot is Slot.BASELINE:
            if not self.fresh_baseline or self.stable is None:
                return None
            return self.occupant(self.stable.other if self.baking else self.stable)
        return self.a if slot is Slot.A else self.b

    @property
    def baking(self) -> bool:
        return Phase.BAKING in (self.phase, self.held_from)

    @property
    def handing_over(self) -> bool:
        """Whether a candidate that borrowed a replica gets the others one by one, or gives them back."""
        return self.leaving is not None or (
            self.canary is not None
            and self.canary.strategy is Strategy.BORROW
            and self.step is not None
            and self.lent > 1
        )

    def replicas(self, slot: Slot) -> int:
        """How many replicas the slot has in this state: what manifests say, what its full size is, what loads are compared by."""
        if slot is Slot.BASELINE:
            if not self.fresh_baseline or self.stable is None:
                return 0
            # The canary's size; after promotion the canary is stable.
            return self.replicas(self.stable if self.baking else self.free_slot)
        occupant = self.occupant(slot)
        if occupant is None:
            return 0
        whole = occupant.candidate.serving.replicas
        strategy = self.canary.strategy if self.canary is not None else Strategy.SURGE
        if self.stable is None or strategy is Strategy.SURGE or self.phase in TERMINAL_PHASES:
            return whole
        if strategy is Strategy.RECREATE:
            return whole if (slot is self.stable) != bool(self.lent) else 0
        return whole - self.lent if slot is self.stable else self.lent

    @property
    def free_slot(self) -> Slot:
        """Where the next candidate goes."""
        return Slot.A if self.stable is None else self.stable.other

    @property
    def canary_slot(self) -> Slot | None:
        """The slot of a candidate on its way to promotion (deploying, canary, awaiting approval, held), if any."""
        phase = self.held_from or self.phase
        if phase in (Phase.EMPTY, Phase.STABLE, Phase.BAKING, Phase.DRAINING):
            return None
        slot = self.free_slot
        return slot if self.occupant(slot) is not None else None

    @property
    def release_under_way(self) -> str | None:
        """Id of the release that somebody has to drive on, from the first commit to the emptied slot."""
        if self.phase in TERMINAL_PHASES:
            return None
        baking = Phase.BAKING in (self.phase, self.held_from)
        slot = self.stable if baking else self.free_slot
        occupant = self.occupant(slot) if slot is not None else None
        return occupant.release if occupant is not None else None

    def weights(self) -> dict[Slot, int]:
        """Traffic weight of each occupied slot; they sum to 100, or all are 0 before the first release is ready."""
        if self.stable is None:
            return {s: 0 for s in Slot if self.occupant(s) is not None}
        weights = {self.stable: 100 - self.weight}
        if self.occupant(self.stable.other) is not None:
            weights[self.stable.other] = self.weight
        if self.fresh_baseline:
            # As much as the canary, and only while that is one.
            weights[Slot.BASELINE] = self.weight if self.step is not None else 0
            weights[self.stable] -= weights[Slot.BASELINE]
        return weights

    def mirrored(self) -> tuple[Slot, int] | None:
        """The slot that gets copies of the requests, and their percentage; None outside of a mirror step."""
        slot = self.canary_slot
        if slot is None or self.step is None or self.canary is None:
            return None
        step = self.canary.steps[self.step]
        return (slot, step.mirror_percent) if step.traffic == "mirror" else None

    def is_denied(self, candidate: Digest) -> Denied | None:
        return next((d for d in self.denylist if d.candidate == candidate), None)
