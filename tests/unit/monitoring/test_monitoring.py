"""The template's monitoring objects, and the page that tells a Prometheus what Git says."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import httpx
import jsonschema
import pytest
import yaml

from lockgate.cli import state_metrics
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.images import ImageRef
from lockgate.domain.release_state import Denied, Occupant, Phase, ReleaseState, Slot
from lockgate.domain.spec import ServingSpec
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
