"""The tracked models of a GitOps repository."""

from __future__ import annotations

from collections.abc import Callable

from lockgate.adapters.git.repository import GitOpsRepository
from lockgate.domain import gitops
from lockgate.domain.tracks import Track
from lockgate.errors import GitError


def read_tracks(
    repository: GitOpsRepository,
    model: str | None = None,
    *,
    unreadable: Callable[[GitError], None] | None = None,
) -> tuple[Track, ...]:
    """The tracks at the repository's head, or that of one model, which is fetched for it.

    One that is no track is told to `unreadable` and left out, so that it stands in no other model's way; without
    `unreadable` it raises `GitError`.
    """
    repository.sync()
    tracks = []
    for path in repository.paths(gitops.MODELS):
        named = gitops.model_of_track_path(path)
        if named is None or model not in (None, named):
            continue
        try:
            tracks.append(gitops.load_track(repository.read_text(path) or "", path))
        except GitError as error:
            if unreadable is None:
                raise
            unreadable(error)
    return tuple(tracks)
