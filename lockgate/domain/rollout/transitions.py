"""What the state machine answers: a new state with its commit message, or patience with a reason."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from lockgate.domain.base import Frozen
from lockgate.domain.release_state import Denied, Occupant, ReleaseState, VerdictRef

_SUBJECT_LIMIT = 120


class TransitionKind(StrEnum):
    DEPLOY = "deploy"
    RAISE = "raise"
    AWAIT = "await"
    """The next raise waits for a release manager."""
    HAND_OVER = "hand_over"
    """Strategy `borrow`: every step passed, and the candidate gets one more of stable's replicas."""
    HAND_BACK = "hand_back"
    """Strategy `borrow`: the candidate leaves, and gives one replica back."""
    REPLACE = "replace"
    """Strategy `recreate`: stable is stopped, the candidate started."""
    PROMOTE = "promote"
    ROLLBACK = "rollback"
    """Blames the candidate: it is denylisted."""
    ABORT = "abort"
    """Blames nobody."""
    HOLD = "hold"
    LIFT = "lift"
    END_CONTROL = "end_control"
    """The bake's control gives its few percent to the new version."""
    END_BASELINE = "end_baseline"
    """The fresh baseline, which has had no traffic since the canary was over, is taken away."""
    RESTORE = "restore"
    """Both versions are in one object: stable's is put back there without a share, before the candidate's goes."""
    FINISH = "finish"
    """The slot that takes no traffic any more is emptied."""
    PARDON = "pardon"
    """A denylisted candidate may be released again."""


class Transition(Frozen):
    """One step of a rollout: becomes exactly one commit."""

    kind: TransitionKind
    state: ReleaseState
    """The new state, one generation after the one it was made from."""
    subject: str
    """First line of the commit message."""
    reason: str = ""
    """Why, for a person: the body of the commit message."""
    trailers: dict[str, str]
    verdict: VerdictRef | None = None
    """The verdict that led here; its report belongs into the same commit."""
    page: str | None = None
    """Set where a person has to be told at once."""


class Wait(Frozen):
    """Nothing to commit now."""

    reason: str
    until: str | None = None
    """RFC 3339 time at which time alone may change the answer."""
    page: str | None = None
    """Set where a person has to be told: something wanted cannot be done."""
    finished: bool = False
    """Nothing is under way any more, or what was asked for is already so."""
    stale: bool = False
    """The observation is about another generation or release: read the state again."""


def transition(
    kind: TransitionKind,
    before: ReleaseState,
    changes: dict[str, Any],
    subject: Occupant | Denied,
    what: str,
    *,
    reason: str = "",
    verdict: VerdictRef | None = None,
    approved_by: str | None = None,
    requested_by: str | None = None,
    page: str | None = None,
    trailers: Mapping[str, str] = MappingProxyType({}),
) -> Transition:
    """The transition from `before` by `changes`; `subject` is the occupant or denial that it is about, `what` the subject line
    after `model/environment: `. The new state is validated as if it were read from Git."""
    state = ReleaseState.model_validate(
        {
            **{name: getattr(before, name) for name in ReleaseState.model_fields},
            **changes,
            "generation": before.generation + 1,
        }
    )
    trailers = {
        **trailers,
        "Lockgate-Release": subject.release,
        "Lockgate-Phase": str(state.phase),
        "Lockgate-Transition": str(kind),
        "Lockgate-Generation": str(state.generation),
    }
    if isinstance(subject, Occupant):
        trailers["Candidate"] = str(subject.candidate.digest)
        trailers["Image-Digest"] = str(subject.candidate.model.digest)
        trailers["Evidence"] = str(subject.evidence)
    else:
        trailers["Candidate"] = str(subject.candidate)
    if verdict is not None:
        trailers["Verdict"] = f"{verdict.verdict} {verdict.report}"
    if approved_by is not None:
        trailers["Approved-by"] = one_line(approved_by)
    if requested_by is not None:
        trailers["Requested-by"] = one_line(requested_by)
    line = one_line(f"{before.model}/{before.environment}: {what}")
    if len(line) > _SUBJECT_LIMIT:
        line = line[: _SUBJECT_LIMIT - 1].rstrip() + "…"
    return Transition(
        kind=kind,
        state=state,
        subject=line,
        reason=reason,
        trailers=trailers,
        verdict=verdict,
        page=page,
    )


def one_line(text: str) -> str:
    """`text` on one line: nobody's words may begin a line of their own in a commit message's head or trailers."""
    return " ".join(text.split())


def rfc3339(moment: datetime) -> str:
    """UTC with milliseconds and `Z`. Raises `ValueError` for a time without a zone."""
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(text: str) -> datetime:
    """Inverse of `rfc3339`; raises `ValueError` for anything else than a time with a zone."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"a time without a zone: {text!r}")
    return moment
