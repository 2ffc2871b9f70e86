"""What an image in a store says about itself, read without its weights."""

from __future__ import annotations

from collections.abc import Mapping

from lockgate.adapters.oci.content import MAX_MANIFEST
from lockgate.adapters.oci.extraction import SingleFile, unpack
from lockgate.domain import model_image
from lockgate.domain.digests import Digest, read_json
from lockgate.domain.images import ImageRef
from lockgate.domain.sources import Snapshot
from lockgate.domain.stores import IMAGE_CONFIG, Descriptor, ImageStore
from lockgate.errors import IntegrityError, RegistryError
from lockgate.streams import at_most


def missing_blobs(store: ImageStore, ref: ImageRef) -> tuple[str, ...]:
    """What of an image the store lacks or holds in another size: one line a blob, empty if it can be pulled.

    Contents are not read here: `pull_model` and container runtimes check them.
    """
    manifest = read_image_manifest(store, ref)
    lines = []
    for blob in (manifest.config, *manifest.layers):
        size = store.blob_size(ref.repository, blob.digest)
        if size is None:
            lines.append(f"{blob.digest} is missing")
        elif size != blob.size:
            lines.append(f"{blob.digest} has {size} bytes instead of {blob.size}")
    return tuple(lines)


def small_blob(store: ImageStore, repository: str, blob: Descriptor) -> bytes:
    """A blob that is a document. Raises `RegistryError` for one that is too large to be one."""
    if blob.size > MAX_MANIFEST:
        raise RegistryError(f"{blob.digest} has {blob.size} bytes: too large for a document")
    chunks = store.read_blob(repository, blob.digest)
    return b"".join(at_most(chunks, blob.size, f"blob {blob.digest}"))


class ImageManifest:
    """A parsed image manifest."""

    def __init__(self, body: bytes, what: str) -> None:
        try:
            data = read_json(body)
            self.config = Descriptor.from_data(data["config"])
            self.layers = tuple(Descriptor.from_data(layer) for layer in data["layers"])
        except (ValueError, KeyError, TypeError) as error:
            raise RegistryError(f"{what} is not an image manifest") from error


def read_image_manifest(store: ImageStore, ref: ImageRef) -> ImageManifest:
    """The manifest of a single-platform image. Raises `RegistryError`."""
    body, _ = store.get_manifest(ref.repository, ref.digest)
    return ImageManifest(body, str(ref))


def image_labels(store: ImageStore, ref: ImageRef) -> dict[str, str]:
    """Labels in the image's config."""
    return _labels(store, ref, read_image_manifest(store, ref))


def _labels(store: ImageStore, ref: ImageRef, manifest: ImageManifest) -> dict[str, str]:
    if manifest.config.media_type != IMAGE_CONFIG:
        return {}
    try:
        return model_image.labels_of(read_json(small_blob(store, ref.repository, manifest.config)))
    except ValueError as error:
        raise RegistryError(f"the config of {ref} is not an image config: {error}") from error


def snapshot_of(store: ImageStore, ref: ImageRef) -> Snapshot:
    """Which files a model image holds, read from its first layer: no weights are transferred.

    Raises `IntegrityError` if the image is not a model image of Lockgate's making, or contradicts itself.
    """
    return _snapshot_of(store, ref, read_image_manifest(store, ref))


def _snapshot_of(store: ImageStore, ref: ImageRef, manifest: ImageManifest) -> Snapshot:
    labels = _labels(store, ref, manifest)
    if labels.get(model_image.LABEL_FORMAT) != model_image.IMAGE_FORMAT or not manifest.layers:
        raise IntegrityError(
            f"{ref} is not a model image of this version of Lockgate",
            hint="package the model with `lockgate package`",
        )
    listing = SingleFile(model_image.SNAPSHOT_PATH)
    first = manifest.layers[0]
    chunks = store.read_blob(ref.repository, first.digest)
    unpack(at_most(chunks, first.size, f"layer {first.digest}"), listing)
    try:
        snapshot = model_image.parse_snapshot_document(listing.body)
    except ValueError as error:
        raise IntegrityError(f"{ref} lists no snapshot: {error}") from error
    if snapshot.digest != labels.get(model_image.LABEL_SNAPSHOT):
        raise IntegrityError(f"{ref} is labelled with another snapshot than it lists")
    return snapshot


def find_model(
    store: ImageStore,
    repository: str,
    snapshot_digest: Digest,
    *,
    labels: Mapping[str, str] | None = None,
) -> ImageRef | None:
    """The image of a snapshot that was pushed before, or None. With `labels`, only one that has exactly these (beside
    Lockgate's own)."""
    digest = store.resolve(repository, model_image.snapshot_tag(snapshot_digest))
    if digest is None:
        return None
    ref = ImageRef(repository=repository, digest=digest)
    manifest = read_image_manifest(store, ref)
    snapshot = _snapshot_of(store, ref, manifest)
    if snapshot.digest != snapshot_digest:
        raise IntegrityError(f"tag of snapshot {snapshot_digest} points to another snapshot: {ref}")
    if labels is None:
        return ref
    same = _labels(store, ref, manifest) == model_image.model_labels(snapshot, labels)
    return ref if same else None
