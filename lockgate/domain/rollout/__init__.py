"""The rollout: a pure state machine from what Git says and what is seen to the next commit, or to patience."""

from lockgate.domain.rollout.endings import must_leave
from lockgate.domain.rollout.machine import advance, start
from lockgate.domain.rollout.observations import (
    AbortRequested,
    Approval,
    DenialLifted,
    HoldLifted,
    HoldRequested,
    JudgeVerdict,
    Look,
    Observation,
    Promotion,
    Rejection,
    SlotReadiness,
    SmokeResult,
    Successor,
    Verification,
)
from lockgate.domain.rollout.transitions import Transition, TransitionKind, Wait

__all__ = [
    "AbortRequested",
    "Approval",
    "DenialLifted",
    "HoldLifted",
    "HoldRequested",
    "JudgeVerdict",
    "Look",
    "Observation",
    "Promotion",
    "Rejection",
    "SlotReadiness",
    "SmokeResult",
    "Successor",
    "Transition",
    "TransitionKind",
    "Verification",
    "Wait",
    "advance",
    "must_leave",
    "start",
]
