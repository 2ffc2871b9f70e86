"""Rollouts without room for a second copy: a replica that is borrowed, the others that follow it, and a place that is taken.

Borrowing keeps the sum of all replicas at what stable had. While one changes hands nobody has it (the old one drains, the new
one loads its weights), so all traffic is on one replica less than usual, and weights go by the replicas that are ready.
"""

from __future__ import annotations

from lockgate.domain.candidates import Candidate
from lockgate.domain.release_state import Leaving, Phase, ReleaseState
from lockgate.domain.rollout.scene import Scene
from lockgate.domain.rollout.transitions import (
    Transition,
    TransitionKind,
    Wait,
    rfc3339,
    transition,
)
from lockgate.domain.spec import CanarySpec, Strategy


def impediment(state: ReleaseState, candidate: Candidate, canary: CanarySpec) -> str | None:
    """Why this candidate cannot be released by the strategy that it asks for; None where it can. A first release has the
    place for itself, whatever the strategy."""
    stable = state.occupant(state.stable) if state.stable is not None else None
    if stable is None or canary.strategy is not Strategy.BORROW:
        return None
    whole = stable.candidate.serving.replicas
    if whole < 2:
        return "stable has one replica only and cannot lend it"
    if candidate.serving.replicas != whole:
        return (
            f"the candidate asks for {candidate.serving.replicas} replicas and stable has {whole}: "
            "where one is borrowed the sum stays the same"
        )
    limit = canary.judge.max_load_ratio
    shares = [(f"step {n}", step.weight) for n, step in enumerate(canary.steps, 1)]
    for what, weight in (*shares, ("the bake's control", canary.control)):
        ratio = weight * (whole - 1) / (100 - weight) if weight < 100 else float("inf")
        if ratio > limit:
            return (
                f"{what} sends {weight}% to one replica of {whole}: {ratio:.1f} times the load of the others, "
                f"more than {limit:g}"
            )
    return None


def lent_at_the_beginning(state: ReleaseState, canary: CanarySpec) -> int:
    """Replicas that a new candidate gets from stable in the commit that deploys it."""
    return int(state.stable is not None and canary.strategy is Strategy.BORROW)


def to_be_replaced(scene: Scene) -> bool:
    """Whether stable still has the place that the candidate is to take, and nothing of the candidate runs yet."""
    state = scene.state
    return (
        state.stable is not None
        and scene.spec.strategy is Strategy.RECREATE
        and Phase.DEPLOYING in (state.phase, state.held_from)
        and not state.lent
    )


def replace(scene: Scene) -> Transition:
    """Stop stable and start the candidate in its place."""
    state, subject = scene.state, scene.subject
    return transition(
        TransitionKind.REPLACE,
        state,
        {
            "phase": Phase.DEPLOYING,
            "held_from": None,
            "held_reason": None,
            "lent": 1,
            "since": rfc3339(scene.now),
            "began": state.generation + 1,
            "resumed": None,
        },
        subject,
        f"replace slot {state.stable} by {subject.release} in slot {scene.subject_slot}",
        reason="on offline evidence: there is room for one version only, nothing serves until the candidate is ready, and "
        "a rollback deploys the old version anew",
    )


def missing_replicas(scene: Scene) -> int:
    """How many replicas the candidate has to be handed before it can be promoted."""
    if scene.spec.strategy is not Strategy.BORROW or scene.capacity is None:
        return 0
    return max(0, scene.capacity - 1 - scene.state.lent)


def handed(scene: Scene) -> dict[str, int | str]:
    """The changes that hand one more replica to the candidate, all present ones being ready."""
    state = scene.state
    return {
        "step": len(scene.spec.steps) - 1,
        "lent": state.lent + 1,
        "weight": max(state.weight, _share(state.lent, scene)),
        "resumed": rfc3339(scene.now),
    }


def give_back(scene: Scene, leaving: Leaving) -> Transition | Wait | None:
    """The next replica that a leaving candidate gives back; None where the release is to end now, at once and whole, or
    where the slot to fall back to is not what it should be.

    A candidate that does not serve any more gives back all at once: its traffic is better on few replicas than on none.
    """
    state, fallback = scene.state, scene.fallback_slot
    if scene.spec.strategy is not Strategy.BORROW or scene.capacity is None or fallback is None:
        return None
    seen = scene.subject_readiness
    there = state.replicas(fallback)
    whole = there >= scene.capacity - 1
    serves = seen.ready if seen is not None else leaving.requested_by is not None
    if not scene.had_traffic or not serves or (whole and state.leaving is None):
        return None
    fit = scene.fallback_fit()
    if state.leaving is None:
        patient = scene.blind_seconds <= scene.spec.outage_budget_seconds
        if fit is False or (fit is None and patient and leaving.requested_by is None):
            return None
    elif fit is not True:
        if scene.budget_used() > scene.spec.ready_seconds:
            return None
        return Wait(
            reason=f"{leaving.reason}; the replica given back is not seen to be ready",
            until=scene.at(scene.spec.ready_seconds),
        )
    if whole:
        return None
    left = state.replicas(scene.subject_slot) - 1
    share = _share(left, scene)
    weight = min(state.weight, share)
    if scene.baking:
        weight = 100 - min(100 - state.weight, share)
    return transition(
        TransitionKind.HAND_BACK,
        state,
        {
            "lent": there + 1 if scene.baking else left,
            "weight": weight,
            "phase": state.held_from or state.phase,
            "held_from": None,
            "held_reason": None,
            "resumed": rfc3339(scene.now),
            "leaving": leaving,
        },
        scene.subject,
        f"{scene.subject.release} gives replica {left + 1} of {scene.capacity} back to slot {fallback}",
        reason=leaving.reason,
        verdict=leaving.verdict,
        requested_by=leaving.requested_by,
        page=f"{scene.subject.release} leaves, replica by replica: {leaving.reason}",
    )


def shortage(scene: Scene) -> str | None:
    """What to say where all traffic goes to a slot that has lent more than one replica."""
    fallback = scene.fallback_slot
    if scene.spec.strategy is not Strategy.BORROW or fallback is None or scene.capacity is None:
        return None
    there = scene.state.replicas(fallback)
    if there >= scene.capacity - 1:
        return None
    return f"{there} of {scene.capacity} replicas carry all traffic until the others are back"


def _share(ready: int, scene: Scene) -> int:
    """Percent of the traffic for so many of the candidate's replicas while one of all is on its way."""
    assert scene.capacity is not None
    return round(100 * ready / (scene.capacity - 1))
