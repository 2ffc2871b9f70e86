"""The template's recording rules and alerts, in promtool and in a real Prometheus on real pages of vLLM and Envoy."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.images import ImageRef
from lockgate.domain.release_state import Denied, Occupant, Phase, ReleaseState, Slot
from lockgate.domain.spec import CanarySpec, CanaryStep, ServingSpec
from lockgate.domain.state_metrics import page

sys.path.insert(0, str(Path(__file__).parent))
from monitoring import named_metrics, relabelings, rules, write_rules

from tests.integration.metrics.prometheus_server import running_prometheus

HERE = Path(__file__).parent
VLLM = (HERE.parents[1] / "unit" / "serving" / "data" / "vllm-0.32-metrics.txt").read_text()
ENVOY = (HERE / "data" / "envoy-metrics.txt").read_text()
# The same page with the names that Envoy Gateway gives its clusters.
GATEWAY = re.sub(r'name="(tiny-[ab])"', r'name="service/lockgate-local/\1/8000/http"', ENVOY)
ELSEWHERE = {
    "up",
    "kube_pod_container_status_restarts_total",  # kube-state-metrics
    "argocd_app_info",  # Argo CD's application controller
    "gotk_resource_info",  # kube-state-metrics with Flux's configuration
}


def candidate(name: str) -> Candidate:
    return Candidate(
        model=ImageRef.parse("r.example.com/m@" + Digest.of_bytes(name.encode())),
        runtime=ImageRef.parse("r.example.com/vllm@" + Digest.of_bytes(b"runtime")),
        serving=ServingSpec(served_model_name="smol"),
    )


ONE, TWO = candidate("one"), candidate("two")


def release() -> ReleaseState:
    evidence = Digest.of_bytes(b"evidence")
    return ReleaseState(
        model="tiny", environment="local", generation=7, phase=Phase.CANARY, stable=Slot.A, step=1,
        a=Occupant(candidate=ONE, release="one", evidence=evidence),
        b=Occupant(candidate=TWO, release="two", evidence=evidence),
        weight=50, canary=CanarySpec(steps=(CanaryStep(weight=5), CanaryStep(weight=50))),
        since="2026-01-02T03:04:05Z",
        denylist=(
            Denied(candidate=candidate("bad").digest, at="2026-01-01T00:00:00Z", reason="slow", release="bad"),
        ),
    )  # fmt: skip


def test_every_metric_that_a_rule_asks_for_is_on_a_real_page() -> None:
    known = set(ELSEWHERE)
    for text in (VLLM, ENVOY, page([release()])):
        known |= set(re.findall(r"^([a-zA-Z_:][\w:]*)(?=[ {])", text, re.MULTILINE))
    known |= {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        unknown = named_metrics(rule["expr"]) - known
        assert not unknown, f"{rule.get('record') or rule['alert']}: {unknown}"


# --- promtool: `interval` one minute; a series is its value now and how it grows.

SERVER = 'namespace="n",model="m",slot="b",candidate="sha256:2"'
SLOT = 'namespace="n",model="m",slot="b"'
MODEL = 'namespace="n",model="m"'
UP = f'up{{{SERVER},pod="p"}}'
QUIET = "0x40"
STATES = {
    f"lockgate_release_generation{{{MODEL}}}": "1x40",
    f"lockgate_slot_candidate{{{SERVER}}}": "1x40",
    f"lockgate_route_weight{{{SLOT}}}": "100x40",
    UP: "1x40",
}  # fmt: skip
TRAFFIC = {f"envoy_cluster_upstream_rq_completed{{{SLOT}}}": "0+600x40"}
OTHER = 'namespace="n",model="m",slot="a"'


def bad_answers(each_minute: int) -> dict[str, str]:
    name = f'envoy_cluster_upstream_rq_xx{{{SLOT},envoy_response_code_class="5"}}'
    return {**TRAFFIC, name: f"0+{each_minute}x40"}


def finished(errors: int) -> dict[str, str]:
    name = "vllm:request_success_total"
    return {
        f'{name}{{{SERVER},finished_reason="stop"}}': "0+100x40",
        f'{name}{{{SERVER},finished_reason="error"}}': f"0+{errors}x40",
    }


FIRES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "LockgateSlotFails": (bad_answers(180), bad_answers(90)),
    "LockgateSlotFailsSome": (bad_answers(60), bad_answers(12)),
    "LockgateEngineFails": (finished(10), finished(1)),
    "LockgateNoServer": ({UP: QUIET}, {}),
    "LockgateServerDown": ({f'up{{{SERVER},pod="q"}}': QUIET}, {f'up{{{SERVER},pod="q"}}': "1x40"}),
    "LockgateServerRestarts": (
        {'kube_pod_container_status_restarts_total{namespace="lockgate-n",pod="p"}': "0+1x40"},
        {'kube_pod_container_status_restarts_total{namespace="lockgate-n",pod="p"}': "3x40"},
    ),
    "LockgateKvCacheFull": (
        {f"vllm:kv_cache_usage_perc{{{SERVER}}}": "0.97x40"},
        {f"vllm:kv_cache_usage_perc{{{SERVER}}}": "0.9x40"},
    ),
    "LockgateNoProgress": (
        {f"vllm:num_requests_running{{{SERVER}}}": "3x40",
         f"vllm:iteration_tokens_total_count{{{SERVER}}}": "50x40"},
        {f"vllm:num_requests_running{{{SERVER}}}": "3x40",
         f"vllm:iteration_tokens_total_count{{{SERVER}}}": "50+9x40"},
    ),
    "LockgateQueueGrows": (
        {f"vllm:num_requests_waiting{{{SERVER}}}": "5x40",
         f'vllm:request_queue_time_seconds_bucket{{{SERVER},le="10"}}': "0x40",
         f'vllm:request_queue_time_seconds_bucket{{{SERVER},le="60"}}': "0+10x40",
         f'vllm:request_queue_time_seconds_bucket{{{SERVER},le="+Inf"}}': "0+10x40"},
        {f"vllm:num_requests_waiting{{{SERVER}}}": "5x40",
         f'vllm:request_queue_time_seconds_bucket{{{SERVER},le="1"}}': "0+10x40",
         f'vllm:request_queue_time_seconds_bucket{{{SERVER},le="+Inf"}}': "0+10x40"},
    ),
    "LockgateGitAndLiveDiffer": (
        {f"lockgate_slot_candidate{{{SERVER}}}": "_x40",
         f'lockgate_slot_candidate{{{SLOT},candidate="sha256:3"}}': "1x40"}, {},
    ),
    "LockgateTrafficDiffers": (
        {**TRAFFIC, f"envoy_cluster_upstream_rq_completed{{{OTHER}}}": "0+600x40",
         f"lockgate_route_weight{{{OTHER}}}": "0x40"},
        {**TRAFFIC, f"envoy_cluster_upstream_rq_completed{{{OTHER}}}": "0+30x40",
         f"lockgate_route_weight{{{OTHER}}}": "0x40"},
    ),
    "LockgateAgentBehind": (
        {'argocd_app_info{name="lockgate-models-n",sync_status="OutOfSync"}': "1x40"},
        {'argocd_app_info{name="lockgate-models-n",sync_status="Synced"}': "1x40",
         'gotk_resource_info{name="lockgate-models-n",customresource_kind="Kustomization",ready="True"}': "1x40"},
    ),
    "LockgateReleaseStuck": (
        {f"lockgate_release_since_seconds{{{MODEL}}}": "-7000x40"},
        {f"lockgate_release_since_seconds{{{MODEL}}}": "0x40"},
    ),
    "LockgateCanaryUndecided": (
        {f"lockgate_canary_decide_by_seconds{{{MODEL}}}": "1800x40"},
        {f"lockgate_canary_decide_by_seconds{{{MODEL}}}": "2400x40"},
    ),
    "LockgateReleaseHeld": (
        {f'lockgate_release_phase{{{MODEL},phase="held"}}': "1x40"},
        {f'lockgate_release_phase{{{MODEL},phase="canary"}}': "1x40"},
    ),
    "LockgateDeniedCandidateRuns": (
        {f'lockgate_denied{{{MODEL},candidate="sha256:2"}}': "1x40"},
        {f'lockgate_denied{{{MODEL},candidate="sha256:9"}}': "1x40"},
    ),
    "LockgateStatesUnknown": ({f"lockgate_release_generation{{{MODEL}}}": "_x40"}, {}),
}  # fmt: skip
FIRES["LockgateAgentBehind (Flux)"] = (
    {'gotk_resource_info{name="lockgate-models-n",customresource_kind="Kustomization",ready="False"}': "1x40"},
    {},
)  # fmt: skip


def promtool_case(series: dict[str, str], checks: list[dict[str, Any]]) -> dict[str, Any]:
    together = {**STATES, **series}
    return {
        "interval": "1m",
        "input_series": [{"series": s, "values": v} for s, v in together.items()],
        "promql_expr_test": checks,
    }


def test_each_alert_fires_on_what_it_is_for_and_on_nothing_less(
    promtool: Path, tmp_path: Path
) -> None:
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert {name.partition(" ")[0] for name in FIRES} == alerts
    cases = []
    for name, (bad, good) in FIRES.items():
        alert = name.partition(" ")[0]
        expression = (
            f'count(count by (alertname) (ALERTS{{alertname="{alert}", alertstate="firing"}}))'
        )
        fires = {
            "expr": expression,
            "eval_time": "40m",
            "exp_samples": [{"value": 1, "labels": "{}"}],
        }
        cases.append(promtool_case(bad, [fires]))
        cases.append(
            promtool_case(good, [{"expr": expression, "eval_time": "40m", "exp_samples": []}])
        )
    # A release in good order, and nothing else on the page.
    silent = {"expr": "count(ALERTS)", "eval_time": "40m", "exp_samples": []}
    cases.append(promtool_case({**TRAFFIC, **finished(0)}, [silent]))
    run_promtool(promtool, tmp_path, cases)


def test_recording_rules_compute_what_their_names_say(promtool: Path, tmp_path: Path) -> None:
    bucket = "vllm:time_to_first_token_seconds_bucket"
    series = {
        # Two servers of one slot: half of all requests within 1 s, all within 2 s.
        f'{bucket}{{{SERVER},pod="p",le="1"}}': "0+20x40",
        f'{bucket}{{{SERVER},pod="q",le="1"}}': "0+10x40",
        f'{bucket}{{{SERVER},pod="p",le="2"}}': "0+30x40",
        f'{bucket}{{{SERVER},pod="q",le="2"}}': "0+30x40",
        f'{bucket}{{{SERVER},pod="p",le="+Inf"}}': "0+30x40",
        f'{bucket}{{{SERVER},pod="q",le="+Inf"}}': "0+30x40",
        f'up{{{SERVER},pod="q"}}': "0x40",
        f'vllm:num_requests_waiting{{{SERVER},pod="p"}}': "2x40",
        f'vllm:num_requests_waiting{{{SERVER},pod="q"}}': "3x40",
        f'vllm:kv_cache_usage_perc{{{SERVER},pod="p"}}': "0.25x40",
        f'vllm:kv_cache_usage_perc{{{SERVER},pod="q"}}': "0.5x40",
        f"vllm:generation_tokens_total{{{SERVER}}}": "0+600x40",
        **bad_answers(60),
        f"envoy_cluster_upstream_rq_completed{{{OTHER}}}": "0+1800x40",
        **finished(25),
    }
    by_slot, by_server = f"{{{SLOT}}}", f"{{{SERVER}}}"
    expected = {
        'lockgate:ttft_seconds:quantile5m{quantile="0.5"}': (1.0, f'{{{SERVER},quantile="0.5"}}'),
        'lockgate:ttft_seconds:quantile5m{quantile="0.95"}': (1.9, f'{{{SERVER},quantile="0.95"}}'),
        "lockgate:servers:up": (1, by_server),
        "lockgate:servers:known": (2, by_server),
        "lockgate:requests_waiting:sum": (5, by_server),
        "lockgate:kv_cache_usage:max": (0.5, by_server),
        "lockgate:output_tokens:rate5m": (10, by_server),
        "lockgate:engine_failures:ratio5m": (0.2, by_server),
        'lockgate:gateway_requests:rate5m{slot="b"}': (10, by_slot),
        'lockgate:gateway_failures:ratio5m{slot="b"}': (0.1, by_slot),
        'lockgate:route_weight:live{slot="b"}': (0.25, by_slot),
        'lockgate:route_weight:committed{slot="b"}': (1, by_slot),
        'lockgate:route_weight:drift{slot="b"}': (0.75, by_slot),
    }
    checks = []
    for expression, (value, labels) in expected.items():
        name = re.match(r"[\w:]+", expression)
        assert name is not None
        # Rounded: what is checked is the rule, not the last bit of a quantile.
        checks.append(
            {
                "expr": f"round({expression}, 0.001)",
                "eval_time": "40m",
                "exp_samples": [{"value": value, "labels": labels}],
            }
        )
    run_promtool(promtool, tmp_path, [promtool_case(series, checks)])


def run_promtool(promtool: Path, directory: Path, cases: list[dict[str, Any]]) -> None:
    files = write_rules(directory)
    document = {"rule_files": [f.name for f in files], "evaluation_interval": "1m", "tests": cases}
    (directory / "cases.yaml").write_text(yaml.safe_dump(document))
    for command in (["check", "rules", *(f.name for f in files)], ["test", "rules", "cases.yaml"]):
        done = subprocess.run(
            [promtool, *command], cwd=directory, capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]


# --- Live.


class Pages:
    """Two servers' pages and the gateway's, grown with every scrape: the recorded ones, their counters multiplied."""

    def __init__(self) -> None:
        self._asked: dict[str, int] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = outer.page(self.path).encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def page(self, path: str) -> str:
        self._asked[path] = self._asked.get(path, 0) + 1
        if path == "/states":
            return page([release()])
        return grown(GATEWAY if path == "/gateway" else VLLM, self._asked[path])


def grown(text: str, times: int) -> str:
    lines, kind = [], ""
    for line in text.splitlines():
        if line.startswith("# TYPE"):
            kind = line.rsplit(" ", 1)[1]
        if not line.startswith("#") and kind in ("counter", "histogram"):
            name, value = line.rsplit(" ", 1)
            line = f"{name} {float(value) * times}"
        lines.append(line)
    return "\n".join(lines) + "\n"


@pytest.fixture
def live(prometheus_binary: Path, tmp_path: Path) -> Iterator[str]:
    """A Prometheus with the template's rules and relabelings, over real pages."""
    pages = Pages()
    meta = "__meta_kubernetes_pod_"
    servers = [
        {
            "targets": [pages.host],
            "labels": {
                "__metrics_path__": f"/server/{slot}",
                f"{meta}label_lockgate_dev_model": "tiny",
                f"{meta}label_lockgate_dev_slot": slot,
                f"{meta}annotation_lockgate_dev_candidate": str(found.digest),
                "namespace": "lockgate-local",
            },
        }
        for slot, found in (("a", ONE), ("b", TWO))
    ]
    jobs = {
        "model-servers": {"static_configs": servers},
        "gateway": {"metrics_path": "/gateway", "static_configs": [
            {"targets": [pages.host], "labels": {"namespace": "lockgate-gateway"}}]},
        "release-states": {"metrics_path": "/states", "honor_labels": True,
                           "static_configs": [{"targets": [pages.host]}]},
    }  # fmt: skip
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "400ms", "evaluation_interval": "1s"},
        "rule_files": [],
        "scrape_configs": [
            {
                "job_name": name,
                **job,
                "relabel_configs": relabelings(name, "relabelings"),
                "metric_relabel_configs": relabelings(name, "metricRelabelings"),
            }
            for name, job in jobs.items()
        ],
    }  # fmt: skip
    for path in write_rules(tmp_path):
        # The groups' own interval is for production.
        path.write_text(path.read_text().replace("interval: 15s", "interval: 1s"))
        config["rule_files"].append(path.name)  # type: ignore[attr-defined] # a list, as made above
    try:
        with running_prometheus(prometheus_binary, config, tmp_path) as url:
            yield url
    finally:
        pages.server.shutdown()
        pages.server.server_close()


def ask(prometheus: str, path: str, **parameters: str) -> Any:
    answer = httpx.get(f"{prometheus}/api/v1/{path}", params=parameters, trust_env=False).json()
    assert answer["status"] == "success", answer
    assert not answer.get("warnings"), answer
    return answer["data"]


def test_every_rule_computes_on_real_pages_in_a_real_prometheus(live: str) -> None:
    expected = {rule["record"] for rule in rules() if "record" in rule}
    deadline = time.monotonic() + 60
    while True:
        found = ask(live, "query", query='{__name__=~"lockgate:.+"}')["result"]
        missing = expected - {series["metric"]["__name__"] for series in found}
        if not missing:
            break
        assert time.monotonic() < deadline, f"never computed: {missing}"
        time.sleep(0.5)
    candidates = {str(ONE.digest): "a", str(TWO.digest): "b"}
    for series in found:
        labels = series["metric"]
        assert (labels["model"], labels["namespace"]) == ("tiny", "lockgate-local")
        if "candidate" in labels:
            assert candidates[labels["candidate"]] == labels["slot"]
    ttft = ask(live, "query", query='lockgate:ttft_seconds:quantile5m{quantile="0.95",slot="b"}')
    assert 0 < float(ttft["result"][0]["value"][1]) < 60
    live_share = ask(live, "query", query='lockgate:route_weight:live{slot="a"}')["result"]
    assert float(live_share[0]["value"][1]) == pytest.approx(24 / 44, abs=0.1)
    for group in ask(live, "rules")["groups"]:
        for rule in group["rules"]:
            assert rule["health"] == "ok", rule
    # On these pages everything is in order, but that the canary began long ago.
    states = {a["labels"]["alertname"] for a in ask(live, "alerts")["alerts"]}
    assert states == {"LockgateReleaseStuck", "LockgateCanaryUndecided"}
