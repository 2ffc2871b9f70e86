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
    LastRelease,
    Occupant,
    Outcome,
    Phase,
    ReleaseState,
    VerdictRef,
)
from lockgate.domain.rollout.endings import RELEASE_CLEARED, end, end_if_in_danger, hold
from lockgate.domain.rollout.finishing import bake, drain
from lockgate.domain.rollout.observations import (
    Approval,
    DenialLifted,
    JudgeVerdict,
    Look,
    Observation,
    Promotion,
    Verification,
)
from lockgate.domain.rollout.requests import lift_denial, obey
from lockgate.domain.rollout.scene import Scene
from lockgate.domain.rollout.transitions import (
    Transition,
    TransitionKind,
    Wait,
    parse_time,
    rfc3339,
    transition,
)
from lockgate.domain.spec import CanarySpec
from lockgate.errors import Refused


def start(
    state: ReleaseState, occupant: Occupant, canary: CanarySpec, now: datetime
) -> Transition | Wait:
    """Put a candidate into the free slot at weight 0.

    Waits (nothing to do) where this release is under way or has ended already, so that a repeated start changes nothing,
    and where the candidate is stable already. Another attempt at an ended release needs a release id of its own. Raises
    `Refused` where the candidate is denylisted or another release is under way.
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
    slot = state.free_slot
    changes: dict[str, Any] = {
        **RELEASE_CLEARED,
        slot.value: occupant,
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
    return _LOOKED[state.phase](scene, observation)


def _deploying(scene: Scene, look: Look) -> Transition | Wait:
    ended = end_if_in_danger(scene, look)
    if ended is not None:
        return ended
    missing = _unproved(scene, look)
    if missing is None:
        return _raise(scene, look, None)
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
    if step.traffic == "header":
        return _header_step(scene, look)
    overdue = used > step.max_seconds + scene.spec.outage_budget_seconds
    if verdict is not None and verdict.verdict == "pass":
        if scene.elapsed() < step.min_seconds:
            return Wait(
                reason=f"passed; not before {step.min_seconds:.0f} s",
                until=scene.at(step.min_seconds, budget=False),
            )
        missing = _unproved(scene, look)
        if missing is None:
            return _raise(scene, look, verdict)
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


def _header_step(scene: Scene, look: Look) -> Transition | Wait:
    """Only those who ask for the canary by header meet it: too few to judge. It stands for its time, and nothing crashed."""
    seconds = scene.spec.steps[scene.state.step or 0].min_seconds
    if scene.elapsed() < seconds:
        return Wait(reason="by header only", until=scene.at(seconds, budget=False))
    missing = _unproved(scene, look)
    return Wait(reason=missing) if missing is not None else _raise(scene, look, None)


def _awaiting_approval(scene: Scene, look: Look) -> Transition | Wait:
    ended = end_if_in_danger(scene, look)
    if ended is not None:
        return ended
    if _approval(scene, look) is None:
        return Wait(reason=f"step {_target(scene) + 1} waits for approval")
    missing = _unproved(scene, look)
    if missing is not None:
        return Wait(
            reason=f"approved; {missing}",
            page=f"{scene.subject.release} is approved, but {missing}",
        )
    return _raise(scene, look, None)


def _held(scene: Scene, look: Look) -> Transition | Wait:
    ended = end_if_in_danger(scene, look)
    if ended is not None:
        return ended
    return _promoted_by_hand(scene, look) or Wait(reason=f"held: {scene.state.held_reason}")


def _promoted_by_hand(scene: Scene, look: Look) -> Transition | Wait | None:
    """What a person's promotion comes to; None without one that fits this release and its next steps."""
    asked = look.decision
    if not isinstance(asked, Promotion) or scene.baking:
        return None
    subject = scene.subject
    fits = (asked.release, asked.candidate) == (subject.release, subject.candidate.digest)
    if not fits or not _target(scene) <= asked.step <= len(scene.spec.steps):
        return None
    signed = [n for n in range(_target(scene), asked.step + 1) if _needs_approval(scene, n)]
    if signed:
        return Wait(
            reason=f"step {signed[0] + 1} needs a signed approval: no promotion stands for it"
        )
    missing = _unproved(scene, look)
    if missing is not None:
        return Wait(reason=f"{asked.by} promotes {asked.release}, but {missing}")
    return _raise(scene, look, None, by_hand=asked)


_LOOKED: dict[Phase, Callable[[Scene, Look], Transition | Wait]] = {
    Phase.DEPLOYING: _deploying,
    Phase.CANARY: _canary,
    Phase.AWAITING_APPROVAL: _awaiting_approval,
    Phase.HELD: _held,
    Phase.BAKING: bake,
    Phase.DRAINING: drain,
}


def _unproved(scene: Scene, look: Look) -> str | None:
    """What is missing before the candidate may get (more) traffic; None when all is proved by this very look."""
    digest = scene.subject.candidate.digest
    if scene.blind_seconds > scene.spec.outage_budget_seconds:
        return "it could not be observed for long: the next look decides"
    seen = scene.subject_readiness
    if seen is None:
        return "the candidate is not seen in its slot"
    if not seen.fit(digest):
        return "the candidate is not ready in full size"
    stable = scene.state.occupant(scene.state.stable) if scene.state.stable is not None else None
    if stable is not None:
        if scene.fallback_fit() is not True:
            return (
                "the stable slot, to which a rollback would return, is not seen ready in full size"
            )
        if not _verified(look.fallback_verification, stable):
            return "the stable candidate, to which a rollback would return, is not verified"
    if scene.state.step is None and (
        look.smoke is None or look.smoke.candidate != digest or not look.smoke.ok
    ):
        return "no smoke generation yet"
    return None if _verified(look.verification, scene.subject) else "the candidate is not verified"


def _verified(checked: Verification | None, occupant: Occupant) -> bool:
    return checked is not None and checked.ok and checked.candidate == occupant.candidate.digest


def _target(scene: Scene) -> int:
    """Index of the step that comes next; the number of steps for promotion."""
    return 0 if scene.state.step is None else scene.state.step + 1


def _needs_approval(scene: Scene, step: int) -> bool:
    return step < len(scene.spec.steps) and scene.spec.steps[step].approval


def _approval(scene: Scene, look: Look) -> Approval | None:
    """The approval of the next raise in this look, if it is one and still holds."""
    yes = look.decision
    if not isinstance(yes, Approval):
        return None
    subject = scene.subject
    wanted = (subject.release, subject.candidate.digest, _target(scene))
    if (yes.release, yes.candidate, yes.step) != wanted:
        return None
    if yes.expires is not None and parse_time(yes.expires) <= scene.now:
        return None
    return yes


def _raise(
    scene: Scene,
    look: Look,
    passed: JudgeVerdict | None,
    *,
    by_hand: Promotion | None = None,
) -> Transition | Wait:
    """On to the next step, all being proved: more traffic, the wait for an approval, or promotion."""
    state, subject, steps = scene.state, scene.subject, scene.spec.steps
    target = by_hand.step if by_hand is not None else _target(scene)
    ref: VerdictRef | None = scene.verdict_ref(passed) if passed is not None else None
    changes: dict[str, Any] = {}
    if ref is not None:
        changes["verdicts"] = (*state.verdicts, ref)
    reason = passed.summary if passed is not None else ""
    if passed is None and state.step is not None and steps[state.step].traffic == "header":
        reason = "the step before was by header only: nothing was judged"
    if by_hand is not None:
        reason = f"promoted by {by_hand.by} without the judge's pass: {by_hand.reason}"
    needs_approval = _needs_approval(scene, target)
    approval = _approval(scene, look) if needs_approval else None
    if needs_approval and approval is None:
        changes["phase"] = Phase.AWAITING_APPROVAL
        return transition(
            TransitionKind.AWAIT,
            state,
            changes,
            subject,
            f"{subject.release} waits for approval of step {target + 1} ({steps[target].weight}%)",
            reason=reason,
            verdict=ref,
        )
    approved_by = approval.by if approval is not None else None
    requested_by = by_hand.by if by_hand is not None else None
    at = rfc3339(scene.now)
    changes |= {**RELEASE_CLEARED, "since": at, "began": state.generation + 1}
    if state.stable is None or target == len(steps):
        first = state.stable is None
        # A first release has nothing to go back to: without an objective of its own there is nothing to bake.
        plain = first and (scene.spec.slos.empty or not scene.spec.bake_seconds)
        changes |= {
            "phase": Phase.STABLE if plain else Phase.BAKING,
            "stable": scene.subject_slot,
            "weight": 0 if first or not scene.spec.bake_seconds else scene.spec.control_percent,
            "last": LastRelease(
                release=subject.release,
                candidate=subject.candidate.digest,
                outcome=Outcome.PROMOTED,
                reason=_why_promoted(first, by_hand),
                at=at,
            ),
        }
        control = changes["weight"]
        takes = f"{100 - control}%, {control}% stay as control" if control else "all traffic"
        what = f"promote {subject.release}: slot {scene.subject_slot} takes {takes}"
        return transition(
            TransitionKind.PROMOTE,
            state,
            changes,
            subject,
            what,
            reason=reason,
            verdict=ref,
            approved_by=approved_by,
            requested_by=requested_by,
        )
    changes |= {"phase": Phase.CANARY, "step": target, "weight": steps[target].weight}
    step = steps[target]
    to = {
        "weighted": f"raise {subject.release} to {step.weight}%",
        "mirror": f"mirror {step.mirror_percent}% of the requests to {subject.release}",
        "header": f"open {subject.release} to requests that ask for it by header",
    }[step.traffic]
    return transition(
        TransitionKind.RAISE,
        state,
        changes,
        subject,
        f"{to} (step {target + 1} of {len(steps)})",
        reason=reason,
        verdict=ref,
        approved_by=approved_by,
        requested_by=requested_by,
    )


def _why_promoted(first: bool, by_hand: Promotion | None) -> str:
    if by_hand is not None:
        return f"promoted by {by_hand.by}: {by_hand.reason}"
    return "first release" if first else "every step passed"
