"""What a driver's looks say while a step waits, from scrapes alone."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lockgate.domain.cluster import ClusterStatus, ModelStatus, SlotStatus
from lockgate.domain.release_state import ReleaseState
from lockgate.domain.rollout.transitions import parse_time
from lockgate.domain.trace import TRACKS, Histogram, Scrape, Track
from lockgate.errors import ClusterError
from lockgate.settings import Settings, WorkspaceLayout
from tasks import step_metrics
from tasks.watching import Watcher
from tests.unit.rollout.test_baking import scrapes
from tests.unit.rollout.world import REPLICAS, SPEC, in_canary

REQUESTS = "envoy_cluster_upstream_rq_total"


class Away:
    """A repository that nobody reaches."""

    def read_policy(self) -> None:
        raise ClusterError("away")


def watched(tmp_path: Path, state: ReleaseState, settings: Settings | None = None) -> Watcher:
    """A watcher of two slots whose metrics are made up, in a workspace that has nothing else."""
    cluster: Any = SimpleNamespace(
        status=lambda: ClusterStatus.model_construct(models={}), scrape_targets=lambda _: ()
    )
    workspace: Any = SimpleNamespace(
        cluster=lambda _: cluster, layout=WorkspaceLayout(tmp_path), gitops=Away(),
        settings=settings or Settings(),
    )  # fmt: skip
    return Watcher(workspace, state)


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
    monkeypatch.setattr(step_metrics.metrics, "scrape", lambda *_, **__: halves.pop(0))
    watcher = watched(tmp_path, state)
    words = []
    for _ in range(2):
        verdict = watcher.look().verdict
        words.append(verdict.verdict if verdict is not None else None)
        watcher = watched(tmp_path, state) if killed else watcher
    assert words == ["pass", "fail"]


@pytest.mark.parametrize("how", ["no numbers", "no answer", "dead stable"])
def test_a_canary_whose_own_metrics_stay_away_is_unobserved_though_the_gateway_tells_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The gateway's word is not enough to judge by. That stable is dead, though, is no want of metrics."""
    state = in_canary(SPEC).state
    assert state.since is not None
    start = parse_time(state.since).timestamp()
    clock = [start]
    monkeypatch.setattr(
        step_metrics, "time", SimpleNamespace(time=lambda: clock[0], monotonic=time.monotonic)
    )

    def told(track: Track, seconds: float) -> list[Scrape]:
        n = 10.0 * seconds * (0.05 if track == "canary" else 0.95)
        gateway = Scrape(start + seconds, track, f"{track}-gw", True, {REQUESTS: n})
        ttft = {"vllm:time_to_first_token_seconds": Histogram((1.0, math.inf), (n, n), n / 5)}
        ends = {'vllm:request_success_total{finished_reason="stop"}': n}
        engine = Scrape(start + seconds, track, f"{track}-0", True, ends, ttft)
        if seconds > 20 and track == ("baseline" if how == "dead stable" else "canary"):
            engine = replace(engine, counters={}, histograms={}, invalid=(*ends, *ttft))
            if how != "no numbers":
                engine = replace(engine, up=False, invalid=())
            if how == "no answer":
                return [gateway]
        return [engine, gateway]

    watcher = watched(tmp_path, state)
    looks = []
    for second in range(0, 240, 4):
        clock[0] = start + second
        records = [r for track in TRACKS for r in told(track, second)]
        monkeypatch.setattr(step_metrics.metrics, "scrape", lambda *_, r=records, **__: r)
        looks.append(watcher.look())
    assert max(look.blind_seconds for look in looks[:10]) < 60
    long = SPEC.outage_budget_seconds
    assert (looks[-1].blind_seconds > long) == (how != "dead stable")


def test_more_replicas_than_git_names_are_wanted_for_a_raise_only(tmp_path: Path) -> None:
    state = in_canary().state
    assert state.a is not None
    watcher = watched(tmp_path, state)
    for updated, sized, enough in ((6, True, True), (REPLICAS, False, True), (3, False, False)):
        slot = SlotStatus(
            slot="a", deployment="d", candidate=str(state.a.candidate.digest), desired=6,
            ready=updated, updated=updated, restarts=0, pods=(),
        )  # fmt: skip
        status = ClusterStatus.model_construct(
            models={
                "m": ModelStatus.model_construct(
                    slots={"a": slot}, route=None, generation=state.generation, successor=None
                )
            }
        )
        watcher.cluster = SimpleNamespace(status=lambda status=status: status)  # type: ignore[assignment]
        seen = watcher.slots().a
        assert seen is not None
        assert (seen.sized, seen.enough) == (sized, enough)


@pytest.mark.parametrize("when", ["once", "before this driver", "as the step began"])
def test_a_clock_that_was_ahead_keeps_nobody_from_seeing_a_canary_fall_ill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    step = SPEC.steps[0].model_copy(update={"weight": 50})
    state = in_canary(SPEC.model_copy(update={"steps": (step,)})).state
    assert state.since is not None
    start = parse_time(state.since).timestamp() - (100 if when == "as the step began" else 0)
    clock, passed = [start], [0]
    monkeypatch.setattr(
        step_metrics, "time", SimpleNamespace(time=lambda: clock[0], monotonic=time.monotonic)
    )

    def ill() -> float:
        """From the twentieth second on a third of its answers are errors."""
        return max(0, passed[0] - 20) / max(1, passed[0]) / 3

    def scrape(*_: Any, time: float, **__: Any) -> list[Scrape]:
        return [
            replace(list(scrapes(track, start, passed[0] + 1, errors=errors))[-1], time=time)
            for track, errors in (("baseline", 0.0), ("canary", ill()))
        ]

    monkeypatch.setattr(step_metrics.metrics, "scrape", scrape)
    watcher = watched(tmp_path, state)
    for second in range(0, 70, 2):
        clock[0], passed[0] = start + second, second
        if when != "as the step began" and second == 10:
            clock[0] += 100
        if when == "before this driver" and second == 12:
            watcher = watched(tmp_path, state)
        look = watcher.look()
        assert look.blind_seconds < SPEC.outage_budget_seconds
        if look.verdict is not None and look.verdict.verdict == "fail":
            return
    pytest.fail("it was not seen")
