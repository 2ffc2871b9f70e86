"""What a person may ask of a release under way: to end it, to go on from a hold, or to go on without the judge's pass."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from prefect.cache_policies import NO_CACHE

from lockgate.domain.release_state import Outcome, Phase, ReleaseState
from lockgate.domain.rollout import (
    AbortRequested,
    HoldLifted,
    Promotion,
    Transition,
    TransitionKind,
    advance,
)
from lockgate.errors import Refused, UsageError
from tasks.driving import ENDINGS, commit, committed, describe
from tasks.retries import TRANSIENT
from tasks.steps import step
from tasks.watching import Watcher
from tasks.workspace import Workspace


@step(name="read-release-under-way", cache_policy=NO_CACHE, **TRANSIENT)
def read_under_way(model: str, environment: str) -> str:
    """Id of the release under way.

    Raises:
        UsageError: there is none.
    """
    return _under_way(_newest(model, environment))


@step(name="abort-release", cache_policy=NO_CACHE, **TRANSIENT)
def commit_abort(
    model: str, environment: str, reason: str, requested_by: str, meant: str | None = None
) -> ReleaseState:
    """End the release under way because a person says so: traffic back to stable, the candidate denylisted.

    `meant`: the release's id, read before the first attempt. So another attempt, after one whose commit landed unnoticed, neither
    complains that nothing is under way nor ends the release that has begun since. Without it: the release of now.

    Raises:
        UsageError: nothing is under way.
        Refused: the traffic stays where it is: the slot to fall back to is not ready, so that the release is held; or somebody
            was first, and has promoted it.
    """
    workspace = Workspace.current()
    state = _newest(model, environment)
    release = meant or _under_way(state)
    if state.last is not None and state.last.release == release and not state.baking:
        if state.last.outcome is Outcome.PROMOTED:
            raise Refused(
                f"{release} was promoted, and its bake is over: nothing is left to roll back"
            )
        return state
    if state.release_under_way != release:
        raise Refused(
            f"{release} is under way no more ({describe(state)})",
            hint="look at it: `lockgate status`",
        )
    # It needs to know which slots are ready, and nothing else: no trace that is readable, no disk with room.
    slots = Watcher(workspace, state, judging=False).slots()
    asked = AbortRequested(
        release=release, by=requested_by, reason=reason, deny=True, a=slots.a, b=slots.b
    )
    result = committed(model, environment, asked)
    newest, last = result.state, result.state.last
    gone = last is not None and last.release == release and last.outcome is not Outcome.PROMOTED
    if not gone and newest.leaving is None:
        why = newest.held_reason or (result.wait.reason if result.wait is not None else "")
        raise Refused(
            f"{release} was not rolled back, the traffic is where it was: {why or describe(newest)}",
            hint="see to what is said there, then ask again: `lockgate status`",
        )
    return newest


PROVING_SECONDS = 60.0
"""How long a promotion by hand looks for what a raise has to prove."""


@step(name="resume-release", cache_policy=NO_CACHE, **TRANSIENT)
def commit_resume(
    model: str,
    environment: str,
    reason: str,
    requested_by: str,
    held: ReleaseState | None = None,
) -> ReleaseState:
    """Lift the hold of the release under way because a person says so: it goes on from where it was held.

    `held`: the state whose hold is meant, read before the first attempt. So another attempt, after one whose commit landed
    unnoticed, neither complains that nothing is held nor lifts what somebody has set since. Without it: the hold of now.

    Raises:
        UsageError: no release of the model is held.
        Refused: it has been held anew meanwhile.
    """
    meant = held or _held(model, environment)
    asked = HoldLifted(
        release=str(meant.release_under_way), by=requested_by, reason=reason,
        generation=meant.generation,
    )  # fmt: skip
    newest = commit(model, environment, asked)
    if newest.phase is Phase.HELD:
        raise Refused(
            f"not resumed: the release has changed meanwhile, and is held: {newest.held_reason}",
            hint="look at it, then ask again: `lockgate status`",
        )
    return newest


@step(name="read-held-release", cache_policy=NO_CACHE, **TRANSIENT)
def read_held(model: str, environment: str) -> ReleaseState:
    """The newest state, whose release is held.

    Raises:
        UsageError: it is not.
    """
    return _held(model, environment)


@step(name="promote-release", cache_policy=NO_CACHE, **TRANSIENT)
def commit_promotion(
    model: str,
    environment: str,
    step: int | None,
    reason: str,
    requested_by: str,
    held: ReleaseState | None = None,
) -> ReleaseState:
    """Take a held release to a step (counted from 1; None: to promotion) without the judge's pass, because a person says so.

    What every raise has to prove is proved here too: readiness, verification, a slot to go back to. A step that needs an
    approval needs a signed one. `held`: as for `commit_resume`.

    Raises:
        UsageError: no release of the model is held, or it has no such step.
        Refused: what has to be proved was not within a minute, or the release must end.
    """
    state = _newest(model, environment)
    if held is None or state.generation == held.generation:
        state = _held(model, environment)
    elif _was_promoted(state, held, step):
        return state
    else:
        raise Refused(f"not promoted: the release has changed meanwhile: {describe(state)}")
    release, slot = state.release_under_way, state.canary_slot
    subject = state.occupant(slot) if slot is not None else None
    if release is None or subject is None or state.canary is None:
        raise UsageError(f"{release} is promoted already", hint="resume it: `--resume`")
    target = len(state.canary.steps) if step is None else step - 1
    following = 0 if state.step is None else state.step + 1
    if not following <= target <= len(state.canary.steps):
        raise UsageError(
            f"{release} has no step {step} before it: it stands at step {following} of {len(state.canary.steps)}"
        )
    decision = Promotion(
        release=release, candidate=subject.candidate.digest, step=target, by=requested_by,
        reason=reason,
    )  # fmt: skip
    watcher = Watcher(Workspace.current(), state, proving=True)
    deadline = time.monotonic() + PROVING_SECONDS
    while True:
        look = watcher.look().model_copy(update={"decision": decision})
        answer = advance(state, look, datetime.now(UTC))
        if isinstance(answer, Transition):
            watcher.keep_report()
            result = committed(model, environment, look)
            made = result.transition
            if made is None:
                why = result.wait.reason if result.wait is not None else describe(result.state)
                raise Refused(f"not promoted: the release has changed meanwhile: {why}")
            if made.kind in (*ENDINGS, TransitionKind.HAND_BACK):
                raise Refused(f"not promoted: {made.reason or made.subject}")
            return result.state
        if answer.stale or time.monotonic() > deadline:
            raise Refused(f"not promoted: {answer.reason}")
        watcher.rest()


def _newest(model: str, environment: str) -> ReleaseState:
    repository = Workspace.current().gitops
    repository.sync()
    return repository.read_state(model, environment)


def _under_way(state: ReleaseState) -> str:
    if state.release_under_way is None:
        raise UsageError(
            f"no release of {state.model} is under way in {state.environment} ({state.phase}): nothing to roll back",
            hint="to serve an older version again, release its spec",
        )
    return state.release_under_way


def _was_promoted(state: ReleaseState, held: ReleaseState, step: int | None) -> bool:
    """Whether the very next commit after the hold was the promotion that was asked for."""
    goes_on = state.phase in (Phase.CANARY, Phase.BAKING, Phase.STABLE) and state.leaving is None
    if state.generation != held.generation + 1 or not goes_on:
        return False
    if state.release_under_way != held.release_under_way:
        return False
    steps = len(held.canary.steps) if held.canary is not None else 0
    if step is not None and step <= steps:
        return state.step == step - 1
    return state.baking or state.phase is Phase.STABLE or state.lent > held.lent


def _held(model: str, environment: str) -> ReleaseState:
    state = _newest(model, environment)
    if state.phase is Phase.HELD and state.release_under_way is not None:
        return state
    hint = "a held release can be resumed or promoted by hand"
    if state.phase is Phase.AWAITING_APPROVAL:
        hint = "it needs an approval signed by one of the approvers: `lockgate approve`"
    raise UsageError(f"no release of {model} is held in {environment} ({state.phase})", hint=hint)
