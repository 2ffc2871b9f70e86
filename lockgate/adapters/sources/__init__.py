"""Model sources: Hugging Face Hub, a directory, an OCI image, an object store. `resolve` says which model, `fetch` brings it.

All end in the same form: a directory of regular files that appears whole or not at all, and its `Snapshot`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from lockgate.adapters.sources import bucket, hub
from lockgate.adapters.sources import directory as directories
from lockgate.adapters.sources.delivery import deliver, recorded_snapshot
from lockgate.adapters.sources.directory import directory_revision, read_snapshot
from lockgate.adapters.sources.image import pull_plain
from lockgate.adapters.sources.references import References, hub_references
from lockgate.adapters.sources.transfer import Progress
from lockgate.domain.evidence import Finding, ScanEvidence, ScannerRun, ScannerStatus
from lockgate.domain.images import ImageRef
from lockgate.domain.scanning import hub_status
from lockgate.domain.sources import ModelRevision, Snapshot, Source, SourceKind
from lockgate.errors import SourceError

__all__ = [
    "FetchOptions",
    "Peek",
    "Progress",
    "Pull",
    "References",
    "directory_revision",
    "fetch",
    "peek",
    "pull_plain",
    "read_snapshot",
    "recorded_snapshot",
    "references",
    "resolve",
    "source_evidence",
]

_BUCKETS = (SourceKind.S3, SourceKind.GCS)
Pull = Callable[[ImageRef, Path], Snapshot]
"""Brings a model image's files into a directory that does not exist yet, whole or not at all."""


@dataclass(frozen=True)
class FetchOptions:
    """How to reach sources. The defaults read what huggingface_hub reads: `HF_ENDPOINT`, `HF_TOKEN`, the stored token."""

    endpoint: str | None = None
    token: str | None = None
    ignore: tuple[str, ...] = hub.DEFAULT_IGNORE
    """File patterns that are not downloaded from the Hub where the model has safetensors weights."""
    workers: int = 4
    """Files downloaded or copied at once."""
    timeout: float = 30.0
    """Seconds for one request to the Hub (not for a whole download)."""
    pull: Pull | None = None
    """What brings `oci://` sources."""


def resolve(source: Source, *, options: FetchOptions | None = None) -> ModelRevision:
    """The exact commit that `source` means now.

    A branch or tag at the Hub becomes 40 hex digits. A directory is hashed in place. An OCI source must name a digest.
    Raises `SourceError`: unknown or gated model, unreachable Hub, unreadable file, link in a directory, a bare tag.
    """
    options = options or FetchOptions()
    if source.kind is SourceKind.HUB:
        return hub.resolve(source, options.endpoint, options.token, options.timeout)
    if source.kind is SourceKind.DIRECTORY:
        root = directories.existing(source.location)
        snapshot = read_snapshot(root, workers=options.workers, files=source.files)
        return directory_revision(root, snapshot)
    if source.kind in _BUCKETS:
        return bucket.resolve(source, options.timeout)
    return _image_revision(_image_reference(source))


def references(source: Source, *, options: FetchOptions | None = None) -> References | None:
    """The branches and tags of a source at the Hub; None for any other. Raises `SourceError` as `resolve` does."""
    options = options or FetchOptions()
    if source.kind is not SourceKind.HUB:
        return None
    return hub_references(source, options.endpoint, options.token, options.timeout)


@dataclass(frozen=True)
class Peek:
    """What can be seen of a model before its weights are downloaded."""

    files: tuple[str, ...]
    contents: dict[str, bytes]
    """Of the small files that were asked for, where there are such."""
    weight_bytes: int | None = None
    """Of all safetensors files; none where there are none."""


def _weight_bytes(sizes: Iterable[tuple[str, int]]) -> int | None:
    return sum(size for name, size in sizes if name.endswith(".safetensors")) or None


def peek(
    source: Source,
    revision: ModelRevision,
    names: Collection[str],
    *,
    options: FetchOptions | None = None,
) -> Peek | None:
    """The file names of a source and the content of the files called `names`; None where only a download would tell (OCI, object stores).

    Raises `SourceError` as `resolve` does.
    """
    options = options or FetchOptions()
    if source.kind is SourceKind.HUB:
        sizes, contents = hub.peek(
            source, revision, names, endpoint=options.endpoint, token=options.token,
            ignore=options.ignore, timeout=options.timeout,
        )  # fmt: skip
        return Peek(tuple(sizes), contents, _weight_bytes(sizes.items()))
    if source.kind is SourceKind.DIRECTORY:
        root = directories.existing(source.location)
        found = directories.selected(directories.walk(root), source.files, root)
        files = tuple(file.path for file in found)
        wanted = [name for name in names if source.files.takes(name)]
        weights = _weight_bytes((file.path, file.size) for file in found)
        return Peek(files, directories.small_files(root, wanted), weights)
    return None


def fetch(
    source: Source,
    revision: ModelRevision,
    directory: Path,
    *,
    progress: Progress | None = None,
    options: FetchOptions | None = None,
) -> Snapshot:
    """Bring the files of `revision` into `directory`; every file is hashed once, while or right after it is written.

    A second call finds the finished directory by the record beside it and reads nothing again. A download that was cut
    off or killed is continued. Raises `SourceError` when files cannot be read or written or changed since `resolve`, and
    `IntegrityError` when downloaded bytes are not those that the Hub lists; neither leaves a half directory behind.
    """
    options = options or FetchOptions()
    with deliver(directory, source, revision) as delivery:
        if delivery.done is not None:
            return delivery.done
        if source.kind is SourceKind.OCI:
            if options.pull is None:
                raise SourceError(f"{source}: nothing was given that pulls images")
            snapshot = options.pull(_image_reference(source), directory)
            return delivery.recorded(snapshot)
        if source.kind is SourceKind.HUB:
            snapshot = hub.download(
                source,
                revision,
                delivery.staging,
                endpoint=options.endpoint,
                token=options.token,
                ignore=options.ignore,
                workers=options.workers,
                timeout=options.timeout,
                progress=progress,
            )
        elif source.kind in _BUCKETS:
            snapshot = bucket.download(
                source, revision, delivery.staging, workers=options.workers,
                timeout=options.timeout, progress=progress,
            )  # fmt: skip
        else:
            root = directories.existing(source.location)
            snapshot = directories.copy_tree(
                root, delivery.staging, workers=options.workers, progress=progress,
                files=source.files,
            )  # fmt: skip
            if directory_revision(root, snapshot) != revision:
                raise SourceError(
                    f"{root} changed since it was resolved to {revision}",
                    hint="resolve it again when nothing writes to it any more",
                )
        return delivery.finished(snapshot)


def source_evidence(
    source: Source,
    revision: ModelRevision,
    snapshot: Snapshot,
    *,
    options: FetchOptions | None = None,
) -> ScanEvidence | None:
    """What the source's own scanners say of the files of `snapshot`; None for a source that has none (all but the Hub).

    Raises nothing: a Hub that does not answer, has not scanned yet or says what is not understood is in the evidence.
    """
    if source.kind is not SourceKind.HUB:
        return None
    options = options or FetchOptions()
    began = time.monotonic()
    findings: tuple[Finding, ...] = ()
    status, detail = ScannerStatus.COMPLETED, f"of commit {revision.commit}"
    try:
        said = hub.security_status(
            source, revision, options.endpoint, options.token, options.timeout
        )
        if said is None:
            status, detail = ScannerStatus.NOT_INSTALLED, "the Hub says nothing of this model"
        else:
            parsed = hub_status.parse_status(said, {file.path for file in snapshot.files})
            findings = parsed.findings
            if not parsed.finished:
                status, detail = ScannerStatus.FAILED, "the Hub has not finished scanning"
    except (SourceError, ValueError) as error:
        text = error.message if isinstance(error, SourceError) else str(error)
        status, detail = ScannerStatus.FAILED, f"no answer of use: {text}"[:500]
    digests = {file.path: file.digest for file in snapshot.files}
    run = ScannerRun(name=hub_status.SCANNER, version=None, status=status, detail=detail)
    return ScanEvidence(
        subject=snapshot.digest,
        subject_kind="source",
        runs=(run,),
        findings=tuple(f.model_copy(update={"digest": digests.get(f.path)}) for f in findings),
        seconds=time.monotonic() - began,
        scanned_at=datetime.now(UTC),
    )


def _image_reference(source: Source) -> ImageRef:
    try:
        return ImageRef.parse(source.location)
    except ValidationError as error:
        raise SourceError(
            f"{source} does not name an image by digest",
            hint="write oci://HOST/REPOSITORY@sha256:...: a tag can move between scan and use",
        ) from error


def _image_revision(image: ImageRef) -> ModelRevision:
    return ModelRevision(repo=image.repository, commit=image.digest.hex[:40])
