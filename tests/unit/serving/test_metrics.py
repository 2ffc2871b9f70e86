from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lockgate.adapters.metrics import (
    AccessLogReader,
    ScrapeTarget,
    gateway_url,
    parse_metrics,
    scrape,
)
from lockgate.domain.trace import Scrape, Track, parse_line, to_line
from lockgate.errors import MetricsError

VLLM = (Path(__file__).parent / "data" / "vllm-0.32-metrics.txt").read_text()
ENVOY = """\
# TYPE envoy_cluster_upstream_rq_total counter
envoy_cluster_upstream_rq_total{envoy_cluster_name="smol-a"} 41
envoy_cluster_upstream_rq_total{envoy_cluster_name="smol-b"} 9
# TYPE envoy_cluster_upstream_rq_xx counter
envoy_cluster_upstream_rq_xx{envoy_response_code_class="2",envoy_cluster_name="smol-b"} 7
envoy_cluster_upstream_rq_xx{envoy_response_code_class="5",envoy_cluster_name="smol-b"} 2
# TYPE envoy_cluster_membership_healthy gauge
envoy_cluster_membership_healthy{envoy_cluster_name="smol-b"} 1
"""
TRACKS: dict[str, Track] = {"a": "baseline", "b": "canary"}


@contextmanager
def endpoint(body: str, *, status: int = 200, delay: float = 0) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(delay)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/metrics"
    finally:
        server.shutdown()
        server.server_close()


def test_what_a_real_vllm_says_is_read_whole() -> None:
    counters, histograms, gauges, invalid = parse_metrics(VLLM)
    assert counters['vllm:request_success_total{finished_reason="length"}'] == 2
    assert counters['vllm:admission_rejections_total{reason="max_num_queued_reqs"}'] == 0
    assert counters["vllm:prompt_tokens_total"] == 46
    ttft = histograms["vllm:time_to_first_token_seconds"]
    assert ttft.le[-1] == math.inf
    assert ttft.cumulative[-1] == 2
    assert 0 < ttft.sum < 100
    assert histograms["vllm:request_generation_tokens"].sum == 64
    assert gauges["vllm:num_requests_running"] == 0
    assert gauges["process_start_time_seconds"] > 1e9
    assert invalid == ()


def test_ranks_of_one_server_are_added_up() -> None:
    line = 'vllm:prompt_tokens_total{{engine="{}",model_name="smol"}} {}\n'
    text = "# TYPE vllm:prompt_tokens_total counter\n" + line.format(0, 3) + line.format(1, 4)
    assert parse_metrics(text)[0] == {"vllm:prompt_tokens_total": 7}


def test_a_sum_of_which_a_part_is_no_number_is_left_out_as_it_is_when_the_trace_is_replayed() -> (
    None
):
    text = "".join(
        f'# TYPE {name} {kind}\n{name}{{engine="0"}} 5\n{name}{{engine="1"}} NaN\n'
        for name, kind in (
            ("vllm:request_success_total", "counter"),
            ("vllm:lora_running", "gauge"),
        )
    )
    counters, histograms, gauges, invalid = parse_metrics(text)
    assert not counters and not gauges
    live = Scrape(1.0, "canary", "b-0", True, counters, histograms, gauges, invalid)
    assert parse_line(to_line(live)) == live
    assert set(invalid) == {"vllm:request_success_total", "vllm:lora_running"}


def test_a_value_that_is_no_number_is_named_and_left_out() -> None:
    text = VLLM.replace(
        'vllm:request_success_total{engine="0",finished_reason="stop",model_name="smol"} 0.0',
        'vllm:request_success_total{engine="0",finished_reason="stop",model_name="smol"} NaN',
    ).replace("vllm:time_to_first_token_seconds_sum", "vllm:other_seconds_sum")
    counters, histograms, _, invalid = parse_metrics(text)
    assert 'vllm:request_success_total{finished_reason="stop"}' not in counters
    assert 'vllm:request_success_total{finished_reason="stop"}' in invalid
    assert "vllm:time_to_first_token_seconds" not in histograms
    assert "vllm:time_to_first_token_seconds" in invalid


@pytest.mark.parametrize(
    ("told", "lie"),
    [
        ('_bucket{engine="0",le="1000.0",model_name="smol"} 2.0', "1.0"),
        ('_sum{engine="0",model_name="smol"} 64.0', "1e300"),
    ],
)
def test_a_lie_is_left_out_at_once_as_it_is_when_the_trace_is_replayed(told: str, lie: str) -> None:
    sample = f"vllm:request_generation_tokens{told}"
    assert sample in VLLM
    text = VLLM.replace(sample, f"{sample.rpartition(' ')[0]} {lie}")
    counters, histograms, gauges, invalid = parse_metrics(text)
    assert "vllm:request_generation_tokens" in invalid
    seen = Scrape(1.0, "canary", "b-0", True, counters, histograms, gauges, invalid)
    assert parse_line(to_line(seen)) == seen


@pytest.mark.parametrize("text", ["", "<html>", "up 1\n", "# TYPE x counter\nvllm:x{ 1\n"])
def test_what_is_not_the_metrics_of_an_engine_is_an_error(text: str) -> None:
    with pytest.raises(MetricsError):
        parse_metrics(text)


def test_each_slot_of_the_gateway_is_an_instance_of_its_track() -> None:
    with endpoint(ENVOY) as url:
        targets = [ScrapeTarget(f"gateway-{s}", s, url, f"smol-{s}") for s in "ab"]
        baseline, canary = scrape(targets, TRACKS, time=5.0)
    assert baseline.counters == {"envoy_cluster_upstream_rq_total": 41}
    assert canary.counters['envoy_cluster_upstream_rq_xx{envoy_response_code_class="5"}'] == 2
    assert canary.gauges == {"envoy_cluster_membership_healthy": 1}
    assert (baseline.track, canary.track, canary.time) == ("baseline", "canary", 5.0)
    assert parse_line(to_line(canary)) == canary


@pytest.mark.slow
def test_dead_is_down_but_a_hanging_or_lying_endpoint_says_nothing() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        refused = f"http://127.0.0.1:{closed.getsockname()[1]}/metrics"
        with (
            endpoint(VLLM) as good,
            endpoint(VLLM, delay=30) as hanging,
            endpoint("nonsense") as lying,
            endpoint(VLLM, status=500) as failing,
        ):
            targets = [
                ScrapeTarget("good", "a", good),
                ScrapeTarget("gone", "b", None),
                ScrapeTarget("refused", "b", refused),
                ScrapeTarget("hanging", "b", hanging),
                ScrapeTarget("lying", "b", lying),
                ScrapeTarget("failing", "b", failing),
                ScrapeTarget("of no track", "c", good),
            ]
            found = scrape(targets, TRACKS, time=1.0, timeout_seconds=1.0)
    assert [(s.instance, s.up) for s in found] == [
        ("good", True),
        ("gone", False),
        ("refused", False),
    ]


def test_the_filter_for_envoy_names_the_cluster_exactly() -> None:
    url = gateway_url("http://127.0.0.1:9901", "my.model-a")
    assert url.startswith("http://127.0.0.1:9901/stats/prometheus?filter=")
    assert "my%5C.model" in url


def row(cluster: str, **changes: Any) -> str:
    data = {
        "time": "12.5",
        "cluster": cluster,
        "status": 200,
        "ttfb_us": 2500,
        "duration_us": 1500000,
        "bytes_in": 10,
        "bytes_out": 20,
        "forced": None,
        **changes,
    }
    return json.dumps(data) + "\n"


def test_the_access_log_is_read_on_from_where_it_was_left(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    reader = AccessLogReader(log, model="smol")
    assert reader.read(TRACKS) == []
    half = row("smol-a", status=503, ttfb_us=None)
    log.write_text(row("smol-b") + row("other-b") + row("smol-b", forced="b") + half[:20])
    (first,) = reader.read(TRACKS)
    assert (first.track, first.status, first.ttfb, first.duration) == ("canary", 200, 0.0025, 1.5)
    with log.open("a") as more:
        more.write(half[20:])
    later = AccessLogReader(log, model="smol", offset=reader.offset)
    (second,) = later.read(TRACKS)
    assert (second.track, second.status, second.ttfb) == ("baseline", 503, None)
    assert later.read(TRACKS) == []
    log.write_text(row("smol-a"))
    assert len(later.read(TRACKS)) == 1
