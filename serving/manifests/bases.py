"""What the repository's bases make of a candidate, and whose manifests they would make otherwise today."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lockgate.domain.candidates import Candidate
from lockgate.domain.cluster import CANDIDATE_ANNOTATION, TEMPLATE_ANNOTATION, WANTED_ANNOTATION
from lockgate.domain.digests import Digest
from lockgate.domain.release_state import ReleaseState
from serving.manifests.render import render, slot_objects

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def bases_digest(
    model: str, environment: str, candidate: Candidate, repo_root: Path, *, kubectl: Path
) -> Digest:
    """Digest of the candidate's slot and route as the bases, components and the environment of this checkout render them.

    The candidate's own digest, of which this one is a part, is left out. A comment, or a component that is not used, changes
    nothing. Errors as of `render`.
    """
    bare = candidate.model_copy(update={"manifests": None})
    found = slot_objects(model, environment, bare, repo_root, kubectl=kubectl)
    named = {f"{o['kind']}/{o['metadata']['name']}": _unnamed(o) for o in found}
    return Digest.of_json(dict(sorted(named.items())))


def changed_by_bases(state: ReleaseState, repo_root: Path, *, kubectl: Path) -> tuple[str, ...]:
    """Paths of the manifests of `state` that would be others if they were rendered anew from this checkout's bases; also those
    that would not be there, or would be. Errors as of `render`."""
    fresh = render(state, repo_root, kubectl=kubectl, fresh=True)
    kept = render(state, repo_root, kubectl=kubectl)
    return tuple(sorted(p for p in {*fresh, *kept} if _parsed(fresh, p) != _parsed(kept, p)))


def _parsed(files: dict[str, str], path: str) -> Any:
    if path not in files:
        return None
    # Which commit it came with is no word of the bases.
    return _without(yaml.load(files[path], Loader=_Loader), TEMPLATE_ANNOTATION, WANTED_ANNOTATION)


def _unnamed(value: Any) -> Any:
    """Without the annotation that names the candidate."""
    return _without(value, CANDIDATE_ANNOTATION, WANTED_ANNOTATION)


def _without(value: Any, *keys: str) -> Any:
    if isinstance(value, dict):
        return {k: _without(v, *keys) for k, v in value.items() if k not in keys}
    return [_without(v, *keys) for v in value] if isinstance(value, list) else value
