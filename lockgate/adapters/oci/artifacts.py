"""Small JSON values in a store: an OCI 1.1 artifact each, so that registries keep them and their tags find them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lockgate.domain import digests
from lockgate.domain.digests import Digest, canonical_json
from lockgate.domain.stores import (
    EMPTY_BODY,
    EMPTY_DIGEST,
    EMPTY_JSON,
    IMAGE_MANIFEST,
    Descriptor,
    ImageStore,
)
from lockgate.errors import RegistryError
from lockgate.streams import at_most

_LARGEST = 256 * 1024 * 1024


def put_json(
    store: ImageStore, repository: str, tag: str, artifact_type: str, body: bytes
) -> Digest:
    """Store `body` as the one layer of an artifact tagged `tag`; gives the digest of the body."""
    blob = store.put_blob(repository, Digest.of_bytes(body), [body], len(body))
    layer = Descriptor(artifact_type, blob, len(body))
    put_artifact(store, repository, artifact_type, layer, tag=tag)
    return blob


def put_artifact(
    store: ImageStore,
    repository: str,
    artifact_type: str,
    layer: Descriptor,
    *,
    tag: str | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Digest:
    """Store the manifest of an artifact whose layer is in the store; gives the manifest's digest."""
    store.put_blob(repository, EMPTY_DIGEST, [EMPTY_BODY], len(EMPTY_BODY))
    manifest = {
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "artifactType": artifact_type,
        "config": Descriptor(EMPTY_JSON, EMPTY_DIGEST, len(EMPTY_BODY)).to_data(),
        "layers": [layer.to_data()],
    }
    if annotations:
        manifest["annotations"] = dict(annotations)
    return store.put_manifest(repository, canonical_json(manifest), IMAGE_MANIFEST, tag)


def get_json(store: ImageStore, repository: str, tag: str, artifact_type: str) -> Any | None:
    """The JSON value tagged `tag`, or None. Raises `RegistryError` if the tag holds something else."""
    digest = store.resolve(repository, tag)
    if digest is None:
        return None
    body, _ = store.get_manifest(repository, digest)
    try:
        manifest = digests.read_json(body)
        if manifest.get("artifactType") != artifact_type:
            raise ValueError(f"artifact type {manifest.get('artifactType')!r}")
        (layer,) = (Descriptor.from_data(entry) for entry in manifest["layers"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RegistryError(f"{repository}:{tag} is not a {artifact_type}: {error}") from error
    return read_json(store, repository, layer.digest)


def read_json(store: ImageStore, repository: str, digest: Digest) -> Any:
    """A JSON blob. Raises `RegistryError` if it is absent or not JSON."""
    size = store.blob_size(repository, digest)
    if size is None:
        raise RegistryError(f"{store.location} holds no document {digest} in {repository}")
    if size > _LARGEST:
        raise RegistryError(f"{digest} has {size} bytes: too large for a document")
    try:
        return digests.read_json(
            b"".join(at_most(store.read_blob(repository, digest), size, f"document {digest}"))
        )
    except ValueError as error:
        raise RegistryError(f"{digest} is not JSON") from error
