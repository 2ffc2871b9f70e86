"""Where every model stands, as a table: roles and weights from Git, servers from the cluster."""

from __future__ import annotations

from lockgate.domain.base import Frozen
from lockgate.domain.release_state import ReleaseState, Slot
from lockgate.errors import LockgateError
from lockgate.settings import Settings
from serving.local.status import ClusterStatus
from tasks.workspace import Workspace


class SlotRow(Frozen):
    """One occupied slot."""

    model: str
    environment: str
    phase: str
    slot: str
    role: str
    candidate: str
    release: str
    weight: int
    cluster: str
    """What the cluster says: `2/2 ready`, or why it cannot be seen."""


def read_status(settings: Settings) -> list[SlotRow]:
    """Every occupied slot of every model at the remote's head."""
    workspace = Workspace(settings)
    workspace.gitops.sync()
    states = workspace.gitops.states()
    seen = {name: _cluster_of(workspace, name) for name in {s.environment for s in states}}
    return [row for state in states for row in _rows(state, seen[state.environment])]


def _cluster_of(workspace: Workspace, environment: str) -> ClusterStatus | str:
    try:
        return workspace.cluster(environment).status()
    except LockgateError as error:
        return error.message


def _rows(state: ReleaseState, seen: ClusterStatus | str) -> list[SlotRow]:
    rows = []
    for slot, weight in state.weights().items():
        occupant = state.occupant(slot)
        if occupant is None:
            continue
        rows.append(
            SlotRow(
                model=state.model, environment=state.environment, phase=state.phase.value,
                slot=slot.value, role="stable" if slot is state.stable else "candidate",
                candidate=occupant.candidate.digest, release=occupant.release, weight=weight,
                cluster=_seen(seen, state.model, slot),
            )
        )  # fmt: skip
    return rows


def _seen(seen: ClusterStatus | str, model: str, slot: Slot) -> str:
    if isinstance(seen, str):
        return seen
    status = seen.slot(model, slot.value)
    if status is None:
        return seen.unreadable.get(model, "not there yet")
    text = f"{status.updated}/{status.desired} ready"
    if status.restarts:
        text += f", {status.restarts} restarts"
    return "; ".join((text, *status.refusals))
