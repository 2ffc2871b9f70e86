from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tasks import driving
from tests.integration.git.repositories import git, make_remote
from tests.unit.approvals.people import make_person, waiting
from tests.unit.rollout.world import Rollout

sys.path.insert(0, str(Path(__file__).parent))
from desk import PEOPLE, Desk, recently, render


@pytest.fixture(scope="session")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rollout]:
    """The desk as every test finds it, made once."""
    root = tmp_path_factory.mktemp("desk")
    make_remote(root)
    rollout = waiting(now=recently())
    people = [make_person(root, f"{name}@example.com") for name in PEOPLE]
    made = Desk(root, rollout)
    made.push("approvers", "".join(p.line(roles="roles=release-manager") for p in people[:2]))
    for transition in rollout.transitions:
        made.commit(transition)
    return root, rollout


@pytest.fixture
def desk(
    laid_out: tuple[Path, Rollout],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Desk:
    """`new` waits for an approval of its second step; mara and joe are release managers, eve is not."""
    root, rollout = laid_out
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    found = Desk(tmp_path, rollout, capsys)
    git("remote", "set-url", "origin", str(found.remote), at=tmp_path / "somebody")
    monkeypatch.setenv("LOCKGATE_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setenv("LOCKGATE_REMOTE", str(found.remote))
    monkeypatch.setattr(driving, "rendering", lambda workspace: render)
    return found
