"""Content digests: the only way anything in Lockgate is named for good."""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

_PATTERN = re.compile(r"sha256:[0-9a-f]{64}")
_SHOWN = reprlib.Repr()
_SHOWN.maxstring, _SHOWN.maxlevel = 100, 2


class Digest(str):
    """`sha256:<64 lowercase hex>`, validated once, when it is made.

    It is a string so that it formats, sorts, hashes and serialises as one, and can never be confused with a tag.
    """

    __slots__ = ()

    def __new__(cls, value: str) -> Digest:
        # From JSON anything can come, whatever the types say.
        if not isinstance(value, str) or not _PATTERN.fullmatch(value):
            raise ValueError(f"not a sha256 digest: {shown(value)}")
        return super().__new__(cls, value)

    @property
    def algorithm(self) -> str:
        return "sha256"

    @property
    def hex(self) -> str:
        """The 64 hex digits without the algorithm."""
        return self[7:]

    @property
    def short(self) -> str:
        """The first twelve hex digits, for people only: never compared, never used as a name."""
        return self[7:19]

    @classmethod
    def from_hex(cls, hex_digits: str) -> Digest:
        return cls("sha256:" + hex_digits)

    @classmethod
    def of_bytes(cls, data: bytes) -> Digest:
        return cls.from_hex(hashlib.sha256(data).hexdigest())

    @classmethod
    def of_json(cls, value: Any) -> Digest:
        """Digest of the canonical JSON of `value` (see `canonical_json`)."""
        return cls.of_bytes(canonical_json(value))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            cls,
            core_schema.str_schema(),
            serialization=core_schema.plain_serializer_function_ser_schema(str),
        )


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces; NaN, infinities and what nests too deeply are refused (`ValueError`)."""
    try:
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
    except RecursionError as error:
        raise ValueError("what nests too deeply is not written as JSON") from error
    return text.encode()


def read_json(body: bytes | str) -> Any:
    """JSON that anybody may have written. Raises `ValueError`, also for what nests too deeply to be read."""
    try:
        return json.loads(body)
    except RecursionError as error:
        raise ValueError("JSON that nests too deeply") from error


def shown(value: Any) -> str:
    """A foreign value for a message: escaped, short, and of few levels, whatever it is."""
    return _SHOWN.repr(value)
