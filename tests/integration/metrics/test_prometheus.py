"""A trace read back from a real Prometheus is the trace of its scrapes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from lockgate.adapters.metrics import parse_metrics
from lockgate.adapters.prometheus import PrometheusReader, PrometheusTarget
from lockgate.domain.judge import Judge, JudgeConfig, JudgeReport, Verdict
from lockgate.domain.trace import TRACKS, Scrape, Track
from lockgate.errors import MetricsError
from tests.integration.metrics.prometheus_server import running_prometheus

_EDGES = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0]


class Endpoints:
    """Two engines and their gateway as Prometheus sees them; remembers every page that it served."""

    def __init__(self, clusters: Mapping[str, str] | None = None) -> None:
        """`clusters`: the gateway's name of each track's."""
        self._clusters = clusters or {track: f"m-{track}" for track in TRACKS}
        self._rng = np.random.default_rng(1)
        self._latencies: dict[str, list[float]] = {t: [] for t in TRACKS}
        self._guard = threading.Lock()
        self.served: dict[str, list[str]] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                text = outer.page(self.path)
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def page(self, path: str) -> str:
        with self._guard:
            track = path.rpartition("/")[2]
            if track in TRACKS:
                median = 0.2 if track == "baseline" else 1.5
                new = self._rng.lognormal(np.log(median), 0.3, 12)
                self._latencies[track] += new.tolist()
            text = self._gateway() if path == "/stats" else self._engine(track)
            self.served.setdefault(path, []).append(text)
            return text

    def _engine(self, track: str) -> str:
        name, values = "vllm:time_to_first_token_seconds", np.array(self._latencies[track])
        labels = 'engine="0",model_name="m"'
        lines = [f"# TYPE {name} histogram"]
        for edge in _EDGES:
            lines.append(f'{name}_bucket{{{labels},le="{edge}"}} {(values <= edge).sum()}')
        lines += [
            f'{name}_bucket{{{labels},le="+Inf"}} {values.size}',
            f"{name}_count{{{labels}}} {values.size}",
            f"{name}_sum{{{labels}}} {float(values.sum())!r}",
            "# TYPE vllm:request_success_total counter",
            f'vllm:request_success_total{{{labels},finished_reason="stop"}} {values.size}',
            "# TYPE vllm:num_requests_running gauge",
            f"vllm:num_requests_running{{{labels}}} NaN",
        ]
        return "\n".join(lines) + "\n"

    def _gateway(self) -> str:
        lines = ["# TYPE envoy_cluster_upstream_rq_total counter"]
        for track in TRACKS:
            count = len(self._latencies[track])
            lines.append(
                f'envoy_cluster_upstream_rq_total{{envoy_cluster_name="{self._clusters[track]}"}} {count}'
            )
        lines.append("# TYPE envoy_cluster_membership_healthy gauge")
        lines += [
            f'envoy_cluster_membership_healthy{{envoy_cluster_name="{self._clusters[track]}"}} 1'
            for track in TRACKS
        ]
        return "\n".join(lines) + "\n"


@pytest.fixture
def endpoints() -> Iterator[Endpoints]:
    made = Endpoints()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def prometheus(prometheus_binary: Path, endpoints: Endpoints, tmp_path: Path) -> Iterator[str]:
    paths = {"baseline": "/engine/baseline", "canary": "/engine/canary", "gateway": "/stats"}
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "400ms"},
        "scrape_configs": [
            {
                "job_name": name,
                "metrics_path": path,
                "static_configs": [{"targets": [endpoints.host], "labels": {"pod": f"m-{name}"}}],
            }
            for name, path in paths.items()
        ],
    }
    with running_prometheus(prometheus_binary, config, tmp_path) as url:
        yield url


def _report(scrapes: list[Scrape]) -> JudgeReport:
    judge = Judge(JudgeConfig(step_start=scrapes[0].time, block_s=2.0, canary_weight=0.5))
    for scrape in scrapes:
        judge.observe(scrape)
    return judge.look()


def test_a_trace_from_prometheus_is_that_of_its_scrapes_and_gets_the_same_verdict(
    prometheus: str, endpoints: Endpoints
) -> None:
    targets = [PrometheusTarget(t, {"pod": f"m-{t}"}) for t in TRACKS]
    targets += [PrometheusTarget(t, {"job": "gateway"}, cluster=f"m-{t}") for t in TRACKS]
    began = time.time() - 30.0
    while len(endpoints.served.get("/engine/canary", [])) < 20:
        time.sleep(0.1)
    scrapes = PrometheusReader(prometheus, targets).read(began, time.time())
    direct: list[Scrape] = []
    for track in TRACKS:
        for path, name, cluster in (
            (f"/engine/{track}", endpoints.host, None),
            ("/stats", f"{endpoints.host}/m-{track}", f"m-{track}"),
        ):
            stored = [s for s in scrapes if s.track == track and s.instance == name]
            assert len(stored) >= 15
            # the newest pages may not have been stored yet
            for seen, text in zip(stored, endpoints.served[path], strict=False):
                page = parse_metrics(text, cluster=cluster)
                typed: Track = track
                expected = Scrape(seen.time, typed, name, True, *page)
                assert seen == expected
                direct.append(expected)
    direct.sort(key=lambda s: (s.time, s.track, s.instance))
    report = _report(scrapes)
    assert report.verdict is Verdict.FAIL
    assert report == _report(direct)


def test_a_prometheus_that_is_away_or_refuses_is_an_error_and_not_an_empty_trace(
    prometheus: str,
) -> None:
    with pytest.raises(MetricsError, match="refused"):
        PrometheusReader(prometheus, [PrometheusTarget("canary", {"no-label": "x"})]).read(0, 10)
    with pytest.raises(MetricsError, match="does not answer"):
        PrometheusReader("http://127.0.0.1:9", [PrometheusTarget("canary", {})]).read(0, 10)
