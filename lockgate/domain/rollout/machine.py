"""`start` and `advance`: the only two ways a release state changes.

Both are pure. The same state and observation give the same answer, so a driver that died may be followed by another, and a
driver that is not sure whether its commit landed reads the state and asks again. Nothing here acts: the answer becomes a
commit, and the cluster follows Git.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from lockgate.domain.release_state import (
    Occupant,
    Phase,
    ReleaseState,
    Restoring,
)
from lockgate.domain.rollout.capacity import (
    impediment,
    lent_at_the_beginning,
)
from lockgate.domain.rollout.endings import RELEASE_CLEARED, end, end_if_in_danger, hold, leave
from lockgate.domain.rollout.finishing import bake, drain
from lockgate.domain.rollout.observations import (
    DenialLifted,
    Look,
    Observation,
    Promotion,
)
from lockgate.domain.rollout.raising import (
    approval_in,
    needs_approval,
    raise_weight,
    target_step,
    unproved,
)
from lockgate.domain.rollout.requests import lift_denial, obey
from lockgate.domain.rollout.scene import Scene
from lockgate.domain.rollout.transitions import (
    Transition,
    TransitionKind,
    Wait,
    rfc3339,
    transition,
)
from lockgate.domain.spec import CanarySpec
from lockgate.errors import Refused


def start(
    state: ReleaseState,
    occupant: Occupant,
    canary: CanarySpec,
    now: datetime,
    *,
    one_object: bool = False,
) -> Transition | Wait:
    """Put a candidate into the free slot at weight 0. `one_object`: its engine has one object for both versions.

    Waits (nothing to do) where this release is under way or has ended already, so that a repeated start changes nothing,
    and where the candidate is stable already. Another attempt at an ended release needs a release id of its own. Raises
    `Refused` where the candidate is denylisted, another release is under way, or the strategy does not fit.
    """
    digest = occupant.candidate.digest
    name = f"{state.model}/{state.environment}"
    if state.release_under_way == occupant.release:
        return Wait(reason=f"release {occupant.release} is under way: {state.phase}")
    if state.last is not None and state.last.release == occupant.release:
        return Wait(
            reason=f"release {occupant.release} has ended: {state.last.outcome}: {state.last.reason}",
            finished=True,
        )
    denied = state.is_denied(digest)
    if denied is not None:
        raise Refused(
            f"candidate {digest} is denylisted in {name} since {denied.at} by release {denied.release}: "
            f"{denied.reason}",
            hint="release another candidate, or let a named person lift the denial",
        )
    stable = state.occupant(state.stable) if state.stable is not None else None
    if stable is not None and stable.candidate.digest == digest:
        return Wait(reason=f"candidate {digest} is stable in {name} already", finished=True)
    if state.release_under_way is not None:
        raise Refused(
            f"release {state.release_under_way} is under way in {name}: {state.phase}",
            hint="wait until it has ended, or abort it",
        )
    why = impediment(state, occupant.candidate, canary)
    if why is not None:
        raise Refused(
            f"{name}: strategy {canary.strategy} is not possible: {why}",
            hint="change the steps, the replicas or the strategy (docs/concepts.md, Strategies)",
        )
    slot = state.free_slot
    changes: dict[str, Any] = {
        **RELEASE_CLEARED,
        slot.value: occupant,
        "lent": lent_at_the_beginning(state, canary),
        "fresh_baseline": canary.baseline == "fresh" and state.stable is not None,
        "restoring": Restoring.DUE if one_object and state.stable is not None else None,
        "phase": Phase.DEPLOYING,
        "canary": canary,
        "since": rfc3339(now),
        "began": state.generation + 1,
        "verdicts": (),
    }
    return transition(
        TransitionKind.DEPLOY,
        state,
        changes,
        occupant,
        f"deploy {occupant.release} to slot {slot} at weight 0",
        requested_by=occupant.requested_by,
    )


def advance(state: ReleaseState, observation: Observation, now: datetime) -> Transition | Wait:
    """What follows from one observation. Never raises for an observation that is late, doubled or about something else:
    those wait (`stale` or `finished`)."""
    if isinstance(observation, DenialLifted):
        return lift_denial(state, observation)
    if not isinstance(observation, Look):
        return obey(state, observation, now)
    if observation.generation != state.generation:
        return Wait(
            reason=f"the look is of generation {observation.generation}, the state is at {state.generation}",
            stale=True,
        )
    if state.release_under_way is None:
        return Wait(reason="nothing is under way", finished=True)
    scene = Scene(state, now, observation.a, observation.b, observation.blind_seconds)
    if state.leaving is not None:
        return leave(scene, state.leaving)
    return _LOOKED[state.phase](scene, observation)


def _deploying(scene: Scene, look: Look) -> Transition | Wait:
    ended = end_if_in_danger(scene, look)
    if ended is not None:
        return ended
    missing = unproved(scene, look)
    if missing is None:
        return raise_weight(scene, look, None)
    if scene.budget_used() > scene.spec.ready_seconds:
        return end(scene, f"not ready within {scene.spec.ready_seconds:.0f} s: {missing}")
    return Wait(reason=missing, until=scene.at(scene.spec.ready_seconds))


def _canary(scene: Scene, look: Look) -> Transition | Wait:
    ended = end_if_in_danger(scene, look)
    if ended is not None:
        return ended
    step = scene.spec.steps[scene.state.step or 0]
    verdict = look.verdict
    used = scene.budget_used()
    if scene.state.handing_over:
        return _handing_over(scene, look)
    if step.traffic == "header":
        return _header_step(scene, look)
    overdue = used > step.max_seconds + scene.spec.outage_budget_seconds
    if verdict is not None and verdict.verdict == "pass":
        if scene.elapsed() < step.min_seconds:
            return Wait(
                reason=f"passed; not before {step.min_seconds:.0f} s",
                until=scene.at(step.min_seconds, budget=False),
            )
        missing = unproved(scene, look)
        if missing is None:
            return raise_weight(scene, look, verdict)
        if overdue:
            return hold(scene, f"passed, but the next raise cannot be proved safe: {missing}")
        return Wait(reason=f"passed; {missing}", page=f"{scene.subject.release}: {missing}")
    if verdict is not None and verdict.verdict == "metrics_outage" and not overdue:
        return Wait(reason=f"metrics outage: {verdict.summary}")
    if used < step.max_seconds:
        reason = verdict.summary if verdict is not None else "no verdict yet"
        return Wait(reason=reason, until=scene.at(step.max_seconds))
    doubt = f"no verdict within {step.max_seconds:.0f} s"
    if verdict is not None:
        doubt += f": {verdict.summary}"
    ref = scene.verdict_ref(verdict) if verdict is not None else None
    if scene.spec.on_insufficient_data == "rollback":
        return end(scene, doubt, verdict=ref)
    return hold(scene, doubt, verdict=ref)


def _handing_over(scene: Scene, look: Look) -> Transition | Wait:
    """Every step has passed, or a person has said so: one replica after the other, as each gets ready."""
    missing = unproved(scene, look)
    if missing is None:
        return raise_weight(scene, look, None)
    if scene.budget_used() > scene.spec.ready_seconds:
        return hold(scene, f"the next replica cannot be handed over: {missing}")
    return Wait(reason=f"handing over; {missing}", until=scene.at(scene.spec.ready_seconds))


def _header_step(scene: Scene, look: Look) -> Transition | Wait:
    """Only those who ask for the canary by header meet it: too few to judge. It stands for its time, and nothing crashed."""
    step = scene.spec.steps[scene.state.step or 0]
    if scene.elapsed() < step.min_seconds:
        return Wait(reason="by header only", until=scene.at(step.min_seconds, budget=False))
    missing = unproved(scene, look)
    if missing is None:
        return raise_weight(scene, look, None)
    patience = step.max_seconds + scene.spec.outage_budget_seconds
    if scene.budget_used() > patience:
        return hold(scene, f"the next raise cannot be proved safe: {missing}")
    return Wait(reason=missing, until=scene.at(patience))


def _awaiting_approval(scene: Scene, look: Look) -> Transition | Wait:
    ended = end_if_in_danger(scene, look)
    if ended is not None:
        return ended
    if approval_in(scene, look) is None:
        return Wait(reason=f"step {target_step(scene) + 1} waits for approval")
    missing = unproved(scene, look)
    if missing is not None:
        return Wait(
            reason=f"approved; {missing}",
            page=f"{scene.subject.release} is approved, but {missing}",
        )
    return raise_weight(scene, look, None)


def _held(scene: Scene, look: Look) -> Transition | Wait:
    ended = end_if_in_danger(scene, look)
    if ended is not None:
        return ended
    return _promoted_by_hand(scene, look) or Wait(reason=f"held: {scene.state.held_reason}")


def _promoted_by_hand(scene: Scene, look: Look) -> Transition | Wait | None:
    """What a person's promotion comes to; None without one that fits this release and its next steps."""
    asked = look.decision
    if not isinstance(asked, Promotion) or scene.baking or scene.state.leaving is not None:
        return None
    subject = scene.subject
    fits = (asked.release, asked.candidate) == (subject.release, subject.candidate.digest)
    if not fits or not target_step(scene) <= asked.step <= len(scene.spec.steps):
        return None
    signed = [n for n in range(target_step(scene), asked.step + 1) if needs_approval(scene, n)]
    if signed:
        return Wait(
            reason=f"step {signed[0] + 1} needs a signed approval: no promotion stands for it"
        )
    missing = unproved(scene, look)
    if missing is not None:
        return Wait(reason=f"{asked.by} promotes {asked.release}, but {missing}")
    return raise_weight(scene, look, None, by_hand=asked)


_LOOKED: dict[Phase, Callable[[Scene, Look], Transition | Wait]] = {
    Phase.DEPLOYING: _deploying,
    Phase.CANARY: _canary,
    Phase.AWAITING_APPROVAL: _awaiting_approval,
    Phase.HELD: _held,
    Phase.BAKING: bake,
    Phase.DRAINING: drain,
}
