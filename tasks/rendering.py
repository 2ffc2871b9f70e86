"""The manifests that a release's first commit would hold, written where somebody can read them; nothing is committed."""

from __future__ import annotations

from pathlib import Path

from lockgate.adapters import sources
from lockgate.domain.base import Frozen
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.images import ImageRef
from lockgate.domain.spec import Recipe, ReleaseSpec
from lockgate.domain.steps import QuantizedModel, StoredModel
from lockgate.errors import UsageError
from lockgate.settings import Settings
from tasks.bases import with_bases
from tasks.intake import calibration_for, fetch_key, parsed_source, quantize_key
from tasks.recorded import recorded
from tasks.releasing import first_manifests
from tasks.workspace import Workspace

UNMADE = Digest("sha256:" + "0" * 64)
"""Stands for the digest of a model image that was not made yet."""


class Rendered(Frozen):
    candidate: Candidate
    files: tuple[str, ...]
    """Relative to the directory, as they would lie in the GitOps repository. None: what would be released stands already."""
    made: bool
    """Whether the model image is there; otherwise the manifests name it by a digest of zeros."""


def render_release(spec: ReleaseSpec, directory: Path) -> Rendered:
    """Write the manifests of both slots and the route as the release's first commit would hold them.

    Raises:
        UsageError: the directory holds something, or the spec cannot be released as it stands.
        Refused: the release would be refused before its first commit.
        SourceError: the source cannot be resolved.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(f"{directory} is not empty", hint="give a directory that is not there yet")
    workspace = Workspace(Settings())
    workspace.gitops.sync()
    model = _model(workspace, spec)
    image = model.image if model is not None else _unmade(workspace, spec)
    runtime = spec.runtime or workspace.local_runtime(spec.serving.engine)
    candidate = Candidate(model=image, runtime=runtime, serving=spec.serving)
    candidate = with_bases(workspace, spec.model, spec.environment, candidate)
    files = first_manifests(workspace, spec, candidate) or {}
    for path, text in files.items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return Rendered(candidate=candidate, files=tuple(sorted(files)), made=model is not None)


def _model(workspace: Workspace, spec: ReleaseSpec) -> StoredModel | None:
    """What earlier steps made of the source; None if they did not run."""
    revision = sources.resolve(parsed_source(spec.source))
    key = fetch_key(workspace, spec.source, revision, spec.model)
    source = recorded(workspace.records, key, StoredModel)
    if source is None or spec.quantization is Recipe.NONE:
        return source
    calibration = calibration_for(spec.quantization, spec.calibration)
    key = quantize_key(workspace, source, spec.quantization, calibration, spec.model)
    made = recorded(workspace.records, key, QuantizedModel)
    return made.model if made is not None else None


def _unmade(workspace: Workspace, spec: ReleaseSpec) -> ImageRef:
    return ImageRef.parse(f"{workspace.settings.model_repository(spec.model)}@{UNMADE}")
