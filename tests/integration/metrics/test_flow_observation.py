"""A driver that reads a real Prometheus sees what one sees that scrapes the endpoints itself."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lockgate.adapters import metrics
from lockgate.adapters.metrics import ScrapeTarget
from lockgate.cli import main
from lockgate.domain.cluster import ClusterStatus
from lockgate.domain.release_state import ReleaseState, Slot
from lockgate.domain.rollout.transitions import rfc3339
from lockgate.domain.spec import CanaryStep, JudgeTuning
from lockgate.domain.trace import Scrape, Track, parse_line
from lockgate.settings import Settings
from serving.local.envoy_config import cluster_name
from tasks import step_metrics
from tasks.judging import judge_config
from tasks.watching import Watcher
from tests.integration.metrics.prometheus_server import running_prometheus
from tests.integration.metrics.test_prometheus import Endpoints
from tests.unit.rollout.test_watching import Away
from tests.unit.rollout.world import SPEC, in_canary


@pytest.fixture
def state() -> ReleaseState:
    """In the first step, since now."""
    spec = SPEC.model_copy(
        update={
            "steps": (CanaryStep(weight=50, min_seconds=1), *SPEC.steps[2:]),
            "judge": JudgeTuning(block_seconds=2.0, drift_sd=0.0),
        }
    )
    return in_canary(spec).state.model_copy(update={"since": rfc3339(datetime.now(UTC))})


@pytest.fixture
def tracks(state: ReleaseState) -> dict[str, Track]:
    assert state.stable is not None
    return {state.stable.value: "baseline", state.stable.other.value: "canary"}


@pytest.fixture
def endpoints(state: ReleaseState, tracks: dict[str, Track]) -> Iterator[Endpoints]:
    made = Endpoints({track: cluster_name(state.model, Slot(s)) for s, track in tracks.items()})
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def prometheus(
    prometheus_binary: Path, endpoints: Endpoints, tracks: dict[str, Track], state: ReleaseState,
    tmp_path: Path,
) -> Iterator[str]:  # fmt: skip
    """With the labels that the template's PodMonitors make."""

    def target(**labels: str) -> dict[str, Any]:
        return {"targets": [endpoints.host], "labels": labels}

    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "400ms"},
        "scrape_configs": [
            {
                "job_name": f"server-{slot}",
                "metrics_path": f"/engine/{track}",
                "static_configs": [
                    target(job="lockgate/model-servers", namespace=f"lockgate-{state.environment}",
                           model=state.model, slot=slot, pod=f"{state.model}-{slot}-0")
                ],
            }
            for slot, track in tracks.items()
        ] + [
            {"job_name": "lockgate/gateway", "metrics_path": "/stats",
             "static_configs": [target(namespace="lockgate-gateway", pod="envoy-0")]}
        ],
    }  # fmt: skip
    (tmp_path / "prometheus").mkdir()
    with running_prometheus(prometheus_binary, config, tmp_path / "prometheus") as url:
        yield url


def watcher(where: Path, state: ReleaseState, settings: Settings) -> Watcher:
    cluster: Any = SimpleNamespace(
        status=lambda: ClusterStatus.model_construct(models={}), scrape_targets=lambda _: ()
    )
    workspace: Any = SimpleNamespace(
        cluster=lambda _: cluster, layout=Settings(workspace=where).layout, gitops=Away(),
        settings=settings,
    )  # fmt: skip
    return Watcher(workspace, state)


def test_the_flow_judges_what_a_prometheus_has_stored_as_it_would_scrapes_of_its_own(
    prometheus: str, endpoints: Endpoints, state: ReleaseState, tracks: dict[str, Track],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    eyes = watcher(tmp_path / "stored", state, Settings(prometheus_url=prometheus))
    deadline = time.monotonic() + 60
    look = eyes.look()
    while look.verdict is None or look.verdict.verdict != "fail":
        assert time.monotonic() < deadline, look.verdict
        time.sleep(0.7)
        look = eyes.look()
        if time.monotonic() > deadline - 30:
            assert look.blind_seconds < 10
    path = Settings(workspace=tmp_path / "stored").layout.trace(
        state.model, state.environment, state.began
    )
    stored = [r for line in path.read_text().splitlines() if isinstance(r := parse_line(line), Scrape)]  # fmt: skip
    assert {s.instance.partition("/")[0] for s in stored} == {
        *(f"{state.model}-{slot}-0" for slot in tracks), "envoy-0",
    }  # fmt: skip

    # The pages that Prometheus was given, scraped once more by Lockgate itself, each at its time.
    served = {path: iter(pages) for path, pages in endpoints.served.items()}
    shown: dict[str, str] = {}
    monkeypatch.setattr(endpoints, "page", lambda path: shown[path])
    by_time: dict[tuple[str, float], list[Scrape]] = defaultdict(list)
    direct: list[Scrape] = []
    began = dict.fromkeys(served, 0)
    for seen in stored:
        gateway = "/" in seen.instance
        page = "/stats" if gateway else f"/engine/{seen.track}"
        if not by_time[page, seen.time]:
            expected = shown[page] = next(served[page])
            while not _matches(seen, expected):
                began[page] += 1
                assert began[page] < 20, "pages before the step began, and no others"
                expected = shown[page] = next(served[page])
        by_time[page, seen.time].append(seen)
        slot = next(s for s, track in tracks.items() if track == seen.track)
        cluster = seen.instance.partition("/")[2] or None
        url = f"http://{endpoints.host}{page}"
        [own] = metrics.scrape(
            [ScrapeTarget(seen.instance, slot, url, cluster)], tracks, time=seen.time
        )
        direct.append(own)
    assert direct == stored

    monkeypatch.setattr(step_metrics.metrics, "scrape", lambda *_, **__: direct)
    other = watcher(tmp_path / "direct", state, Settings()).look()
    assert other.verdict is not None and look.verdict is not None
    assert (other.verdict.verdict, other.verdict.at) == ("fail", look.verdict.at)
    assert other.verdict.summary == look.verdict.summary

    # And the command line, of the same Prometheus and the same time.
    config = tmp_path / "judge.json"
    config.write_text(json.dumps(judge_config(state).to_data()))
    monkeypatch.setattr(
        sys, "argv",
        ["lockgate", "judge", "--config", str(config), "--prometheus", prometheus,
         "--model", state.model, "--env", state.environment,
         "--canary", next(s for s, t in tracks.items() if t == "canary"),
         "--from", str(state.since), "--to", str(time.time())],
    )  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main()
    [line] = capsys.readouterr().out.splitlines()
    said = json.loads(line)
    assert (ended.value.code, said["verdict"]) == (3, "fail")
    assert rfc3339(datetime.fromtimestamp(said["decided_at"], UTC)) == look.verdict.at


def _matches(seen: Scrape, page: str) -> bool:
    """Whether this is the page that the scrape is of."""
    counters, histograms, *_ = metrics.parse_metrics(
        page, cluster=seen.instance.partition("/")[2] or None
    )
    return (counters, histograms) == (seen.counters, seen.histograms)
