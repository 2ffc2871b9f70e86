"""A canary that is judged by what a Prometheus has stored: what is missing there is never well."""

from __future__ import annotations

import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr

from lockgate.adapters.metrics import ScrapeTarget
from lockgate.adapters.prometheus import PrometheusReader
from lockgate.domain.cluster import ClusterStatus, RouteStatus
from lockgate.domain.rollout import Look, Transition, advance
from lockgate.domain.rollout.transitions import parse_time
from lockgate.domain.trace import TRACKS, Scrape, Track
from lockgate.errors import MetricsError, UsageError
from lockgate.settings import Settings
from tasks import step_metrics
from tasks.judging import StepJudge
from tasks.step_trace import StepTrace
from tasks.stored_metrics import LATE_SECONDS, StoredMetrics
from tasks.watching import Watcher
from tests.unit.rollout.test_baking import scrapes
from tests.unit.rollout.test_watching import Away, watched
from tests.unit.rollout.world import BEGIN, SPEC, in_canary, look

SLOTS: dict[str, Track] = {"a": "baseline", "b": "canary"}
SETTINGS = Settings(prometheus_url="http://prometheus.test")


def looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> list[Look]:
    """One every four seconds for six minutes at an even split; from the twentieth second on the store is as `how` says."""
    step = SPEC.steps[0].model_copy(update={"weight": 50, "min_seconds": 60})
    state = in_canary(SPEC.model_copy(update={"steps": (step,)})).state
    assert state.since is not None and state.stable is not None
    start = parse_time(state.since).timestamp()
    clock = [start]
    monkeypatch.setattr(
        step_metrics, "time", SimpleNamespace(time=lambda: clock[0], monotonic=time.monotonic)
    )
    # Each track is scraped when it comes to it: never both in one look.
    stored = [
        replace(s, time=s.time + (1.5 if track == "canary" else 0.0))
        for track in TRACKS
        for s in scrapes(track, start, 360)
    ]

    def read(_: PrometheusReader, begin: float, end: float) -> list[Scrape]:
        found = [s for s in stored if begin < s.time <= end]
        late = [s for s in found if s.time > start + 20]
        if late and how == "away":
            raise MetricsError("away")
        if how == "not a number":
            return [
                replace(s, counters={}, histograms={}, invalid=(*s.counters, *s.histograms))
                if s in late else s
                for s in found
            ]  # fmt: skip
        gone = {"stale": TRACKS, "canary stale": ("canary",), "canary dead": ("canary",)}.get(
            how, ()
        )
        return [s for s in found if s not in late or s.track not in gone]

    monkeypatch.setattr(PrometheusReader, "read", read)
    canary = state.stable.other.value

    def targets(_: str) -> tuple[ScrapeTarget, ...]:
        dead = how == "canary dead" and clock[0] > start + 20
        return (ScrapeTarget("canary", canary, None if dead else "http://pod.test"),)

    cluster: Any = SimpleNamespace(
        status=lambda: ClusterStatus.model_construct(models={}), scrape_targets=targets
    )
    workspace: Any = SimpleNamespace(
        cluster=lambda _: cluster, layout=Settings(workspace=tmp_path).layout, gitops=Away(),
        settings=SETTINGS,
    )  # fmt: skip
    watcher = Watcher(workspace, state)
    seen = []
    for second in range(0, 360, 4):
        clock[0] = start + second
        seen.append(watcher.look())
    return seen


def words(seen: list[Look]) -> list[str]:
    return [look.verdict.verdict for look in seen if look.verdict is not None]


def test_a_canary_that_is_well_passes_by_what_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = looks(tmp_path, monkeypatch, "well")
    assert words(seen)[-1] == "pass"
    assert max(look.blind_seconds for look in seen) < 20


@pytest.mark.parametrize(
    ("hole", "expected"), [((0, 0), 0), ((60, 210), 150), ((60, 100), 40), ((150, 210), 60)]
)
def test_a_driver_in_an_empty_workspace_was_blind_only_while_nothing_was_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hole: tuple[int, int], expected: int
) -> None:
    """A pool gives every run a new workspace. Of the hole it makes no difference whether it has ended."""
    state = in_canary(SPEC).state
    start = parse_time(str(state.since)).timestamp()
    clock = SimpleNamespace(time=lambda: start + 209, monotonic=time.monotonic)
    monkeypatch.setattr(step_metrics, "time", clock)
    stored = [
        s
        for track in TRACKS
        for s in scrapes(track, start, 210)
        if not hole[0] <= s.time - start < hole[1] or (track == "baseline" and expected == 40)
    ]
    monkeypatch.setattr(
        PrometheusReader, "read",
        lambda _, begin, end: [s for s in stored if begin < s.time <= end],
    )  # fmt: skip
    seen = watched(tmp_path, state, SETTINGS).look()
    assert abs(seen.blind_seconds - expected) <= 5
    answer = advance(state, look(state, blind_seconds=seen.blind_seconds), BEGIN)
    assert isinstance(answer, Transition) == (expected > SPEC.outage_budget_seconds)


def test_a_step_that_has_waited_for_days_is_observed_by_the_last_hour_of_what_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = in_canary(SPEC).state
    now = parse_time(str(state.since)).timestamp() + 3 * 86400
    clock = SimpleNamespace(time=lambda: now, monotonic=time.monotonic)
    monkeypatch.setattr(step_metrics, "time", clock)
    stored = [
        replace(s, time=s.time + 0.5) for track in TRACKS for s in scrapes(track, now - 3602, 3602)
    ]
    monkeypatch.setattr(
        PrometheusReader, "read",
        lambda _, begin, end: [s for s in stored if begin < s.time <= end],
    )  # fmt: skip
    assert watched(tmp_path, state, SETTINGS).look().blind_seconds < 10


@pytest.mark.parametrize("how", ["away", "stale", "canary stale", "not a number"])
def test_what_a_prometheus_does_not_tell_is_an_outage_and_in_the_end_unobserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    seen = looks(tmp_path, monkeypatch, how)
    assert not {"pass", "fail"} & set(words(seen))
    assert words(seen)[-1] == "metrics_outage"
    assert seen[-1].blind_seconds > SPEC.outage_budget_seconds


def test_a_server_that_the_cluster_knows_to_be_gone_has_crashed_though_prometheus_says_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert words(looks(tmp_path, monkeypatch, "canary dead"))[-1] == "fail"


def test_a_scrape_that_is_stored_late_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    early, late = (Scrape(t, "canary", name, True) for t, name in ((100.0, "b-0"), (99.0, "b-1")))
    asked: list[float] = []

    def read(_: PrometheusReader, begin: float, end: float) -> list[Scrape]:
        asked.append(begin)
        return [late, early]

    monkeypatch.setattr(PrometheusReader, "read", read)
    stored = StoredMetrics(SETTINGS, "m", "prod", SLOTS)
    known: dict[tuple[Track, str], float] = {("canary", "b-0"): 100.0, ("canary", "b-1"): 97.0}
    assert stored.new(known, since=10.0, now=101.0) == [late]
    assert stored.new({**known, ("canary", "b-1"): 99.0}, since=10.0, now=102.0) == []
    assert asked == [100.0 - LATE_SECONDS] * 2
    assert stored.new({}, since=99.5, now=102.0) == [early], "nothing from before the step"


def test_what_the_driver_says_by_its_own_clock_tells_nothing_of_how_far_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store lags a minute behind; probes and dead servers bear the time of the look."""
    asked: list[float] = []

    def read(_: PrometheusReader, begin: float, end: float) -> list[Scrape]:
        asked.append(begin)
        return []

    monkeypatch.setattr(PrometheusReader, "read", read)
    samples = {"vllm:request_success_total": 1.0}
    probes = {"lockgate:probe_total": 1.0, "lockgate:probe_failed_total": 0.0}
    seen = [
        Scrape(100.0, "canary", "b-0", True, samples),
        Scrape(160.0, "canary", "probe-b", True, probes),
        Scrape(160.0, "canary", "b-0", False),
    ]
    step = in_canary(SPEC).state
    trace = StepTrace(tmp_path / "1.jsonl", tmp_path / "looks.jsonl")
    trace.append(seen)
    again = StepTrace(tmp_path / "1.jsonl", tmp_path / "looks.jsonl")
    assert again.replay(StepJudge(step)) == 160.0, "the last that anybody heard"
    for each in (trace, again):
        StoredMetrics(SETTINGS, "m", "prod", SLOTS).new(each.newest, since=10.0, now=161.0)
    assert asked == [100.0 - LATE_SECONDS] * 2


@pytest.fixture
def queries() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A server that stores nothing; what it is asked, and with which credentials."""
    asked: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            asked.append((body, self.headers.get("Authorization", "")))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"status": "success", "data": {"result": []}}')

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


def test_slots_are_found_by_the_settings_labels_and_the_token_is_of_a_file_or_the_environment(
    queries: tuple[str, list[tuple[str, str]]], tmp_path: Path
) -> None:
    url, asked = queries
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    settings = Settings(
        prometheus_url=url + "/{environment}", prometheus_token_file=token, cluster="kubernetes",
        prometheus_servers={"app": "{model}-{slot}", "in": "{namespace}"},
        prometheus_gateway={"job": "gw"},
    )  # fmt: skip
    route = RouteStatus(
        weights={}, effective={}, version="", loaded=True, mirrored="b", mirror_rule=1
    )
    assert StoredMetrics(settings, "m", "prod", SLOTS, route=route).read(0, 10) == []
    said = [urllib.parse.unquote_plus(body) for body, _ in asked]
    assert any('up{app="m-b",in="lockgate-prod"}[' in body for body in said)
    clusters = {part.partition('"')[0] for b in said for part in b.split('cluster_name="')[1:]}
    assert clusters == {
        "service/lockgate-prod/m-a/8000/http", "service/lockgate-prod/m-b/8000/http",
        "httproute/lockgate-prod/m/rule/1-mirror-0",
    }  # fmt: skip
    assert {authorization for _, authorization in asked} == {"Bearer s3cret"}
    asked.clear()
    own = settings.model_copy(update={"prometheus_token": SecretStr("other")})
    StoredMetrics(own, "m", "prod", SLOTS).read(0, 10)
    assert {authorization for _, authorization in asked} == {"Bearer other"}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"prometheus_url": None}, UsageError),
        ({"prometheus_servers": {"x": "{unknown}"}}, UsageError),
        ({"prometheus_servers": {"job": "{model}", "namespace": "{namespace}"}}, UsageError),
        ({"cluster": "kubernetes", "gateway_cluster": "service/{namespace}/{model}"}, UsageError),
        ({"prometheus_token_file": Path("/nowhere/token")}, UsageError),
        ({"prometheus_ca": Path("/nowhere/ca.pem")}, MetricsError),
    ],
)
def test_a_setting_that_cannot_be_used_is_an_error_before_anybody_is_asked(
    change: dict[str, Any], error: type[Exception]
) -> None:
    settings = SETTINGS.model_copy(update=change)
    with pytest.raises(error):
        StoredMetrics(settings, "m", "prod", SLOTS).read(0, 10)
