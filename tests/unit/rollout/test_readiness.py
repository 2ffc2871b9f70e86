"""What a watcher makes of a slot's replicas, and of the moment in which a commit comes into force."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lockgate.domain.cluster import ClusterStatus, ModelStatus, PodStatus, SlotStatus
from lockgate.domain.rollout import Look, SlotReadiness, Transition, advance
from lockgate.domain.rollout.transitions import parse_time, rfc3339
from lockgate.settings import Settings, WorkspaceLayout
from tasks import driving
from tasks.watching import Watcher
from tests.unit.rollout.world import BEGIN, SPEC, in_canary, look

STATE = in_canary(SPEC).state
assert STATE.b is not None
CANARY = str(STATE.b.candidate.digest)


def pod(**changes: Any) -> PodStatus:
    data = {
        "name": "m-b", "pid": None, "url": None, "ready": True, "since": 0.0, "state": "running",
        "candidate": CANARY, "template": "t", "restarts": 0, "log": "", **changes,
    }  # fmt: skip
    return PodStatus.model_validate(data)


def seen(tmp_path: Path, *pods: PodStatus) -> SlotReadiness:
    """Slot b as a watcher that has just come sees it."""
    slot = SlotStatus(
        slot="b", deployment="m-b", candidate=CANARY, desired=4, pods=pods,
        ready=sum(p.ready for p in pods), updated=sum(p.ready for p in pods),
        restarts=sum(p.restarts for p in pods),
    )  # fmt: skip
    model = ModelStatus(
        model="m", commit="", generation=STATE.generation, gateway_url="", route=None,
        slots={"b": slot},
    )  # fmt: skip
    status = ClusterStatus.model_construct(models={"m": model})
    workspace: Any = SimpleNamespace(
        cluster=lambda _: SimpleNamespace(status=lambda: status),
        layout=WorkspaceLayout(tmp_path),
        settings=Settings(),
    )
    found = Watcher(workspace, STATE, judging=False).slots().b
    assert found is not None
    return found


def after(b: SlotReadiness) -> str | None:
    answer = advance(STATE, look(STATE, b=b), BEGIN)
    return answer.reason if isinstance(answer, Transition) else None


def test_a_crash_loop_is_one_replicas_and_not_the_sum_of_one_restart_each(tmp_path: Path) -> None:
    once_each = seen(tmp_path, *(pod(restarts=1) for _ in range(4)))
    assert once_each.restarts == 1 and after(once_each) is None
    others = [pod(restarts=9, candidate="sha256:other"), pod(restarts=9, state="terminating")]
    assert seen(tmp_path, pod(restarts=1), *others).restarts == 1
    one = seen(tmp_path, pod(restarts=3), pod(), pod(), pod())
    assert after(one) == "crash loop: 3 restarts"


def test_a_watcher_that_has_just_come_knows_how_long_the_replicas_have_not_been_ready(
    tmp_path: Path,
) -> None:
    now, long = time.time(), SPEC.outage_budget_seconds + 60
    hung = pod(ready=False, since=now - long)
    assert "not ready for" in str(after(seen(tmp_path, hung, hung)))
    last = pod(ready=False, since=now - 30)
    assert 30 <= seen(tmp_path, hung, last).unready_seconds < long, "one answered until then"
    assert seen(tmp_path, hung, pod()).unready_seconds == 0
    assert after(seen(tmp_path)) is None


@pytest.mark.parametrize("began", [0, 1])
def test_the_look_that_sees_a_commit_come_into_force_says_once_how_long_it_took(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, began: int
) -> None:
    """Not of a hold or a question to people, which leave the step as old as it is (`began`)."""
    since = rfc3339(datetime.now(UTC))
    state = STATE.model_copy(update={"began": STATE.generation - began, "since": since})
    start = parse_time(str(state.since)).timestamp()
    generations = iter([None, state.generation - 1, state.generation - 1, *[state.generation] * 3])
    clock = [start]

    class Eyes:
        def __init__(self, *_: Any) -> None:
            """All that it sees is made up."""

        def look(self) -> Look:
            clock[0] += 7
            return look(state, live_generation=next(generations))

        def rest(self) -> None:
            """No time passes."""

        def moved_on(self) -> bool:
            return clock[0] >= start + 42

    told: list[tuple[int, float]] = []
    monkeypatch.setattr(driving.Workspace, "current", lambda: None)
    monkeypatch.setattr(driving, "Watcher", Eyes)
    monkeypatch.setattr(
        driving, "tell_in_force", lambda s, seconds: told.append((s.generation, seconds))
    )
    monkeypatch.setattr(
        driving, "time", SimpleNamespace(time=lambda: clock[0], monotonic=time.monotonic)
    )
    with caplog.at_level(logging.INFO, logger="lockgate.release"):
        driving.observe.fn(state)
    assert told == ([] if began else [(state.generation, 28.0)])
    assert ("in force 28.0 s after its commit was made" in caplog.text) is not bool(began)
