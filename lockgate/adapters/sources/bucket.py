"""A model in an object store, `s3://BUCKET/PREFIX` or `gs://BUCKET/PREFIX`, through fsspec.

A bucket has no commits. What stands for one is the listing: path, size and the store's own tag of every object (ETag,
generation). It is taken when the source is resolved, before the download and after it; if any of the three differ, somebody
wrote to the prefix and nothing is taken. A download that was killed goes on within its files (`partial`). Nothing is ever
written to a bucket. Credentials, regions and endpoints are found as the vendors' libraries find them (`AWS_ENDPOINT_URL`,
profiles, instance roles, application default credentials).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockgate.adapters.sources.directory import MAX_FILES, snapshot_file
from lockgate.adapters.sources.partial import Partial, finished
from lockgate.adapters.sources.transfer import (
    CHUNK,
    INCOMPLETE,
    Interrupted,
    Meter,
    Progress,
    in_parallel,
    require_space,
)
from lockgate.domain.digests import Digest
from lockgate.domain.sources import ModelRevision, Snapshot, SnapshotFile, Source, SourceKind
from lockgate.errors import EnvironmentMissing, SourceError

PIECE = 8 * CHUNK
"""Bytes of one request, and what is lost where a download breaks off."""
_TAGS = ("ETag", "etag", "generation", "VersionId", "md5Hash")


@dataclass(frozen=True)
class _Object:
    path: str
    """Relative to the prefix."""
    key: str
    size: int
    tags: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """Of the file it arrives in: what is left of another version is not taken for a part of this one."""
        return Digest.of_json([self.path, self.size, [list(tag) for tag in self.tags]]).hex

    @property
    def pinned(self) -> dict[str, str]:
        """What makes every piece come of one version of the object, where the store knows versions."""
        return {name: value for name, value in self.tags if name == "generation"}


def resolve(source: Source, timeout: float) -> ModelRevision:
    """The listing of the prefix, as a revision: the same objects under the same tags are the same revision."""
    store = _filesystem(source, timeout)
    objects = _list(source, store)
    _require_key(source, store, objects)
    return _revision(source, objects)


def download(
    source: Source,
    revision: ModelRevision,
    staging: Path,
    *,
    workers: int,
    timeout: float,
    progress: Progress | None,
) -> Snapshot:
    """Download into `staging` (made here, or left there by a download of the same objects that broke off), each file hashed
    while it is written. Raises `SourceError` if the prefix is not what it was when it was resolved, or changes meanwhile."""
    store = _filesystem(source, timeout)
    objects = _list(source, store)
    _require_same(source, revision, objects)
    _require_key(source, store, objects)
    incoming = staging / INCOMPLETE
    incoming.mkdir(parents=True, exist_ok=True)
    _remove_others(staging, {found.name for found in objects})
    arrived = sum(path.stat().st_size for path in incoming.iterdir())
    total = sum(found.size for found in objects)
    require_space(staging, total - arrived, str(source))
    meter = Meter(total, "download", progress)

    def one(found: _Object) -> SnapshotFile:
        return _bring(source, store, found, incoming / found.name, meter)

    snapshot = Snapshot.of(in_parallel(one, objects, workers))
    store.invalidate_cache()
    _require_same(source, revision, _list(source, store))
    for found in objects:
        (staging / found.path).parent.mkdir(parents=True, exist_ok=True)
        finished(incoming / found.name, staging / found.path)
    shutil.rmtree(incoming)
    return snapshot


def _remove_others(staging: Path, known: set[str]) -> None:
    """What is left of a download of other objects."""
    for entry in staging.iterdir():
        if entry.name == INCOMPLETE:
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    for entry in (staging / INCOMPLETE).iterdir():
        if entry.name.partition(".")[0] not in known:
            entry.unlink()


def _filesystem(source: Source, timeout: float) -> Any:
    try:
        if source.kind is SourceKind.S3:
            from s3fs import S3FileSystem  # type: ignore[import-untyped]  # it has no types

            limits = {"connect_timeout": timeout, "read_timeout": timeout}
            with _translated(source):
                return S3FileSystem(
                    config_kwargs=limits, use_listings_cache=False, skip_instance_cache=True
                )
        from gcsfs import GCSFileSystem  # type: ignore[import-untyped]  # it has no types

        with _translated(source):
            return GCSFileSystem(
                timeout=timeout, use_listings_cache=False, skip_instance_cache=True
            )
    except ImportError as error:
        raise EnvironmentMissing(
            f"{source}: the client of this object store is not installed",
            hint="install s3fs or gcsfs",
        ) from error


def _list(source: Source, store: Any) -> list[_Object]:
    prefix = source.location.rstrip("/")
    with _translated(source):
        listed = store.find(prefix, detail=True)
    objects = []
    for key, facts in sorted(listed.items()):
        path, size = str(key).removeprefix(f"{prefix}/"), facts.get("size")
        if str(key).endswith("/") or path == prefix:
            continue  # a marker that some tools write for a folder
        if not isinstance(size, int) or size < 0:
            raise SourceError(f"{source}: no size is listed for {path!r}")
        if path.partition("/")[0] == INCOMPLETE:
            raise SourceError(f"{source}: an object's name cannot be used: {path!r}")
        snapshot_file(path, size, Digest.of_bytes(b""))
        tags = tuple((name, str(facts[name])) for name in _TAGS if facts.get(name))
        if not tags:
            raise SourceError(f"{source}: the store gives {path!r} no tag to know it by")
        if source.files.takes(path):
            objects.append(_Object(path, str(key), size, tags))
        if len(objects) > MAX_FILES:
            raise SourceError(f"{source} has more than {MAX_FILES} objects: not a model")
    if not objects:
        raise SourceError(f"{source}: there are no objects, or none that is selected")
    return objects


def _revision(source: Source, objects: list[_Object]) -> ModelRevision:
    listing = [[found.path, found.size, [list(tag) for tag in found.tags]] for found in objects]
    name = source.location.rstrip("/").rpartition("/")[2]
    return ModelRevision(repo=name, commit=Digest.of_json(listing).hex[:40])


def _require_same(source: Source, revision: ModelRevision, objects: list[_Object]) -> None:
    if _revision(source, objects) != revision:
        raise SourceError(
            f"{source} changed since it was resolved to {revision}",
            hint="resolve it again when nothing writes to it any more",
        )


def _require_key(source: Source, store: Any, objects: list[_Object]) -> None:
    """Raises `SourceError` unless every object is encrypted at rest with the key that the source names, where it names one.

    The store decrypts for whoever may use the key, so nothing is sent with a read: the key is asked of, not handed over.
    """
    wanted = source.encryption_key
    if wanted is None:
        return
    for found in objects:
        used = _key_of(source, store, found.key)
        short = used.rpartition("/")[2] if used and source.kind is SourceKind.S3 else used
        if used is None or wanted not in (used, short):
            raise SourceError(
                f"{source}: {found.path} is encrypted with {used or 'no key of the key service'}",
                hint="have it encrypted with the key that the source names: Amazon's key id or ARN, "
                "Google's projects/…/cryptoKeys/…; no alias",
            )


def _key_of(source: Source, store: Any, key: str) -> str | None:
    with _translated(source):
        if source.kind is SourceKind.GCS:
            # `projects/…/cryptoKeys/KEY/cryptoKeyVersions/N`: a key that is rotated is the same key.
            name = str(store.info(key).get("kmsKeyName") or "")
            return name.partition("/cryptoKeyVersions/")[0] or None
        # `arn:aws:kms:…:key/ID`
        bucket, _, name = key.partition("/")
        return store.call_s3("head_object", Bucket=bucket, Key=name).get("SSEKMSKeyId") or None


def _bring(source: Source, store: Any, found: _Object, place: Path, meter: Meter) -> SnapshotFile:
    with Partial(place) as partial:
        meter.add(partial.size)
        while partial.size < found.size:
            end = min(found.size, partial.size + PIECE)
            with _translated(source):
                piece = store.cat_file(found.key, start=partial.size, end=end, **found.pinned)
            if len(piece) != end - partial.size:
                raise Interrupted(
                    f"{source}: {found.path} gave {len(piece)} bytes of {end - partial.size} asked for",
                    hint="run again: what has arrived is kept and continued",
                )
            partial.write(piece)
            meter.add(len(piece))
        return snapshot_file(found.path, found.size, partial.digest)


@contextmanager
def _translated(source: Source) -> Iterator[None]:
    # Only calls into fsspec stand in here: the clients below it raise what they like, from four libraries.
    try:
        yield
    except FileNotFoundError as error:
        raise SourceError(f"{source}: no such bucket or object") from error
    except PermissionError as error:
        # Also of a token that ran out on the way.
        raise Interrupted(
            f"{source}: access is denied",
            hint="check credentials, the bucket's policy and that of the key it is encrypted with; "
            "what has arrived is kept",
        ) from error
    except Exception as error:
        raise Interrupted(
            f"{source}: the object store failed: {type(error).__name__}: {error}"[:500],
            hint="check endpoint, region and network, and run again: what has arrived is continued",
        ) from error
