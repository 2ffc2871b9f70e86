"""A release that waits for a person is looked at now and then: not at every turn of those who look after all of them."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lockgate.domain.release_state import Phase
from lockgate.domain.rollout import HoldRequested
from lockgate.domain.trace import Scrape, to_line
from lockgate.settings import WorkspaceLayout
from tasks import driving
from tests.unit.rollout.world import SPEC, in_canary, look


@pytest.fixture
def looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Generations that were looked at, in a workspace of which only the traces are real."""
    looks: list[int] = []

    class Eyes:
        def __init__(self, _: Any, state: Any) -> None:
            self._state = state

        def look(self) -> Any:
            looks.append(self._state.generation)
            return look(self._state)

        def keep_report(self) -> None:
            """There is none."""

    workspace = SimpleNamespace(layout=WorkspaceLayout(tmp_path))
    monkeypatch.setattr(driving.Workspace, "current", lambda: workspace)
    monkeypatch.setattr(driving, "Watcher", Eyes)
    monkeypatch.setattr(driving, "attend", lambda *_: None)
    monkeypatch.setattr(driving, "somebody_decided", lambda *_: False)
    return looks


def seen(tmp_path: Path, state: Any, ago: float) -> None:
    """The trace's newest entry."""
    trace = WorkspaceLayout(tmp_path).trace(state.model, state.environment, state.began)
    trace.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        to_line(Scrape(time.time() - more, "canary", "b", True, {"x" * 9000: 1.0}))
        for more in (9999, ago)
    ]
    trace.write_text("\n".join([*lines, '{"torn']))


@pytest.mark.parametrize("phase", [Phase.HELD, Phase.AWAITING_APPROVAL])
def test_what_waits_is_not_replayed_at_every_turn(
    looked: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: Phase
) -> None:
    if phase is Phase.HELD:
        rollout = in_canary()
        rollout.observes(HoldRequested(release="r-new", by="p", reason="x"))
    else:
        steps = (SPEC.steps[0], SPEC.steps[1].model_copy(update={"approval": True}))
        rollout = in_canary(SPEC.model_copy(update={"steps": steps}), steps_passed=1)
    state = rollout.state
    assert state.phase is phase
    seen(tmp_path, state, ago=SPEC.outage_budget_seconds / 2)
    assert driving.observe.fn(state) is None
    assert looked == [state.generation]
    seen(tmp_path, state, ago=1)
    assert driving.observe.fn(state) is None
    assert looked == [state.generation], "a moment after the last look there is nothing to see"
    monkeypatch.setattr(driving, "somebody_decided", lambda *_: True)
    driving.observe.fn(state)
    assert len(looked) == 2, "but a decision is taken up at once"


def test_a_release_that_nobody_is_waited_for_is_looked_at_at_once(
    looked: list[int], tmp_path: Path
) -> None:
    state = in_canary().state
    seen(tmp_path, state, ago=1)
    driving.observe.fn(state, time.monotonic() - 1)
    assert looked == [state.generation]
