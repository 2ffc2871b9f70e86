"""The GitOps repository's bases as part of a candidate: put into it, held to at the commit, and looked over for all models."""

from __future__ import annotations

from pathlib import Path

from lockgate.adapters.git import Render
from lockgate.domain.base import Frozen
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.release_state import ReleaseState
from lockgate.errors import RenderingError
from lockgate.settings import Settings
from serving.manifests import bases_digest, changed_by_bases, render
from tasks.workspace import Workspace


class BaseChange(Frozen):
    """What stands in one environment, and whether the bases would make other manifests of it today."""

    model: str
    environment: str
    candidate: Digest
    """Of the stable version."""
    files: tuple[str, ...]
    """Manifests that would be others; empty where nothing would."""
    problem: str | None = None
    """Why the bases cannot be rendered for it: its next release would end with that."""

    @property
    def changed(self) -> bool:
        return bool(self.files) or self.problem is not None


def with_bases(
    workspace: Workspace, model: str, environment: str, candidate: Candidate
) -> Candidate:
    """The candidate as it would be released from the bases at the head of the repository."""
    digest = workspace.gitops.look_at_files(
        lambda root: bases_digest(model, environment, candidate, root, kubectl=workspace.kubectl)
    )
    return candidate.model_copy(update={"manifests": digest})


def rendering_as_described(workspace: Workspace, candidate: Candidate) -> Render:
    """How the candidate's first commit becomes manifests: from the bases that it was described, measured and signed with.

    `RenderingError` where they were edited meanwhile: what would run then has passed no gate.
    """

    def rendered(state: ReleaseState, root: Path) -> dict[str, str]:
        if candidate.manifests is not None:
            now = bases_digest(
                state.model, state.environment, candidate, root, kubectl=workspace.kubectl
            )
            if now != candidate.manifests:
                raise RenderingError(
                    f"the bases of {state.model}/{state.environment} were changed since its release began",
                    hint="release it again: with the new bases it is another candidate",
                )
        return render(state, root, kubectl=workspace.kubectl)

    return rendered


def plan_bases() -> tuple[BaseChange, ...]:
    """Every model that stands somewhere, and what a release of it would change by the bases alone. Changes nothing."""
    workspace = Workspace(Settings())
    workspace.gitops.sync()
    return tuple(
        _look(workspace, state) for state in workspace.gitops.states() if state.stable is not None
    )


def _look(workspace: Workspace, state: ReleaseState) -> BaseChange:
    occupant = state.occupant(state.stable) if state.stable is not None else None
    assert occupant is not None
    files: tuple[str, ...] = ()
    problem = None
    try:
        files = workspace.gitops.look_at_files(
            lambda root: changed_by_bases(state, root, kubectl=workspace.kubectl)
        )
    except RenderingError as error:
        problem = error.message
    return BaseChange(
        model=state.model, environment=state.environment, candidate=occupant.candidate.digest,
        files=files, problem=problem,
    )  # fmt: skip
