"""How a bake is judged: by its control where it has one, by absolute service levels where the spec has them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from lockgate.domain.objectives import Objectives
from lockgate.domain.rollout.transitions import parse_time, rfc3339
from lockgate.domain.spec import LatencyObjective, ServiceLevels
from lockgate.domain.trace import Histogram, Scrape, Track
from tasks.judging import StepJudge
from tests.unit.rollout.world import SPEC, in_bake, in_canary

LEVELS = ServiceLevels(ttft=LatencyObjective(quantile=0.9, seconds=1.0), error_ratio=0.05)


def scrapes(
    track: Track, start: float, seconds: int, *, slow: float = 0.0, errors: float = 0.0
) -> Iterator[Scrape]:
    """Ten requests a second, one scrape every two."""
    for second in range(0, seconds, 2):
        n = 10.0 * second
        counters = {
            "envoy_cluster_upstream_rq_total": n,
            'envoy_cluster_upstream_rq_xx{envoy_response_code_class="5"}': n * errors,
        }
        ttft = Histogram((0.5, 1.0, math.inf), (n * (1 - slow), n * (1 - slow), n), n)
        histograms = {"vllm:time_to_first_token_seconds": ttft}
        yield Scrape(start + second, track, track, True, counters, histograms)


def objectives() -> Objectives:
    return Objectives(LEVELS, alpha=0.01, start=0.0, block_seconds=5.0)


def test_a_broken_objective_fails_and_is_named() -> None:
    for broken, word in (({"slow": 0.5}, "SLO ttft"), ({"errors": 0.3}, "SLO errors")):
        judged = objectives()
        for scrape in scrapes("canary", 0.0, 120, **broken):
            judged.observe(scrape)
        report = judged.report()
        assert report.verdict == "fail"
        assert report.reasons[0].startswith(word)


def test_a_kept_objective_is_no_proof_and_a_few_requests_show_nothing() -> None:
    judged = objectives()
    for scrape in scrapes("canary", 0.0, 600, slow=0.08, errors=0.02):
        judged.observe(scrape)
    assert judged.report().verdict == "insufficient_data"
    few = objectives()
    for scrape in list(scrapes("canary", 0.0, 4, slow=1.0)):
        few.observe(scrape)
    assert "only 0 requests" in few.report().reasons[0]


def test_an_objective_that_the_control_breaks_too_is_not_blamed_on_the_new_version() -> None:
    judged = objectives()
    pairs = zip(
        scrapes("baseline", 0.0, 120, slow=0.6), scrapes("canary", 0.0, 120, slow=0.6), strict=True
    )
    for pair in pairs:
        for scrape in pair:
            judged.observe(scrape)
    assert judged.report().verdict == "insufficient_data"
    assert "by the control too" in judged.report().reasons[0]


def gateway(track: Track, at: float, total: float, errors: float) -> Scrape:
    """All that a gateway counted of a track."""
    counters = {
        "envoy_cluster_upstream_rq_total": total,
        'envoy_cluster_upstream_rq_xx{envoy_response_code_class="5"}': errors,
    }
    return Scrape(at, track, "gateway", True, counters)


def test_an_objective_that_is_broken_for_hours_stays_broken() -> None:
    judged = objectives()
    for second in range(4000):
        judged.observe(gateway("canary", float(second), 10.0 * second, 10.0 * second))
    assert judged.report().verdict == "fail"
    assert judged.report().decided_at == pytest.approx(10, abs=5)


def test_requests_for_which_there_was_no_server_left_are_requests_too() -> None:
    judged = objectives()
    for second in range(400):
        lost = max(0, second - 100)
        judged.observe(gateway("canary", float(second), 10.0 * min(second, 100), 10.0 * lost))
    report = judged.report()
    assert report.verdict == "fail"
    assert report.decided_at is not None and report.decided_at < 160


def test_a_control_that_has_ended_excuses_nothing_that_comes_after_it() -> None:
    """And what both shared before it ended stays excused."""
    for ill in (False, True):
        judged = Objectives(LEVELS, alpha=0.01, start=0.0, block_seconds=5.0, compared_until=60.0)
        for second in range(900):
            shared = 0.5 * 10 * min(second, 60)
            since = 5.0 * max(0, second - 60) if ill else 0.0
            judged.observe(gateway("canary", float(second), 10.0 * second, shared + since))
            until = 10.0 * min(second, 55)
            judged.observe(gateway("baseline", float(second), until, 0.5 * until))
        assert (judged.report().verdict == "fail") is ill


@pytest.mark.parametrize("early", [False, True])
def test_what_both_shared_to_the_end_of_the_bake_rolls_nothing_back_after_it(
    early: bool,
) -> None:
    """The control ends with the bake. Where it ended early (its last replica died), the new version answers for itself."""
    state = in_bake().state
    assert state.since is not None and state.canary is not None
    start = parse_time(state.since).timestamp()
    spec = state.canary.model_copy(
        update={"slos": LEVELS, "bake_seconds": 300, "control_percent": 5}
    )
    ended_at = 100 if early else 300
    ended = rfc3339(datetime.fromtimestamp(start + ended_at, UTC))
    judge = StepJudge(
        state.model_copy(update={"canary": spec, "weight": 0, "control_ended": ended})
    )
    for second in range(0, 700, 2):
        for track, rate, until in (("canary", 19.0, 700), ("baseline", 1.0, ended_at)):
            total = rate * min(second, until)
            judge.observe(gateway(track, start + second, total, total * 0.15))
    report = judge.look(start + 700)
    assert report is not None
    assert (report.verdict == "fail") is early


def test_a_control_that_has_ended_is_no_want_of_metrics() -> None:
    state = in_bake().state
    assert state.since is not None and state.canary is not None
    start = parse_time(state.since).timestamp()
    ended = rfc3339(datetime.fromtimestamp(start + 100, UTC))
    spec = state.canary.model_copy(update={"bake_seconds": 3600})
    changes = {"canary": spec, "weight": 0, "control_ended": ended}
    judge = StepJudge(state.model_copy(update=changes))
    control = [
        replace(s, counters={name: round(value / 19) for name, value in s.counters.items()})
        for s in scrapes("baseline", start, 100)
    ]
    seen = [*control, *scrapes("canary", start, 1200)]
    for scrape in sorted(seen, key=lambda scrape: scrape.time):
        judge.observe(scrape)
    report = judge.look(start + 1200)
    assert report is not None
    assert report.verdict == "insufficient_data"
    assert not any("no usable metrics" in reason for reason in report.reasons)


def test_lines_that_come_twice_change_nothing() -> None:
    once, twice = objectives(), objectives()
    for scrape in scrapes("canary", 0.0, 60, slow=0.2):
        once.observe(scrape)
        twice.observe(scrape)
        twice.observe(scrape)
    assert once.report() == twice.report()


def test_a_bake_with_a_control_fails_on_errors_that_only_the_new_version_has() -> None:
    state = in_bake().state
    judge = StepJudge(state)
    assert state.since is not None
    start = parse_time(state.since).timestamp()
    good, bad = scrapes("baseline", start, 240), scrapes("canary", start, 240, errors=0.3)
    for pair in zip(good, bad, strict=True):
        for scrape in pair:
            judge.observe(scrape)
    report = judge.decided()
    assert report is not None
    assert report.verdict == "fail"


def test_a_step_is_not_passed_before_the_requests_that_its_spec_asks_for() -> None:
    passed_at = []
    for wanted in (20, 900):
        step = SPEC.steps[0].model_copy(update={"weight": 50, "min_requests": wanted})
        state = in_canary(SPEC.model_copy(update={"steps": (step,)})).state
        assert state.since is not None
        start = parse_time(state.since).timestamp()
        judge = StepJudge(state)
        for pair in zip(
            scrapes("baseline", start, 120), scrapes("canary", start, 120), strict=True
        ):
            for scrape in pair:
                judge.observe(scrape)
        report = judge.decided()
        assert report is not None
        assert report.decided_at is not None
        passed_at.append(report.decided_at - start)
    assert passed_at[0] < 60
    assert passed_at[1] >= 90, "ten requests a second"


def test_the_report_of_a_pass_is_that_of_its_moment() -> None:
    step = SPEC.steps[0].model_copy(update={"weight": 50})
    state = in_canary(SPEC.model_copy(update={"steps": (step,)})).state
    assert state.since is not None
    start = parse_time(state.since).timestamp()
    judge = StepJudge(state)
    seen = set()
    for pair in zip(scrapes("baseline", start, 120), scrapes("canary", start, 120), strict=True):
        for scrape in pair:
            judge.observe(scrape)
        report = judge.decided()
        seen.add(report.model_dump_json() if report is not None else None)
    assert len(seen) == 2


def test_a_bake_without_control_is_judged_by_the_objectives_alone_and_says_so() -> None:
    spec = SPEC.model_copy(update={"control_percent": 0, "slos": LEVELS})
    state = in_canary(spec, steps_passed=2).state
    judge = StepJudge(state)
    report = judge.look(None)
    assert report is not None
    assert any("no control: absolute SLOs" in reason for reason in report.reasons)
    nothing = in_canary(SPEC.model_copy(update={"control_percent": 0}), steps_passed=2).state
    assert not StepJudge(nothing).active
