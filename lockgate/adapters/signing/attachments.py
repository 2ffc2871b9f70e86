"""Where signatures lie in a store: bundles as referrers, legacy signatures under a tag.

Sources: cosign v3 (bundles as OCI 1.1 referrers), cosign's SIGNATURE_SPEC (`sha256-<hex>.sig`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lockgate.adapters.signing.dsse import BUNDLE_TYPE
from lockgate.domain.digests import Digest, canonical_json, read_json, shown
from lockgate.domain.images import ImageRef
from lockgate.domain.stores import (
    EMPTY_BODY,
    EMPTY_DIGEST,
    EMPTY_JSON,
    IMAGE_CONFIG,
    IMAGE_MANIFEST,
    Descriptor,
    ImageStore,
)
from lockgate.errors import IntegrityError, RegistryError
from lockgate.streams import at_most

SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
LEGACY_SIGNATURE = "dev.cosignproject.cosign/signature"
CERTIFICATE = "dev.sigstore.cosign/certificate"
"""Of a legacy signature by an identity; a key's has none."""
_LARGEST = 32 * 1024 * 1024
_ZERO_TIME = "0001-01-01T00:00:00Z"


def attach_bundle(
    store: ImageStore, ref: ImageRef, bundle: bytes, predicate_type: str, created_at: str
) -> Digest:
    """Store a bundle as a referrer of the image; `created_at` is RFC 3339. Gives the referrer's digest."""
    subject_body, media_type = store.get_manifest(ref.repository, ref.digest)
    blob = store.put_blob(ref.repository, Digest.of_bytes(bundle), [bundle], len(bundle))
    store.put_blob(ref.repository, EMPTY_DIGEST, [EMPTY_BODY], len(EMPTY_BODY))
    manifest = {
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "artifactType": BUNDLE_TYPE,
        "config": Descriptor(EMPTY_JSON, EMPTY_DIGEST, len(EMPTY_BODY)).to_data(),
        "layers": [Descriptor(BUNDLE_TYPE, blob, len(bundle)).to_data()],
        "subject": Descriptor(media_type, ref.digest, len(subject_body)).to_data(),
        "annotations": {
            "dev.sigstore.bundle.content": "dsse-envelope",
            "dev.sigstore.bundle.predicateType": predicate_type,
            "org.opencontainers.image.created": created_at,
        },
    }
    return store.put_manifest(ref.repository, canonical_json(manifest), IMAGE_MANIFEST)


def bundle_descriptors(store: ImageStore, ref: ImageRef) -> list[Descriptor]:
    """The manifests of bundles that refer to the image. Raises `RegistryError`."""
    return store.referrers(ref.repository, ref.digest, BUNDLE_TYPE)


def read_bundle(store: ImageStore, ref: ImageRef, descriptor: Descriptor) -> bytes:
    """One bundle, unverified. Raises `RegistryError`, and `IntegrityError` if it is not stored as one."""
    body, _ = store.get_manifest(ref.repository, descriptor.digest)
    layers = _layers(body, str(descriptor.digest))
    if len(layers) != 1 or layers[0].media_type != BUNDLE_TYPE:
        raise IntegrityError(f"{descriptor.digest} does not hold exactly one bundle")
    return _small_blob(store, ref.repository, layers[0])


@dataclass(frozen=True)
class LegacySignature:
    """A payload and its signature, as the annotations of its layer hold it."""

    payload: bytes
    annotations: Mapping[str, str]


def legacy_tag(digest: Digest) -> str:
    return f"sha256-{digest.hex}.sig"


def legacy_payload(ref: ImageRef) -> bytes:
    """What a legacy signature is over: cosign's simple signing JSON."""
    return canonical_json(
        {
            "critical": {
                "identity": {"docker-reference": ref.repository},
                "image": {"docker-manifest-digest": str(ref.digest)},
                "type": "cosign container image signature",
            },
            "optional": None,
        }
    )


def digest_in_legacy_payload(payload: bytes) -> Digest:
    """The image digest a legacy payload is about. Raises `ValueError`."""
    try:
        critical = read_json(payload)["critical"]
        if critical["type"] != "cosign container image signature":
            raise ValueError(f"payload type {shown(critical['type'])}")
        return Digest(critical["image"]["docker-manifest-digest"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a simple signing payload: {error!r}") from error


def attach_legacy(
    store: ImageStore, ref: ImageRef, payload: bytes, annotations: Mapping[str, str]
) -> Digest:
    """Add a legacy signature to those that are there; what else may lie under their tag gives way."""
    repository, tag = ref.repository, legacy_tag(ref.digest)
    current = store.resolve(repository, tag)
    layers: list[Descriptor] = []
    if current is not None:
        with contextlib.suppress(IntegrityError):
            layers = _layers(store.get_manifest(repository, current)[0], f"{repository}:{tag}")
    blob = store.put_blob(repository, Digest.of_bytes(payload), [payload], len(payload))
    layers.append(Descriptor(SIMPLE_SIGNING, blob, len(payload), annotations=annotations))
    config = canonical_json(
        {
            "architecture": "",
            "os": "",
            "created": _ZERO_TIME,
            "config": {},
            "history": [{"created": _ZERO_TIME} for _ in layers],
            "rootfs": {"type": "layers", "diff_ids": [str(layer.digest) for layer in layers]},
        }
    )
    store.put_blob(repository, Digest.of_bytes(config), [config], len(config))
    manifest = {
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "config": Descriptor(IMAGE_CONFIG, Digest.of_bytes(config), len(config)).to_data(),
        "layers": [layer.to_data() for layer in layers],
    }
    return store.put_manifest(repository, canonical_json(manifest), IMAGE_MANIFEST, tag)


def legacy_descriptors(store: ImageStore, ref: ImageRef) -> list[Descriptor]:
    """The layers that hold the image's legacy signatures. Raises `RegistryError`, and `IntegrityError` if its tag holds
    something else."""
    tag = legacy_tag(ref.digest)
    current = store.resolve(ref.repository, tag)
    if current is None:
        return []
    body, _ = store.get_manifest(ref.repository, current)
    layers = _layers(body, f"{ref.repository}:{tag}")
    return [layer for layer in layers if layer.media_type == SIMPLE_SIGNING]


def read_legacy(store: ImageStore, ref: ImageRef, layer: Descriptor) -> LegacySignature:
    """One legacy signature, unverified. Raises `RegistryError`, `IntegrityError`."""
    return LegacySignature(_small_blob(store, ref.repository, layer), dict(layer.annotations))


def legacy_signatures(store: ImageStore, ref: ImageRef) -> Iterator[LegacySignature]:
    """Every legacy signature of the image, unverified. Raises `RegistryError`, `IntegrityError`."""
    for layer in legacy_descriptors(store, ref):
        yield read_legacy(store, ref, layer)


def blobs_of(manifest: bytes) -> list[Descriptor]:
    """Config and layers of an image; none for an index, whose images stand in manifests of their own. Raises `ValueError`."""
    data = read_json(manifest)
    try:
        if "manifests" in data:
            return []
        return [Descriptor.from_data(d) for d in (data["config"], *data["layers"])]
    except (KeyError, TypeError) as error:
        raise ValueError(f"neither an image nor an index: {error!r}") from error


def _layers(body: bytes, what: str) -> list[Descriptor]:
    try:
        manifest: Any = read_json(body)
        return [Descriptor.from_data(layer) for layer in manifest["layers"]]
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{what} is not the manifest of a signature") from error


def _small_blob(store: ImageStore, repository: str, layer: Descriptor) -> bytes:
    if layer.size > _LARGEST:
        raise IntegrityError(f"a signature of {layer.size} bytes: {layer.digest}")
    try:
        chunks = store.read_blob(repository, layer.digest)
        return b"".join(at_most(chunks, layer.size, f"blob {layer.digest}"))
    except RegistryError as error:
        # A manifest can name what was never there: that is nobody's signature, and no failure of the store.
        if store.blob_size(repository, layer.digest) is None:
            raise IntegrityError(f"{layer.digest} is not there") from error
        raise
