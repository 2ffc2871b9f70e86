"""A trace that cannot be kept makes a driver blind, and nothing else: no rollback waits for it, and nobody dies of it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lockgate.domain.cluster import ClusterStatus
from lockgate.domain.release_state import ReleaseState
from lockgate.domain.rollout import AbortRequested, Transition, TransitionKind, advance
from lockgate.domain.rollout.transitions import parse_time
from lockgate.domain.trace import TRACKS, to_line
from lockgate.settings import Settings, WorkspaceLayout
from tasks import by_hand, driving, step_metrics
from tasks.step_trace import StepTrace
from tests.unit.rollout.test_baking import scrapes
from tests.unit.rollout.test_watching import watched
from tests.unit.rollout.world import SPEC, fit, in_canary, look

BUDGET = SPEC.outage_budget_seconds


def nul_line(trace: Path, config: Path) -> Path:
    """What a power cut leaves of a file that was being written."""
    whole = [to_line(s) for s in scrapes("canary", START, 4)]
    trace.write_bytes(b"".join([f"{whole[0]}\n".encode(), b"\0" * 64 + b"\n"]))
    return trace


def unwritable(trace: Path, config: Path) -> Path:
    """Also for root, whom no mode keeps off."""
    config.mkdir()
    return config


STEP = SPEC.steps[0].model_copy(update={"weight": 50})
STATE = in_canary(SPEC.model_copy(update={"steps": (STEP,)})).state
START = parse_time(str(STATE.since)).timestamp()
EVERY = [s for track in TRACKS for s in scrapes(track, START, 400)]
DAMAGES = [nul_line, unwritable]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in a driver whose servers answer well, a scrape every four seconds."""
    now = [START]
    told = SimpleNamespace(time=lambda: now[0], monotonic=lambda: now[0])
    monkeypatch.setattr(step_metrics, "time", told)

    def scrape(*_: Any, **__: Any) -> list[Any]:
        return [s for s in EVERY if now[0] - 4 < s.time <= now[0]]

    monkeypatch.setattr(step_metrics.metrics, "scrape", scrape)
    return now


def damaged(
    tmp_path: Path, state: ReleaseState, damage: Callable[[Path, Path], Path]
) -> tuple[Path, Path]:
    layout, of_step = WorkspaceLayout(tmp_path), (state.model, state.environment, state.began)
    trace = layout.trace(*of_step)
    trace.parent.mkdir(parents=True)
    return trace, damage(trace, layout.judge_config(*of_step))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_person_rolls_back_a_canary_whose_trace_nobody_can_read_or_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path, Path], Path]
) -> None:
    trace, _ = damaged(tmp_path, STATE, damage)
    before = sorted((p, p.read_bytes()) for p in trace.parent.iterdir() if p.is_file())
    cluster = SimpleNamespace(status=lambda: ClusterStatus.model_construct(models={}))
    workspace = SimpleNamespace(
        gitops=SimpleNamespace(sync=lambda: None, read_state=lambda *_: STATE),
        cluster=lambda _: cluster, layout=WorkspaceLayout(tmp_path), settings=Settings(),
    )  # fmt: skip
    asked: list[AbortRequested] = []
    monkeypatch.setattr(driving.Workspace, "current", lambda: workspace)

    def committed(_: str, __: str, observation: AbortRequested) -> SimpleNamespace:
        asked.append(observation)
        return SimpleNamespace(state=SimpleNamespace(leaving=observation, last=None), wait=None)

    monkeypatch.setattr(by_hand, "committed", committed)
    by_hand.commit_abort.fn("m", "prod", "bad answers", "mara")
    answer = advance(
        STATE, asked[0].model_copy(update={"a": fit(STATE.a)}), parse_time(str(STATE.since))
    )
    assert isinstance(answer, Transition)
    assert answer.kind is TransitionKind.ROLLBACK and answer.state.weight == 0
    after = sorted((p, p.read_bytes()) for p in trace.parent.iterdir() if p.is_file())
    assert after == before, "and nothing of it was touched"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_driver_that_cannot_keep_its_trace_pages_once_and_takes_the_traffic_back_past_the_budget(
    tmp_path: Path, clock: list[float], caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path, Path], Path],
) -> None:  # fmt: skip
    _, broken = damaged(tmp_path, STATE, damage)
    watcher = watched(tmp_path, STATE)
    ends = []
    for second in range(0, 200, 4):
        clock[0] = START + second
        seen = watcher.look()
        assert seen.verdict is None
        answer = advance(
            STATE, look(STATE, blind_seconds=seen.blind_seconds), parse_time(str(STATE.since))
        )
        ends.append(second if isinstance(answer, Transition) else None)
    first = next(second for second in ends if second is not None)
    assert BUDGET < first <= BUDGET + 8
    [page] = [r.getMessage() for r in caplog.records if "PAGE:" in r.getMessage()]
    assert str(broken) in page and "next: " in page


def test_once_the_unreadable_trace_is_moved_away_the_step_is_judged_again_by_the_same_driver(
    tmp_path: Path, clock: list[float]
) -> None:
    trace, _ = damaged(tmp_path, STATE, nul_line)
    watcher = watched(tmp_path, STATE)
    for second in range(0, 300, 4):
        clock[0] = START + second
        if second == 80:
            trace.rename(tmp_path / "away")
        seen = watcher.look()
        assert seen.blind_seconds < BUDGET
    assert seen.verdict is not None and seen.verdict.verdict == "pass"
    assert seen.blind_seconds < 10


def test_a_pass_does_not_outlive_the_moment_that_the_disk_is_full(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = watched(tmp_path, STATE)
    words = []
    for second in range(0, 400, 4):
        clock[0] = START + second
        if second == 240:

            def full(*_: Any) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            monkeypatch.setattr(StepTrace, "append", full)
        seen = watcher.look()
        words.append(seen.verdict.verdict if seen.verdict is not None else None)
    assert words[59] == "pass" and words[-1] is None
    assert seen.blind_seconds > BUDGET
