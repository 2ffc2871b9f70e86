"""What is new at the sources of tracked models, and what follows from it."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Literal

from prefect.cache_policies import NO_CACHE

from lockgate.adapters import git, sources
from lockgate.adapters.oci import ImageStore, open_store
from lockgate.domain import gitops, tracking
from lockgate.domain.base import Frozen
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.release_state import ReleaseState
from lockgate.domain.sources import Source, SourceKind
from lockgate.domain.spec import Recipe, ReleaseSpec
from lockgate.domain.steps import (
    QuantizedModel,
    ReleaseOutcome,
    ReleaseRequest,
    StepKey,
    StoredModel,
)
from lockgate.domain.tracks import Pinned, Track, TrackedEnvironment, TrackedRelease, TrackRecord
from lockgate.errors import GitError, LockgateError, SourceError, UsageError
from tasks.intake import calibration_for, fetch_key, quantize_key
from tasks.recorded import recorded
from tasks.retries import TRANSIENT
from tasks.steps import step
from tasks.workspace import Workspace

logger = logging.getLogger("lockgate.track")

RECORD_VERSION = 1


class Considered(Frozen):
    """What a look at one environment of a track came to."""

    model: str
    environment: str
    decision: tracking.Decision
    release: TrackedRelease | None = None
    """What to start, or what there is no reason to; None where nothing is known to be released here."""


class TrackOutcome(Frozen):
    """What one look did in one environment."""

    model: str
    environment: str | None
    action: Literal["started", "released", "skipped", "failed"]
    """`started`: by a deployment, which goes on by itself. `released`: in this process, to the end that `reason` names."""
    reason: str
    revision: str | None = None
    result: str | None = None
    """Of a release that was run here; `ReleaseOutcome.result`."""
    flow_run: str | None = None

    def as_text(self) -> str:
        at = f"{self.model}/{self.environment}" if self.environment else self.model
        of = f" {self.revision}" if self.revision else ""
        return f"{at}{of}: {self.action}: {self.reason}"


@step(name="read-tracks", cache_policy=NO_CACHE, **TRANSIENT)
def read_tracks(model: str | None) -> list[Track]:
    """The tracks at the head of the GitOps repository, or that of one model. One that cannot be read is left out of all,
    with an error in the log, and raises where it is the one.

    Raises:
        UsageError: the model is not tracked.
    """

    def unreadable(error: GitError) -> None:
        if model is not None:
            raise error
        logger.error("not looked at: %s", error.message)

    tracks = git.read_tracks(Workspace.current().gitops, model, unreadable=unreadable)
    if model is not None and not tracks:
        raise UsageError(
            f"{model} is not tracked", hint=f"`lockgate track add` writes models/{model}/track.yaml"
        )
    return list(tracks)


def chosen(track: Track, environment: str | None) -> tuple[TrackedEnvironment, ...]:
    """All environments of a track, or the one that a person named. Raises `UsageError` if it is none of them."""
    if environment is None:
        return track.environments
    found = track.environment(environment)
    if found is None:
        known = ", ".join(e.name for e in track.environments)
        raise UsageError(f"{track.model} is not tracked to {environment}", hint=f"it is to {known}")
    return (found,)


@step(name="resolve-tracked", cache_policy=NO_CACHE, **TRANSIENT)
def resolve_followed(track: Track) -> Pinned:
    """What the followed branch or tag means now, asked at the source itself.

    Raises:
        SourceError: the source cannot be resolved, or has no branch or tag that is followed.
    """
    origin, follow = track.origin, track.followed
    if follow is None:
        return Pinned(revision=sources.resolve(origin), source=str(origin))
    if origin.kind is SourceKind.OCI:
        store = _store_of(Workspace.current(), origin.location)
        tag = follow.choose(store.tags(origin.location))
        digest = store.resolve(origin.location, tag) if tag is not None else None
        if digest is None:
            raise SourceError(f"{track.source} has no {follow}")
        image = Source(kind=SourceKind.OCI, location=f"{origin.location}@{digest}")
        return Pinned(revision=sources.resolve(image), source=str(image))
    name: str | None = follow.pattern
    if not follow.exact:
        listed = sources.references(origin)
        names = () if listed is None else listed.branches if follow.branch else listed.tags
        name = follow.choose(names)
    if name is None:
        raise SourceError(f"{track.source} has no {follow}")
    revision = sources.resolve(origin.model_copy(update={"revision": name}))
    commit = origin.model_copy(update={"revision": revision.commit})
    return Pinned(revision=revision, source=str(commit))


def _store_of(workspace: Workspace, repository: str) -> ImageStore:
    """The workspace's store, or the registry that the repository's name begins with."""
    store, host = workspace.store, repository.partition("/")[0]
    known = {store.location, workspace.settings.repository.partition("/")[0]}
    if host in known or not (host == "localhost" or "." in host or ":" in host):
        return store
    return open_store(host, plain_http=workspace.settings.plain_http)


@step(name="consider", cache_policy=NO_CACHE, **TRANSIENT)
def consider(
    track: Track, environment: TrackedEnvironment, newest: Pinned, asked: bool
) -> Considered:
    """Decide from Git and the store what is to be done in one environment now.

    Raises:
        UsageError: the release spec cannot be used.
    """
    workspace = Workspace.current()
    repository = workspace.gitops
    repository.sync()
    state = repository.read_state(track.model, environment.name)
    before = track.before(environment)
    if before is None:
        pinned = newest
    else:
        previous = repository.read_state(track.model, before.name)
        standing = tracking.stands(previous, _record_of_stable(workspace, previous))
        if standing is None:
            waiting = tracking.Decision(
                why="busy", reason=f"nothing of this track is stable in {before.name} now"
            )
            return Considered(model=track.model, environment=environment.name, decision=waiting)
        pinned = standing
    release = _release(workspace, track, environment, pinned)
    record = _find(workspace, _release_key(release))
    decision = tracking.decide(track, environment, state, record, datetime.now(UTC), asked=asked)
    return Considered(
        model=track.model, environment=environment.name, decision=decision, release=release
    )


def _release(
    workspace: Workspace, track: Track, environment: TrackedEnvironment, pinned: Pinned
) -> TrackedRelease:
    repository = workspace.gitops
    text = repository.read_text(track.spec) if isinstance(track.spec, str) else None
    spec = _fitting(track, environment, text, pinned.source)
    author = repository.last_author(gitops.track_path(track.model))
    # Who wrote the track started the release: an approval of theirs would be one of their own request.
    request = ReleaseRequest(spec=spec, requested_by=author)
    return TrackedRelease(pinned=pinned, request=request)


def _fitting(
    track: Track, environment: TrackedEnvironment, text: str | None, source: str
) -> ReleaseSpec:
    """The spec for one environment, from the track itself or from the `text` of the file that it names."""
    document = track.spec
    if isinstance(document, str):
        if text is None:
            raise UsageError(
                f"{document}, the release spec of {track.model}, is not in the repository"
            )
        document = gitops.load_yaml(text, document)
    try:
        if not isinstance(document, dict):
            raise ValueError(f"{track.spec} holds no document")
        return track.release(document, environment, source)
    except ValueError as error:
        raise UsageError(f"the track of {track.model}: {error}") from error


def remember(release: TrackedRelease, outcome: ReleaseOutcome) -> None:
    """Record how a tracked release ended, by what was asked for and by its candidate. A second run changes nothing."""
    _record(release, outcome.candidate.digest, outcome.result, outcome.reason)


def remember_failure(release: TrackedRelease, error: LockgateError) -> None:
    """Record, where the candidate is known by now, that its release could not be carried out: the next look asks Git whether
    it is denied, and else starts it again."""
    candidate = _candidate(Workspace.current(), release)
    if candidate is not None:
        _record(release, candidate.digest, "aborted", error.message)


def _record(release: TrackedRelease, candidate: Digest, result: str, reason: str) -> None:
    workspace, spec = Workspace.current(), release.request.spec
    record = TrackRecord.model_validate(
        {"pinned": release.pinned, "candidate": candidate, "result": result, "reason": reason}
    )
    for key in (_release_key(release), _candidate_key(spec.model, spec.environment, candidate)):
        workspace.records.record(key.content_digest(), {"result": record.to_data()})


def _find(workspace: Workspace, key: StepKey) -> TrackRecord | None:
    return recorded(workspace.records, key, TrackRecord)


def _record_of_stable(workspace: Workspace, state: ReleaseState) -> TrackRecord | None:
    stable = state.occupant(state.stable) if state.stable is not None else None
    if stable is None:
        return None
    digest = stable.candidate.digest
    return _find(workspace, _candidate_key(state.model, state.environment, digest))


def _release_key(release: TrackedRelease) -> StepKey:
    return StepKey(step="tracked", version=RECORD_VERSION, inputs={"release": release.key})


def _candidate_key(model: str, environment: str, candidate: Digest) -> StepKey:
    inputs = {"model": model, "environment": environment, "candidate": candidate}
    return StepKey(step="tracked-candidate", version=RECORD_VERSION, inputs=inputs)


def _candidate(workspace: Workspace, release: TrackedRelease) -> Candidate | None:
    """What the release's steps have made so far; None while there is no model image."""
    spec, records = release.request.spec, workspace.records
    key = fetch_key(workspace, spec.source, release.pinned.revision, spec.model)
    model = recorded(records, key, StoredModel)
    if model is not None and spec.quantization is not Recipe.NONE:
        calibration = calibration_for(spec.quantization, spec.calibration)
        key = quantize_key(workspace, model, spec.quantization, calibration, spec.model)
        quantized = recorded(records, key, QuantizedModel)
        model = quantized.model if quantized is not None else None
    if model is None:
        return None
    runtime = spec.runtime or workspace.local_runtime(spec.serving.engine)
    return Candidate(model=model.image, runtime=runtime, serving=spec.serving)


class TrackRow(Frozen):
    """One environment of one track, for `lockgate track list`."""

    model: str
    source: str
    follow: str
    environment: str
    promotion: str
    frozen: str | None
    """Reason of the freeze that holds now."""
    phase: str


def list_tracks() -> list[TrackRow]:
    """Every tracked model's environments at the remote's head. No source is asked."""
    repository, now = Workspace.current().gitops, datetime.now(UTC)
    rows = []
    for track in read_tracks.fn(None):
        for environment in track.environments:
            freeze = track.frozen(environment.name, now)
            rows.append(
                TrackRow(
                    model=track.model, source=track.source, follow=str(track.followed or "content"),
                    environment=environment.name, promotion=environment.promotion,
                    frozen=freeze.reason if freeze is not None else None,
                    phase=repository.read_state(track.model, environment.name).phase,
                )
            )  # fmt: skip
    return rows


def add_track(track: Track, spec: str | None, author: git.Author) -> str | None:
    """Commit a track, and the text of its release spec where that comes along, in the name of `author`: who is then the one
    that asks for what it starts. Returns the commit; None where it stands there already.

    Raises:
        UsageError: the release spec is missing, or does not fit one of the environments.
    """
    settings = Workspace.current().settings
    repository = git.GitOpsRepository(
        settings.git_remote, settings.layout.checkout("tracks"), branch=settings.branch,
        author=author, signing_key=settings.commit_signing_key,
    )  # fmt: skip
    repository.sync()
    files = {str(gitops.track_path(track.model)): gitops.dump_yaml(track.to_data())}
    if isinstance(track.spec, str):
        text = spec if spec is not None else repository.read_text(track.spec)
        for environment in track.environments:
            _fitting(track, environment, text, track.source)
        if spec is not None:
            files[track.spec] = spec
    elif spec is not None:
        raise UsageError("the track holds its release spec itself: no other one can come along")
    return repository.commit_files(files, f"Track {track.model} at {track.source}")
