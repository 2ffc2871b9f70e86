"""What is released."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lockgate.domain.base import Frozen
from lockgate.domain.digests import Digest
from lockgate.domain.images import ImageRef
from lockgate.domain.spec import ServingSpec


class Candidate(Frozen):
    """A model image, a runtime image and how they are served: by which arguments, and in which manifests.

    Denylist, evidence, approvals and gates key on the candidate's digest, never on the model's: the same weights with a bad
    argument are another candidate. Repository names are left out of the digest: a mirror of an image is the same image.
    """

    model: ImageRef
    runtime: ImageRef
    serving: ServingSpec
    manifests: Digest | None = None
    """What the GitOps repository's bases make of it: digest of its slot and route as rendered. An edited base makes another
    candidate of the same images. None: of a time, or a place, in which bases did not count."""

    @property
    def digest(self) -> Digest:
        return digest_of_parts(
            self.model.digest, self.runtime.digest, self.serving.to_data(), self.manifests
        )


def digest_of_parts(
    model: Digest, runtime: Digest, serving: Mapping[str, Any], manifests: Digest | None
) -> Digest:
    """The candidate's digest, from the digests of its images, its serving spec as data, and its manifests."""
    parts: dict[str, Any] = {"model": model, "runtime": runtime, "serving": serving}
    if manifests is not None:
        parts["manifests"] = manifests
    return Digest.of_json(parts)
