"""How a release comes to rest: the bake after promotion, the control's end, and the slot without traffic that is emptied."""

from __future__ import annotations

from typing import Any

from lockgate.domain.release_state import Phase, Restoring
from lockgate.domain.rollout.endings import RELEASE_CLEARED, end_if_in_danger, hold
from lockgate.domain.rollout.observations import Look
from lockgate.domain.rollout.scene import Scene
from lockgate.domain.rollout.transitions import (
    Transition,
    TransitionKind,
    Wait,
    rfc3339,
    transition,
)
from lockgate.domain.spec import Strategy


def bake(scene: Scene, look: Look) -> Transition | Wait:
    """After promotion: judged to the end of the bake, then the old version's slot is emptied."""
    ended = end_if_in_danger(scene, look)
    if ended is not None:
        return ended
    state = scene.state
    if state.weight and scene.fallback_gone():
        return _end_control(
            scene, look, "the control is not ready: the new version takes its part",
            page="the rest of its bake is compared with nothing",
        )  # fmt: skip
    if state.fresh_baseline and scene.idle_for() >= (drained := _drain_seconds(scene, look)):
        return transition(
            TransitionKind.END_BASELINE,
            state,
            {"fresh_baseline": False},
            scene.subject,
            f"the fresh baseline is over: no request since {drained:.0f} s",
        )
    seconds = scene.spec.bake_seconds
    if scene.budget_used() < seconds:
        return Wait(reason="baking", until=scene.at(seconds))
    seen = scene.subject_readiness
    if seen is None or not seen.fit(scene.subject.candidate.digest):
        return Wait(
            reason="the bake is over, but the new version is not seen to be ready: the old one stays",
            page=f"{scene.subject.release} is not ready at the end of its bake",
        )
    unseen = _unobserved(scene, look)
    if unseen is not None and not _told_of_outage(scene):
        return unseen
    if state.weight:
        return _end_control(
            scene, look, "the bake is over",
            page="its bake was not observed to the end" if unseen is not None else None,
        )  # fmt: skip
    return _empty_idle_slot(scene, look, f"{scene.subject.release} is stable")


def _unobserved(scene: Scene, look: Look) -> Transition | Wait | None:
    """What a bake comes to whose metrics are away at its end; None where they are there. What was not seen is no pass: the old
    version stays, with its part of the traffic, until the metrics are back or a person has decided."""
    state, spec, verdict = scene.state, scene.spec, look.verdict
    if state.control_ended is not None:
        return None  # compared to its end: there is nothing more to be seen
    outage = verdict is not None and verdict.verdict == "metrics_outage"
    # A driver that has been away is blind for one look; what its metrics say then is what counts.
    if not outage and look.blind_seconds <= spec.outage_budget_seconds:
        return None
    seconds = spec.bake_seconds + spec.outage_budget_seconds
    late = scene.budget_used() > seconds
    why = "the bake is over and could not be observed"
    if verdict is not None:
        why += f": {verdict.summary}"
    if outage and verdict is not None and late:
        return hold(scene, why, verdict=scene.verdict_ref(verdict))
    return Wait(
        reason=f"{why}; the old version stays",
        until=None if late else scene.at(seconds),
        page=f"{scene.subject.release}: {why}" if late else None,
    )


def _told_of_outage(scene: Scene) -> bool:
    """Whether a person has lifted a hold of this bake that was for missing metrics: they have seen it and gone on."""
    return any(
        ref.verdict == "metrics_outage" and ref.step == len(scene.spec.steps)
        for ref in scene.state.verdicts
    )


def _end_control(
    scene: Scene, look: Look, why: str, *, page: str | None = None
) -> Transition | Wait:
    """Give the control's traffic to the new version. The old one stays where it is, warm, until the bake is over and its
    last answers are out."""
    subject = scene.subject
    return transition(
        TransitionKind.END_CONTROL,
        scene.state,
        {"weight": 0, "control_ended": rfc3339(scene.now)},
        subject,
        f"slot {scene.subject_slot} takes all traffic: {why}",
        reason=_baked(scene, look),
        page=f"{subject.release}: {page}" if page is not None else None,
    )


def _baked(scene: Scene, look: Look) -> str:
    """What the judge made of the bake, or that it made nothing of it."""
    if look.verdict is not None:
        return f"the bake: {look.verdict.verdict}: {look.verdict.summary}"
    spec = scene.spec
    if not spec.control and spec.slos.empty:
        return "nothing was judged during the bake: the spec has neither a control nor SLOs"
    return "nothing was judged during the bake: nothing could be measured"


def drain(scene: Scene, look: Look) -> Transition | Wait:
    """After a rollback or abort: the candidate's slot is emptied. An old version that had made room for it is waited for."""
    if scene.spec.strategy is Strategy.RECREATE and scene.fallback_fit() is not True:
        late = scene.elapsed() > scene.spec.ready_seconds
        what = f"slot {scene.fallback_slot} is deployed anew"
        return Wait(
            reason=what,
            until=scene.at(scene.spec.ready_seconds, budget=False) if not late else None,
            page=f"{what} and not ready after {scene.elapsed():.0f} s: nothing serves"
            if late
            else None,
        )
    if scene.state.restoring is not None:
        undone = _restore(scene, look, scene.state.restoring)
        if undone is not None:
            return undone
    return _empty_idle_slot(scene, look, f"{scene.subject.release} has left its slot")


def _restore(scene: Scene, look: Look, restoring: Restoring) -> Transition | Wait | None:
    """Put stable's version back into the object that it shares with the candidate, with no share, and wait until it is the
    newest that is ready; None when it is. Were the share dropped before, everything would go to the newest that is ready
    then: the candidate that was rejected."""
    state = scene.state
    stable = state.occupant(state.stable) if state.stable is not None else None
    if stable is None:
        raise ValueError(f"phase {state.phase} without a stable slot")
    if restoring is Restoring.DUE:
        needed = _drain_seconds(scene, look)
        if scene.idle_for() < needed:
            return Wait(
                reason=f"slot {scene.subject_slot} drains: {needed:.0f} s",
                until=scene.idle_at(needed),
            )
        if look.shares is None or look.shares.get(scene.subject_slot.value, 0):
            what = f"slot {scene.subject_slot} is not seen to be without traffic"
            return Wait(reason=what, page=f"{what}: {scene.subject.release} has ended")
        return transition(
            TransitionKind.RESTORE,
            state,
            {
                "restoring": Restoring.UNDER_WAY,
                "since": rfc3339(scene.now),
                "began": state.generation + 1,
            },
            scene.subject,
            f"put {stable.release} back in the place of {scene.subject.release}, without traffic yet",
        )
    seen = look.successor
    if seen is not None and seen.generation >= state.began and seen.fit(stable.candidate.digest):
        return None
    what = f"the new servers of {stable.release} are not seen to be ready: {scene.subject.release} keeps its place"
    late = scene.elapsed() > scene.spec.ready_seconds
    return Wait(
        reason=what,
        until=None if late else scene.at(scene.spec.ready_seconds, budget=False),
        page=f"{what} after {scene.elapsed():.0f} s; traffic stays where it is" if late else None,
    )


def _drain_seconds(scene: Scene, look: Look) -> float:
    """How long what has no traffic any more is kept for its last requests."""
    state = scene.state
    occupant = state.occupant(scene.subject_slot.other if scene.baking else scene.subject_slot)
    serving = (occupant or scene.subject).candidate.serving
    needed: float = serving.drain_seconds
    routed_since = state.generation if state.control_ended is not None else state.began
    if look.live_generation is None or look.live_generation < routed_since:
        needed += serving.pre_stop_seconds + scene.spec.outage_budget_seconds
    return needed


def _empty_idle_slot(scene: Scene, look: Look, what: str) -> Transition | Wait:
    """Empty the slot without traffic, once no request can be left in it.

    Where the gateway is seen to carry out the weight 0, its last streams get the drain time of the serving spec. Where that
    cannot be seen, the allowance for stopping servers and for outages is added.
    """
    state = scene.state
    if state.stable is None:
        raise ValueError(f"phase {state.phase} without a stable slot")
    idle = state.stable.other
    occupant = state.occupant(idle)
    if occupant is not None:
        needed = _drain_seconds(scene, look)
        if scene.idle_for() < needed:
            return Wait(
                reason=f"slot {idle} drains: {needed:.0f} s",
                until=scene.idle_at(needed),
            )
        what += f"; slot {idle} is emptied"
    changes: dict[str, Any] = {
        **RELEASE_CLEARED,
        idle.value: None,
        "phase": Phase.STABLE,
        "lent": 0,
        "fresh_baseline": False,
        "restoring": None,
        "since": rfc3339(scene.now),
        "began": state.generation + 1,
    }
    verdict = scene.verdict_ref(look.verdict) if scene.baking and look.verdict is not None else None
    if verdict is not None:
        changes["verdicts"] = (*state.verdicts, verdict)
    return transition(
        TransitionKind.FINISH,
        state,
        changes,
        scene.subject,
        what,
        reason=_baked(scene, look) if scene.baking else "",
        verdict=verdict,
    )
