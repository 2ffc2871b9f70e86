"""Prometheus' own tool, which comes with the server."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def promtool(prometheus_binary: Path) -> Path:
    beside = prometheus_binary.resolve().parent / "promtool"
    found = beside if beside.exists() else shutil.which("promtool")
    if not found:
        pytest.fail("promtool is not beside prometheus: both are in Debian's package")
    return Path(found)
