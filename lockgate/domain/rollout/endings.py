"""How a release ends early: the dangers that end it, and the commit that takes the traffic off its candidate."""

from __future__ import annotations

from typing import Any

from lockgate.domain.release_state import (
    Denied,
    LastRelease,
    Leaving,
    Outcome,
    Phase,
    ReleaseState,
    Slot,
    VerdictRef,
)
from lockgate.domain.rollout.capacity import give_back, shortage
from lockgate.domain.rollout.observations import JudgeVerdict, Look, Rejection
from lockgate.domain.rollout.scene import Scene
from lockgate.domain.rollout.transitions import (
    Transition,
    TransitionKind,
    Wait,
    one_line,
    parse_time,
    rfc3339,
    transition,
)

CRASH_LOOP_RESTARTS = 3
"""Restarts of one replica that blame the candidate. Fewer may be a node's fault or an operator's."""

RELEASE_CLEARED: dict[str, Any] = {
    "step": None,
    "weight": 0,
    "resumed": None,
    "asked_at": None,
    "held_reason": None,
    "held_from": None,
    "control_ended": None,
    "leaving": None,
}


_MUST_LEAVE = "the traffic should leave the candidate"


def must_leave(state: ReleaseState) -> bool:
    """Whether the candidate is to be taken back and still has traffic."""
    held = state.phase is Phase.HELD and (state.held_reason or "").startswith(_MUST_LEAVE)
    return held or state.leaving is not None


def end_if_in_danger(scene: Scene, look: Look) -> Transition | Wait | None:
    """The ending that the look demands, most blameworthy reason first; None where nothing speaks against going on."""
    digest = scene.subject.candidate.digest
    verdict = look.verdict
    if verdict is not None and verdict.verdict == "fail" and not _overruled(scene, verdict):
        return _end_for_fail(scene, look, verdict)

    denied = scene.state.is_denied(digest)
    if denied is not None:
        return end(scene, f"the candidate is denylisted: {denied.reason}")

    seen = scene.subject_readiness
    if seen is not None:
        if seen.restarts >= CRASH_LOOP_RESTARTS:
            return end(scene, f"crash loop: {seen.restarts} restarts", deny=True)
        if seen.refusal is not None:
            return end(scene, f"the cluster refuses it: {seen.refusal}")

    checked = look.verification
    if checked is not None and checked.candidate == digest and not checked.ok:
        return end(scene, f"verification: {'; '.join(checked.failures) or 'refused'}")

    smoke = look.smoke
    if smoke is not None and smoke.candidate == digest and not smoke.ok:
        return end(scene, f"smoke generation: {smoke.detail or 'failed'}", deny=True)

    no = look.decision
    if (
        isinstance(no, Rejection)
        and (no.release, no.candidate) == (scene.subject.release, digest)
        and not scene.baking
    ):
        return end(scene, f"rejected by {no.by}: {no.reason}", requested_by=no.by)

    budget = scene.spec.outage_budget_seconds
    if scene.state.step is not None and scene.state.weight and look.blind_seconds > budget:
        return end(scene, f"it could not be observed for {look.blind_seconds:.0f} s")
    if scene.had_traffic and seen is not None and seen.unready_seconds > budget:
        return end(scene, f"it was not ready for {seen.unready_seconds:.0f} s")
    return None


def _end_for_fail(scene: Scene, look: Look, verdict: JudgeVerdict) -> Transition | Wait:
    """The judge's fail. Before promotion it ends the release at any age: the canary's traffic is taken away, nothing else
    changes. After promotion it has to be recent (the world that an old one was about is gone, and a person decides) and of
    a settled state, as Kargo has it."""
    ref = scene.verdict_ref(verdict)
    if scene.baking:
        if look.live_generation is not None and look.live_generation < scene.state.began:
            why = f"the judge says fail: {verdict.summary}; the promotion is not in force yet"
            late = scene.elapsed() > scene.spec.outage_budget_seconds
            return Wait(
                reason=why, page=f"{scene.subject.release}: {one_line(why)}" if late else None
            )
        age = (scene.now - parse_time(verdict.at)).total_seconds()
        if age > scene.spec.max_verdict_age_seconds:
            return hold(
                scene,
                f"the judge's fail during the bake is {int(age // 60)} minutes old: a person decides",
                verdict=ref,
            )
    return end(scene, f"the judge says fail: {verdict.summary}", deny=True, verdict=ref)


def _overruled(scene: Scene, verdict: JudgeVerdict) -> bool:
    """After promotion a person who lifts a hold has seen the verdicts before it. Before promotion nobody overrules a fail."""
    resumed = scene.state.resumed
    return scene.baking and resumed is not None and parse_time(verdict.at) <= parse_time(resumed)


def end(
    scene: Scene,
    reason: str,
    *,
    deny: bool = False,
    verdict: VerdictRef | None = None,
    requested_by: str | None = None,
) -> Transition | Wait:
    """Take the traffic off the candidate: back to the fallback slot, at once and whole; replica by replica where the candidate
    has been handed so many that the others could not carry it all.

    A candidate that never had traffic leaves its slot in the same commit. One that had stays there at weight 0 until it is
    drained: the agent may apply a commit's objects in any order, so route and removal must not share one. So does one that
    shares stable's object, traffic or not: what takes its place there has to be ready first. Where the
    fallback is seen to be unfit nothing moves: the release is held and a person paged. Where it cannot be seen a person's
    word is enough, and so is an outage that has used up its budget; else the next look decides.
    """
    state = scene.state
    leaving = Leaving(reason=reason, deny=deny, verdict=verdict, requested_by=requested_by)
    first = give_back(scene, leaving)
    if first is not None:
        return first
    if scene.moves_traffic and not scene.displaced:
        fit = scene.fallback_fit()
        if fit is False:
            return hold(
                scene,
                f"{_MUST_LEAVE} ({reason}), but the slot to fall back to is not ready",
                verdict=verdict,
                requested_by=requested_by,
            )
        patient = scene.blind_seconds <= scene.spec.outage_budget_seconds
        if fit is None and patient and requested_by is None:
            return Wait(
                reason=f"{reason}; whether the slot to fall back to is ready cannot be seen",
                page=f"rollback of {scene.subject.release} waits: the fallback slot cannot be observed",
            )

    subject = scene.subject
    digest = subject.candidate.digest
    at = rfc3339(scene.now)
    outcome = Outcome.ROLLED_BACK if deny else Outcome.ABORTED
    changes: dict[str, Any] = {
        **RELEASE_CLEARED,
        "since": at,
        "began": state.generation + 1,
        "last": LastRelease(
            release=subject.release, candidate=digest, outcome=outcome, reason=reason, at=at
        ),
    }
    if deny and state.is_denied(digest) is None:
        changes["denylist"] = (
            *state.denylist,
            Denied(
                candidate=digest,
                release=subject.release,
                reason=reason,
                verdict=verdict.report if verdict is not None else None,
                at=at,
            ),
        )
    if verdict is not None:
        changes["verdicts"] = (*state.verdicts, verdict)
    if scene.displaced:
        changes |= {"phase": Phase.DRAINING, "stable": scene.fallback_slot, "lent": 0}
    elif scene.had_traffic or state.restoring is not None:
        changes |= {
            "phase": Phase.DRAINING,
            "stable": scene.fallback_slot,
            "lent": min(1, state.lent),
        }
    else:
        changes |= {
            "lent": 0,
            "fresh_baseline": False,
            "phase": Phase.STABLE if state.stable is not None else Phase.EMPTY,
            _field(scene.subject_slot): None,
        }
    short = shortage(scene)
    if short is not None and scene.had_traffic:
        reason += f"; {short}"
    if scene.displaced:
        reason += "; the old version is deployed anew, and nothing serves until it is ready"
    kind = TransitionKind.ROLLBACK if deny else TransitionKind.ABORT
    verb = "roll back" if deny else "abort"
    return transition(
        kind,
        state,
        changes,
        subject,
        f"{verb} {subject.release}: {reason}",
        reason=reason,
        verdict=verdict,
        requested_by=requested_by,
        page=f"{subject.release}: {outcome.value.replace('_', ' ')}: {one_line(reason)}",
    )


def hold(
    scene: Scene,
    reason: str,
    *,
    verdict: VerdictRef | None = None,
    requested_by: str | None = None,
) -> Transition | Wait:
    """Stop where it is: slots and weight stay, a person is paged. A release already held stays as it is."""
    state = scene.state
    if state.phase is Phase.HELD:
        return Wait(reason=f"held: {reason}", page=f"{scene.subject.release} is held: {reason}")
    changes: dict[str, Any] = {
        "phase": Phase.HELD,
        "held_from": state.phase,
        "held_reason": reason,
    }
    if state.handing_over:
        # From now on nobody judges it: the budget for that begins.
        changes["resumed"] = rfc3339(scene.now)
    if verdict is not None:
        changes["verdicts"] = (*state.verdicts, verdict)
    return transition(
        TransitionKind.HOLD,
        state,
        changes,
        scene.subject,
        f"hold {scene.subject.release}: {reason}",
        reason=reason,
        verdict=verdict,
        requested_by=requested_by,
        page=f"{scene.subject.release} is held: {one_line(reason)}",
    )


def leave(scene: Scene, leaving: Leaving) -> Transition | Wait:
    """Go on with an ending that gives replicas back."""
    return end(
        scene,
        leaving.reason,
        deny=leaving.deny,
        verdict=leaving.verdict,
        requested_by=leaving.requested_by,
    )


def _field(slot: Slot) -> str:
    return slot.value
