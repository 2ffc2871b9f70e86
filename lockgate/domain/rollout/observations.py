"""What a driver of a rollout has seen, or what a person asks for.

An observation is data: it can be written down, sent twice or come late. A `Look` names the generation it was made of, and
a person's request the release it means, so that neither can act on a state it does not know.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lockgate.domain.base import Frozen
from lockgate.domain.digests import Digest
from lockgate.domain.release_state import Slot
from lockgate.domain.spec import Seconds


class SlotReadiness(Frozen):
    """What runs in one slot, as the cluster reports it."""

    candidate: Digest
    """The candidate that really runs there. Another one than Git names counts as not ready."""
    ready: bool
    """At least one replica takes requests."""
    sized: bool
    """As many replicas take requests as are wanted, by Git or by an autoscaler: what a raise needs."""
    enough: Annotated[bool | None, Field(exclude_if=lambda value: value is None)] = None
    """As many replicas take requests as Git names: what a rollback needs, since an autoscaler wants more just when a bad
    canary costs most. None where it was not told apart: `sized` stands for it."""
    restarts: Annotated[int, Field(ge=0)] = 0
    """Restarts of the worst replica since the candidate was put into the slot."""
    unready_seconds: Seconds = 0
    """How long the slot has not been ready; 0 while it is."""
    refusal: str | None = None
    """Why the agent or the cluster's admission refuses to run it. Final: not for a pull that will be tried again."""

    def fit(self, candidate: Digest) -> bool:
        """Whether `candidate` itself stands here, ready and fully sized."""
        return self.serves(candidate) and self.sized

    def carries(self, candidate: Digest) -> bool:
        """Whether `candidate` can be sent all traffic that Git may send it, though an autoscaler may want more of it."""
        enough = self.sized if self.enough is None else self.enough
        return self.serves(candidate) and enough

    def serves(self, candidate: Digest) -> bool:
        """Whether `candidate` itself stands here and takes requests, on however many replicas."""
        return self.candidate == candidate and self.ready and self.refusal is None


class Successor(SlotReadiness):
    """What takes everything once no share is asked for, where an engine has one object for both versions."""

    generation: int
    """Of the state whose commit put it there."""


class SmokeResult(Frozen):
    """A generation asked of the candidate in its slot, before any traffic."""

    candidate: Digest
    ok: bool
    """False is final: the server answered, and wrongly. A server that cannot be reached yet is no result at all."""
    detail: str = ""


class Verification(Frozen):
    """Signature, identity and attestations of the candidate, verified just now."""

    candidate: Digest
    ok: bool
    failures: tuple[str, ...] = ()
    """Which rules failed. A registry that cannot be reached is no result at all."""


class JudgeVerdict(Frozen):
    """The judge's word on the present step, or on the bake."""

    verdict: Literal["pass", "fail", "insufficient_data", "metrics_outage"]
    report: Digest
    """Digest of the whole report, which is committed beside the state."""
    summary: str
    at: str
    """RFC 3339 time of the decision."""


class Approval(Frozen):
    """A release manager's yes, checked by whoever made the observation: signature, role, and that it is not self-given."""

    kind: Literal["approval"] = "approval"
    release: str
    candidate: Digest
    step: Annotated[int, Field(ge=0)]
    """Index of the step that it allows to begin."""
    by: str
    """Whoever approved; several names are separated by commas."""
    expires: str | None = None
    """RFC 3339 time."""
    request: Digest | None = None
    """Of the frozen request that was signed, for the commit."""


class Rejection(Frozen):
    """A release manager's no: it ends the release."""

    kind: Literal["rejection"] = "rejection"
    release: str
    candidate: Digest
    by: str
    reason: str


class Promotion(Frozen):
    """A person lets a held or waiting release go on to a step, or to promotion, without the judge's pass. What a raise has
    to prove it proves all the same."""

    kind: Literal["promotion"] = "promotion"
    release: str
    candidate: Digest
    step: Annotated[int, Field(ge=0)]
    """Index of the step that begins; the number of steps for promotion."""
    by: str
    reason: str


class Look(Frozen):
    """Everything seen at one moment. What is None was not seen, and stands for nothing."""

    kind: Literal["look"] = "look"
    generation: int
    """Of the state that was looked at. The look says nothing about any other."""
    a: SlotReadiness | None = None
    b: SlotReadiness | None = None
    baseline: SlotReadiness | None = None
    """The fresh baseline, where the canary has one."""
    successor: Successor | None = None
    """The newest version of the one object, once it is ready; where each version has an object of its own, none."""
    smoke: SmokeResult | None = None
    verification: Verification | None = None
    """Of the candidate under test."""
    fallback_verification: Verification | None = None
    """Of the stable candidate: its image is there and signed, so that its servers could be started again. Needed before a
    raise, never for a rollback; the age of its evidence does not matter."""
    verdict: JudgeVerdict | None = None
    decision: Annotated[Approval | Rejection | Promotion, Field(discriminator="kind")] | None = None
    blind_seconds: Seconds = 0
    """How long the metrics of either track or the state of either slot could not be read, this look included; after a
    restart of the driver, since the last entry in the trace."""
    live_generation: int | None = None
    """Newest generation whose route the gateway is seen to carry out."""
    shares: dict[str, int] | None = None
    """Percent of the traffic by slot, as the gateway is seen to carry it out, of whatever generation."""

    def slot(self, slot: Slot) -> SlotReadiness | None:
        if slot is Slot.BASELINE:
            return self.baseline
        return self.a if slot is Slot.A else self.b


class HoldRequested(Frozen):
    """A person stops a release where it is."""

    kind: Literal["hold"] = "hold"
    release: str
    by: str
    reason: str


class HoldLifted(Frozen):
    """A person lets a held release go on."""

    kind: Literal["lift"] = "lift"
    release: str
    by: str
    reason: str = ""
    generation: Annotated[int | None, Field(exclude_if=lambda value: value is None)] = None
    """Of the held state that the person has seen: a hold that somebody has set since is not lifted with it. None: of any."""


class AbortRequested(Frozen):
    """A person ends a release: traffic goes (back) to the stable slot, or, during the bake, to the old version."""

    kind: Literal["abort"] = "abort"
    release: str
    by: str
    reason: str
    deny: bool = False
    """Also denylist the candidate."""
    a: SlotReadiness | None = None
    b: SlotReadiness | None = None
    """The slots as far as they can be seen. A person may abort blindly, but not onto a slot that is seen to be dead."""


class DenialLifted(Frozen):
    """A named person lets a denylisted candidate be released again."""

    kind: Literal["lift_denial"] = "lift_denial"
    candidate: Digest
    by: str
    reason: str
    request: Digest | None = None
    """Of the frozen request that was signed, for the commit."""


Observation = Annotated[
    Look | HoldRequested | HoldLifted | AbortRequested | DenialLifted, Field(discriminator="kind")
]
"""`pydantic.TypeAdapter(Observation)` reads one back from JSON."""
