"""References to images in an OCI registry or layout: always by digest."""

from __future__ import annotations

import re
from typing import Any

from pydantic import GetJsonSchemaHandler, model_serializer, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from lockgate.domain.base import Frozen
from lockgate.domain.digests import Digest

_REPOSITORY = re.compile(
    r"[a-z0-9]+(?:[._-][a-z0-9]+)*(?::[0-9]+)?(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
)


class ImageRef(Frozen):
    """`host[:port]/path@sha256:…`. There is no tag: a tag can move between verification and use.

    Written and read as one string. In a workspace without a registry the host is `lockgate.local` and the store is an OCI
    layout directory; the reference stays the same wherever the layout lies.
    """

    repository: str
    digest: Digest

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        if isinstance(value, str):
            repository, at, digest = value.partition("@")
            if not at:
                raise ValueError(f"image reference without a digest: {value!r}")
            return {"repository": repository, "digest": digest}
        return value

    @model_validator(mode="after")
    def _check(self) -> ImageRef:
        if not _REPOSITORY.fullmatch(self.repository):
            raise ValueError(f"not an image repository: {self.repository!r}")
        return self

    @model_serializer
    def _to_string(self) -> str:
        return str(self)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        # Of what is read, too: Prefect checks a deployment's parameters, as they were written, against it.
        return {"type": "string", "pattern": _REPOSITORY.pattern + "@sha256:[0-9a-f]{64}"}

    @classmethod
    def parse(cls, text: str) -> ImageRef:
        return cls.model_validate(text)

    def __str__(self) -> str:
        return f"{self.repository}@{self.digest}"
