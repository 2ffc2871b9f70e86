"""What finished steps made, and the documents they leave, found again from any process or machine.

A step is named by a digest of what went into it. Its record is only as good as what it points to: a step that finds its
record still checks that the images and documents named there exist.
"""

from __future__ import annotations

from typing import Any

from lockgate.adapters.oci import artifacts
from lockgate.domain.digests import Digest, canonical_json
from lockgate.domain.stores import ImageStore
from lockgate.errors import RegistryError

STEP_TYPE = "application/vnd.lockgate.step.v1+json"
DOCUMENT_TYPE = "application/vnd.lockgate.document.v1+json"


class StepRecords:
    """Records and documents in one repository of a store."""

    def __init__(self, store: ImageStore, repository: str) -> None:
        self.store = store
        self.repository = repository

    def find(self, key: Digest) -> dict[str, Any] | None:
        """What was recorded for the step, or None if it has not finished yet. Raises `RegistryError`, `IntegrityError`."""
        found = artifacts.get_json(self.store, self.repository, _step_tag(key), STEP_TYPE)
        if found is None:
            return None
        if not isinstance(found, dict) or found.get("key") != key or "value" not in found:
            raise RegistryError(f"the record of step {key} in {self.repository} is another step's")
        value = found["value"]
        if not isinstance(value, dict):
            raise RegistryError(f"the record of step {key} in {self.repository} is malformed")
        return value

    def record(self, key: Digest, value: dict[str, Any]) -> None:
        """Remember that the step finished with `value` (JSON-compatible). The same value again changes nothing; another
        value replaces it."""
        body = canonical_json({"key": key, "value": value})
        artifacts.put_json(self.store, self.repository, _step_tag(key), STEP_TYPE, body)

    def put_document(self, document: Any) -> Digest:
        """Keep a JSON-compatible value; gives the digest of its canonical JSON, `Digest.of_json(document)`."""
        body = canonical_json(document)
        tag = f"document-{Digest.of_bytes(body).hex}"
        return artifacts.put_json(self.store, self.repository, tag, DOCUMENT_TYPE, body)

    def get_document(self, digest: Digest) -> Any:
        """The value kept under the digest. Raises `RegistryError` if there is none, `IntegrityError` if it was changed."""
        return artifacts.read_json(self.store, self.repository, digest)


def _step_tag(key: Digest) -> str:
    return f"step-{key.hex}"
