"""What the judge says about whole traces, through its public door."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from lockgate.domain.judge import Judge, JudgeConfig, JudgeReport, Verdict, follow, judge_lines
from lockgate.domain.trace import TraceError, parse_line
from tests.unit.judge.traces import TTFT_LE, Server, finished, trace

DEMO = {
    "step_start": 0.0,
    "canary_weight": 0.5,
    "block_s": 3.0,
    "drift_sd": 0.1,
    "drift_surprise": 3.0,
    "metrics": {
        "ttft": {"margin": 0.6},
        "itl": {"margin": 0.6},
        "queue": {"margin": 0.6},
        "e2e_per_token": {"margin": 0.6},
        "gateway_errors": {"margin": 0.05},
        "finish_reasons": {"margin": 0.3, "criticality": "guard"},
        "output_length": {"margin": 0.3},
    },
}


def config(**changes: Any) -> JudgeConfig:
    return JudgeConfig.model_validate({**DEMO, **changes})


def metric(report: JudgeReport, name: str) -> Any:
    return next(m for m in report.metrics if m.name == name)


@pytest.mark.parametrize("drift_sd", [0.0, 0.2])
def test_an_equal_canary_is_never_failed_under_default_margins(drift_sd: float) -> None:
    server = Server(drift_sd=drift_sd, rate=3.0)
    verdicts = Counter(
        judge_lines(
            trace(server, server, 60, seed), JudgeConfig(step_start=0, canary_weight=0.5)
        ).verdict
        for seed in range(10)
    )
    assert verdicts[Verdict.FAIL] == 0


def test_an_equal_canary_passes_within_wide_margins_in_little_more_than_a_minute() -> None:
    reports = [judge_lines(trace(Server(), Server(), 100, s), config()) for s in range(6)]
    assert [r.verdict for r in reports].count(Verdict.PASS) >= 5
    assert all(r.decided_at is None or r.decided_at >= 30 for r in reports)


def test_a_canary_whose_first_token_takes_twenty_times_as_long_fails_within_half_a_minute() -> None:
    for seed in range(4):
        report = judge_lines(trace(Server(), Server(ttft=3.0), 60, seed), config())
        assert report.verdict is Verdict.FAIL
        assert report.decided_at is not None and report.decided_at <= 30
        assert metric(report, "ttft").verdict is Verdict.FAIL
        assert any("ttft" in reason for reason in report.reasons)


def test_a_doubled_latency_is_found_where_replicas_are_declared_not_to_drift() -> None:
    settings = JudgeConfig(step_start=0, drift_sd=0.0)
    for seed in range(4):
        slow = Server(ttft=0.3, itl=0.09)
        report = judge_lines(trace(Server(), slow, 120, seed), settings)
        assert report.verdict is Verdict.FAIL


def test_metrics_that_move_together_fail_the_canary_before_any_of_them_would_alone() -> None:
    slow = Server(rate=3.0, ttft=0.3, itl=0.09, drift_sd=0.1)
    together = 0
    for seed in range(5):
        lines = trace(Server(rate=3.0, drift_sd=0.1), slow, 60, seed)
        report = judge_lines(lines, JudgeConfig(step_start=0))
        if report.verdict is not Verdict.FAIL:
            continue
        named = {m.name for m in report.metrics if m.verdict is Verdict.FAIL}
        assert named and named <= {"ttft", "itl", "e2e_per_token", "queue"}
        assert all(any(reason.startswith(name) for reason in report.reasons) for name in named)
        together += all(m.evidence < m.threshold for m in report.metrics if m.threshold)
    assert together


def test_a_few_requests_that_take_ten_times_as_long_fail_the_canary_and_are_counted() -> None:
    settings = JudgeConfig(step_start=0)
    report = judge_lines(trace(Server(rate=6.0), Server(rate=6.0, tail=0.06), 200, 2), settings)
    assert report.verdict is Verdict.FAIL
    assert metric(report, "ttft_tail").verdict is Verdict.FAIL
    assert "took long (now: more than" in metric(report, "ttft_tail").reason


@pytest.mark.parametrize("change", ["no histogram", "other bounds"])
def test_a_tail_that_cannot_be_compared_is_insufficient_data(change: str) -> None:
    name = "vllm:time_to_first_token_seconds"

    def edit(row: dict[str, Any]) -> dict[str, Any]:
        if row["track"] == "canary" and name in row["histograms"]:
            if change == "other bounds":
                found = row["histograms"][name]
                found["le"] = [0.99 * x if isinstance(x, float) else x for x in found["le"]]
        elif change == "no histogram":
            row["histograms"].pop(name, None)
        return row

    report = judge_lines(trace(Server(), Server(tail=0.5), 60, 1, edit=edit), config())
    found = metric(report, "ttft_tail")
    assert found.verdict is Verdict.INSUFFICIENT_DATA and found.evidence == 1.0


def test_server_errors_at_the_gateway_fail_the_canary_and_are_named() -> None:
    report = judge_lines(trace(Server(), Server(errors=1.0), 60, 1), config())
    assert report.verdict is Verdict.FAIL
    assert report.decided_at is not None and report.decided_at <= 20
    assert any("gateway_errors" in reason for reason in report.reasons)


def test_answers_cut_short_fail_the_canary() -> None:
    report = judge_lines(trace(Server(), Server(tokens=10.0), 90, 1), config())
    assert report.verdict is Verdict.FAIL
    assert metric(report, "output_length").verdict is Verdict.FAIL


def test_answers_that_never_stop_fail_the_canary_by_their_finish_reasons() -> None:
    settings = JudgeConfig(step_start=0, metrics={"output_length": {"criticality": "advisory"}})
    report = judge_lines(trace(Server(), Server(length_share=0.95), 60, 1), settings)
    assert report.verdict is Verdict.FAIL
    assert metric(report, "finish_reasons").verdict is Verdict.FAIL


def test_a_split_that_is_not_the_committed_one_fails() -> None:
    report = judge_lines(trace(Server(rate=4.0), Server(rate=1.0), 60, 1), config())
    assert report.verdict is Verdict.FAIL
    assert metric(report, "split").verdict is Verdict.FAIL


def test_a_canary_that_dies_fails_at_once_and_a_dead_baseline_is_not_blamed_on_it() -> None:
    def dead(track: str) -> Any:
        def edit(row: dict[str, Any]) -> dict[str, Any]:
            if row["time"] > 10 and row["track"] == track and row["instance"] != "gateway":
                return {**row, "up": False, "counters": {}, "histograms": {}}
            return row

        return edit

    canary = judge_lines(trace(Server(), Server(), 60, 1, edit=dead("canary")), config())
    assert canary.verdict is Verdict.FAIL
    assert canary.decided_at is not None and canary.decided_at <= 14
    assert metric(canary, "crashes").verdict is Verdict.FAIL
    baseline = judge_lines(trace(Server(), Server(), 60, 1, edit=dead("baseline")), config())
    assert baseline.verdict in (Verdict.INSUFFICIENT_DATA, Verdict.METRICS_OUTAGE)


def test_a_restart_seen_only_in_counters_that_fell_is_a_crash_and_loses_no_count() -> None:
    def restart(row: dict[str, Any]) -> dict[str, Any]:
        if row["time"] > 20 and row["track"] == "canary" and row["instance"] != "gateway":
            return {
                **row,
                "counters": {finished("stop"): 3.0 + row["time"] - 20},
                "histograms": {
                    "vllm:time_to_first_token_seconds": {
                        "le": [*TTFT_LE, "+Inf"],
                        "cumulative": [0.0] * 6 + [row["time"] - 20] * 11,
                        "sum": 0.18 * (row["time"] - 20),
                    }
                },
            }
        return row

    report = judge_lines(trace(Server(), Server(), 40, 1, edit=restart), config())
    assert report.verdict is Verdict.FAIL
    assert any("restarted" in reason for reason in report.reasons)


def test_an_envoy_restart_resets_counters_and_blames_nobody() -> None:
    def reset(row: dict[str, Any]) -> dict[str, Any]:
        if row["time"] > 20 and row["instance"] == "gateway":
            return {**row, "counters": {"envoy_cluster_upstream_rq_total": row["time"] - 20}}
        return row

    report = judge_lines(trace(Server(), Server(), 40, 1, edit=reset), config())
    assert report.verdict is not Verdict.FAIL


def test_missing_metrics_are_an_outage_and_never_a_pass() -> None:
    def silent(row: dict[str, Any]) -> dict[str, Any] | None:
        return None if row["track"] == "canary" and row["time"] > 5 else row

    report = judge_lines(trace(Server(), Server(), 60, 1, edit=silent), config())
    assert report.verdict is Verdict.METRICS_OUTAGE
    assert "canary" in report.reasons[0]
    assert judge_lines([], config()).verdict is Verdict.METRICS_OUTAGE


def test_values_that_are_not_numbers_are_an_outage_of_that_metric() -> None:
    def lying(row: dict[str, Any]) -> dict[str, Any]:
        histograms = {
            name: {**h, "sum": float("nan")} if row["time"] > 10 else h
            for name, h in row["histograms"].items()
        }
        return {**row, "histograms": histograms} if row["track"] == "canary" else row

    report = judge_lines(trace(Server(), Server(), 60, 1, edit=lying), config())
    assert report.verdict is Verdict.METRICS_OUTAGE
    assert metric(report, "ttft").verdict is Verdict.METRICS_OUTAGE


@pytest.mark.parametrize("value", [10**400, 1.7e308, 1e30])
def test_absurd_values_are_no_values_and_hide_no_other_regression(value: float) -> None:
    def lying(row: dict[str, Any]) -> dict[str, Any]:
        if row["time"] != 20 or row["track"] != "canary" or not row["histograms"]:
            return row
        liar = {**row["histograms"]["vllm:time_to_first_token_seconds"], "sum": value}
        counters = {**row["counters"], finished("stop"): value}
        return {
            **row,
            "counters": counters,
            "histograms": {**row["histograms"], "vllm:time_to_first_token_seconds": liar},
        }

    worse = Server(itl=0.4, length_share=0.9)
    report = judge_lines(trace(Server(), worse, 60, 1, edit=lying), config(hold_s=30.0))
    assert report.verdict is Verdict.FAIL
    honest = judge_lines(trace(Server(), Server(), 60, 1, edit=lying), config())
    assert honest.verdict is not Verdict.FAIL


def test_a_counter_that_could_not_be_read_at_first_is_not_taken_for_news() -> None:
    """What an old server had counted before the step is nobody's regression, though its first scrape was no good."""

    def old(row: dict[str, Any]) -> dict[str, Any]:
        failed = 'envoy_cluster_upstream_rq_xx{envoy_response_code_class="5"}'
        if row["instance"] == "gateway" and row["track"] == "canary":
            unread = None if row["time"] == 0 else 90.0
            return {**row, "counters": {**row["counters"], failed: unread}}
        return row

    report = judge_lines(trace(Server(), Server(), 20, 1, edit=old), config())
    assert metric(report, "gateway_errors").estimate == 0


def test_no_traffic_is_insufficient_data_and_past_the_budget_it_is_called_futile() -> None:
    idle = Server(rate=0.0)
    report = judge_lines(trace(idle, idle, 60, 1), config(time_budget_s=50.0))
    assert report.verdict is Verdict.INSUFFICIENT_DATA
    assert report.futile and "futility" in report.reasons[0]


def test_latency_at_unequal_load_does_not_pass_and_says_so() -> None:
    lone = trace(Server(rate=6.0), Server(rate=1.0), 90, 1)
    report = judge_lines(lone, config(canary_weight=None))
    assert report.verdict is Verdict.INSUFFICIENT_DATA
    assert "not like with like" in metric(report, "ttft").reason


def one_after_the_other(first: Iterator[str], then: Iterator[str], seconds: float) -> Iterator[str]:
    """The second trace goes on where the first one stops: the same instances, counting on."""
    last: dict[tuple[str, str], dict[str, Any]] = {}
    for line in first:
        row = json.loads(line)
        last[row["track"], row["instance"]] = row
        yield line
    for line in then:
        row = json.loads(line)
        if row["time"] == 0:
            continue
        before = last[row["track"], row["instance"]]
        for name, value in before["counters"].items():
            row["counters"][name] = row["counters"].get(name, 0.0) + value
        for name, h in before["histograms"].items():
            more = row["histograms"][name]
            pairs = zip(more["cumulative"], h["cumulative"], strict=True)
            more["cumulative"], more["sum"] = [a + b for a, b in pairs], more["sum"] + h["sum"]
        yield json.dumps({**row, "time": row["time"] + seconds})


@pytest.mark.slow
def test_what_a_canary_showed_while_it_carried_more_does_not_fail_it_once_the_load_is_equal() -> (
    None
):
    crowded = Server(rate=3.0, ttft=0.3, itl=0.09)
    for seed in range(3):
        lines = one_after_the_other(
            trace(Server(rate=1.0), crowded, 60, seed),
            trace(Server(rate=2.0), Server(rate=2.0), 240, 50 + seed),
            60,
        )
        report = judge_lines(lines, JudgeConfig(step_start=0.0))
        assert report.verdict is not Verdict.FAIL, report.reasons


@pytest.mark.slow
def test_what_a_canary_showed_while_it_carried_less_does_not_pass_it_once_the_load_is_equal() -> (
    None
):
    at_ease, worse = Server(rate=0.5, ttft=0.13, itl=0.04), Server(rate=2.0, itl=0.056)
    settings = JudgeConfig(step_start=0.0, drift_sd=0.0)
    lines = one_after_the_other(
        trace(Server(rate=2.0), at_ease, 120, 1), trace(Server(rate=2.0), worse, 400, 2), 120
    )
    verdicts = {metric(report, "itl").verdict for report in follow(lines, settings)}
    assert Verdict.PASS not in verdicts


def test_a_safety_step_passes_on_no_harm_and_claims_nothing_more() -> None:
    settings = config(
        judge_latency=False, pass_rule="no_harm", hold_s=40, minimum_requests=15, canary_weight=0.1
    )
    report = judge_lines(trace(Server(rate=5.4), Server(rate=0.6), 60, 3), settings)
    assert report.verdict is Verdict.PASS
    assert report.decided_at is not None and report.decided_at >= 40
    assert "proves nothing about margins" in report.reasons[0]
    broken = judge_lines(trace(Server(rate=5.4), Server(rate=0.6, errors=1.0), 60, 3), settings)
    assert broken.verdict is Verdict.FAIL


def test_spinnaker_6278_seven_of_ten_values_a_hundredfold_fails() -> None:
    """Kayenta passed this: control all 1, canary 100 in seven of ten."""
    lines = []
    values = {"baseline": [1.0] * 10, "canary": [100, 1, 100, 100, 1, 100, 100, 1, 100, 100]}
    for i in range(11):
        for track, series in values.items():
            seen = series[:i]
            le = [0.5, 2.0, 50.0, 200.0]
            histogram = {
                "le": [*le, "+Inf"],
                "cumulative": [*(sum(v <= b for v in seen) for b in le), len(seen)],
                "sum": sum(seen),
            }
            row = {"time": i * 10.0, "track": track, "instance": track, "up": True}
            lines.append(
                json.dumps({**row, "histograms": {"vllm:time_to_first_token_seconds": histogram}})
            )
    report = judge_lines(lines, JudgeConfig(step_start=0.0, block_s=10.0, drift_surprise=2.5))
    assert report.verdict is Verdict.FAIL


def test_the_verdict_is_the_same_however_the_trace_is_looked_at() -> None:
    lines = list(trace(Server(), Server(ttft=3.0), 60, 5))
    at_once = judge_lines(lines, config())
    restarted = Judge(config())
    for line in lines:
        record = parse_line(line)
        restarted.observe(record)
        restarted.observe(record)  # a duplicated line changes nothing
    reports = [r for r in follow(lines, config()) if r.verdict is Verdict.FAIL]
    assert at_once.decided_at == restarted.look().decided_at == reports[0].decided_at
    assert JudgeReport.model_validate(at_once.to_data()) == at_once


def test_a_torn_last_line_is_left_out_and_a_torn_line_elsewhere_is_refused() -> None:
    lines = list(trace(Server(), Server(), 20, 1))
    torn = lines[-1][: len(lines[-1]) // 2]
    assert judge_lines([*lines[:-1], torn], config()).verdict is Verdict.INSUFFICIENT_DATA
    with pytest.raises(TraceError, match="line 4"):
        judge_lines([*lines[:3], torn, *lines[4:]], config())


def test_configuration_is_strict_and_partial_metrics_keep_their_other_defaults() -> None:
    given = JudgeConfig.model_validate({"metrics": {"ttft": {"margin": 0.6}}})
    assert given.metrics["ttft"].margin == 0.6
    assert given.metrics["ttft"].histogram and "itl" in given.metrics
    for bad in ({"alhpa": 0.1}, {"alpha": 0}, {"metrics": {"ttft": {"margn": 0.6}}}):
        with pytest.raises(ValidationError):
            JudgeConfig.model_validate(bad)


def test_errors_that_never_reached_an_upstream_count_although_envoy_counts_no_request() -> None:
    def unreachable(row: dict[str, Any]) -> dict[str, Any]:
        if row["instance"] == "gateway" and row["track"] == "canary" and row["time"] > 0:
            failed = 'envoy_cluster_upstream_rq_xx{envoy_response_code_class="5"}'
            counters = {"envoy_cluster_upstream_rq_total": 0.0, failed: 2 * row["time"]}
            return {**row, "counters": counters}
        return row

    lines = trace(Server(rate=2.0), Server(rate=0.0), 40, 1, edit=unreachable)
    report = judge_lines(lines, config(canary_weight=None))
    assert metric(report, "gateway_errors").verdict is Verdict.FAIL


def test_request_rows_alone_show_slow_first_bytes_and_errors() -> None:
    lines = []
    for i in range(240):
        for track, ttfb in (("baseline", 0.2), ("canary", 6.0)):
            request = {"status": 200, "ttfb": ttfb * (1 + i % 5 / 10), "duration": ttfb + 1}
            row = {"time": i / 4, "track": track, "instance": track, "request": request}
            lines.append(json.dumps(row))
            if i % 4 == 0:
                alive = {"time": i / 4, "track": track, "instance": track, "up": True}
                lines.append(json.dumps({**alive, "gauges": {"vllm:num_requests_running": 1}}))
    report = judge_lines(lines, config())
    assert metric(report, "ttft").verdict is Verdict.FAIL
    assert metric(report, "gateway_errors").n_canary >= 8


@pytest.mark.parametrize("track", ["baseline", "canary"])
def test_a_pod_that_has_yet_to_start_is_not_a_dead_one(track: str) -> None:
    """Evicted, and another one in its place: that loads its model for half a minute, and was never up before."""

    def joined(lines: Iterator[str], killed: bool) -> Iterator[str]:
        for line in lines:
            row = json.loads(line)
            dead = killed and row["instance"] == "canary-0" and row["time"] >= 60
            yield json.dumps({**row, "up": row["up"] and not dead})
            if row["instance"] == f"{track}-0" and 20 <= row["time"] < 50:
                new = {"time": row["time"], "track": track, "instance": f"{track}-1", "up": False}
                yield json.dumps(new)

    report = judge_lines(joined(trace(Server(), Server(), 40, 2), False), config(hold_s=60.0))
    assert metric(report, "crashes").verdict is Verdict.PASS
    report = judge_lines(joined(trace(Server(), Server(), 70, 2), True), config(hold_s=80.0))
    assert metric(report, "crashes").verdict is Verdict.FAIL, "nor does it excuse the other track"


def test_a_canary_that_is_dead_when_its_step_begins_fails() -> None:
    def dead(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "up": row["instance"] != "canary-0"}

    report = judge_lines(trace(Server(), Server(), 20, 2, edit=dead), config())
    assert metric(report, "crashes").verdict is Verdict.FAIL


def test_pods_that_come_and_go_are_no_crash_and_keep_their_counts() -> None:
    def replaced(row: dict[str, Any]) -> dict[str, Any]:
        if row["instance"] == "baseline-0" and row["time"] > 30:
            return {**row, "instance": "baseline-1"}
        return row

    report = judge_lines(trace(Server(), Server(), 100, 2, edit=replaced), config())
    assert report.verdict is Verdict.PASS
    assert metric(report, "crashes").verdict is Verdict.PASS


@pytest.mark.parametrize("drift_sd", [0.0, 0.1])
def test_a_canary_that_carries_three_times_as_much_is_not_failed_for_its_slowness_in_the_first_seconds(
    drift_sd: float,
) -> None:
    crowded = Server(rate=3.0, ttft=0.3, itl=0.09)
    held = 0
    for seed in range(6):
        settings = JudgeConfig(step_start=0.0, drift_sd=drift_sd)
        for report in follow(trace(Server(rate=1.0), crowded, 40, seed), settings):
            assert report.verdict is not Verdict.FAIL, report.reasons
            held += "no committed weight says" in metric(report, "itl").reason
    assert held, "it was as slow as would have failed it"


def test_slowness_at_a_load_that_the_committed_weight_makes_no_larger_is_failed_at_once() -> None:
    slow = Server(rate=2.0, ttft=0.3, itl=0.09)
    for replicas, weight, latest in (
        (1, 0.5, 6.0),
        (2, 1 / 3, 6.0),
        (2, 0.2, 6.0),
        (1, None, 30.0),
    ):
        settings = JudgeConfig(step_start=0.0, drift_sd=0.0, canary_weight=weight)
        report = judge_lines(several(replicas, slow, 60), settings)
        assert report.verdict is Verdict.FAIL
        assert report.decided_at is not None and report.decided_at <= latest
        assert metric(report, "itl").verdict is Verdict.FAIL


def several(replicas: int, canary: Server, seconds: int) -> Iterator[str]:
    """So many baseline replicas that each do what the one of `trace` does."""
    for line in trace(Server(rate=2.0), canary, seconds, 1):
        yield line
        row = json.loads(line)
        if row["track"] == "baseline":
            for i in range(1, replicas):
                yield json.dumps({**row, "instance": f"{row['instance']}-{i}"})
