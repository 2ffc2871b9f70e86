"""Images from one store to another, digests unchanged, with what refers to them: signatures and attestations."""

from __future__ import annotations

import os
from collections.abc import Iterator

from lockgate.adapters.oci import referring
from lockgate.adapters.oci.layout import LayoutStore
from lockgate.domain.digests import Digest, read_json
from lockgate.domain.images import ImageRef
from lockgate.domain.stores import Descriptor, ImageStore
from lockgate.errors import RegistryError
from lockgate.streams import at_most

_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_DEPTH = 4


def copy_image(
    source: ImageStore,
    ref: ImageRef,
    target: ImageStore,
    repository: str,
    *,
    tag: str | None = None,
    referrers: bool = True,
) -> ImageRef:
    """Copy an image, or an index with all its images, to `repository` of `target`; the digest stays the same.

    Blobs that the target has are not sent; between repositories of one registry they are mounted. With `referrers`,
    signatures and attestations come along, in both of cosign's forms. Raises `RegistryError` and `IntegrityError`.
    """
    _copy_manifest(source, ref.repository, ref.digest, target, repository, tag, _DEPTH)
    if referrers:
        for referrer in source.referrers(ref.repository, ref.digest):
            _copy_manifest(
                source, ref.repository, referrer.digest, target, repository, None, _DEPTH
            )
        for suffix in ("sig", "att"):
            legacy = f"{referring.fallback_tag(ref.digest)}.{suffix}"
            found = source.resolve(ref.repository, legacy)
            if found is not None:
                _copy_manifest(source, ref.repository, found, target, repository, legacy, _DEPTH)
    return ImageRef(repository=repository, digest=ref.digest)


def image_for_platform(store: ImageStore, ref: ImageRef, platform: str) -> ImageRef:
    """The image itself, or that of an index that runs on `platform` (`os/architecture`). Raises `RegistryError`."""
    body, _ = store.get_manifest(ref.repository, ref.digest)
    try:
        data = read_json(body)
        if "manifests" not in data:
            return ref
        fitting = [
            Descriptor.from_data(entry).digest
            for entry in data["manifests"]
            for said in (entry.get("platform") or {},)
            if f"{said.get('os')}/{said.get('architecture')}" == platform
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RegistryError(f"{ref} is neither an image nor an index") from error
    if not fitting:
        raise RegistryError(f"{ref} has no image for {platform}")
    return ImageRef(repository=ref.repository, digest=fitting[0])


def _copy_manifest(
    source: ImageStore,
    origin: str,
    digest: Digest,
    target: ImageStore,
    repository: str,
    tag: str | None,
    depth: int,
) -> None:
    if depth == 0:
        raise RegistryError(f"{origin}@{digest} is nested too deeply")
    body, media_type = source.get_manifest(origin, digest)
    for part in _parts(body, f"{origin}@{digest}"):
        if part.media_type in _MANIFESTS:
            _copy_manifest(source, origin, part.digest, target, repository, None, depth - 1)
        else:
            _copy_blob(source, origin, part, target, repository)
    target.put_manifest(repository, body, media_type, tag)


def _parts(body: bytes, what: str) -> list[Descriptor]:
    try:
        data = read_json(body)
        if "manifests" in data:
            return [Descriptor.from_data(m) for m in data["manifests"]]
        return [Descriptor.from_data(d) for d in (data["config"], *data["layers"])]
    except (ValueError, KeyError, TypeError) as error:
        raise RegistryError(f"{what} is neither an image nor an index") from error


def _copy_blob(
    source: ImageStore, origin: str, part: Descriptor, target: ImageStore, repository: str
) -> None:
    if target.has_blob(repository, part.digest):
        return
    if source.location == target.location and target.mount_blob(repository, part.digest, origin):
        return
    if (
        isinstance(source, LayoutStore)
        and isinstance(target, LayoutStore)
        and _link(source, target, part.digest)
    ):
        return

    def content(offset: int) -> Iterator[bytes]:
        chunks = source.read_blob(origin, part.digest)
        for chunk in at_most(chunks, part.size, f"blob {part.digest}"):
            if offset < len(chunk):
                yield chunk[offset:]
            offset = max(0, offset - len(chunk))

    target.put_blob(repository, part.digest, content, part.size)


def _link(source: LayoutStore, target: LayoutStore, digest: Digest) -> bool:
    """Share the file between two layouts on one file system. Whoever reads the blob checks it, as always."""
    target.prepare()
    try:
        os.link(source.blob_path(digest), target.blob_path(digest))
    except FileExistsError:
        return True
    except OSError:
        return False
    return True
