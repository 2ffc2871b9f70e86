"""The base of all serialised domain types."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from lockgate.domain.digests import Digest


class Frozen(BaseModel):
    """Immutable, strict about unknown keys, no NaN in or out: what is read back is what was written."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def to_data(self) -> dict[str, Any]:
        """Plain JSON-compatible data, with defaults left in (so that a changed default changes the digest), but for keys that came
        later (`exclude_if`): a process that is not upgraded yet refuses keys that it does not know."""
        return self.model_dump(mode="json")

    def content_digest(self) -> Digest:
        """Digest of the canonical JSON of this value."""
        return Digest.of_json(self.to_data())
