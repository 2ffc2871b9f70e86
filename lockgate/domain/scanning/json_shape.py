"""JSON, looked at before it is parsed: how deep, how many containers, so that a small file cannot become a large object."""

from __future__ import annotations

import json
import re
from typing import Any

from lockgate.domain.scanning.problems import Problem, high, quoted

MAX_BYTES = 96 << 20
MAX_DEPTH = 64
MAX_CONTAINERS = 2_000_000
MAX_PARSED = 16 << 20
MAX_ELEMENTS = 2_000_000
"""What is larger (vocabularies) is checked for shape and not built: as objects it would take a hundred times its bytes."""

# Possessive, and a string without an end takes all that is left: linear in time, constant in memory, whatever the bytes.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)


def check_shape(data: bytes) -> list[Problem]:
    """Nesting and size of a JSON text, in one pass that builds nothing."""
    if len(data) > MAX_BYTES:
        return [high("json-too-large", f"{len(data)} bytes of JSON")]
    depth = containers = 0
    for match in _TOKEN.finditer(data):
        first = data[match.start()]
        if first in b"[{":
            depth += 1
            containers += 1
            if depth > MAX_DEPTH or containers > MAX_CONTAINERS:
                return [high("json-bomb", f"nested {depth} deep, {containers} containers")]
        elif first in b"]}":
            depth -= 1
            if depth < 0:
                break
    if depth != 0:
        return [high("json-malformed", "brackets do not match")]
    return []


def parse(data: bytes) -> tuple[Any, list[Problem]]:
    """The value (None when it is malformed or too large to be built) and what is wrong with the text."""
    problems = check_shape(data)
    if problems or len(data) > MAX_PARSED or data.count(b",") > MAX_ELEMENTS:
        return None, problems
    try:
        # Infinity is let through: configurations of state-space models hold it.
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_unique), []
    except (ValueError, RecursionError) as error:
        return None, [high("json-malformed", f"not sound JSON: {quoted(str(error))}")]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a key appears twice: parsers disagree on which counts")
    return data
