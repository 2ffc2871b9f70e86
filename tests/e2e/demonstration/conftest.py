"""The demonstration's workspace, shared by the tests of this folder: they run in the order of their files' names."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.workspace import Workspace
from tests.e2e.e2e_site import MODEL, Site, wait_until


@pytest.fixture(scope="package")
def demo(
    tmp_path_factory: pytest.TempPathFactory,
    serving_python: Path,
    quantization_python: Path,
    demo_gguf: Path,
    kubectl: Path,
) -> Iterator[tuple[Site, subprocess.CompletedProcess[str]]]:
    """The demonstration's run; the cluster is left up for the tests that follow, and ended after them.

    LOCKGATE_E2E_WORKSPACE names a workspace in which it ran before, to try a single test again without the wait.
    """
    earlier = os.environ.get("LOCKGATE_E2E_WORKSPACE")
    site = Site(Path(earlier) if earlier else tmp_path_factory.mktemp("demo"))
    try:
        run = site.run("demo", "--keep", timeout=2100)
        if earlier:
            site.run("up", "--no-server")
            wait_until(lambda: stands(site), 300, "stable is ready again")
        yield site, run
    finally:
        site.run("down", timeout=120)


def stands(site: Site) -> bool:
    stable = site.state().stable
    assert stable is not None
    slot = Workspace(site.settings).cluster().slot_status(MODEL, stable)
    return slot is not None and slot.ready > 0
