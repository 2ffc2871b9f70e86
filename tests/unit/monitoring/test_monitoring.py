"""The template's monitoring objects, and the page that tells a Prometheus what Git says."""

from __future__ import annotations

import json
import re
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import yaml

from lockgate.cli import state_metrics
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.images import ImageRef
from lockgate.domain.release_state import Denied, Occupant, Phase, ReleaseState, Slot
from lockgate.domain.spec import CanarySpec, CanaryStep, ServingSpec
from lockgate.domain.state_metrics import page
from lockgate.errors import GitError
from lockgate.settings import Settings

TEMPLATE = Path(__file__).parents[3] / "gitops_repo_template"


def test_every_monitoring_object_fits_its_strict_schema() -> None:
    seen = set()
    for path in (TEMPLATE / "platform" / "monitoring").glob("[pr]*.yaml"):
        for item in yaml.safe_load_all(path.read_text()):
            name = f"{item['kind'].lower()}_v1.json"
            schema = TEMPLATE / "schemas" / "monitoring.coreos.com" / name
            jsonschema.Draft202012Validator(json.loads(schema.read_text())).validate(item)
            seen.add(item["kind"])
    assert seen == {"PodMonitor", "PrometheusRule"}


def test_the_gateways_name_of_a_slot_becomes_namespace_model_and_slot_and_others_are_dropped() -> (
    None
):
    """The name that the release flow looks for by default, by the scrape's own rules."""
    documents = yaml.safe_load_all((TEMPLATE / "platform/monitoring/podmonitor.yaml").read_text())
    [gateway] = [d for d in documents if d["metadata"]["name"] == "gateway"]
    rules = gateway["spec"]["podMetricsEndpoints"][0]["metricRelabelings"]

    def relabelled(cluster: str) -> dict[str, str] | None:
        labels = {"__name__": "envoy_cluster_upstream_rq_total", "envoy_cluster_name": cluster}
        for rule in rules:
            value = ";".join(labels.get(name, "") for name in rule["sourceLabels"])
            found = re.fullmatch(rule["regex"], value)
            if rule["action"] == "keep" and found is None:
                return None
            if rule["action"] == "replace" and found is not None:
                labels[rule["targetLabel"]] = found.expand(rule["replacement"].replace("$", "\\"))
        return {key: labels[key] for key in ("namespace", "model", "slot") if key in labels}

    def named(service: str) -> str:
        return Settings().gateway_cluster.format(namespace="lockgate-prod", service=service)

    assert relabelled(named("qwen-a-b")) == {
        "namespace": "lockgate-prod",
        "model": "qwen-a",
        "slot": "b",
    }
    assert relabelled(named("m-baseline")) == {
        "namespace": "lockgate-prod",
        "model": "m",
        "slot": "baseline",
    }
    copies = Settings().gateway_mirror_cluster.format(namespace="lockgate-prod", model="m", rule=0)
    assert relabelled(copies) == {}, "kept for the release flow, and no slot's"
    for other in ("httproute/lockgate-prod/m/rule/0", named("frontend"), "xds_cluster"):
        assert relabelled(other) is None, other


def state() -> ReleaseState:
    candidate = Candidate(
        model=ImageRef.parse("r.example.com/m@" + Digest.of_bytes(b"m")),
        runtime=ImageRef.parse("r.example.com/vllm@" + Digest.of_bytes(b"runtime")),
        serving=ServingSpec(served_model_name="smol"),
    )
    denied = Denied(candidate=Digest.of_bytes(b"x"), at="t", reason="slow", release="bad")
    return ReleaseState(
        model="smol", environment="prod", generation=12, phase=Phase.STABLE, stable=Slot.A,
        a=Occupant(candidate=candidate, release="one", evidence=Digest.of_bytes(b"evidence")),
        denylist=(denied,),
    )  # fmt: skip


def test_the_page_says_generation_phase_weights_candidates_and_denylist() -> None:
    text = page([state()])
    base = 'model="smol",namespace="lockgate-prod"'
    occupant = state().a
    assert occupant is not None
    for line in (
        f"lockgate_release_generation{{{base}}} 12",
        f'lockgate_release_phase{{{base},phase="stable"}} 1',
        f'lockgate_route_weight{{{base},slot="a"}} 100',
        f'lockgate_slot_candidate{{{base},slot="a",candidate="{occupant.candidate.digest}"}} 1',
        f'lockgate_denied{{{base},candidate="{Digest.of_bytes(b"x")}"}} 1',
    ):
        assert line in text.splitlines()
    assert "lockgate_release_since_seconds{" not in text, "nothing is under way"


def canary(**changes: Any) -> ReleaseState:
    """The second version takes its first step since 12:00, for 600 s and 120 s of outages."""
    stable = state().a
    assert stable is not None
    new = stable.model_copy(update={"release": "two"})
    spec = CanarySpec(steps=(CanaryStep(weight=5), CanaryStep(weight=50)))
    values = {
        "model": "smol", "environment": "prod", "phase": Phase.CANARY, "stable": Slot.A, "a": stable,
        "b": new, "canary": spec, "step": 0, "weight": 5, "since": "2026-11-28T12:00:00Z",
    }  # fmt: skip
    return ReleaseState.model_validate(values | changes)


def decide_by(of: ReleaseState) -> str | None:
    name = 'lockgate_canary_decide_by_seconds{model="smol",namespace="lockgate-prod"} '
    found = [line.removeprefix(name) for line in page([of]).splitlines() if line.startswith(name)]
    if not found:
        return None
    return datetime.fromtimestamp(float(found[0]), UTC).strftime("%H:%M:%S")


def verdict(said: str) -> dict[str, Any]:
    report = Digest.of_bytes(b"report")
    return {
        "step": 0, "weight": 5, "verdict": said, "report": report, "at": "t", "summary": "few requests",
    }  # fmt: skip


def test_a_canary_without_a_verdict_says_until_when_it_has_to_have_one() -> None:
    assert decide_by(canary()) == "12:12:00"
    # Held for want of one it still has none; whoever lifts the hold gives it its time anew.
    held = {"phase": Phase.HELD, "held_from": Phase.CANARY, "held_reason": "no verdict within 600 s"}  # fmt: skip
    assert decide_by(canary(**held, verdicts=[verdict("insufficient_data")])) == "12:12:00"
    assert decide_by(canary(resumed="2026-11-28T13:00:00Z")) == "13:12:00"


def test_a_canary_that_has_its_verdict_and_a_release_that_is_none_have_no_such_time() -> None:
    assert decide_by(canary(verdicts=[verdict("pass")])) is None
    assert decide_by(canary(phase=Phase.AWAITING_APPROVAL, verdicts=[verdict("pass")])) is None
    assert decide_by(canary(phase=Phase.DEPLOYING, step=None, weight=0)) is None
    assert decide_by(state()) is None
    # The verdict of the step before is none on this one.
    assert decide_by(canary(step=1, weight=50, verdicts=[verdict("pass")])) == "12:12:00"


def test_a_repository_that_cannot_be_read_is_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [page([state()])]

    def read(settings: Settings) -> str:
        if answers:
            return answers.pop()
        raise GitError("the remote is away")

    monkeypatch.setattr(state_metrics, "read_page", read)
    server = state_metrics.serve(Settings(), "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
            assert client.get("/metrics").text == page([state()])
            away = client.get("/metrics")
            assert (away.status_code, away.text) == (503, "the remote is away\n")
            assert client.get("/").status_code == 404
    finally:
        server.shutdown()
        server.server_close()
