"""What an image store can do, independent of where it lies.

The store holds content-addressed blobs and manifests by repository, as the OCI distribution specification 1.1 words it.
Adapters that need a store (signing, sources) take this protocol; `lockgate.adapters.oci` implements it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from lockgate.domain.digests import Digest, shown

IMAGE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
IMAGE_INDEX = "application/vnd.oci.image.index.v1+json"
IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
IMAGE_LAYER = "application/vnd.oci.image.layer.v1.tar"
EMPTY_JSON = "application/vnd.oci.empty.v1+json"

EMPTY_BODY = b"{}"
EMPTY_DIGEST = Digest.of_bytes(EMPTY_BODY)

Rewindable = Callable[[int], Iterable[bytes]]
"""Gives a blob's bytes from an offset on, as often as asked: what a resumable upload needs."""
Content = Iterable[bytes] | Rewindable


@dataclass(frozen=True)
class Descriptor:
    """A reference to a blob or manifest inside a repository: what it is, which bytes, how many."""

    media_type: str
    digest: Digest
    size: int
    artifact_type: str | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)

    def to_data(self) -> dict[str, Any]:
        """The JSON object of the OCI image specification; absent fields are left out."""
        data: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": str(self.digest),
            "size": self.size,
        }
        if self.artifact_type:
            data["artifactType"] = self.artifact_type
        if self.annotations:
            data["annotations"] = dict(self.annotations)
        return data

    @classmethod
    def from_data(cls, data: Any) -> Descriptor:
        """Raises `ValueError` on anything that is not a descriptor with a sha256 digest."""
        try:
            size, media_type = data["size"], data["mediaType"]
            kind, annotations = data.get("artifactType") or None, data.get("annotations") or {}
            digest = Digest(data["digest"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not an OCI descriptor: {shown(data)}") from error
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise ValueError(f"not a size: {shown(size)}")
        if not isinstance(media_type, str) or not isinstance(kind, str | None):
            raise ValueError(f"not an OCI descriptor: {shown(data)}")
        return cls(media_type, digest, size, kind, text_map(annotations))


def text_map(value: Any) -> dict[str, str]:
    """Annotations of a descriptor or manifest. Raises `ValueError` for anything but text by name."""
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise ValueError(f"annotations are text by name, not {shown(value)}")
    return dict(value)


class ImageStore(Protocol):
    """Blobs, manifests, tags and referrers of many repositories.

    Every method raises `RegistryError` when the store cannot be reached, refuses or answers nonsense, within a bounded
    time; reads raise `IntegrityError` when bytes are not those of the digest asked for. Writing what is there is no error.
    """

    @property
    def location(self) -> str:
        """Where it lies, in the words `open_store` takes."""
        ...

    def has_blob(self, repository: str, digest: Digest) -> bool: ...

    def blob_size(self, repository: str, digest: Digest) -> int | None:
        """Size in bytes as the store tells it without reading the blob; None if the blob is absent."""
        ...

    def read_blob(
        self, repository: str, digest: Digest, held: Iterable[bytes] = ()
    ) -> Iterator[bytes]:
        """The blob in pieces of at most 1 MiB. Only once the iterator has ended were the bytes right: a consumer must not
        act on what it read before.

        `held`: its first bytes, where the caller has them from a transfer that broke off. They are given and hashed like
        the rest, and not transferred."""
        ...

    def put_blob(
        self, repository: str, digest: Digest | None, content: Content, size: int | None
    ) -> Digest:
        """Store a blob; `digest` and `size`, where given, are checked against the bytes (`IntegrityError`)."""
        ...

    def mount_blob(self, repository: str, digest: Digest, source: str) -> bool:
        """Make a blob of repository `source` appear in `repository` without a transfer; False if that is impossible."""
        ...

    def get_manifest(self, repository: str, reference: str) -> tuple[bytes, str]:
        """Body and media type, by digest or tag. A missing one is a `RegistryError`."""
        ...

    def put_manifest(
        self, repository: str, body: bytes, media_type: str, tag: str | None = None
    ) -> Digest:
        """Store a manifest, and move `tag` to it. One with a `subject` becomes findable by `referrers`."""
        ...

    def resolve(self, repository: str, tag: str) -> Digest | None:
        """Digest the tag points to, or None."""
        ...

    def tags(self, repository: str) -> list[str]: ...

    def referrers(
        self, repository: str, digest: Digest, artifact_type: str | None = None
    ) -> list[Descriptor]:
        """Manifests whose `subject` is `digest`."""
        ...
