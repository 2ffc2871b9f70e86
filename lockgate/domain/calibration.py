"""Calibration data: what a data set may hold, which of it is drawn, and what is recorded of it.

Sets are named by the digest of their bytes; where the file lay is nobody's business afterwards.
"""

from __future__ import annotations

import json
import random
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from lockgate.domain.base import Frozen
from lockgate.domain.digests import Digest
from lockgate.domain.spec import CalibrationSpec


class Message(Frozen):
    role: Literal["system", "user", "assistant"]
    content: str


class CalibrationItem(Frozen):
    """One text, or one conversation that the model's own chat template turns into a text."""

    text: str | None = None
    messages: tuple[Message, ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _one_of_both(self) -> CalibrationItem:
        if (self.text is None) == (self.messages is None):
            raise ValueError("either `text` or `messages`")
        if self.text is not None and not self.text.strip():
            raise ValueError("an empty text")
        return self


class CalibrationIdentity(Frozen):
    """What a calibrated recipe was shown, as far as it decides the bytes: goes into the step key and the provenance."""

    digest: Digest
    """Of the whole data set's bytes."""
    samples: int
    """Drawn."""
    max_tokens: int
    seed: int


class CalibrationSet(Frozen):
    """The items drawn from a data set, in the order in which the model sees them."""

    name: str
    """`builtin` or the file's name, for people."""
    identity: CalibrationIdentity
    items: tuple[CalibrationItem, ...]


class CalibrationRecord(CalibrationIdentity):
    """What was really seen, for the report."""

    dataset: str
    tokens: int
    """Of all samples together, after cutting to `max_tokens`."""


def drawn(data: bytes, name: str, spec: CalibrationSpec) -> CalibrationSet:
    """`spec.samples` items of a JSONL file, drawn by `spec.seed`; all, in their order, where there are no more.

    Other keys of a line are ignored, so that a set may carry ids and groups. Raises `ValueError` with the line that is wrong.
    """
    items = [
        _item(number, line) for number, line in enumerate(data.splitlines(), 1) if line.strip()
    ]
    if not items:
        raise ValueError("no line with a `text` or `messages`")
    if len(items) > spec.samples:
        items = random.Random(spec.seed).sample(items, spec.samples)
    return CalibrationSet(
        name=name,
        identity=CalibrationIdentity(
            digest=Digest.of_bytes(data), samples=len(items), max_tokens=spec.max_tokens,
            seed=spec.seed,
        ),
        items=tuple(items),
    )  # fmt: skip


def _item(number: int, line: bytes) -> CalibrationItem:
    try:
        value: Any = json.loads(line)
        if not isinstance(value, dict):
            raise ValueError("not an object")
        return CalibrationItem.model_validate(
            {key: value[key] for key in ("text", "messages") if key in value}
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(
            f"line {number}: {'.'.join(map(str, first['loc']))} {first['msg']}"
        ) from error
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from error
