"""What is decided on the newest state, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lockgate.domain.release_state import ReleaseState
from lockgate.domain.rollout import Transition, Wait

Build = Callable[[ReleaseState], Transition | Wait | None]
"""Decides on the newest state. Called again after a lost race: it must not have effects."""
Render = Callable[[ReleaseState, Path], Mapping[str, str]]
"""All manifests of a state: path from the repository's root → YAML. The directory is that root at the newest commit."""

Files = Mapping[str, str | bytes]
"""Contents by path from the repository's root."""


@dataclass(frozen=True)
class FileChange:
    """Files to be written beside a state, and the message that says why."""

    files: Files
    message: str


Decide = Callable[[ReleaseState], FileChange | None]
"""What to write, given the newest state; None where it is there already. Called again after a lost race."""


@dataclass(frozen=True)
class CommitResult:
    """What became of one `commit_transition`."""

    committed: bool
    """False where nothing had to change."""
    commit: str
    """Newest commit of the branch, 40 hex digits: the transition's own if `committed`."""
    state: ReleaseState
    """The state in that commit."""
    transition: Transition | None
    wait: Wait | None
    attempts: int
    seconds: float
