"""What follows from a track: is a revision to be released now, and if not, why not."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from lockgate.domain.base import Frozen
from lockgate.domain.release_state import Outcome, Phase, ReleaseState
from lockgate.domain.tracks import Pinned, Track, TrackedEnvironment, TrackRecord

Why = Literal["new", "frozen", "manual", "busy", "released", "denied", "refused", "unapprovable"]


class Decision(Frozen):
    """`new` starts a release; everything else leaves things as they are until the next look."""

    why: Why
    reason: str

    @property
    def start(self) -> bool:
        return self.why == "new"


def decide(
    track: Track,
    environment: TrackedEnvironment,
    state: ReleaseState,
    record: TrackRecord | None,
    at: datetime,
    *,
    asked: bool = False,
) -> Decision:
    """Whether to start the release that `record` is of (None: it was never run to an end) in `environment` at `at`.

    What ended without blame (aborted) is started again; what was promoted, refused or denied is not. `asked`: a person named
    the environment, which is what a `manual` promotion needs; a freeze holds for persons too.
    """
    settled = _settled(state, record)
    if settled is not None:
        return settled
    if environment.promotion == "manual" and not asked:
        return Decision(why="manual", reason="a person has to name this environment")
    freeze = track.frozen(environment.name, at)
    if freeze is not None:
        return Decision(why="frozen", reason=f"frozen: {freeze.reason}")
    if state.release_under_way is not None:
        return Decision(why="busy", reason=f"{state.release_under_way} is under way")
    if environment.promotion == "approval" and state.stable is None:
        return Decision(
            why="unapprovable",
            reason="a first release takes all traffic at once: start it by hand",
        )
    return Decision(why="new", reason="not released yet")


def _settled(state: ReleaseState, record: TrackRecord | None) -> Decision | None:
    """What is known of this release already; None if it is to be started, or started again."""
    if record is None:
        return None
    denied = state.is_denied(record.candidate)
    if denied is not None:
        return Decision(why="denied", reason=f"denylisted: {denied.reason}")
    if record.result == "refused":
        return Decision(why="refused", reason=f"refused: {record.reason}")
    stable = state.occupant(state.stable) if state.stable is not None else None
    if stable is not None and stable.candidate.digest == record.candidate:
        return Decision(why="released", reason=f"stable in {state.environment}")
    slot = state.canary_slot
    under_way = state.occupant(slot) if slot is not None else None
    if under_way is not None and under_way.candidate.digest == record.candidate:
        return Decision(why="busy", reason=f"{under_way.release} is under way")
    result: str = record.result
    last = state.last
    if last is not None and last.candidate == record.candidate:
        # Newer than the record: a release that waited was taken up by another flow.
        result = last.outcome.value
    if result in (Outcome.ABORTED, Outcome.ROLLED_BACK):
        # Without blame, or the denial was lifted by a person.
        return None
    return Decision(why="released", reason="was released, and another one came after it")


def stands(state: ReleaseState, record: TrackRecord | None) -> Pinned | None:
    """What an environment serves, its bake over, and what may go on to the next one; else None.

    `record` is that of the stable candidate."""
    if record is None or state.phase is not Phase.STABLE or state.stable is None:
        return None
    stable = state.occupant(state.stable)
    if stable is None or stable.candidate.digest != record.candidate:
        return None
    return None if state.is_denied(record.candidate) else record.pinned
