"""Rules of the house that no linter knows."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("lockgate", "flows", "tasks", "serving")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def test_modules_stay_small_enough_to_read_at_once() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in MODULES}
    assert {path: count for path, count in lines.items() if count >= 400} == {}


@pytest.mark.parametrize("name", ["util", "utils", "helper", "helpers", "manager", "common"])
def test_modules_are_named_after_what_they_know(name: str) -> None:
    assert [path for path in MODULES if name in (path.stem, path.parent.name)] == []
