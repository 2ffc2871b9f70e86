"""Referrers without the API: the index a client keeps under a tag named after the subject.

Source: OCI distribution specification 1.1, "Referrers Tag Schema".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lockgate.domain.digests import Digest, canonical_json, read_json
from lockgate.domain.stores import IMAGE_INDEX, Descriptor, text_map
from lockgate.errors import RegistryError


@dataclass(frozen=True)
class Referrer:
    """A manifest that names a subject, as the subject's index lists it."""

    subject: Digest
    descriptor: Descriptor


def fallback_tag(subject: Digest) -> str:
    """Tag of the index that lists a subject's referrers."""
    return f"sha256-{subject.hex}"


def parse(digest: Digest, body: bytes, media_type: str) -> Referrer | None:
    """What a manifest's `subject` says, or None if it has none. Raises `RegistryError` if it is not a manifest."""
    try:
        manifest = read_json(body)
        if not isinstance(manifest, dict):
            raise ValueError("not a JSON object")
        if "subject" not in manifest:
            return None
        subject = Descriptor.from_data(manifest["subject"]).digest
        # Images have no artifactType: the specification takes the config's media type for it.
        kind = manifest.get("artifactType") or (manifest.get("config") or {}).get("mediaType")
        annotations = text_map(manifest.get("annotations") or {})
        if not isinstance(kind, str | None):
            raise ValueError("its type is no text")
    except (ValueError, TypeError, AttributeError) as error:
        raise RegistryError(f"{digest} is not a manifest: {error}") from error
    return Referrer(subject, Descriptor(media_type, digest, len(body), kind, annotations))


def index(referrers: Sequence[Descriptor]) -> bytes:
    """The index that lists the referrers."""
    return canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": IMAGE_INDEX,
            "manifests": [r.to_data() for r in referrers],
        }
    )


def parse_index(body: bytes) -> list[Descriptor]:
    """Descriptors of an index of referrers. Raises `RegistryError`."""
    try:
        return [Descriptor.from_data(m) for m in read_json(body)["manifests"]]
    except (ValueError, KeyError, TypeError) as error:
        raise RegistryError(f"not an index of referrers: {error}") from error
