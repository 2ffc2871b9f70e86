"""Instances that are scraped each at a time of its own, as a Prometheus does: their data are counted all the same."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from lockgate.domain.judge import Judge, JudgeConfig, JudgeReport, Verdict
from lockgate.domain.trace import TRACKS, Scrape, Track, parse_line
from tests.unit.judge.test_verdicts_on_traces import metric
from tests.unit.judge.traces import ITL_LE, TOKENS_LE, TTFT_LE, _State, finished, rows

LOOK_S = 2.0
CONFIG = JudgeConfig(step_start=0.0, settle_s=4.0, hold_s=60.0, time_budget_s=900.0)


class Replica:
    """What one server has counted."""

    def __init__(self, rng: np.random.Generator, ttft: float) -> None:
        self.rng, self.ttft = rng, ttft
        self.state, self.requests, self._until = _State(), 0, 0.0
        self.serve(0.0)

    def serve(self, until: float) -> None:
        n = int(self.rng.poisson(until - self._until))
        self._until = until
        tokens = np.maximum(1.0, self.rng.lognormal(3.0, 0.2, n).round())
        ttft = self.ttft * self.rng.lognormal(0, 0.5, n)
        itl = 0.045 * self.rng.lognormal(0, 0.2, int(tokens.sum()))
        self.state.observe("vllm:time_to_first_token_seconds", TTFT_LE, ttft)
        self.state.observe("vllm:inter_token_latency_seconds", ITL_LE, itl)
        self.state.observe("vllm:request_generation_tokens", TOKENS_LE, tokens)
        self.state.count(finished("stop"), n)
        self.requests += n


def looks(
    seed: int, *, interval: float, stable: int, slow: float, late: float = 0.0, probes: bool = False
) -> Iterator[list[Scrape]]:
    """What each look brings of replicas with a request a second, and of their gateway: scrapes at the times of their
    beginning, known once they have ended (`late`: the canary's after so many seconds)."""
    rng = np.random.default_rng(seed)
    tracks: list[Track] = [*(("baseline",) * stable), "canary"]
    replicas = [Replica(rng, 0.15 * (slow if track == "canary" else 1.0)) for track in tracks]
    offsets = [float(rng.uniform(0, interval)) for _ in (*replicas, "gateway")]
    due = sorted((o + k * interval, i) for i, o in enumerate(offsets) for k in range(900))
    stored: list[tuple[float, int, Scrape]] = []

    def store(at: float, row: dict[str, Any], name: str, took: float) -> None:
        line = json.dumps({**row, "instance": name})
        heapq.heappush(stored, (at + took, len(stored) + 10 * round(1000 * at), parse_line(line)))

    for time, i in due:
        if time > 900:
            break
        for replica in replicas:
            replica.serve(time)
        if i < len(replicas):
            track, took = tracks[i], late if tracks[i] == "canary" else 0.05
            store(time, rows(replicas[i].state, _State(), time, track)[0], f"{track}-{i}", took)
            continue
        for track in TRACKS:
            envoy = _State()
            sent = sum(r.requests for r, t in zip(replicas, tracks, strict=True) if t == track)
            envoy.count("envoy_cluster_upstream_rq_total", float(sent))
            store(time, rows(_State(), envoy, time, track)[1], "gateway", 0.05)
    for now in np.arange(LOOK_S, 900.0, LOOK_S).tolist():
        found = []
        while stored and stored[0][0] <= now:
            found.append(heapq.heappop(stored)[2])
        found.sort(key=lambda s: s.time)
        if probes:
            asked = {"lockgate:probe_total": now // 10, "lockgate:probe_failed_total": 0.0}
            found += [Scrape(now, t, f"probe-{t}", True, asked) for t in TRACKS]
        yield found


def judged(seed: int, **how: Any) -> JudgeReport:
    judge = Judge(CONFIG.model_copy(update={"canary_weight": 1 / (how["stable"] + 1)}))
    for found in looks(seed, **how):
        for scrape in found:
            judge.observe(scrape)
        report = judge.decided()
        if report is not None:
            return report
    return judge.look()


SPREAD = pytest.mark.parametrize(
    "how",
    [
        {"interval": 10.0, "stable": 7},
        {"interval": 15.0, "stable": 3},
        {"interval": 5.0, "stable": 7, "late": 3.5},
        {"interval": 10.0, "stable": 3, "late": 6.0, "probes": True},
    ],
    ids=lambda how: " ".join(f"{k}={v:g}" for k, v in how.items()),
)


@SPREAD
@pytest.mark.parametrize("seed", range(3))
def test_a_slow_canary_fails_however_its_scrapes_are_spread(how: dict[str, Any], seed: int) -> None:
    report = judged(seed, slow=2.0, **how)
    assert report.verdict is Verdict.FAIL
    assert metric(report, "ttft").verdict is Verdict.FAIL
    assert report.decided_at is not None and report.decided_at <= 300


@SPREAD
def test_an_equal_canary_does_not_fail_for_how_its_scrapes_are_spread(how: dict[str, Any]) -> None:
    report = judged(4, slow=1.0, **how)
    assert report.verdict is not Verdict.FAIL
    # nearly all of 900 s at one request a second: little waits
    assert metric(report, "ttft").n_canary > 500 or report.verdict is Verdict.PASS


def test_what_is_known_of_an_instance_late_does_not_make_its_track_older() -> None:
    """A metric's samples, and a track's, were last seen when the one was scraped that was scraped last."""
    judge = Judge(CONFIG)
    counters = {finished("stop"): 1.0, finished("length"): 1.0}
    judge.observe(Scrape(0.0, "canary", "c-0", True, counters))
    judge.observe(Scrape(0.0, "canary", "c-1", True, counters))
    for time, name in ((40.0, "b-0"), (40.0, "b-1"), (40.0, "c-0"), (15.0, "c-1")):
        judge.observe(Scrape(time, "baseline" if name < "c" else "canary", name, True, counters))
    report = judge.look(41.0)
    assert Verdict.METRICS_OUTAGE not in (report.verdict, metric(report, "finish_reasons").verdict)
