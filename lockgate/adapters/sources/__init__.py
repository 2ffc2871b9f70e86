"""Model sources: Hugging Face Hub, a directory, an OCI image. `resolve` says which model, `fetch` brings its files.

All three end in the same form: a directory of regular files that appears whole or not at all, and its `Snapshot`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from lockgate.adapters.sources import directory as directories
from lockgate.adapters.sources import hub
from lockgate.adapters.sources.delivery import deliver, recorded_snapshot
from lockgate.adapters.sources.directory import directory_revision, read_snapshot
from lockgate.adapters.sources.transfer import Progress
from lockgate.domain.images import ImageRef
from lockgate.domain.sources import ModelRevision, Snapshot, Source, SourceKind
from lockgate.errors import SourceError

__all__ = [
    "FetchOptions",
    "Peek",
    "Progress",
    "Pull",
    "directory_revision",
    "fetch",
    "peek",
    "read_snapshot",
    "recorded_snapshot",
    "resolve",
]

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
        return directory_revision(root, read_snapshot(root, workers=options.workers))
    return _image_revision(_image_reference(source))


@dataclass(frozen=True)
class Peek:
    """What can be seen of a model before its weights are downloaded."""

    files: tuple[str, ...]
    contents: dict[str, bytes]
    """Of the small files that were asked for, where there are such."""


def peek(
    source: Source,
    revision: ModelRevision,
    names: Collection[str],
    *,
    options: FetchOptions | None = None,
) -> Peek | None:
    """The file names of a source and the content of the files called `names`; None where only a download would tell (OCI).

    Raises `SourceError` as `resolve` does.
    """
    options = options or FetchOptions()
    if source.kind is SourceKind.HUB:
        files, contents = hub.peek(
            source, revision, names, endpoint=options.endpoint, token=options.token,
            ignore=options.ignore, timeout=options.timeout,
        )  # fmt: skip
        return Peek(files, contents)
    if source.kind is SourceKind.DIRECTORY:
        root = directories.existing(source.location)
        files = tuple(file.path for file in directories.walk(root))
        return Peek(files, directories.small_files(root, names))
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
        else:
            root = directories.existing(source.location)
            snapshot = directories.copy_tree(
                root, delivery.staging, workers=options.workers, progress=progress
            )
            if directory_revision(root, snapshot) != revision:
                raise SourceError(
                    f"{root} changed since it was resolved to {revision}",
                    hint="resolve it again when nothing writes to it any more",
                )
        return delivery.finished(snapshot)


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
