"""Candidates, looks and a clock for the rollout's tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.images import ImageRef
from lockgate.domain.release_state import Occupant, Phase, ReleaseState, Slot
from lockgate.domain.rollout import (
    Approval,
    JudgeVerdict,
    Look,
    Observation,
    SlotReadiness,
    SmokeResult,
    Successor,
    Transition,
    Verification,
    Wait,
    advance,
    start,
)
from lockgate.domain.rollout.transitions import rfc3339
from lockgate.domain.spec import CanarySpec, CanaryStep, ServingSpec

BEGIN = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
REPORT = Digest.of_bytes(b"report")
SPEC = CanarySpec(
    steps=(
        CanaryStep(weight=5, judge_latency=False, min_seconds=30, max_seconds=300),
        CanaryStep(weight=50, min_seconds=60, max_seconds=600),
    ),
    outage_budget_seconds=120,
    ready_seconds=900,
    bake_seconds=300,
)
SPEC_WITH_APPROVAL = SPEC.model_copy(
    update={"steps": (SPEC.steps[0], SPEC.steps[1].model_copy(update={"approval": True}))}
)


REPLICAS = 4


def candidate(name: str) -> Candidate:
    return Candidate(
        model=ImageRef(repository="example.com/models/m", digest=Digest.of_bytes(name.encode())),
        runtime=ImageRef(repository="example.com/runtimes/vllm", digest=Digest.of_bytes(b"vllm")),
        serving=ServingSpec(served_model_name="m", replicas=REPLICAS),
    )


def occupant(name: str) -> Occupant:
    """Release `r-<name>` of candidate `<name>`."""
    return Occupant(candidate=candidate(name), release=f"r-{name}", evidence=Digest.of_bytes(b"e"))


def fit(who: Occupant | None, **changes: Any) -> SlotReadiness | None:
    if who is None:
        return None
    whole = {"candidate": who.candidate.digest, "ready": True, "sized": True}
    return SlotReadiness.model_validate({**whole, **changes})


def subject(state: ReleaseState) -> Occupant | None:
    """The occupant under test, as a driver finds it."""
    slot = state.canary_slot or state.stable
    return state.occupant(slot) if slot is not None else None


def look(state: ReleaseState, **changes: Any) -> Look:
    """Everything seen, and everything well; no verdict."""
    data: dict[str, Any] = {
        "generation": state.generation,
        "a": fit(state.a),
        "b": fit(state.b),
        "live_generation": state.generation,
        "baseline": fit(state.occupant(Slot.BASELINE)),
        "shares": {slot.value: weight for slot, weight in state.weights().items()},
    }
    under_test = subject(state)
    if under_test is not None:
        digest = under_test.candidate.digest
        data["smoke"] = SmokeResult(candidate=digest, ok=True)
        data["verification"] = Verification(candidate=digest, ok=True)
    stable = state.occupant(state.stable) if state.stable is not None else None
    if stable is not None:
        fields = {**data[str(state.stable)].model_dump(), "generation": state.began}
        data["successor"] = Successor.model_validate(fields)
        data["fallback_verification"] = Verification(candidate=stable.candidate.digest, ok=True)
    return Look.model_validate({**data, **changes})


def verdict(word: str, at: datetime = BEGIN, summary: str = "said the judge") -> JudgeVerdict:
    return JudgeVerdict.model_validate(
        {"verdict": word, "report": REPORT, "summary": summary, "at": rfc3339(at)}
    )


def approval(state: ReleaseState, step: int, **changes: Any) -> Approval:
    under_test = subject(state)
    assert under_test is not None
    data = {
        "release": under_test.release,
        "candidate": under_test.candidate.digest,
        "step": step,
        "by": "mara@example.com",
    }
    return Approval.model_validate({**data, **changes})


class Rollout:
    """One model in one environment, driven by hand: every transition is applied, time moves only when told to."""

    def __init__(self, state: ReleaseState | None = None) -> None:
        self.state = state or ReleaseState(model="m", environment="prod")
        self.now = BEGIN
        self.transitions: list[Transition] = []

    def after(self, seconds: float) -> Rollout:
        self.now += timedelta(seconds=seconds)
        return self

    def start(
        self, name: str, spec: CanarySpec = SPEC, *, one_object: bool = False
    ) -> Transition | Wait:
        made = start(self.state, occupant(name), spec, self.now, one_object=one_object)
        return self._apply(made)

    def sees(self, **changes: Any) -> Transition | Wait:
        """A look at the present state, all well but for `changes`."""
        return self.observes(look(self.state, **changes))

    def hears(self, word: str) -> Transition | Wait:
        """A look with a verdict of this moment, all else well."""
        return self.sees(verdict=verdict(word, self.now))

    def observes(self, observation: Observation) -> Transition | Wait:
        return self._apply(advance(self.state, observation, self.now))

    def _apply(self, answer: Transition | Wait) -> Transition | Wait:
        if isinstance(answer, Transition):
            self.state = answer.state
            self.transitions.append(answer)
        return answer


def serving_one(name: str = "old") -> Rollout:
    """A model that serves its first release, from slot a."""
    rollout = Rollout()
    rollout.start(name)
    rollout.sees()
    assert rollout.state.phase is Phase.STABLE
    return rollout


def in_canary(spec: CanarySpec = SPEC, *, steps_passed: int = 0) -> Rollout:
    """`old` stable in slot a, `new` in slot b in its canary."""
    rollout = serving_one()
    rollout.start("new", spec)
    rollout.after(60).sees()
    for _ in range(steps_passed):
        rollout.after(60).hears("pass")
    return rollout


def in_bake() -> Rollout:
    """`new` just promoted, `old` warm in slot a."""
    rollout = in_canary(steps_passed=2)
    assert rollout.state.phase is Phase.BAKING
    return rollout
