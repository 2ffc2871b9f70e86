"""The quality probe on a live canary: asked of both alike, counted in the trace, and judged."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from lockgate.domain.judge import Judge, JudgeConfig, Verdict
from lockgate.domain.spec import CanarySpec, Probe, ProbeSpec
from lockgate.domain.trace import Track, parse_line, to_line
from serving.manifests.names import SLOT_HEADER
from tasks.probing import Prober
from tests.unit.judge.traces import Server, trace

TRACKS: dict[str, Track] = {"a": "baseline", "b": "canary"}
PROBES = ProbeSpec(
    questions=(
        Probe(prompt="What is the capital of France?", expect="paris"),
        Probe(prompt="What is two and two?", expect="4"),
    ),
    every_seconds=0.01,
)
RIGHT = {"What is the capital of France?": "It is Paris.", "What is two and two?": "4"}


class Gateway:
    """Answers rightly from slot a, and from slot b as it is told to."""

    def __init__(self) -> None:
        self.b_is = "right"
        self.asked: Counter[tuple[str, str]] = Counter()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                prompt = body["messages"][0]["content"]
                slot = self.headers[SLOT_HEADER]
                outer.asked[slot, prompt] += 1
                how = outer.b_is if slot == "b" else "right"
                text = RIGHT[prompt] if how == "right" else "I do not know."
                answer = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
                self.send_response(503 if how == "away" else 200)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    found = Gateway()
    yield found
    found.server.shutdown()
    found.server.server_close()


def counts(prober: Prober, rounds: int) -> dict[str, tuple[float, float]]:
    """Asked and wrong by track, once that many rounds are through."""
    deadline = time.monotonic() + 30
    while True:
        found = {
            s.track: (s.counters["lockgate:probe_total"], s.counters["lockgate:probe_failed_total"])
            for s in prober.records(time.time())
        }
        if min(asked for asked, _ in found.values()) >= rounds:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.01)


@pytest.mark.parametrize(("how", "wrong"), [("right", 0), ("wrong", 4), ("away", 4)])
def test_every_question_goes_to_both_and_answers_that_are_not_right_are_counted(
    gateway: Gateway, how: str, wrong: int
) -> None:
    gateway.b_is = how
    prober = Prober(PROBES, gateway.url, {"a": "m", "b": "m"}, TRACKS)
    assert counts(prober, 4) == {"baseline": (4, 0), "canary": (4, wrong)}
    for prompt in RIGHT:
        assert abs(gateway.asked["a", prompt] - gateway.asked["b", prompt]) <= 1


def test_a_gateway_that_nobody_reaches_is_no_fault_of_either() -> None:
    prober = Prober(PROBES, "http://127.0.0.1:9", {"a": "m", "b": "m"}, TRACKS)
    for _ in range(5):
        time.sleep(0.05)
        records = prober.records(time.time())
    assert {s.counters["lockgate:probe_total"] for s in records} == {0}


def probed(row: dict[str, Any], wrong: float) -> Iterator[str]:
    """The row, and after an engine's the probes of its track by then: one each second, also counted by the gateway."""
    if row["instance"] == "gateway":
        counters = dict(row["counters"])
        counters["envoy_cluster_upstream_rq_total"] += row["time"]
        yield json.dumps({**row, "counters": counters})
        return
    yield json.dumps(row)
    name = f"probe-{row['track']}"
    failed = round(row["time"] * (wrong if row["track"] == "canary" else 0))
    told = {"lockgate:probe_total": row["time"], "lockgate:probe_failed_total": failed}
    yield json.dumps({**row, "instance": name, "counters": told, "histograms": {}, "gauges": {}})


def judged(rows: Iterator[str]) -> Judge:
    guards = {name: {"criticality": "guard"} for name in ("ttft", "itl")}
    changes = {"canary_weight": 0.1, "judge_latency": False, "metrics": guards}
    judge = Judge(JudgeConfig.model_validate({"step_start": 0.0, **changes}))
    for line in rows:
        judge.observe(parse_line(line))
    return judge


def test_wrong_answers_fail_the_canary_and_probes_are_no_users_of_the_split() -> None:
    tenth = Server(rate=0.5)
    for wrong, expected in ((0.5, Verdict.FAIL), (0.0, Verdict.INSUFFICIENT_DATA)):
        lines = (
            line
            for row in trace(Server(rate=4.5), tenth, 90, 3)
            for line in probed(json.loads(row), wrong)
        )
        report = judged(lines).look()
        assert report.verdict is expected
        by = {m.name: m for m in report.metrics}
        assert by["split"].verdict is Verdict.PASS
        assert abs(by["split"].estimate or 0) < 0.05, "two tenths, were the probes counted"
        assert (by["quality_probe"].verdict is Verdict.FAIL) == (wrong > 0)


def test_probes_alone_hide_no_outage_of_the_metrics() -> None:
    lines = (
        line
        for row in trace(Server(rate=4.5), Server(rate=0.5), 60, 1)
        for line in probed(json.loads(row), 0.0)
        if "probe-" in line or json.loads(line)["time"] < 20
    )
    report = judged(lines).look()
    assert report.verdict is Verdict.METRICS_OUTAGE
    assert "no usable metrics of the baseline" in report.reasons[0]


def test_a_line_of_probes_is_a_line_of_the_trace(gateway: Gateway) -> None:
    for record in Prober(PROBES, gateway.url, {"a": "m", "b": "m"}, TRACKS).records(12.0):
        assert parse_line(to_line(record)) == record


def test_a_canary_probes_nothing_unless_it_is_asked_to() -> None:
    assert CanarySpec().probes is None
    with pytest.raises(ValueError, match="questions"):
        CanarySpec.model_validate({"probes": {"questions": []}})
