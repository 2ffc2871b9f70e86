"""More traffic for the candidate: what has to be proved before, and the next step, replica or promotion that follows."""

from __future__ import annotations

from typing import Any

from lockgate.domain.release_state import LastRelease, Occupant, Outcome, Phase, VerdictRef
from lockgate.domain.rollout.capacity import handed, missing_replicas, replace, to_be_replaced
from lockgate.domain.rollout.endings import RELEASE_CLEARED
from lockgate.domain.rollout.observations import (
    Approval,
    JudgeVerdict,
    Look,
    Promotion,
    Verification,
)
from lockgate.domain.rollout.scene import Scene
from lockgate.domain.rollout.transitions import (
    Transition,
    TransitionKind,
    Wait,
    parse_time,
    rfc3339,
    transition,
)
from lockgate.domain.spec import Strategy


def unproved(scene: Scene, look: Look) -> str | None:
    """What is missing before the candidate may get (more) traffic; None when all is proved by this very look."""
    digest = scene.subject.candidate.digest
    if scene.blind_seconds > scene.spec.outage_budget_seconds:
        return "it could not be observed for long: the next look decides"
    if to_be_replaced(scene):
        return _unproved_to_replace(scene, look)
    seen = scene.subject_readiness
    if seen is None:
        return "the candidate is not seen in its slot"
    if not seen.fit(digest):
        return "the candidate is not ready in full size"
    stable = scene.state.occupant(scene.state.stable) if scene.state.stable is not None else None
    if stable is not None:
        if not scene.displaced and scene.fallback_fit(for_raise=True) is not True:
            return (
                "the stable slot, to which a rollback would return, is not seen ready in full size"
            )
        if not _verified(look.fallback_verification, stable):
            return "the stable candidate, to which a rollback would return, is not verified"
        if scene.state.restoring is not None and not _has_its_share(scene, look):
            # Whose servers the engine has beside the candidate in the one object is the engine's choice.
            return "the stable slot is not seen to have the traffic that it is to have"
        fresh = look.baseline
        if scene.state.fresh_baseline and (fresh is None or not fresh.fit(stable.candidate.digest)):
            return "the fresh baseline is not ready in full size"
    if scene.state.step is None and (
        look.smoke is None or look.smoke.candidate != digest or not look.smoke.ok
    ):
        return "no smoke generation yet"
    return None if _verified(look.verification, scene.subject) else "the candidate is not verified"


def _unproved_to_replace(scene: Scene, look: Look) -> str | None:
    """What is missing before stable may be stopped: both versions have to be such that they can be started."""
    stable = scene.state.occupant(scene.subject_slot.other)
    if stable is None or not _verified(look.fallback_verification, stable):
        return "the stable candidate, which a rollback would deploy anew, is not verified"
    return None if _verified(look.verification, scene.subject) else "the candidate is not verified"


def _has_its_share(scene: Scene, look: Look) -> bool:
    stable = scene.state.stable
    if stable is None or look.shares is None:
        return False
    return look.shares.get(stable.value, 0) == scene.state.weights()[stable]


def _verified(checked: Verification | None, occupant: Occupant) -> bool:
    return checked is not None and checked.ok and checked.candidate == occupant.candidate.digest


def target_step(scene: Scene) -> int:
    """Index of the step that comes next; the number of steps for promotion."""
    if scene.state.handing_over:
        return len(scene.spec.steps)
    return 0 if scene.state.step is None else scene.state.step + 1


def needs_approval(scene: Scene, step: int) -> bool:
    """Whether a signed approval has to come before this step. A first release takes all traffic at once, so it needs the one
    that any of its steps asks for."""
    if scene.state.stable is None:
        return any(s.approval for s in scene.spec.steps)
    return step < len(scene.spec.steps) and scene.spec.steps[step].approval


def approval_in(scene: Scene, look: Look) -> Approval | None:
    """The approval of the next raise in this look, if it is one and still holds."""
    yes = look.decision
    if not isinstance(yes, Approval):
        return None
    subject = scene.subject
    wanted = (subject.release, subject.candidate.digest, target_step(scene))
    if (yes.release, yes.candidate, yes.step) != wanted:
        return None
    if yes.expires is not None and parse_time(yes.expires) <= scene.now:
        return None
    return yes


def raise_weight(
    scene: Scene,
    look: Look,
    passed: JudgeVerdict | None,
    *,
    by_hand: Promotion | None = None,
) -> Transition | Wait:
    """On to the next step, all being proved: more traffic, the wait for an approval, another replica, or promotion."""
    if to_be_replaced(scene):
        return replace(scene)
    state, subject, steps = scene.state, scene.subject, scene.spec.steps
    target = by_hand.step if by_hand is not None else target_step(scene)
    ref: VerdictRef | None = scene.verdict_ref(passed) if passed is not None else None
    changes: dict[str, Any] = {}
    if ref is not None:
        changes["verdicts"] = (*state.verdicts, ref)
    reason = passed.summary if passed is not None else ""
    if passed is None and state.step is not None and steps[state.step].traffic == "header":
        reason = "the step before was by header only: nothing was judged"
    if scene.displaced:
        reason = "no live evidence was gathered: the old version had to make room before the candidate could start"
    if by_hand is not None:
        reason = f"promoted by {by_hand.by} without the judge's pass: {by_hand.reason}"
    signed = needs_approval(scene, target)
    approval = approval_in(scene, look) if signed else None
    if signed and approval is None:
        changes |= {"phase": Phase.AWAITING_APPROVAL, "asked_at": rfc3339(scene.now)}
        weight = steps[target].weight if state.stable is not None else 100
        return transition(
            TransitionKind.AWAIT,
            state,
            changes,
            subject,
            f"{subject.release} waits for approval of step {target + 1} ({weight}%)",
            reason=reason,
            verdict=ref,
        )
    approved_by = approval.by if approval is not None else None
    asked = approval.request if approval is not None else None
    of_request = {"Lockgate-Request": str(asked)} if asked is not None else {}
    requested_by = by_hand.by if by_hand is not None else None
    at = rfc3339(scene.now)
    if state.stable is not None and target == len(steps) and missing_replicas(scene):
        changes |= {**_UNHELD, "phase": Phase.CANARY, **handed(scene)}
        return transition(
            TransitionKind.HAND_OVER,
            state,
            changes,
            subject,
            f"hand replica {state.lent + 1} of {scene.capacity} over to {subject.release}",
            reason=reason,
            verdict=ref,
            approved_by=approved_by,
            requested_by=requested_by,
        )
    changes |= {**RELEASE_CLEARED, "since": at, "began": state.generation + 1}
    if state.stable is None or target == len(steps):
        first = state.stable is None
        # A first release has nothing to go back to: without an objective of its own there is nothing to bake.
        plain = first and (scene.spec.slos.empty or not scene.spec.bake_seconds)
        changes |= {
            "phase": Phase.STABLE if plain else Phase.BAKING,
            "stable": scene.subject_slot,
            "lent": _lent_after_promotion(scene),
            "weight": 0 if first or not scene.spec.bake_seconds else scene.spec.control,
            "last": LastRelease(
                release=subject.release,
                candidate=subject.candidate.digest,
                outcome=Outcome.PROMOTED,
                reason=_why_promoted(scene, by_hand),
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
            trailers={**of_request, **(_NO_LIVE_EVIDENCE if scene.displaced else {})},
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
        trailers=of_request,
    )


_UNHELD: dict[str, Any] = {"held_reason": None, "held_from": None}
_NO_LIVE_EVIDENCE = {"Live-Evidence": "none"}


def _lent_after_promotion(scene: Scene) -> int:
    """The roles change, the sizes do not: a version that lent all its replicas but one is the borrower of that one."""
    return int(scene.state.stable is not None and scene.spec.strategy is Strategy.BORROW)


def _why_promoted(scene: Scene, by_hand: Promotion | None) -> str:
    if by_hand is not None:
        return f"promoted by {by_hand.by}: {by_hand.reason}"
    if scene.displaced:
        return "on offline evidence only: no live evidence was gathered"
    return "first release" if scene.state.stable is None else "every step passed"
