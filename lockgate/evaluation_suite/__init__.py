"""The offline evaluation suite that ships with Lockgate: lm-eval task files and their items, all written for it.

`tasks/` is what the harness reads; `tables/` and `build` are where its items come from. See README.md (the data card).
"""

from __future__ import annotations

from pathlib import Path


def tasks_directory() -> Path:
    """The directory of lm-eval YAML tasks and JSONL items."""
    return Path(__file__).resolve().parent / "tasks"
