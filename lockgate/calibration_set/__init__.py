"""The calibration data set that ships with Lockgate, all written for it. See README.md (the data card).

`tables` is written by hand, `build` makes `calibration.jsonl` of it.
"""

from __future__ import annotations

from pathlib import Path


def data_file() -> Path:
    """The items, one JSON object with `id`, `group` and `text` or `messages` a line."""
    return Path(__file__).resolve().parent / "calibration.jsonl"
