"""What a Prometheus answers, as scrapes: whose they are, and what is none."""

from __future__ import annotations

import json
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from lockgate.adapters.prometheus import PrometheusReader, PrometheusTarget
from lockgate.domain.judge import Judge, JudgeConfig
from lockgate.domain.trace import parse_line, to_line
from lockgate.errors import MetricsError

TARGETS = [PrometheusTarget("canary", {"slot": "b"}, named_by="pod")]
DONE = "vllm:request_success_total"


def series(name: str, pod: str, values: Mapping[float, float], **labels: str) -> dict[str, Any]:
    return {
        "metric": {"__name__": name, "instance": "10.0.0.7:8000", "pod": pod, "slot": "b", **labels},
        "values": [[at, str(value)] for at, value in values.items()],
    }  # fmt: skip


@contextmanager
def storing(*stored: dict[str, Any]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = urllib.parse.unquote_plus(
                self.rfile.read(int(self.headers["Content-Length"])).decode()
            )
            asks_up = body.startswith("query=up{")
            found = [s for s in stored if (s["metric"].get("__name__") == "up") is asks_up]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"status": "success", "data": {"result": found}}).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_pod_at_the_address_of_one_that_is_gone_is_another_one_and_no_restart() -> None:
    times = {"b-0": (10.0, 15.0), "b-1": (30.0, 35.0)}
    stored = [
        part
        for pod, at in times.items()
        for part in (
            series("up", pod, dict.fromkeys(at, 1.0)),
            series(DONE, pod, {t: 100.0 if pod == "b-0" else t - 29 for t in at}),
            series("process_start_time_seconds", pod, dict.fromkeys(at, at[0])),
        )
    ]
    with storing(*stored) as url:
        found = PrometheusReader(url, TARGETS).read(0.0, 40.0)
    assert [(s.instance, s.time) for s in found] == [(p, t) for p, at in times.items() for t in at]
    assert [s.counters[DONE] for s in found] == [100.0, 100.0, 1.0, 6.0]
    judge = Judge(JudgeConfig(step_start=0.0))
    for scrape in found:
        judge.observe(scrape)
    crashes = next(m for m in judge.look().metrics if m.name == "crashes")
    assert crashes.n_canary == 0, crashes.reason


def test_a_sum_of_which_a_part_is_no_number_is_left_out_as_in_the_trace() -> None:
    running = "vllm:num_requests_running"
    stored = [
        series("up", "b-0", {10.0: 1.0}),
        *(series(DONE, "b-0", {10.0: v}, engine=e) for e, v in (("0", 5.0), ("1", float("nan")))),
        *(series(running, "b-0", {10.0: v}, engine=e) for e, v in (("0", float("nan")), ("1", 1.0))),
    ]  # fmt: skip
    with storing(*stored) as url:
        [found] = PrometheusReader(url, TARGETS).read(0.0, 40.0)
    assert set(found.invalid) == {DONE, running}
    assert not found.counters and not found.gauges
    assert parse_line(to_line(found)) == found


@pytest.mark.parametrize(
    "stored",
    [
        series("vllm:time_to_first_token_seconds_bucket", "b-0", {10.0: 1.0}, le="fast"),
        {"metric": {"instance": "10.0.0.7:8000", "pod": "b-0"}, "values": [[10.0, "1"]]},
        {"metric": {"__name__": DONE}, "values": [["now", "1"]]},
    ],
    ids=["a bound that is no number", "no name", "a time that is no number"],
)
def test_what_is_no_sample_is_an_outage_of_metrics(stored: dict[str, Any]) -> None:
    with (
        storing(series("up", "b-0", {10.0: 1.0}), stored) as url,
        pytest.raises(MetricsError, match="unknown form"),
    ):
        PrometheusReader(url, TARGETS).read(0.0, 40.0)


@pytest.mark.parametrize("token", ["gehëim", "secret\n"])
def test_a_token_that_no_header_may_have_is_an_error_that_does_not_show_it(token: str) -> None:
    with storing() as url, pytest.raises(MetricsError) as caught:
        PrometheusReader(url, TARGETS, token=token).read(0.0, 40.0)
    assert token.strip() not in f"{caught.value!r}{caught.value.__context__!r}"
