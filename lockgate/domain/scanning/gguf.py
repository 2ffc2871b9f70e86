"""GGUF metadata (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): read with bounds, tensors never touched."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

from lockgate.domain.scanning.problems import Problem, high, medium, quoted

WINDOW = 128 << 20
"""Bytes from the file's beginning that the metadata and tensor list must fit in."""
MAX_STRING = 8 << 20
MAX_ELEMENTS = 8 << 20
MAX_KEYS = 1 << 16
MAX_TEMPLATE = 2 << 20
"""Bytes. A longer chat template is not kept."""
MAX_TENSORS = 1 << 17

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "B",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
# ggml type -> (elements a block, bytes a block)
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34),
    9: (32, 36), 10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210),
    15: (256, 292), 16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18),
    21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8),
    28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip


@dataclass(frozen=True)
class GgufFacts:
    """What the checks need: scalar metadata, chat templates by key, and what was wrong."""

    metadata: dict[str, Any] = field(default_factory=dict)
    templates: dict[str, str] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


class _Malformed(Exception):
    pass


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self.at = 0

    def take(self, count: int) -> memoryview:
        if count > len(self._data) - self.at:
            raise _Malformed(f"{count} bytes are claimed at {self.at}, beyond what is there")
        piece = self._data[self.at : self.at + count]
        self.at += count
        return piece

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self, limit: int = MAX_STRING) -> bytes:
        length = self.number("Q")
        if length > limit:
            raise _Malformed(f"a string claims {length} bytes")
        return bytes(self.take(length))

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._skip_array(depth)
        raise _Malformed(f"unknown value type {kind}")

    def _skip_array(self, depth: int) -> None:
        element, count = self.number("I"), self.number("Q")
        if depth > 1 or count > MAX_ELEMENTS:
            raise _Malformed(f"an array claims {count} elements at depth {depth}")
        if element in _SCALARS:
            self.take(count * struct.calcsize("<" + _SCALARS[element]))
        else:
            for _ in range(count):
                self.value(element, depth + 1)


def read_gguf(window: bytes, file_size: int) -> GgufFacts:
    """`window` is the file's beginning, at most `WINDOW` bytes. Tensor data must lie inside the file, without overlap."""
    reader = _Reader(window)
    metadata: dict[str, Any] = {}
    templates: dict[str, str] = {}
    problems: list[Problem] = []
    try:
        if bytes(reader.take(4)) != b"GGUF":
            raise _Malformed("no GGUF magic")
        version, tensors, keys = reader.number("I"), reader.number("Q"), reader.number("Q")
        if version not in (2, 3):
            raise _Malformed(f"version {version} is not known")
        if tensors > MAX_TENSORS or keys > MAX_KEYS:
            raise _Malformed(f"{tensors} tensors and {keys} keys are claimed")
        for _ in range(keys):
            key = reader.string(1 << 16).decode("utf-8", "backslashreplace")
            value = reader.value(reader.number("I"))
            if key in metadata:
                raise _Malformed(f"key {quoted(key)} appears twice")
            if isinstance(value, bytes):
                value = _text(key, value, templates, problems)
            metadata[key] = value
        problems += _check_tensors(reader, tensors, metadata, file_size)
    except (_Malformed, struct.error) as error:
        problems.append(high("gguf-malformed", str(error)))
    return GgufFacts(metadata, templates, tuple(problems))


def _text(key: str, value: bytes, templates: dict[str, str], problems: list[Problem]) -> str | None:
    """A string's text if the checks need it. Other strings are let go: thousands of long ones fit into the window."""
    if "chat_template" in key:
        if len(value) > MAX_TEMPLATE:
            problems.append(high("template-too-large", f"{quoted(key)} has {len(value)} bytes"))
        else:
            templates[key] = value.decode("utf-8", "backslashreplace")
    if key.startswith("general.") and len(value) <= 1 << 16:
        return value.decode("utf-8", "backslashreplace")
    return None


def _check_tensors(
    reader: _Reader, count: int, metadata: dict[str, Any], file_size: int
) -> list[Problem]:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20 or alignment % 8:
        raise _Malformed(f"alignment {quoted(alignment)}")
    spans: list[tuple[int, int, str]] = []
    problems: list[Problem] = []
    names: set[bytes] = set()
    for _ in range(count):
        raw = reader.string(1 << 12)
        name = raw.decode("utf-8", "backslashreplace")
        if raw in names:
            raise _Malformed(f"tensor {quoted(name)} appears twice")
        names.add(raw)
        dimensions = reader.number("I")
        if dimensions > 8:
            raise _Malformed(f"tensor {quoted(name)} has {dimensions} dimensions")
        elements = 1
        for _ in range(dimensions):
            elements *= reader.number("Q")
        kind, offset = reader.number("I"), reader.number("Q")
        if kind not in _BLOCKS:
            problems.append(medium("gguf-unknown-type", f"tensor {quoted(name)} has type {kind}"))
            continue
        per_block, block_bytes = _BLOCKS[kind]
        if elements % per_block or offset % alignment:
            raise _Malformed(f"tensor {quoted(name)} is not a whole number of blocks, or unaligned")
        spans.append((offset, offset + elements // per_block * block_bytes, name))
    base = -(-reader.at // alignment) * alignment
    at = 0
    for begin, end, name in sorted(spans):
        if begin < at or base + end > file_size:
            where = "overlaps another" if begin < at else "ends outside the file"
            raise _Malformed(f"tensor {quoted(name)} {where}")
        at = end
    return problems
