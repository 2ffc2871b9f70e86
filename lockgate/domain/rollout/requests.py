"""What a person may ask of a rollout: hold, lift, abort, and the lifting of a denial."""

from __future__ import annotations

from datetime import datetime

from lockgate.domain.release_state import Phase, ReleaseState
from lockgate.domain.rollout.endings import end, hold
from lockgate.domain.rollout.observations import (
    AbortRequested,
    DenialLifted,
    HoldLifted,
    HoldRequested,
)
from lockgate.domain.rollout.scene import Scene
from lockgate.domain.rollout.transitions import (
    Transition,
    TransitionKind,
    Wait,
    rfc3339,
    transition,
)


def obey(
    state: ReleaseState, asked: HoldRequested | HoldLifted | AbortRequested, now: datetime
) -> Transition | Wait:
    """A person's word about the release under way. Said twice, or too late, it changes nothing."""
    under_way = state.release_under_way
    if under_way != asked.release:
        return Wait(
            reason=f"release {asked.release} is not under way ({under_way or 'nothing is'})",
            stale=True,
            finished=under_way is None,
        )
    if state.phase is Phase.DRAINING:
        return Wait(reason=f"release {asked.release} has ended; its slot drains", finished=True)
    if state.leaving is not None and state.phase is not Phase.HELD:
        return Wait(
            reason=f"release {asked.release} ends already, replica by replica: {state.leaving.reason}"
        )
    if isinstance(asked, AbortRequested):
        scene = Scene(state, now, asked.a, asked.b)
        reason = f"{asked.reason} (asked by {asked.by})"
        return end(scene, reason, deny=asked.deny, requested_by=asked.by)
    scene = Scene(state, now, None, None)
    if isinstance(asked, HoldRequested):
        return hold(scene, f"{asked.reason} (asked by {asked.by})", requested_by=asked.by)
    if state.held_from is None:
        return Wait(reason=f"release {asked.release} is not held", finished=True)
    if asked.generation not in (None, state.generation):
        return Wait(
            reason=f"the hold of generation {asked.generation} was to be lifted, not that of {state.generation}: "
            f"{state.held_reason}",
            stale=True,
        )
    return transition(
        TransitionKind.LIFT,
        state,
        {
            "phase": state.held_from,
            "held_reason": None,
            "held_from": None,
            "resumed": rfc3339(now),
        },
        scene.subject,
        f"lift the hold of {asked.release}",
        reason=asked.reason,
        requested_by=asked.by,
    )


def lift_denial(state: ReleaseState, asked: DenialLifted) -> Transition | Wait:
    """Take a candidate off the denylist, by name."""
    denied = state.is_denied(asked.candidate)
    if denied is None:
        return Wait(reason=f"candidate {asked.candidate} is not denylisted", finished=True)
    occupants = [state.occupant(slot) for slot in (state.free_slot, state.free_slot.other)]
    if any(o is not None and o.candidate.digest == asked.candidate for o in occupants):
        return Wait(reason="the candidate is still in its slot: wait until it is drained")
    return transition(
        TransitionKind.PARDON,
        state,
        {"denylist": tuple(d for d in state.denylist if d.candidate != asked.candidate)},
        denied,
        f"lift the denial of {asked.candidate.short}: {asked.reason}",
        reason=f"{asked.reason}\n\nIt was denied at {denied.at}: {denied.reason}",
        requested_by=asked.by,
        trailers={"Lockgate-Request": str(asked.request)} if asked.request is not None else {},
    )
