"""Servers and gateways that could mislead: refusals that no engine counts, stuck engines, one gateway of several, pods that go."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from lockgate.domain.judge import JudgeConfig, PassRule, Verdict, judge_lines
from lockgate.domain.trace import TRACKS
from tests.unit.judge.test_verdicts_on_traces import metric
from tests.unit.judge.traces import Server, trace

EQUAL = JudgeConfig(step_start=0.0, canary_weight=0.5)
PATIENT = JudgeConfig(step_start=0.0, canary_weight=0.5, pass_rule=PassRule.NO_HARM, hold_s=60.0)
TOTAL = "envoy_cluster_upstream_rq_total"
CLASS = 'envoy_cluster_upstream_rq_xx{{envoy_response_code_class="{}"}}'


@pytest.mark.parametrize(("share", "rate"), [(1.0, 0.0), (0.6, 0.8), (0.3, 1.4)])
@pytest.mark.parametrize("config", [EQUAL, PATIENT])
def test_a_canary_that_refuses_its_requests_fails_though_its_engine_knows_nothing_of_them(
    share: float, rate: float, config: JudgeConfig
) -> None:
    """A broken chat template, a wrong name, a context that is too short: 4xx, and quickly."""

    def refuse(row: dict[str, Any]) -> dict[str, Any]:
        if row["instance"] == "gateway":
            served = row["counters"].get(TOTAL, 0.0)
            asked = served
            if row["track"] == "canary":
                asked = round(served / (1 - share)) if share < 1 else round(2 * row["time"])
            counted = {TOTAL: asked, CLASS.format("2"): served, CLASS.format("4"): asked - served}
            row["counters"] |= counted
        return row

    rows = trace(Server(rate=2), Server(rate=rate), 180, 3, edit=refuse)
    report = judge_lines(rows, config)
    assert report.verdict is Verdict.FAIL
    assert "gateway_refusals" in report.reasons[0]


def test_a_canary_that_finishes_nothing_passes_nothing() -> None:
    def hangs(row: dict[str, Any]) -> dict[str, Any]:
        if row["track"] == "canary":
            if row["instance"] == "gateway":
                row["counters"][TOTAL] = float(round(2 * row["time"]))
            else:
                row["gauges"] = {"vllm:num_requests_running": 2.0 * max(0, row["time"] - 6)}
        return row

    rows = trace(Server(rate=2), Server(rate=0), 180, 3, edit=hangs)
    assert judge_lines(rows, PATIENT).verdict is not Verdict.PASS


@pytest.mark.parametrize("config", [EQUAL, PATIENT.model_copy(update={"hold_s": 120.0})])
def test_a_stuck_engine_is_stuck_though_its_pages_are_read(config: JudgeConfig) -> None:
    last: dict[str, Any] = {}

    def stuck(row: dict[str, Any]) -> dict[str, Any]:
        if row["instance"] != "canary-0":
            return row
        if row["time"] <= 40:
            last.update(json.loads(json.dumps(row)))
        else:
            row = {**json.loads(json.dumps(last)), "time": row["time"]}
            row["gauges"] = {"vllm:num_requests_running": 20.0}
        pages = 'http_requests_total{handler="/v1/models",method="GET",status="2xx"}'
        row["counters"][pages] = float(row["time"] // 10)
        return row

    rows = trace(Server(rate=2), Server(rate=2), 200, 4, edit=stuck)
    report = judge_lines(rows, config)
    assert report.verdict is Verdict.FAIL
    assert report.decided_at is not None and report.decided_at < 120


def test_one_gateway_that_has_no_server_of_the_baseline_hides_nothing_that_another_sees() -> None:
    def lines() -> Iterator[str]:
        broken = Server(rate=3, errors=0.3, ttft=1.5, itl=0.4)
        healthy = "envoy_cluster_membership_healthy"
        for line in trace(Server(rate=3), broken, 120, 6):
            row = json.loads(line)
            if row["instance"] == "gateway":
                row["gauges"] = {healthy: 1.0}
                other = {
                    "instance": "gateway-2",
                    "counters": {TOTAL: 0.0},
                    "gauges": {healthy: 0.0},
                }
                yield json.dumps({"time": row["time"], "track": row["track"], "up": True, **other})
            yield json.dumps(row)

    assert judge_lines(lines(), EQUAL).verdict is Verdict.FAIL


def test_a_baseline_pod_that_went_long_ago_excuses_no_crash_of_the_canary() -> None:
    def lines() -> Iterator[str]:
        for line in trace(Server(rate=2), Server(rate=2), 120, 5):
            row = json.loads(line)
            if row["instance"] == "baseline-0" and row["time"] <= 20:
                second = {**row, "instance": "baseline-1"}
                if row["time"] == 20:
                    second = {k: row[k] for k in ("time", "track")}
                    second |= {"instance": "baseline-1", "up": False}
                yield json.dumps(second)
            if row["instance"] == "canary-0":
                begun = 1060.0 if row["time"] >= 60 else 1000.0
                row["gauges"]["process_start_time_seconds"] = begun
            yield json.dumps(row)

    report = judge_lines(lines(), EQUAL)
    assert metric(report, "crashes").verdict is Verdict.FAIL
    assert report.verdict is Verdict.FAIL


@pytest.mark.parametrize("first", TRACKS)
@pytest.mark.parametrize("gap", [2, 15, 35])
def test_what_takes_both_tracks_is_nobodys_however_seldom_they_are_looked_at(
    gap: int, first: str
) -> None:
    """Of a held release there may be half a minute between two looks."""

    def lines() -> Iterator[str]:
        yield from trace(Server(rate=2), Server(rate=2), 60, 5)
        for look in range(4):
            for track in sorted(TRACKS, key=lambda track: track != first):
                row = {"time": 61.0 + look * gap, "track": track}
                yield json.dumps({**row, "instance": f"{track}-0", "up": False})
                counters = {TOTAL: 200.0}
                yield json.dumps({**row, "instance": "gateway", "up": True, "counters": counters})

    assert judge_lines(lines(), EQUAL).verdict is not Verdict.FAIL


def test_bounds_that_no_server_means_end_no_judge_and_the_rest_is_judged() -> None:
    """Their squares are beyond a float."""

    def lies(row: dict[str, Any]) -> dict[str, Any]:
        if row["instance"] == "canary-0":
            total = row["time"] * 3
            found = {"le": [1e200, "+Inf"], "cumulative": [0, total], "sum": 0.2 * total}
            row["histograms"]["vllm:request_queue_time_seconds"] = found
        return row

    slow = Server(rate=3, ttft=1.5, itl=0.4)
    rows = trace(Server(rate=3), slow, 120, 6, edit=lies)
    assert judge_lines(rows, EQUAL).verdict is Verdict.FAIL


BOUNDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


def unequal_lengths(seed: int) -> Iterator[str]:
    """Two equal tracks, two answers a second each, of which one in a hundred is sixty times as long."""
    rng = np.random.default_rng(seed)
    cumulative = {track: np.zeros(len(BOUNDS) + 1) for track in TRACKS}
    tokens = dict.fromkeys(TRACKS, 0.0)
    for second in range(0, 901, 5):
        for track in TRACKS:
            fresh = rng.poisson(10) if second else 0
            lengths = 30 * rng.lognormal(-0.045, 0.3, fresh)
            lengths *= np.where(rng.random(fresh) < 0.01, 60, 1)
            lengths = np.maximum(1, np.round(np.minimum(lengths, 16384)))
            cumulative[track] += (lengths[:, None] <= np.array([*BOUNDS, np.inf])).sum(0)
            tokens[track] += lengths.sum()
            counts = cumulative[track].tolist()
            done = {'vllm:request_success_total{finished_reason="stop"}': counts[-1]}
            found = {"le": [*BOUNDS, "+Inf"], "cumulative": counts, "sum": tokens[track]}
            row = {"time": float(second), "track": track, "instance": track, "up": True}
            histograms = {"vllm:request_generation_tokens": found}
            yield json.dumps({**row, "counters": done, "histograms": histograms})


@pytest.mark.parametrize("seed", [46, 71, 93, 116, 137])
def test_a_few_very_long_answers_on_one_track_fail_no_canary_that_is_equal(seed: int) -> None:
    """Chosen of 150: where each track's mean was put right by its own scatter, these failed."""
    waits = EQUAL.model_copy(update={"hold_s": 900.0, "time_budget_s": 1800.0})
    assert judge_lines(unequal_lengths(seed), waits).verdict is not Verdict.FAIL
