"""What is released."""

from __future__ import annotations

from lockgate.domain.base import Frozen
from lockgate.domain.digests import Digest
from lockgate.domain.images import ImageRef
from lockgate.domain.spec import ServingSpec


class Candidate(Frozen):
    """A model image, a runtime image and how they are served.

    Denylist, evidence, approvals and gates key on the candidate's digest, never on the model's: the same weights with a bad
    argument are another candidate. Repository names are left out of the digest: a mirror of an image is the same image.
    """

    model: ImageRef
    runtime: ImageRef
    serving: ServingSpec

    @property
    def digest(self) -> Digest:
        return Digest.of_json(
            {
                "model": self.model.digest,
                "runtime": self.runtime.digest,
                "serving": self.serving.to_data(),
            }
        )
