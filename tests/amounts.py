"""How much a test tries: everything in `make test`; less in `make check`, which is run before every commit and has to be quick."""

from __future__ import annotations

import os

QUICK = os.environ.get("LOCKGATE_TESTS_QUICK") == "1"
_LEAST = 20


def examples(count: int) -> int:
    """Examples of a property that `make test` tries with `count`; a fifth of them, and no fewer than 20, in a quick run."""
    return max(min(_LEAST, count), count // 5) if QUICK else count
