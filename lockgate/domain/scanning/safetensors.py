"""The header of a safetensors file (https://github.com/huggingface/safetensors#format), without reading any tensor."""

from __future__ import annotations

import json
from typing import Any

from lockgate.domain.scanning import json_shape
from lockgate.domain.scanning.problems import Problem, high, quoted

MAX_HEADER = 32 << 20
"""Bytes. The format's own limit is 100 MB; a million tensors fit in this."""

MAX_ELEMENTS = 4_000_000
"""Commas in the header: a tensor of four dimensions has six."""

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


def header_length(first: bytes, file_size: int) -> int | Problem:
    """Length of the header from the first eight bytes, or why the file cannot be one."""
    if len(first) < 8:
        return high("safetensors-truncated", f"{file_size} bytes are too few for a header")
    length = int.from_bytes(first[:8], "little")
    if length > MAX_HEADER:
        return high("safetensors-header-too-large", f"the header claims {length} bytes")
    if length < 2 or 8 + length > file_size:
        return high(
            "safetensors-truncated", f"the header claims {length} bytes of a file of {file_size}"
        )
    return length


def check_header(header: bytes, file_size: int) -> list[Problem]:
    """`header` is the JSON after the first eight bytes. The tensors must cover the rest of the file, gapless and once."""
    if header[:1] != b"{":
        return [high("safetensors-header", "the header does not begin with an object")]
    if header.count(b",") > MAX_ELEMENTS or json_shape.check_shape(header):
        return [
            high("safetensors-header", "the header has too many parts, or its brackets are wrong")
        ]
    try:
        data = json.loads(header.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        return [high("safetensors-header", f"the header is not sound JSON: {quoted(str(error))}")]
    problems: list[Problem] = []
    metadata = data.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        problems.append(high("safetensors-header", "__metadata__ is not a map of strings"))
    spans: list[tuple[int, int, str]] = []
    for name, entry in data.items():
        span = _span(entry)
        if isinstance(span, str):
            problems.append(high("safetensors-tensor", f"tensor {quoted(name)}: {span}"))
            if len(problems) > 20:
                return problems
        else:
            spans.append((*span, name))
    if not problems:
        problems.extend(_coverage(spans, file_size - 8 - len(header)))
    return problems


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a key appears twice")
    return data


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _span(entry: Any) -> tuple[int, int] | str:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        return "must have dtype, shape and data_offsets only"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        return f"unknown dtype {quoted(dtype)}"
    if not isinstance(shape, list) or len(shape) > 16 or not all(_is_count(n) for n in shape):
        return "shape is not a short list of sizes"
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        return "data_offsets is not a pair of sizes"
    bits = _BITS[dtype]
    for dimension in shape:
        bits *= dimension
    begin, end = offsets
    if begin > end or 8 * (end - begin) != bits:
        return f"{end - begin} bytes for a {dtype} tensor of shape {quoted(shape)}"
    return begin, end


def _coverage(spans: list[tuple[int, int, str]], available: int) -> list[Problem]:
    at = 0
    for begin, end, name in sorted(spans):
        if begin != at:
            what = "overlaps the one before" if begin < at else f"leaves {begin - at} bytes unused"
            return [high("safetensors-coverage", f"tensor {quoted(name)} {what}")]
        at = end
    if at != available:
        return [
            high("safetensors-coverage", f"the tensors cover {at} bytes of {available} in the file")
        ]
    return []
