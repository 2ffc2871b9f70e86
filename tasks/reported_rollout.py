"""What Git and the traces hold of a release's rollout, as rows of its report."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from lockgate.adapters.report import Bake, RequestedApproval, TransitionRow
from lockgate.domain.gitops import HistoryEntry
from lockgate.domain.judge import JudgeReport
from lockgate.domain.release_state import Occupant, Phase, ReleaseState, Slot
from tasks.approving import pending_request
from tasks.workspace import Workspace

logger = logging.getLogger("lockgate.report")


def bake_of(
    workspace: Workspace, states: list[ReleaseState], rows: tuple[TransitionRow, ...]
) -> Bake | None:
    """What is at hand of the time after the promotion; None where there was none, or no old version beside the new one."""
    promoted = next((n for n, s in enumerate(states) if s.phase is Phase.BAKING), None)
    if promoted is None:
        return None
    begun = states[promoted]
    if begun.stable is None or begun.occupant(begun.stable.other) is None:
        return None
    layout = workspace.layout
    place = (begun.model, begun.environment, begun.began)
    trace = layout.trace(*place)
    return Bake(
        transitions=rows[promoted:],
        stable_slot=begun.stable.other,
        canary_slot=begun.stable,
        looks=tuple(judge_looks(layout.looks(*place))),
        traces=(trace,) if trace.exists() else (),
        control_percent=begun.weight,
    )


def transition_row(commit: HistoryEntry, state: ReleaseState, occupant: Occupant) -> TransitionRow:
    slot = next((s for s in Slot if state.occupant(s) == occupant), None)
    verdict = commit.verdict.split()[0] if commit.verdict else None
    return TransitionRow.model_validate(
        {
            "time": datetime.fromisoformat(commit.at),
            "phase": state.phase,
            "weight": state.weights().get(slot, 0) if slot is not None else 0,
            "subject": commit.subject,
            "commit": commit.commit,
            "verdict": verdict,
            "approved_by": commit.approved_by,
        }
    )


def requested_approval(
    workspace: Workspace, state: ReleaseState, release: str
) -> RequestedApproval | None:
    """What of this release waits for a person now."""
    if state.release_under_way != release:
        return None
    request = pending_request(workspace, state)
    if request is None:
        return None
    return RequestedApproval(
        weight=request.weight,
        since=datetime.fromisoformat(request.asked_at),
        expires=datetime.fromisoformat(request.expires),
        command=f"lockgate approve {state.model} --env {state.environment} "
        f"--step {request.step + 1} --request {request.content_digest().short} --key FILE",
    )


def judge_looks(path: Path) -> Iterable[JudgeReport]:
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            yield JudgeReport.model_validate_json(line)
        except ValidationError as error:
            logger.warning("a look in %s cannot be read: %s", path, error)
