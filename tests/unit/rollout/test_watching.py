"""What a driver's looks say while a step waits, from scrapes alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lockgate.domain.cluster import ClusterStatus
from lockgate.domain.rollout.transitions import parse_time
from lockgate.domain.trace import Scrape
from lockgate.errors import ClusterError
from lockgate.settings import WorkspaceLayout
from tasks import watching
from tasks.watching import Watcher
from tests.unit.rollout.test_baking import scrapes
from tests.unit.rollout.world import SPEC, in_canary


class Away:
    """A repository that nobody reaches."""

    def read_policy(self) -> None:
        raise ClusterError("away")


@pytest.mark.parametrize("killed", [False, True])
def test_a_fail_that_comes_while_a_passed_step_waits_takes_the_place_of_the_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """For an approval it may wait for days, and for a store that is away."""
    step = SPEC.steps[0].model_copy(update={"weight": 50})
    state = in_canary(SPEC.model_copy(update={"steps": (step,)})).state
    assert state.since is not None
    start = parse_time(state.since).timestamp()
    stable = list(scrapes("baseline", start, 240))
    ill = [s for errors in (0.0, 0.3) for s in scrapes("canary", start, 240, errors=errors)]
    halves: list[list[Scrape]] = [
        [s for pair in zip(stable[at], ill[of], strict=True) for s in pair]
        for at, of in ((slice(0, 60), slice(0, 60)), (slice(60, 120), slice(180, 240)))
    ]
    cluster: Any = SimpleNamespace(
        status=lambda: ClusterStatus.model_construct(models={}), scrape_targets=lambda _: ()
    )
    workspace: Any = SimpleNamespace(
        cluster=lambda _: cluster, layout=WorkspaceLayout(tmp_path), gitops=Away()
    )
    monkeypatch.setattr(watching.metrics, "scrape", lambda *_, **__: halves.pop(0))
    watcher = Watcher(workspace, state)
    words = []
    for _ in range(2):
        verdict = watcher.look().verdict
        words.append(verdict.verdict if verdict is not None else None)
        watcher = Watcher(workspace, state) if killed else watcher
    assert words == ["pass", "fail"]
