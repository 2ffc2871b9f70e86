"""Prefect in a cluster: what Prefect's worker makes of every deployment is a valid, restricted Job that runs as whom it should."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from prefect.server.api import collections_data
from prefect.utilities.templating import find_placeholders

from tests.integration.git.layouts import own_checks
from tests.unit.house.prefect_jobs import (
    DEPLOYED,
    NAMES,
    PLATFORM,
    ROOT,
    as_stored,
    job,
    pod,
    restricted_faults,
    template,
)  # fmt: skip

TEMPLATE = ROOT / "gitops_repo_template"
DATA = Path(__file__).parent / "data"
GPU_STEPS = {"quantize", "measure"}
IDENTITIES = {"lockgate-release", "lockgate-prepare", "lockgate-measure", "lockgate-sign"}


@cache
def objects() -> tuple[dict[str, Any], ...]:
    paths = [p for p in (PLATFORM / "prefect").glob("*.yaml") if p.name != "kustomization.yaml"]
    paths += [PLATFORM / "cluster" / "identities.yaml", PLATFORM / "cluster" / "worker.yaml"]
    paths += [PLATFORM / "cluster" / "priorityclasses.yaml"]
    return tuple(item for path in sorted(paths) for item in yaml.safe_load_all(path.read_text()))


def named(kind: str, namespace: str | None) -> set[str]:
    return {
        item["metadata"]["name"]
        for item in objects()
        if item["kind"] == kind and item["metadata"].get("namespace") == namespace
    }


def prefects_own() -> dict[str, Any]:
    path = Path(str(collections_data.__path__[0])) / "views" / "aggregate-worker-metadata.json"
    return dict(
        json.loads(path.read_text())["prefect-kubernetes"]["kubernetes"][
            "default_base_job_configuration"
        ]
    )


def test_the_template_has_what_prefects_worker_reads_and_names_no_variable_that_is_not_declared() -> (
    None
):
    own = prefects_own()["job_configuration"]
    assert template()["job_configuration"].keys() == own.keys()
    used = {p.name for p in find_placeholders(template()["job_configuration"])}
    assert used == template()["variables"]["properties"].keys()


@pytest.mark.parametrize("name", NAMES)
def test_a_deployments_variables_are_the_pools_and_make_a_valid_job(name: str) -> None:
    (deployed,) = [d for d in DEPLOYED if d["name"] == name]
    given = deployed["work_pool"]["job_variables"]
    jsonschema.validate(given, {**template()["variables"], "additionalProperties": False})
    kubernetes_validate.validate(as_stored(job(name)), "1.35", strict=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_job_runs_restricted_as_an_identity_of_its_own_namespace(name: str) -> None:
    made, spec = job(name), pod(name)
    namespace = made["metadata"]["namespace"]
    assert spec["serviceAccountName"] in named("ServiceAccount", namespace) & IDENTITIES
    # What is in its network policies, settings and secrets follows from the step's name.
    step = made["spec"]["template"]["metadata"]["labels"]["lockgate.dev/step"]
    assert spec["serviceAccountName"] == f"lockgate-{step}"
    assert restricted_faults(spec) == []
    (container,) = spec["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["args"] == ["prefect", "flow-run", "execute"]
    assert spec["priorityClassName"] in named("PriorityClass", None)


def references(spec: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """Kind, name and whether it may be missing, of everything that a pod takes up."""
    for source in spec["containers"][0]["envFrom"]:
        for kind, key in (("Secret", "secretRef"), ("ConfigMap", "configMapRef")):
            if key in source:
                yield kind, source[key]["name"], source[key].get("optional", False)
    for volume in spec["volumes"]:
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"], volume["secret"]["optional"]
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"], volume["configMap"]["optional"]


@pytest.mark.parametrize("name", NAMES)
def test_secrets_come_by_reference_and_only_those_of_the_step(name: str) -> None:
    spec, namespace = pod(name), job(name)["metadata"]["namespace"]
    there = {
        "Secret": named("ExternalSecret", namespace),
        "ConfigMap": named("ConfigMap", namespace),
    }
    taken = {(kind, ref) for kind, ref, _ in references(spec) if ref in there[kind]}
    for kind, ref, optional in references(spec):
        assert optional or (kind, ref) in taken, ref
    git = ("Secret", "lockgate-git-release") in taken
    key = ("ConfigMap", "lockgate-settings-sign") in taken
    untrusted = name in ("prepare", "quantize", "measure", "scan-served")
    # Who opens untrusted bytes has neither Git nor the release key, and who signs has no Git.
    assert (git, key) == (not untrusted and name != "sign", name == "sign")


def test_nothing_that_looks_like_a_secret_stands_in_settings_variables_or_values() -> None:
    data = [o["data"] for o in objects() if o["kind"] == "ConfigMap"]
    charts = [yaml.safe_load(p.read_text()) for p in (TEMPLATE / "charts").glob("prefect-*.yaml")]
    text = json.dumps([data, charts, DEPLOYED]).lower()
    for word in ("password", "authstring", "private key", "hf_token", "api_key", "auth_string"):
        assert word not in text
    assert named("Secret", "lockgate") | named("Secret", "prefect") == set()


def test_steps_that_want_a_gpu_and_no_others_share_one_queue_and_so_its_slots() -> None:
    gpus = {
        name: pod(name)["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] for name in NAMES
    }
    queued = {d["name"] for d in DEPLOYED if d["work_pool"].get("work_queue_name") == "gpu"}
    assert {name for name, count in gpus.items() if count} == queued == GPU_STEPS
    # A limit of its own would be slots beside the shared ones.
    assert not any(d.get("concurrency_limit") for d in DEPLOYED if d["name"] in GPU_STEPS)


def test_every_container_of_the_workers_is_let_into_its_namespace() -> None:
    """By default the chart's containers keep their capabilities, which `restricted` refuses."""
    for path in (TEMPLATE / "charts").glob("prefect-worker*.yaml"):
        worker = yaml.safe_load(path.read_text())["worker"]
        containers = [{"name": "prefect-worker", "securityContext": worker["containerSecurityContext"]}]  # fmt: skip
        if "baseJobTemplate" in worker["config"]:
            given = worker["initContainer"]["containerSecurityContext"]
            containers.append({"name": "sync-base-job-template", "securityContext": given})
        # The pod's profile is the chart's default.
        made = {"containers": containers, "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}  # fmt: skip
        assert restricted_faults(made) == [], path.name


def test_every_object_of_the_platform_is_valid_by_the_repositorys_own_checks() -> None:
    checks = own_checks()
    faults = [
        (item["kind"], item["metadata"]["name"], fault)
        for item in objects()
        for fault in checks.faults(item, TEMPLATE / "schemas")
    ]
    assert faults == []
    listed = yaml.safe_load((PLATFORM / "prefect" / "kustomization.yaml").read_text())["resources"]
    there = {path.name for path in (PLATFORM / "prefect").glob("*.yaml")} - {"kustomization.yaml"}
    assert set(listed) == there


def unknown(values: Any, schema: dict[str, Any], at: str = "") -> Iterator[str]:
    """Keys that the chart's schema does not have: a chart ignores what it does not know."""
    properties = schema.get("properties")
    if not isinstance(values, dict) or not properties:
        return
    for key, value in values.items():
        if key in properties:
            yield from unknown(value, properties[key], f"{at}.{key}")
        else:
            yield f"{at}.{key}"


@pytest.mark.parametrize("chart", ["prefect-server", "prefect-worker", "prefect-worker-sign"])
def test_the_charts_know_every_value_that_they_are_given(chart: str) -> None:
    values = yaml.safe_load((TEMPLATE / "charts" / f"{chart}.yaml").read_text())
    kind = "server" if "server" in chart else "worker"
    schema = json.loads((DATA / f"prefect-{kind}-values.schema.json").read_text())
    jsonschema.validate(values, schema)
    assert list(unknown(values, schema)) == []


def test_the_workers_of_the_charts_take_every_queue_once_and_run_as_the_platforms_accounts() -> (
    None
):
    queues: list[str] = []
    for chart, namespace in (
        ("prefect-worker", "lockgate"),
        ("prefect-worker-sign", "lockgate-sign"),
    ):
        values = yaml.safe_load((TEMPLATE / "charts" / f"{chart}.yaml").read_text())
        config = values["worker"]["config"]
        assert config["jobNamespace"] == namespace
        assert values["serviceAccount"]["name"] in named("ServiceAccount", namespace)
        assert not values["role"]["create"]
        queues += config["workQueues"]
        jobs = [
            d
            for d in DEPLOYED
            if d["work_pool"].get("work_queue_name", "default") in config["workQueues"]
        ]
        assert jobs and all(job(d["name"])["metadata"]["namespace"] == namespace for d in jobs)
    assert len(queues) == len(set(queues))
    assert {d["work_pool"].get("work_queue_name", "default") for d in DEPLOYED} == set(queues)
